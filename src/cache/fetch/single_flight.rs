//! Single flight: of the callers in a process that miss a key at the same time, one loads and the others wait for it.
//!
//! A flight begins when a caller takes the *lead*, and ends when it *lands*. The lead is a guard: if it ends without a
//! value (the loader fails or panics, or its future is dropped), the flight lands as failed, and a waiting caller takes
//! the lead of the next. A key has more than one flight only if a load was overdue and another one began.
//!
//! A delete *revokes* the flights of its key: their values may be outdated and are not stored, and later callers begin
//! another flight. A flight that is already storing removes its value again before it lands; the delete waits for that.
//!
//! Flights belong to a process and a store: all caches on the store share them. A child begins with none, and dropping
//! a lead that it has inherited does nothing.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

#[cfg(feature = "tokio")]
use crate::cache::fork_guarded;
use crate::cache::wait_clock::now;
use crate::execution::{blocking, is_inline};
use crate::lifecycle::{ProcessLocal, generation};
use crate::store::CacheStore;
use crate::sync::{Lock, block_until};

/// For how long another process is assumed to go on loading, for how many keys that is recorded, and for how long.
const ELSEWHERE: Duration = Duration::from_millis(100);
const MOST_ELSEWHERE: usize = 10_000;
const ELSEWHERE_KEPT: Duration = Duration::from_secs(600);

/// The flights of each store, as long as a cache uses them.
static OF_STORES: ProcessLocal<Lock<HashMap<usize, Weak<Flights>>>> = ProcessLocal::new();

/// Not reset in a child, so that no number is used twice.
static NEXT: AtomicU64 = AtomicU64::new(1);

#[derive(Debug)]
pub(in crate::cache) struct Flights {
    /// The flights that have not landed, by key. Callers wait for the last one that was not revoked.
    under_way: Lock<HashMap<String, Vec<Arc<Flight>>>>,
    /// The keys that another process is refreshing.
    elsewhere: Lock<HashMap<String, Elsewhere>>,
    /// How many flights have landed.
    landed: AtomicU64,
}

/// Another process's lease, as last seen.
#[derive(Debug)]
struct Elsewhere {
    lease: Option<Bytes>,
    since: Instant,
    /// When to ask for the lease again.
    until: Instant,
}

#[derive(Debug)]
pub(in crate::cache) struct Flight {
    number: u64,
    generation: u64,
    since: Instant,
    /// Whether the leader suspends. A thread that its runtime needs must then not wait for it.
    is_led_by_task: bool,
    state: Lock<State>,
}

#[derive(Debug, Default)]
struct State {
    is_revoked: bool,
    is_settling: bool,
    landing: Option<Landing>,
    /// Wakers by ticket, so that a cancelled wait can remove its own.
    waiting: HashMap<u64, Waker>,
    next_ticket: u64,
}

/// The result of a flight.
#[derive(Clone, Debug)]
pub(super) enum Landing {
    /// A value, encoded for the store.
    Loaded(Bytes),
    /// A value that cannot be shared.
    NotShareable,
    /// No value.
    Failed,
}

/// A caller's role in a flight.
pub(super) enum Joined {
    Lead(Lead),
    Wait(Arc<Flight>),
}

/// The guard of the flight's leader.
pub(super) struct Lead {
    flights: Arc<Flights>,
    key: String,
    flight: Arc<Flight>,
    landing: Landing,
}

impl Flights {
    /// Returns the flights of a store in this process.
    pub(in crate::cache) fn of(store: &dyn CacheStore) -> Arc<Flights> {
        let Some(identity) = store.identity() else { return Arc::new(Flights::new()) };
        let mut of_stores = OF_STORES.get_or_init(|| Lock::new("flights of stores", HashMap::new())).lock();
        if let Some(flights) = of_stores.get(&identity).and_then(Weak::upgrade) {
            return flights;
        }
        of_stores.retain(|_, flights| flights.strong_count() > 0);
        let flights = Arc::new(Flights::new());
        of_stores.insert(identity, Arc::downgrade(&flights));
        flights
    }

