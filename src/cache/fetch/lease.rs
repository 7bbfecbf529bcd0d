//! Leases: the right to load a key, among all processes on one store.
//!
//! A lease is a key of its own beside the value's, never a placeholder under the value's key, which another program
//! might take for the value. Its TTL on the server is long, so that it is not evicted before other entries. Its actual
//! end depends on its value:
//!
//! - A token that only its holder knows.
//! - The heartbeat, a number that the holder increments while it loads, and the patience, in milliseconds: a process
//!   that sees no heartbeat for this long takes the lease over. Without tokio there is no heartbeat, and the patience
//!   is as long as a load may take.
//! - The holder's name: a process on the same host that finds the holder dead takes the lease over at once.
//!
//! A delete replaces the lease by a mark. A holder that finds another token, a mark or nothing under its lease's key
//! has loaded a value that may be outdated, and does not store it.
//!
//! If a load ends without being settled (its future is dropped, or it panics), the lease is released: on tokio in the
//! background, elsewhere and while the runtime is being shut down at once. A child never releases its parent's leases.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::lease_holder;
use crate::cache::{Cache, blocking};
use crate::error::Result;
#[cfg(feature = "tokio")]
use crate::execution::{Execution, execution};
use crate::lifecycle::generation;
#[cfg(feature = "tokio")]
use crate::store::Outcome;
use crate::store::{Op, Settle, Ttl, lease_key, wrong_count};

/// Replaces a lease whose load has stored nothing. Waiting callers then do not wait for the next load, which would
/// probably store nothing either.
pub(in crate::cache) const NOTHING_STORED: &[u8] = b"nothing stored";
/// Replaces a lease when its key is deleted.
pub(in crate::cache) const DELETED: &[u8] = b"deleted";
pub(in crate::cache) const MARK_TTL: Ttl = Ttl::After(Duration::from_secs(1));

/// TTL on the server, long enough to be among the last entries that `volatile-ttl` evicts.
const LEASE_TTL: Ttl = Ttl::After(Duration::from_secs(24 * 60 * 60));

const TOKEN: usize = 16;
const HEADER: usize = TOKEN + 8 + 8;

/// The value under a lease's key on the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LeaseState {
    Nothing,
    /// A load that stored nothing has ended within the last second.
    NothingStored,
    /// The key was deleted during the load.
    Deleted,
    Held {
        patience: Duration,
        holder: String,
    },
}

impl LeaseState {
    pub(super) fn of(lease: Option<&Bytes>) -> LeaseState {
        match lease.map(|lease| &lease[..]) {
            None => LeaseState::Nothing,
            Some(NOTHING_STORED) => LeaseState::NothingStored,
            Some(DELETED) => LeaseState::Deleted,
            Some(lease) => {
                let patience = lease.get(TOKEN + 8..HEADER).and_then(|bytes| bytes.try_into().ok());
                let patience =
                    patience.map_or(Duration::ZERO, |bytes| Duration::from_millis(u64::from_le_bytes(bytes)));
                let holder = String::from_utf8_lossy(lease.get(HEADER..).unwrap_or_default()).into_owned();
                LeaseState::Held { patience, holder }
            }
        }
    }
}

/// A lease of this process.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    key: String,
    value: Bytes,
}

impl Lease {
    /// Returns a lease to ask for. `patience` is how long other processes respect it without a heartbeat.
    pub(super) fn new(full_key: &str, patience: Duration) -> Lease {
        let mut value = BytesMut::with_capacity(HEADER + lease_holder::own().len());
        value.put_slice(&token());
        value.put_u64_le(0);
        value.put_u64_le(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX));
        value.put_slice(lease_holder::own().as_bytes());
        Lease { key: lease_key(full_key), value: value.freeze() }
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn token(&self) -> &[u8] {
        &self.value[..TOKEN]
    }

    /// Returns the operation that takes the lease if its key holds `expected`.
    pub(super) fn take<'a>(&'a self, expected: Option<&'a [u8]>) -> Op<'a> {
        self.take_for(LEASE_TTL, expected)
    }

