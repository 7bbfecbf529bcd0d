//! An entry: a value, its end, and what it takes.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::account::{Account, Charge};
use crate::lifecycle::{ProcessSlot, gate};
use crate::store::kept::{Keep, Slot};

/// Shared values up to this size are copied into a memory of their own.
const SMALL: usize = 64 << 10;

thread_local! {
    static DROPPED: Cell<u64> = const { Cell::new(0) };
    static DECODED: RefCell<Vec<Slot>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) value: Bytes,
    pub(super) expires_at: Option<Instant>,
    /// For what the value decodes to, once it was read as a shared one.
    slot: Option<Slot>,
    charge: Charge,
}

impl Entry {
    pub(super) fn new(account: &Arc<Account>, key: &str, value: Bytes, expires_at: Option<Instant>) -> Arc<Entry> {
        let charge = Charge::new(account, account.bound().weigh(key, value.len()));
        Arc::new(Entry { value, expires_at, slot: None, charge })
    }

    /// The same, with a place for what it decodes to, which takes so many bytes.
    pub(super) fn with_slot(&self, account: &Arc<Account>, key: &str, decoded: usize) -> Arc<Entry> {
        let charge = Charge::new(account, account.bound().weigh(key, self.value.len() + decoded));
        let (value, expires_at) = (self.value.clone(), self.expires_at);
        Arc::new(Entry { value, expires_at, slot: Some(ProcessSlot::new()), charge })
    }

    pub(super) fn has_slot(&self) -> bool {
        self.slot.is_some()
    }

    /// In the unit of the bound, as far as moka can count.
    pub(super) fn weight(&self) -> u32 {
        u32::try_from(self.charge.amount()).unwrap_or(u32::MAX)
    }

    pub(super) fn is_live(&self) -> bool {
        self.expires_at.is_none_or(|expires_at| Instant::now() < expires_at)
    }
}

impl Keep for Entry {
    #[inline]
    fn bytes(&self) -> &Bytes {
        &self.value
    }

    #[inline]
    fn slot(&self) -> Option<&Slot> {
        self.slot.as_ref()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        DROPPED.set(DROPPED.get().wrapping_add(1));
        if let Some(slot) = self.slot.take()
            && gate::is_inside()
        {
            // Where a thread ends it is dropped at once.
            let _ = DECODED.try_with(|decoded| decoded.borrow_mut().push(slot));
        }
    }
}

/// Drops the decoded values of the entries that this thread has dropped inside the gate: that is a user's code.
/// Outside of the gate.
#[inline]
pub(super) fn drop_decoded() {
    let decoded = DECODED.with(|decoded| if decoded.borrow().is_empty() { None } else { Some(decoded.take()) });
    drop(decoded);
}

/// How many entries this thread has dropped.
pub(super) fn dropped_by_this_thread() -> u64 {
    DROPPED.get()
}

/// The value in memory that holds nothing else: neither the room that a writer's buffer had left, nor the whole of a
/// buffer that the value is a small part of. Such memory would not be counted.
pub(super) fn alone(value: Bytes) -> Bytes {
    match value.try_into_mut() {
        Ok(own) => Vec::from(own).into_boxed_slice().into(),
        Err(shared) if shared.len() <= SMALL => Bytes::copy_from_slice(&shared),
        Err(shared) => shared,
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};

    use super::alone;

    fn room_of(value: Bytes) -> usize {
        value.try_into_mut().expect("an only reference").capacity()
    }

    #[test]
    fn a_value_keeps_no_room_that_it_does_not_use() {
        let mut roomy = Vec::with_capacity(4_096);
        roomy.extend([7; 100]);
        let value = alone(roomy.into());
        assert_eq!(&*value, [7; 100]);
        assert_eq!(room_of(value), 100);
    }

    #[test]
    fn a_part_of_a_buffer_does_not_keep_the_whole() {
        let mut buffer = BytesMut::zeroed(1 << 20);
        let part = buffer.split_to(100).freeze();
        assert_eq!(room_of(alone(part)), 100);
        let only_reference = Bytes::from(vec![7; 1 << 20]).slice(1_000..1_100);
        assert_eq!(room_of(alone(only_reference)), 100);
        assert_eq!(alone(Bytes::from_static(b"static")), "static");
    }
}
