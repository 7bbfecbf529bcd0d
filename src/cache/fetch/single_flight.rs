//! The loads of this process: of those who miss a key at the same time, one leads and the others wait for it.
//!
//! A flight lasts from the moment that a caller takes the *lead* until it lands. The lead is a guard: whatever ends it
//! without a value (the loader's error, its panic, the drop of its future) lands the flight as failed, and one of those
//! who wait takes the lead of the next. A key has more than one flight only if a load was overdue and another one
//! began.
//!
//! A delete *revokes* the flights of its key: their values may be out of date and are not stored, and those who come
//! later begin another flight. A flight that is already storing removes its value again before it lands; the delete
//! waits for that.
//!
//! Flights belong to a process and a store: all caches on the store share them. A child begins with none, and a lead
//! that it inherits lands nothing.

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

/// How long another process is taken to go on loading, and of how many keys that is remembered, for how long.
const ELSEWHERE: Duration = Duration::from_millis(100);
const MOST_ELSEWHERE: usize = 10_000;
const REMEMBERED: Duration = Duration::from_secs(600);

/// Those of each store, as long as a cache uses it.
static OF_STORES: ProcessLocal<Lock<HashMap<usize, Weak<Flights>>>> = ProcessLocal::new();

/// Goes on counting in a child, so that no number is used twice.
static NEXT: AtomicU64 = AtomicU64::new(1);

#[derive(Debug)]
pub(in crate::cache) struct Flights {
    /// By key, those that have not landed; the last that was not revoked is the one to wait for.
    under_way: Lock<HashMap<String, Vec<Arc<Flight>>>>,
    /// The keys that another process was found to refresh.
    elsewhere: Lock<HashMap<String, Elsewhere>>,
    /// Goes up with each landing.
    landed: AtomicU64,
}

/// Another process's lease, as it was last seen.
#[derive(Debug)]
struct Elsewhere {
    lease: Option<Bytes>,
    since: Instant,
    /// How long that is taken for granted.
    until: Instant,
}

#[derive(Debug)]
pub(in crate::cache) struct Flight {
    number: u64,
    generation: u64,
    since: Instant,
    /// Whether the leader suspends: a thread that its runtime needs must not wait for it.
    is_led_by_task: bool,
    state: Lock<State>,
}

#[derive(Debug, Default)]
struct State {
    is_revoked: bool,
    is_settling: bool,
    landing: Option<Landing>,
    /// By ticket: a caller that gives up leaves nothing behind.
    waiting: HashMap<u64, Waker>,
    next_ticket: u64,
}

/// How a flight has ended.
#[derive(Clone, Debug)]
pub(super) enum Landing {
    /// With a value, as it was encoded for the store.
    Loaded(Bytes),
    /// With a value that cannot be shared.
    NotShareable,
    /// Without one.
    Failed,
}

/// A caller's part in a flight.
pub(super) enum Joined {
    Lead(Lead),
    Wait(Arc<Flight>),
}

/// The duty to land a flight.
pub(super) struct Lead {
    flights: Arc<Flights>,
    key: String,
    flight: Arc<Flight>,
    landing: Landing,
}

impl Flights {
    /// Those of a store in this process.
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

    /// How many flights have landed so far: if it has not changed since a miss, this process has not loaded the key
    /// meanwhile.
    pub(super) fn landed(&self) -> u64 {
        self.landed.load(Ordering::Acquire)
    }

    /// The flight of a key, or the lead of a new one: if there is none, if it takes longer than `lapse`, or if it is
    /// `overdue`, the one that the caller has waited for long enough.
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

    /// The lead of a key whose old value is to be refreshed, unless that is under way, in this process or elsewhere.
    pub(super) fn try_lead(self: &Arc<Flights>, key: &str, lapse: Duration) -> Option<Lead> {
        if self.elsewhere.lock().get(key).is_some_and(|elsewhere| now() < elsewhere.until) {
            return None;
        }
        match self.join(key, lapse, None) {
            Joined::Lead(lead) => Some(lead),
            Joined::Wait(_) => None,
        }
    }

