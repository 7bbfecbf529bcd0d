//! The right to load a key for all processes on one store.
//!
//! A lease is a key of its own beside the value's, never a placeholder in the value's place, which somebody might take
//! for the value. Its lifetime on the server is long, so that it is not evicted before other entries; its real end is
//! in its value:
//!
//! - a token, which only its holder knows;
//! - the beat, a number that the holder raises while it loads, and the patience, in milliseconds: a process that sees
//!   no beat for so long takes the lease over. Without tokio nothing beats, and the patience is as long as a load may
//!   take;
//! - the holder's name: a process on the same host that finds it dead takes over at once.
//!
//! A delete replaces the lease by a mark. A holder that finds another's token, a mark or nothing in its lease's place
//! has loaded what may be out of date, and does not keep it.
//!
//! Whatever ends a load without settling it (the drop of its future, a panic) releases the lease: in the background on
//! tokio, on the spot elsewhere and where the runtime is being shut down. A child never releases its parent's.

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

/// Left in a lease's place when its load has stored nothing: those who have waited need not wait for the next one,
/// which would store nothing either.
pub(in crate::cache) const NOTHING_STORED: &[u8] = b"nothing stored";
/// Left in a lease's place by a delete.
pub(in crate::cache) const DELETED: &[u8] = b"deleted";
pub(in crate::cache) const MARK_TTL: Ttl = Ttl::After(Duration::from_secs(1));

/// On the server: among the last that `volatile-ttl` evicts.
const LEASE_TTL: Ttl = Ttl::After(Duration::from_secs(24 * 60 * 60));

const TOKEN: usize = 16;
const HEADER: usize = TOKEN + 8 + 8;

/// What a lease's place on the server holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sighting {
    Nothing,
    /// A load that stored nothing has ended within the last second.
    NothingStored,
    /// The key was deleted while it was loaded.
    Deleted,
    Held {
        patience: Duration,
        holder: String,
    },
}

impl Sighting {
    pub(super) fn of(lease: Option<&Bytes>) -> Sighting {
        match lease.map(|lease| &lease[..]) {
            None => Sighting::Nothing,
            Some(NOTHING_STORED) => Sighting::NothingStored,
            Some(DELETED) => Sighting::Deleted,
            Some(lease) => {
                let patience = lease.get(TOKEN + 8..HEADER).and_then(|bytes| bytes.try_into().ok());
                let patience =
                    patience.map_or(Duration::ZERO, |bytes| Duration::from_millis(u64::from_le_bytes(bytes)));
                let holder = String::from_utf8_lossy(lease.get(HEADER..).unwrap_or_default()).into_owned();
                Sighting::Held { patience, holder }
            }
        }
    }
}

/// A lease of this process's.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    key: String,
    value: Bytes,
}

impl Lease {
    /// One to ask for. `patience` is how long others leave it alone without a beat.
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

    /// Takes the lease where its place holds `place`.
    pub(super) fn take<'a>(&'a self, place: Option<&'a [u8]>) -> Op<'a> {
        self.take_for(LEASE_TTL, place)
    }

    /// The same, with another end on the server.
    pub(super) fn take_for<'a>(&'a self, ttl: Ttl, place: Option<&'a [u8]>) -> Op<'a> {
        Op::CompareAndSet { key: &self.key, expected: place, new: Some(self.value.clone()), ttl }
    }

    /// Ends the lease, and stores nothing.
    fn release(&self) -> Op<'_> {
        Op::Settle(Settle { key: &self.key, lease: &self.key, token: self.token(), store: None, mark: None })
    }
}

/// The leases that a fetch holds, by the place of their keys in it. Dropped, they are released.
pub(super) struct Leases {
    cache: Cache,
    /// What they are held for.
    verb: &'static str,
    generation: u64,
    held: Vec<(usize, Lease)>,
    /// Whether they are being released by a task, which a runtime that is shut down drops.
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