    /// [`take`](Lease::take) with another TTL on the server.
    pub(super) fn take_for<'a>(&'a self, ttl: Ttl, expected: Option<&'a [u8]>) -> Op<'a> {
        Op::CompareAndSet { key: &self.key, expected, new: Some(self.value.clone()), ttl }
    }

    /// Returns the operation that ends the lease and stores nothing.
    fn release(&self) -> Op<'_> {
        Op::Settle(Settle { key: &self.key, lease: &self.key, token: self.token(), store: None, mark: None })
    }
}

/// The leases that a fetch holds, by the index of their keys in it. Dropping them releases them.
pub(super) struct Leases {
    cache: Cache,
    /// The method that holds them, for reports of failures.
    verb: &'static str,
    generation: u64,
    held: Vec<(usize, Lease)>,
    /// Whether a task is releasing them, which a runtime that shuts down drops.
    #[cfg(feature = "tokio")]
    is_in_background: bool,
    #[cfg(feature = "tokio")]
    beating: Option<tokio::task::AbortHandle>,
}

impl Leases {
    pub(super) fn none(cache: &Cache, verb: &'static str) -> Leases {
        Leases {
            cache: cache.clone(),
            verb,
            generation: generation(),
            held: Vec::new(),
            #[cfg(feature = "tokio")]
            is_in_background: false,
            #[cfg(feature = "tokio")]
            beating: None,
        }
    }

    /// Adds a lease before it is asked for, so that it is released if the request is cancelled after the server granted
    /// it.
    pub(super) fn add(&mut self, index: usize, lease: Lease) {
        self.held.push((index, lease));
    }

    /// Removes a lease that was not granted.
    pub(super) fn forget(&mut self, index: usize) {
        self.held.retain(|(other, _)| *other != index);
    }

    pub(super) fn of(&self, index: usize) -> Option<&Lease> {
        // A loader may have forked, and this may be the child.
        let of_this_process = self.generation == generation();
        self.held.iter().find(|(other, _)| *other == index && of_this_process).map(|(_, lease)| lease)
    }

    /// Removes leases that have ended.
    pub(super) fn settled(&mut self, indices: &[usize]) {
        self.held.retain(|(index, _)| !indices.contains(index));
        if self.held.is_empty() {
            self.stop_beating();
        }
    }

    /// Releases leases that are not needed.
    pub(super) async fn release(&mut self, indices: &[usize]) {
        if !indices.is_empty() && self.generation == generation() {
            let held = self.held.extract_if(.., |(index, _)| indices.contains(index)).collect();
            let mut unneeded = Leases::none(&self.cache, self.verb);
            unneeded.held = held;
            unneeded.release_all().await;
        }
    }

    /// Releases one lease. Returns whether it was held until now; `false` for a parent's.
    pub(super) async fn end(&mut self, index: usize) -> Result<bool> {
        let Some(lease) = self.of(index).cloned() else { return Ok(false) };
        let ended = self.cache.batch(&[lease.release()]).await.pop().unwrap_or_else(|| Err(wrong_count()));
        let was_held = ended?.is_done();
        self.settled(&[index]);
        Ok(was_held)
    }

    /// Inside tokio, increments the heartbeat of each lease every third of its patience, for at most `load_timeout`.
    /// Elsewhere does nothing.
    #[cfg(feature = "tokio")]
    pub(super) fn beat(&mut self) {
        if self.held.is_empty() || !matches!(execution(), Ok(Execution::Tokio(_))) {
            return;
        }
        self.stop_beating();
        let cache = self.cache.clone();
        let leases = self.held.iter().map(|(_, lease)| lease.clone()).collect();
        self.beating = Some(tokio::spawn(beat(cache, leases)).abort_handle());
    }

    #[cfg(not(feature = "tokio"))]
    pub(super) fn beat(&mut self) {}

    #[cfg(feature = "tokio")]
    fn stop_beating(&mut self) {
        let beating = self.beating.take();
        if self.generation != generation() {
            std::mem::forget(beating);
        } else if let Some(beating) = beating {
            beating.abort();
        }
    }

    #[cfg(not(feature = "tokio"))]
    fn stop_beating(&mut self) {}