    fn new() -> Flights {
        Flights {
            under_way: Lock::new("flights", HashMap::new()),
            elsewhere: Lock::new("flights elsewhere", HashMap::new()),
            landed: AtomicU64::new(0),
        }
    }

    /// Returns how many flights have landed so far. If the number has not changed since a miss, this process has not
    /// loaded the key in the meantime.
    pub(super) fn landed(&self) -> u64 {
        self.landed.load(Ordering::Acquire)
    }

    /// Joins the flight of a key, or begins one and takes its lead. A new flight begins if there is none, or if the
    /// current one takes longer than `lapse` or is `overdue`, the flight that the caller has waited for long enough.
    pub(super) fn join(self: &Arc<Flights>, key: &str, lapse: Duration, overdue: Option<&Flight>) -> Joined {
        let now = now();
        let mut under_way = self.under_way.lock();
        let flights = under_way.entry(key.to_owned()).or_default();
        if let Some(flight) = flights.iter().rev().find(|flight| !flight.is_revoked())
            && now.saturating_duration_since(flight.since) < lapse
            && overdue.is_none_or(|overdue| overdue.number != flight.number)
        {
            return Joined::Wait(Arc::clone(flight));
        }
        let flight = Arc::new(Flight {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            generation: generation(),
            since: now,
            is_led_by_task: !is_inline(),
            state: Lock::new("flight", State::default()),
        });
        flights.push(Arc::clone(&flight));
        Joined::Lead(Lead { flights: Arc::clone(self), key: key.to_owned(), flight, landing: Landing::Failed })
    }

    /// Takes the lead of a key whose old value is to be refreshed, unless it is being refreshed here or in another
    /// process.
    pub(super) fn try_lead(self: &Arc<Flights>, key: &str, lapse: Duration) -> Option<Lead> {
        if self.elsewhere.lock().get(key).is_some_and(|elsewhere| now() < elsewhere.until) {
            return None;
        }
        match self.join(key, lapse, None) {
            Joined::Lead(lead) => Some(lead),
            Joined::Wait(_) => None,
        }
    }

    /// Records that another process refreshes a key, so that this one does not ask for the lease again for 0.1 s.
    /// Returns since when the lease has been the same, since callers with an old value do not wait to see a heartbeat.
    pub(super) fn record_elsewhere(&self, key: &str, lease: Option<&Bytes>) -> Instant {
        let now = now();
        let mut elsewhere = self.elsewhere.lock();
        if let Some(seen) = elsewhere.get_mut(key) {
            if seen.lease.as_ref() != lease {
                (seen.lease, seen.since) = (lease.cloned(), now);
            }
            seen.until = now + ELSEWHERE;
            return seen.since;
        }
        if elsewhere.len() >= MOST_ELSEWHERE {
            elsewhere.retain(|_, seen| now < seen.until + ELSEWHERE_KEPT);
        }
        if elsewhere.len() < MOST_ELSEWHERE {
            elsewhere.insert(key.to_owned(), Elsewhere { lease: lease.cloned(), since: now, until: now + ELSEWHERE });
        }
        now
    }

    /// Revokes the flights of a deleted key. Returns those that are storing their value now.
    pub(in crate::cache) fn revoke(&self, key: &str) -> Vec<Arc<Flight>> {
        self.elsewhere.lock().remove(key);
        let under_way = self.under_way.lock();
        under_way.get(key).into_iter().flatten().filter(|flight| flight.revoke()).cloned().collect()
    }

    /// [`revoke`](Flights::revoke) for all keys that start with `prefix`.
    pub(in crate::cache) fn revoke_all(&self, prefix: &str) -> Vec<Arc<Flight>> {
        self.elsewhere.lock().clear();
        let under_way = self.under_way.lock();
        let revoked = under_way.iter().filter(|(key, _)| key.starts_with(prefix)).flat_map(|(_, flights)| flights);
        revoked.filter(|flight| flight.revoke()).cloned().collect()
    }

