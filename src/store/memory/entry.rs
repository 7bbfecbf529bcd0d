//! An entry: a value, its time of expiry, and the charge for its size.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::account::{Account, Charge};
use crate::lifecycle::{ProcessSlot, gate};
use crate::store::kept::{Keep, Slot};

/// The size in bytes up to which a shared value is copied into memory of its own.
const MAX_COPIED: usize = 64 << 10;

thread_local! {
    static DROPPED: Cell<u64> = const { Cell::new(0) };
    static DECODED: RefCell<Vec<Slot>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) value: Bytes,
    pub(super) expires_at: Option<Instant>,
    /// For the decoded value; present once the entry was read by a shared read.
    slot: Option<Slot>,
    charge: Charge,
}

impl Entry {
    pub(super) fn new(account: &Arc<Account>, key: &str, value: Bytes, expires_at: Option<Instant>) -> Arc<Entry> {
        let charge = Charge::new(account, account.bound().weigh(key, value.len()));
        Arc::new(Entry { value, expires_at, slot: None, charge })
    }

    /// Returns a copy with a slot for the decoded value, whose size in bytes is `decoded`.
    pub(super) fn with_slot(&self, account: &Arc<Account>, key: &str, decoded: usize) -> Arc<Entry> {
        let charge = Charge::new(account, account.bound().weigh(key, self.value.len() + decoded));
        let (value, expires_at) = (self.value.clone(), self.expires_at);
        Arc::new(Entry { value, expires_at, slot: Some(ProcessSlot::new()), charge })
    }

    pub(super) fn has_slot(&self) -> bool {
        self.slot.is_some()
    }

    /// Returns the weight in the unit of the bound, at most `u32::MAX`, which is moka's limit.
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
            // If the thread is ending, the slot is dropped here.
            let _ = DECODED.try_with(|decoded| decoded.borrow_mut().push(slot));
        }
    }
}

/// Drops the decoded values of entries that this thread has dropped inside the gate. Must be called outside of the
/// gate, since their destructors are the user's code.
#[inline]
pub(super) fn drop_decoded() {
    let decoded = DECODED.with(|decoded| if decoded.borrow().is_empty() { None } else { Some(decoded.take()) });
    drop(decoded);
}

/// Returns the number of entries that this thread has dropped.
pub(super) fn dropped_by_this_thread() -> u64 {
    DROPPED.get()
}

/// Returns the value in an allocation that contains nothing else: neither the spare capacity of a writer's buffer, nor
/// the rest of a buffer of which the value is a small part. Such memory would not be counted. A shared value of more
/// than [`MAX_COPIED`] bytes is returned unchanged.
pub(super) fn compacted(value: Bytes) -> Bytes {
    match value.try_into_mut() {
        Ok(own) => Vec::from(own).into_boxed_slice().into(),
        Err(shared) if shared.len() <= MAX_COPIED => Bytes::copy_from_slice(&shared),
        Err(shared) => shared,
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};

    use super::compacted;

    fn capacity_of(value: Bytes) -> usize {
        value.try_into_mut().expect("the only reference").capacity()
    }

    #[test]
    fn a_stored_value_has_no_spare_capacity() {
        let mut roomy = Vec::with_capacity(4_096);
        roomy.extend([7; 100]);
        let value = compacted(roomy.into());
        assert_eq!(&*value, [7; 100]);
        assert_eq!(capacity_of(value), 100);
    }

    #[test]
    fn a_part_of_a_buffer_does_not_keep_the_whole_buffer_allocated() {
        let mut buffer = BytesMut::zeroed(1 << 20);
        let part = buffer.split_to(100).freeze();
        assert_eq!(capacity_of(compacted(part)), 100);
        let only_reference = Bytes::from(vec![7; 1 << 20]).slice(1_000..1_100);
        assert_eq!(capacity_of(compacted(only_reference)), 100);
        assert_eq!(compacted(Bytes::from_static(b"static")), "static");
    }
}