    /// Another process refreshes a key: for 0.1 s this one need not ask again. Returns since when its lease has been
    /// the same: callers that have an old value do not wait to see a beat.
    pub(super) fn is_elsewhere(&self, key: &str, lease: Option<&Bytes>) -> Instant {
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
            elsewhere.retain(|_, seen| now < seen.until + REMEMBERED);
        }
        if elsewhere.len() < MOST_ELSEWHERE {
            elsewhere.insert(key.to_owned(), Elsewhere { lease: lease.cloned(), since: now, until: now + ELSEWHERE });
        }
        now
    }

    /// The key is deleted: what is being loaded is not to be stored. Returns the flights that are storing at this
    /// moment.
    pub(in crate::cache) fn revoke(&self, key: &str) -> Vec<Arc<Flight>> {
        self.elsewhere.lock().remove(key);
        let under_way = self.under_way.lock();
        under_way.get(key).into_iter().flatten().filter(|flight| flight.revoke()).cloned().collect()
    }

    /// The same for all keys that start with `prefix`.
    pub(in crate::cache) fn revoke_all(&self, prefix: &str) -> Vec<Arc<Flight>> {
        self.elsewhere.lock().clear();
        let under_way = self.under_way.lock();
        let revoked = under_way.iter().filter(|(key, _)| key.starts_with(prefix)).flat_map(|(_, flights)| flights);
        revoked.filter(|flight| flight.revoke()).cloned().collect()
    }

    fn land(&self, key: &str, flight: &Flight, landing: Landing) {
        // Counted first: a caller that finds no flight must know that there was one.
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

    /// From now on a delete waits until the flight has landed. Returns `false` if the key was deleted before, and in a
    /// process that the loader has forked: the flight is its parent's, and a vanished thread may hold its lock.
    pub(super) fn begin_settling(&self) -> bool {
        if self.flight.generation != generation() {
            return false;
        }
        let mut state = self.flight.state.lock();
        state.is_settling = !state.is_revoked;
        state.is_settling
    }

    /// Whether the key was deleted since the lead was taken, or the lead is a parent process's.
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

    /// Whether this thread, on which its leader would have to go on, must not wait for it.
    pub(in crate::cache) fn would_block_its_leader(&self) -> bool {
        self.is_led_by_task && is_inline_on_a_runtime()
    }

    fn is_revoked(&self) -> bool {
        self.state.lock().is_revoked
    }

    /// Returns whether it is storing at this moment.
    fn revoke(&self) -> bool {
        let mut state = self.state.lock();
        state.is_revoked = true;
        state.is_settling
    }

    /// How the flight ends; `None` if that takes until after the deadline. Without a runtime, an asynchronous caller
    /// has no clock to wake it: it waits until the flight lands.
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
                // In a child: its leader is in the parent.
                Err(_) => Some(Landing::Failed),
            };
        }
        Some(landing.await)
    }

    /// Waits until it has landed, however it does.
    pub(in crate::cache) async fn landed(&self, deadline: Instant) {
        let _ = self.landing(deadline).await;
    }
}

/// Whether the blocking API is at work on a thread of a tokio runtime.
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
            // Its leader and its lock are the parent's.
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
            let forgotten = self.flight.state.lock().waiting.remove(&ticket);
            // Outside of the lock: it may be the last of its task.
            drop(forgotten);
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
            Joined::Wait(_) => panic!("another leads"),
        }
    }

    #[test]
    fn a_wait_that_is_given_up_leaves_nothing_behind() {
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
            panic!("somebody was quicker")
        };
        assert_eq!(flight.number, second.flight.number);
        drop(second);
        assert!(matches!(flights.join("k", Duration::MAX, None), Joined::Wait(_)), "the first one goes on");
        drop(lead(&flights, Duration::ZERO));
        flights.revoke("k");
        assert!(hanging.is_revoked(), "also when the second one has ended");
        drop(hanging);
        assert!(flights.under_way.lock().is_empty());
    }

    /// Each of ten thousand is overdue when the next begins: none keeps the one before.
    #[test]
    fn flights_that_land_are_forgotten() {
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
    fn a_delete_hears_of_what_is_being_stored() {
        let flights = Arc::new(Flights::new());
        let lead = lead(&flights, Duration::MAX);
        assert!(lead.begin_settling());
        assert_eq!(flights.revoke("k").len(), 1);
        assert_eq!(flights.revoke_all("").len(), 1, "until it has landed");
        drop(lead);
        assert!(flights.revoke("k").is_empty());
    }

    #[test]
    fn an_inherited_lead_stores_nothing_and_touches_no_lock() {
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
    fn what_is_refreshed_elsewhere_is_not_led_for_a_while() {
        let flights = Arc::new(Flights::new());
        flights.is_elsewhere("k", None);
        assert!(flights.try_lead("k", Duration::MAX).is_none());
        flights.revoke("k");
        assert!(flights.try_lead("k", Duration::MAX).is_some());
        for n in 0..2 * MOST_ELSEWHERE {
            flights.is_elsewhere(&n.to_string(), None);
        }
        assert!(flights.elsewhere.lock().len() <= MOST_ELSEWHERE);
    }
}