    fn land(&self, key: &str, flight: &Flight, landing: Landing) {
        // Counted first: a caller that finds no flight must see that one has landed.
        self.landed.fetch_add(1, Ordering::Release);
        let mut under_way = self.under_way.lock();
        if let Some(flights) = under_way.get_mut(key) {
            flights.retain(|other| other.number != flight.number);
            if flights.is_empty() {
                under_way.remove(key);
            }
        }
        drop(under_way);
        let waiting = {
            let mut state = flight.state.lock();
            state.landing = Some(landing);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_values().for_each(Waker::wake);
    }
}

impl Lead {
    pub(super) fn flight(&self) -> &Flight {
        &self.flight
    }

    /// Makes deletes wait from now on until the flight has landed. Returns `false` if the key was deleted before, and
    /// in a process that the loader has forked: the flight is the parent's, and a vanished thread may hold its lock.
    pub(super) fn begin_settling(&self) -> bool {
        if self.flight.generation != generation() {
            return false;
        }
        let mut state = self.flight.state.lock();
        state.is_settling = !state.is_revoked;
        state.is_settling
    }

    /// Returns whether the key was deleted since the lead was taken, or the lead belongs to a parent process.
    pub(super) fn is_revoked(&self) -> bool {
        self.flight.generation != generation() || self.flight.is_revoked()
    }

    pub(super) fn land(mut self, landing: Landing) {
        self.landing = landing;
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if self.flight.generation == generation() {
            let landing = std::mem::replace(&mut self.landing, Landing::Failed);
            self.flights.land(&self.key, &self.flight, landing);
        }
    }
}

impl Flight {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Returns whether this thread must not wait for the flight, because its leader needs this thread.
    pub(in crate::cache) fn would_block_its_leader(&self) -> bool {
        self.is_led_by_task && is_inline_on_a_runtime()
    }

    fn is_revoked(&self) -> bool {
        self.state.lock().is_revoked
    }

    /// Revokes the flight. Returns whether it is storing its value now.
    fn revoke(&self) -> bool {
        let mut state = self.state.lock();
        state.is_revoked = true;
        state.is_settling
    }

    /// Waits for the end of the flight. Returns `None` if it does not end by the deadline. An asynchronous caller
    /// without a runtime has no timer, and waits until the flight lands.
    pub(super) async fn landing(&self, deadline: Instant) -> Option<Landing> {
        let mut wait = Wait { flight: self, ticket: None };
        if is_inline() {
            return blocking(deadline, |until| block_until(Some(until), |cx| wait.poll(cx))).await;
        }
        let landing = poll_fn(|cx| wait.poll(cx));
        #[cfg(feature = "tokio")]
        if tokio::runtime::Handle::try_current().is_ok() {
            return match fork_guarded(Box::pin(tokio::time::timeout_at(deadline.into(), landing))).await {
                Ok(in_time) => in_time.ok(),
                // In a child: the leader is in the parent.
                Err(_) => Some(Landing::Failed),
            };
        }
        Some(landing.await)
    }

    /// Waits until the flight has landed, with or without a value.
    pub(in crate::cache) async fn landed(&self, deadline: Instant) {
        let _ = self.landing(deadline).await;
    }
}

/// Returns whether the blocking API is running on a thread of a tokio runtime.
pub(super) fn is_inline_on_a_runtime() -> bool {
    #[cfg(feature = "tokio")]
    return is_inline() && tokio::runtime::Handle::try_current().is_ok();
    #[cfg(not(feature = "tokio"))]
    return false;
}

/// A caller's wait for a flight.
struct Wait<'a> {
    flight: &'a Flight,
    ticket: Option<u64>,
}