    async fn release_all(mut self) {
        release(&self.cache, self.verb, &self.held).await;
        self.held.clear();
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.stop_beating();
        let held = std::mem::take(&mut self.held);
        if held.is_empty() || self.generation != generation() {
            return;
        }
        #[cfg(feature = "tokio")]
        if !self.is_in_background && matches!(execution(), Ok(Execution::Tokio(_))) {
            let mut leases = Leases::none(&self.cache, self.verb);
            (leases.held, leases.is_in_background) = (held, true);
            let running = self.cache.local().background.begin();
            tokio::spawn(async move {
                leases.release_all().await;
                drop(running);
            });
            return;
        }
        blocking::at_once(std::pin::pin!(release(&self.cache, self.verb, &held)));
    }
}

async fn release(cache: &Cache, verb: &'static str, held: &[(usize, Lease)]) {
    let operations: Vec<Op<'_>> = held.iter().map(|(_, lease)| lease.release()).collect();
    for error in cache.batch(&operations).await.into_iter().filter_map(Result::err) {
        cache.report(verb, &error);
    }
}

#[cfg(feature = "tokio")]
async fn beat(cache: Cache, mut leases: Vec<Lease>) {
    let (patience, until) = (cache.shared.settings.lease, tokio::time::Instant::now() + cache.effective_load_timeout());
    while !leases.is_empty() && tokio::time::Instant::now() < until {
        tokio::time::sleep(patience / 3).await;
        let reads: Vec<Op<'_>> = leases.iter().map(|lease| Op::Get { key: &lease.key }).collect();
        let held = cache.batch(&reads).await;
        let mut beats: Vec<(String, Bytes)> = Vec::with_capacity(leases.len());
        let mut held = held.into_iter();
        leases.retain(|lease| match held.next() {
            Some(Ok(Outcome::Value(Some(value)))) if value.starts_with(lease.token()) => {
                beats.push((lease.key.clone(), value));
                true
            }
            // Lost: the settling notices.
            Some(Ok(_)) | None => false,
            Some(Err(_)) => true,
        });
        let swaps = beats.iter().map(|(key, value)| Op::CompareAndSet {
            key,
            expected: Some(value),
            new: Some(with_next_beat(value)),
            ttl: LEASE_TTL,
        });
        let swaps: Vec<Op<'_>> = swaps.collect();
        // A failed heartbeat is made up for by the next.
        cache.batch(&swaps).await;
    }
}

/// Returns the lease's value with the next heartbeat.
#[cfg(feature = "tokio")]
fn with_next_beat(value: &Bytes) -> Bytes {
    let mut raised = BytesMut::from(&value[..]);
    let beat = u64::from_le_bytes(value[TOKEN..TOKEN + 8].try_into().expect("eight bytes"));
    raised[TOKEN..TOKEN + 8].copy_from_slice(&beat.wrapping_add(1).to_le_bytes());
    raised.freeze()
}

/// Returns a token that is unique among all leases, in any process on any machine.
fn token() -> [u8; TOKEN] {
    let mut token = [0; TOKEN];
    // Without random numbers, the time and the process id have to do.
    if getrandom::fill(&mut token).is_err() {
        let nanoseconds = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        token[..12].copy_from_slice(&nanoseconds.to_le_bytes()[..12]);
        token[12..].copy_from_slice(&std::process::id().to_le_bytes());
    }
    token
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{DELETED, Lease, LeaseState, NOTHING_STORED, lease_holder};

    #[test]
    fn a_lease_contains_its_patience_and_holder() {
        let lease = Lease::new("k", Duration::from_secs(5));
        let held = LeaseState::Held { patience: Duration::from_secs(5), holder: lease_holder::own().to_owned() };
        assert_eq!(LeaseState::of(Some(&lease.value)), held);
        assert_eq!(LeaseState::of(Some(&bytes::Bytes::from_static(NOTHING_STORED))), LeaseState::NothingStored);
        assert_eq!(LeaseState::of(Some(&bytes::Bytes::from_static(DELETED))), LeaseState::Deleted);
        assert_eq!(LeaseState::of(None), LeaseState::Nothing);
        #[cfg(feature = "tokio")]
        {
            let raised = super::with_next_beat(&lease.value);
            assert!(raised != lease.value && raised.starts_with(lease.token()));
            assert_eq!(LeaseState::of(Some(&raised)), held);
        }
    }
}