    /// Added before it is asked for: should the request be cancelled, it is released even if the server has granted it.
    pub(super) fn add(&mut self, place: usize, lease: Lease) {
        self.held.push((place, lease));
    }

    /// Not held after all.
    pub(super) fn forget(&mut self, place: usize) {
        self.held.retain(|(other, _)| *other != place);
    }

    pub(super) fn of(&self, place: usize) -> Option<&Lease> {
        // A loader may have forked, and this may be the child.
        let of_this_process = self.generation == generation();
        self.held.iter().find(|(other, _)| *other == place && of_this_process).map(|(_, lease)| lease)
    }

    /// These have ended.
    pub(super) fn settled(&mut self, places: &[usize]) {
        self.held.retain(|(place, _)| !places.contains(place));
        if self.held.is_empty() {
            self.stop_beating();
        }
    }

    /// Releases these, which are not needed after all.
    pub(super) async fn release(&mut self, places: &[usize]) {
        if !places.is_empty() && self.generation == generation() {
            let held = self.held.extract_if(.., |(place, _)| places.contains(place)).collect();
            let mut unneeded = Leases::none(&self.cache, self.verb);
            unneeded.held = held;
            unneeded.release_all().await;
        }
    }

    /// Releases one, and returns whether it was held until now. A parent's is not.
    pub(super) async fn end(&mut self, place: usize) -> Result<bool> {
        let Some(lease) = self.of(place).cloned() else { return Ok(false) };
        let ended = self.cache.batch(&[lease.release()]).await.pop().unwrap_or_else(|| Err(wrong_count()));
        let was_held = ended?.is_done();
        self.settled(&[place]);
        Ok(was_held)
    }

    /// Inside tokio: raises the beat of each lease every third of its patience, at most for `load_timeout`. Elsewhere
    /// there is nobody to do it.
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
    let (patience, until) = (cache.shared.settings.lease, tokio::time::Instant::now() + cache.longest_load());
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
            // Lost: its holder will find out when it settles.
            Some(Ok(_)) | None => false,
            Some(Err(_)) => true,
        });
        let swaps = beats.iter().map(|(key, value)| Op::CompareAndSet {
            key,
            expected: Some(value),
            new: Some(raised(value)),
            ttl: LEASE_TTL,
        });
        let swaps: Vec<Op<'_>> = swaps.collect();
        // What is not raised now is raised by the next beat.
        cache.batch(&swaps).await;
    }
}

/// The same with the next beat.
#[cfg(feature = "tokio")]
fn raised(value: &Bytes) -> Bytes {
    let mut raised = BytesMut::from(&value[..]);
    let beat = u64::from_le_bytes(value[TOKEN..TOKEN + 8].try_into().expect("eight bytes"));
    raised[TOKEN..TOKEN + 8].copy_from_slice(&beat.wrapping_add(1).to_le_bytes());
    raised.freeze()
}

/// Different for every lease there is, in any process on any machine.
fn token() -> [u8; TOKEN] {
    let mut token = [0; TOKEN];
    // Without random numbers there is still who and when.
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

    use super::{DELETED, Lease, NOTHING_STORED, Sighting, lease_holder};

    #[test]
    fn a_lease_says_whose_it_is() {
        let lease = Lease::new("k", Duration::from_secs(5));
        let held = Sighting::Held { patience: Duration::from_secs(5), holder: lease_holder::own().to_owned() };
        assert_eq!(Sighting::of(Some(&lease.value)), held);
        assert_eq!(Sighting::of(Some(&bytes::Bytes::from_static(NOTHING_STORED))), Sighting::NothingStored);
        assert_eq!(Sighting::of(Some(&bytes::Bytes::from_static(DELETED))), Sighting::Deleted);
        assert_eq!(Sighting::of(None), Sighting::Nothing);
        #[cfg(feature = "tokio")]
        {
            let raised = super::raised(&lease.value);
            assert!(raised != lease.value && raised.starts_with(lease.token()));
            assert_eq!(Sighting::of(Some(&raised)), held);
        }
    }
}