impl Wait<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Landing> {
        if self.flight.generation != generation() {
            // The leader and the lock are the parent's.
            return Poll::Ready(Landing::Failed);
        }
        let mut state = self.flight.state.lock();
        if let Some(landing) = &state.landing {
            return Poll::Ready(landing.clone());
        }
        let ticket = *self.ticket.get_or_insert_with(|| {
            state.next_ticket += 1;
            state.next_ticket
        });
        state.waiting.entry(ticket).or_insert_with(|| cx.waker().clone()).clone_from(cx.waker());
        Poll::Pending
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        if self.flight.generation == generation() {
            let removed = self.flight.state.lock().waiting.remove(&ticket);
            // Dropped outside the lock: it may be the last waker of its task.
            drop(removed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::{Context, Waker};
    use std::time::Duration;

    use super::{Flights, Joined, Lead, MOST_ELSEWHERE, Wait};

    fn lead(flights: &Arc<Flights>, lapse: Duration) -> Lead {
        match flights.join("k", lapse, None) {
            Joined::Lead(lead) => lead,
            Joined::Wait(_) => panic!("another caller leads"),
        }
    }

    #[test]
    fn a_cancelled_wait_removes_its_waker() {
        let flights = Arc::new(Flights::new());
        let lead = lead(&flights, Duration::MAX);
        for _ in 0..3 {
            let Joined::Wait(flight) = flights.join("k", Duration::MAX, None) else { panic!("there is a leader") };
            let mut wait = Wait { flight: &flight, ticket: None };
            assert!(wait.poll(&mut Context::from_waker(Waker::noop())).is_pending());
            assert_eq!(flight.state.lock().waiting.len(), 1);
        }
        assert!(lead.flight.state.lock().waiting.is_empty());
    }

    #[test]
    fn an_overdue_flight_is_followed_by_another() {
        let flights = Arc::new(Flights::new());
        let hanging = lead(&flights, Duration::MAX);
        let Joined::Lead(second) = flights.join("k", Duration::MAX, Some(&hanging.flight)) else { panic!("overdue") };
        let Joined::Wait(flight) = flights.join("k", Duration::MAX, Some(&hanging.flight)) else {
            panic!("another caller leads")
        };
        assert_eq!(flight.number, second.flight.number);
        drop(second);
        assert!(matches!(flights.join("k", Duration::MAX, None), Joined::Wait(_)), "the first one is still in flight");
        drop(lead(&flights, Duration::ZERO));
        flights.revoke("k");
        assert!(hanging.is_revoked(), "even after the second one has landed");
        drop(hanging);
        assert!(flights.under_way.lock().is_empty());
    }

    /// Each of ten thousand flights is overdue when the next begins, and none keeps the one before.
    #[test]
    fn landed_flights_are_removed() {
        let flights = Arc::new(Flights::new());
        let mut before = lead(&flights, Duration::MAX);
        for _ in 0..10_000 {
            before = lead(&flights, Duration::ZERO);
        }
        assert_eq!(flights.under_way.lock()["k"].len(), 1);
        drop(before);
        assert!(flights.under_way.lock().is_empty());
    }

    #[test]
    fn revoke_returns_the_flights_that_are_storing() {
        let flights = Arc::new(Flights::new());
        let lead = lead(&flights, Duration::MAX);
        assert!(lead.begin_settling());
        assert_eq!(flights.revoke("k").len(), 1);
        assert_eq!(flights.revoke_all("").len(), 1, "until it has landed");
        drop(lead);
        assert!(flights.revoke("k").is_empty());
    }

    #[test]
    fn an_inherited_lead_stores_nothing_and_takes_no_lock() {
        let flights = Arc::new(Flights::new());
        let mut lead = lead(&flights, Duration::MAX);
        flights.under_way.lock().clear();
        Arc::get_mut(&mut lead.flight).expect("the lead alone has it now").generation -= 1;
        let flight = Arc::clone(&lead.flight);
        let _held_by_a_vanished_thread = flight.state.lock();
        assert!(!lead.begin_settling());
        assert!(lead.is_revoked());
    }

    #[test]
    fn a_key_refreshed_elsewhere_is_not_led_for_a_while() {
        let flights = Arc::new(Flights::new());
        flights.record_elsewhere("k", None);
        assert!(flights.try_lead("k", Duration::MAX).is_none());
        flights.revoke("k");
        assert!(flights.try_lead("k", Duration::MAX).is_some());
        for n in 0..2 * MOST_ELSEWHERE {
            flights.record_elsewhere(&n.to_string(), None);
        }
        assert!(flights.elsewhere.lock().len() <= MOST_ELSEWHERE);
    }
}
