//! One loader for all processes: leases.
//!
//! A lease is a key of its own beside the value's, stored if absent, with a lifetime. It is never a placeholder in the
//! value's place, which somebody might take for the value. Whoever wins it may load; the others wait until the value is there
//! or the lease is gone. It is released by compare-and-set, so that nobody releases what another has won since.
//!
//! A delete of the key removes the lease too. Whoever finds at the release that it is gone before its time has loaded what may
//! be out of date, and takes back what it has stored.
//!
//! Whatever ends a load without a release (the drop of its future, a panic) has the lease released all the same: in the
//! background on tokio (when the runtime runs), on the spot elsewhere and where the runtime is being shut down. Only a process
//! that ends in the middle of a load leaves it behind, until its lifetime ends. A child never releases its parent's.

use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::storing::is_uncertain;
use crate::cache::key::lease_key;
use crate::cache::{Cache, blocking, settled};
use crate::error::{Error, Result};
use crate::lifecycle::generation;
use crate::net::pause;
#[cfg(feature = "tokio")]
use crate::net::{Drive, drive};
use crate::store::{Ttl, When};

/// What is left in the place of a lease, for a moment, when its load has stored nothing: nobody need wait for the next one,
/// which would store nothing either.
const NOTHING_STORED: Bytes = Bytes::from_static(b"nothing stored");
const MOMENT: Duration = Duration::from_secs(1);

/// How long those who wait pause between two looks: doubled from the shortest to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The right to load a key, for all processes on one store.
pub(super) struct Lease {
    cache: Cache,
    /// `None` once it is released.
    claim: Option<Claim>,
    generation: u64,
    /// Whether the store has said so. If it has not answered, the lease may be held all the same.
    is_granted: bool,
    /// Whether it is being released by a task, which a runtime that is shut down drops.
    is_in_background: bool,
}

struct Claim {
    key: String,
    token: Bytes,
    since: Instant,
    lifetime: Duration,
}

/// How an attempt to win a lease has ended.
#[derive(Debug)]
pub(super) enum Leasing {
    Won(Lease),
    /// Another process loads.
    Lost,
    /// There are no leases here.
    Unneeded,
    /// The store did not say. A lease that may be held nevertheless is to be released.
    NoAnswer(Error, Option<Lease>),
}

/// What a lease takes the place of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Empty,
    /// The mark of a load that has stored nothing.
    Marked,
}

/// What is to be seen of another's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Whoever holds it is loading.
    Still,
    /// Nobody does.
    NoLonger,
    /// It has ended a moment ago, and nothing was stored.
    InVain,
}

impl Cache {
    pub(in crate::cache) fn takes_leases(&self) -> bool {
        !self.shared.settings.lease.is_zero() && self.shared.store.is_shared()
    }

    /// Tries to win the lease of a key, given as the store sees it: where there is none, or where there is only a mark.
    pub(super) async fn lease(&self, full_key: &str, place: Place) -> Leasing {
        let lifetime = self.shared.settings.lease;
        if !self.takes_leases() {
            return Leasing::Unneeded;
        }
        let claim = Claim { key: lease_key(full_key), token: token(), since: Instant::now(), lifetime };
        // Made before the request: should that be cancelled, its lease is released even if the server has granted it.
        let mut lease = Lease {
            cache: self.clone(),
            claim: Some(claim),
            generation: generation(),
            is_granted: false,
            is_in_background: false,
        };
        match lease.acquire(place).await {
            Ok(true) => {
                lease.is_granted = true;
                Leasing::Won(lease)
            }
            Ok(false) => {
                lease.forget();
                Leasing::Lost
            }
            Err(error) if is_uncertain(&error) => Leasing::NoAnswer(error, Some(lease)),
            Err(error) => {
                lease.forget();
                Leasing::NoAnswer(error, None)
            }
        }
    }

    /// Looks at another's lease.
    pub(super) async fn look_at_lease(&self, full_key: &str) -> Result<Held> {
        let store = self.store()?;
        let held = self.answered(settled(store.get_latest(&lease_key(full_key))).await)?;
        Ok(match held {
            None => Held::NoLonger,
            Some(token) if token == NOTHING_STORED => Held::InVain,
            Some(_) => Held::Still,
        })
    }
}

impl Lease {
    async fn acquire(&self, place: Place) -> Result<bool> {
        let Some(Claim { key, token, lifetime, .. }) = &self.claim else { return Ok(false) };
        let (token, ttl) = (token.clone(), Ttl::After(*lifetime));
        let store = self.cache.store()?;
        self.cache.answered(match place {
            Place::Empty => settled(store.set(key, token, ttl, When::IfAbsent)).await,
            Place::Marked => settled(store.compare_and_set(key, Some(&NOTHING_STORED), Some(token), ttl)).await,
        })
    }

    /// Whether it is gone before its time.
    pub(super) async fn is_revoked(&self) -> bool {
        let Some(claim) = self.claim.as_ref().filter(|_| self.is_granted && self.generation == generation()) else {
            return false;
        };
        let held = async {
            let store = self.cache.store()?;
            self.cache.answered(settled(store.get_latest(&claim.key)).await)
        };
        // What cannot be known now is found out at the release.
        held.await.is_ok_and(|held| held.is_none_or(|token| token != claim.token) && !claim.has_run_out())
    }

    /// Leaves it to whoever loads next. Answers whether the key was deleted since the lease was won.
    pub(super) async fn release(self) -> bool {
        self.replace(None).await
    }

    /// Releases it, and tells those who wait that nothing was stored.
    pub(super) async fn release_in_vain(self) {
        self.replace(Some(NOTHING_STORED)).await;
    }

    async fn replace(mut self, mark: Option<Bytes>) -> bool {
        // A loader may have forked, and this may be the child.
        let Some(claim) = self.claim.as_ref().filter(|_| self.generation == generation()) else { return false };
        let was_there = replace(&self.cache, claim, mark).await;
        let is_revoked = self.is_granted && !was_there && !claim.has_run_out();
        self.claim = None;
        is_revoked
    }

    fn forget(mut self) {
        self.claim = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(claim) = self.claim.take() else { return };
        if self.generation != generation() {
            return;
        }
        #[cfg(feature = "tokio")]
        if !self.is_in_background && matches!(drive(), Ok(Drive::Tokio(_))) {
            let (cache, generation, is_granted) = (self.cache.clone(), self.generation, self.is_granted);
            let lease = Lease { cache, claim: Some(claim), generation, is_granted, is_in_background: true };
            tokio::spawn(lease.release());
            return;
        }
        blocking::at_once(std::pin::pin!(replace(&self.cache, &claim, None)));
    }
}

impl Claim {
    /// By this side's clock. Where the server's ends it early, as Memcached's may, that looks like a delete.
    fn has_run_out(&self) -> bool {
        self.since.elapsed() >= self.lifetime
    }
}

/// Removes a lease, or leaves a mark in its place for a moment. Answers whether it was still there; not, if nobody knows.
async fn replace(cache: &Cache, claim: &Claim, mark: Option<Bytes>) -> bool {
    let replaced = async {
        let store = cache.store()?;
        let expected = Some(&claim.token[..]);
        cache.answered(settled(store.compare_and_set(&claim.key, expected, mark, Ttl::After(MOMENT))).await)
    };
    replaced.await.unwrap_or_else(|error| {
        cache.report(&error);
        false
    })
}

/// Different for every lease there is, in any process on any machine.
fn token() -> Bytes {
    let mut token = [0; 16];
    // Without random numbers there is still who and when.
    if getrandom::fill(&mut token).is_err() {
        let nanoseconds = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        token[..12].copy_from_slice(&nanoseconds.to_le_bytes()[..12]);
        token[12..].copy_from_slice(&std::process::id().to_le_bytes());
    }
    Bytes::copy_from_slice(&token)
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").finish_non_exhaustive()
    }
}

/// The pauses of somebody who waits for another process.
#[derive(Debug)]
pub(super) struct Patience {
    deadline: Instant,
    pause: Duration,
}

impl Patience {
    pub(super) fn until(deadline: Instant) -> Patience {
        Patience { deadline, pause: SHORTEST_PAUSE }
    }

    /// Waits a little. `false` if the deadline has passed.
    pub(super) async fn wait(&mut self) -> Result<bool> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        settled(Box::pin(pause(self.pause.min(left)))).await??;
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        Ok(true)
    }
}
