//! Single-flight: of those who miss a key at the same time, one loads it and the others wait for it.
//!
//! A flight lasts from the moment that somebody takes the *lead* until that one lands it. The lead is a guard: whatever ends
//! it without a value (the loader's error, its panic, the drop of its future) lands the flight as failed, and one of those
//! who wait takes the lead of the next.
//!
//! A delete of the key *revokes* a flight: its leader loads what may be out of date, which is not to be kept, and those who
//! come later begin another flight.
//!
//! Flights belong to a process: a child begins with none, whoever was loading at the fork, and a lead that it inherits lands
//! nothing.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

#[cfg(feature = "tokio")]
use crate::cache::settled;
use crate::lifecycle::{generation, thread_token};
use crate::net::is_inline;
use crate::sync::{Lock, block_until};

/// How long another process is taken to go on loading, and of how many keys that is known.
const MOMENT: Duration = Duration::from_millis(100);
const MOST_ELSEWHERE: usize = 1_000;

#[derive(Debug)]
pub(in crate::cache) struct Flights {
    under_way: Lock<HashMap<String, Arc<Flight>>>,
    /// The keys that another process was found to load anew, and until when that is taken for granted.
    elsewhere: Lock<HashMap<String, Instant>>,
    /// Goes up with each landing.
    landed: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Flight {
    generation: u64,
    /// The thread of a leader that does not suspend, or 0.
    leader_thread: usize,
    since: Instant,
    /// Whether the key was deleted since: what is loaded may be what was there before.
    is_revoked: AtomicBool,
    /// The one that had lapsed when this one began.
    before: Option<Arc<Flight>>,
    state: Lock<State>,
}

#[derive(Debug)]
struct State {
    landing: Option<Landing>,
    /// By ticket: whoever gives up leaves nothing behind.
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
pub(super) enum Part {
    Lead(Lead),
    Wait(Arc<Flight>),
}

/// The duty to land a flight.
pub(super) struct Lead {
    flights: Arc<Flights>,
    key: String,
    flight: Arc<Flight>,
    generation: u64,
    landing: Landing,
}

impl Default for Flights {
    fn default() -> Flights {
        Flights {
            under_way: Lock::new("flights", HashMap::new()),
            elsewhere: Lock::new("flights elsewhere", HashMap::new()),
            landed: AtomicU64::new(0),
        }
    }
}

impl Flights {
    /// How many flights have landed so far: if it has not changed since a miss, nobody has loaded the key meanwhile.
    pub(super) fn landed(&self) -> u64 {
        self.landed.load(Ordering::Acquire)
    }

    /// The flight that loads a key, if there is one that has not lapsed.
    pub(super) fn under_way(&self, key: &str, lapse: Duration) -> Option<Arc<Flight>> {
        self.under_way.lock().get(key).filter(|flight| flight.since.elapsed() < lapse).cloned()
    }

    /// A flight that takes longer than `lapse` is left to those who wait for it, and another one begins: its load may hang.
    pub(super) fn join(self: &Arc<Flights>, key: String, lapse: Duration) -> Part {
        let mut under_way = self.under_way.lock();
        let before = match under_way.get(&key) {
            Some(flight) if flight.since.elapsed() < lapse => return Part::Wait(Arc::clone(flight)),
            lapsed => lapsed.cloned(),
        };
        let flight = Arc::new(Flight {
            generation: generation(),
            leader_thread: if is_inline() { thread_token() } else { 0 },
            since: Instant::now(),
            is_revoked: AtomicBool::new(false),
            before,
            state: Lock::new("flight", State { landing: None, waiting: HashMap::new(), next_ticket: 0 }),
        });
        under_way.insert(key.clone(), Arc::clone(&flight));
        let landing = Landing::Failed;
        Part::Lead(Lead { flights: Arc::clone(self), key, flight, generation: generation(), landing })
    }

    /// The lead of a key whose value is to be loaded anew, unless somebody does that, in this process or elsewhere.
    pub(super) fn try_lead(self: &Arc<Flights>, key: String, lapse: Duration) -> Option<Lead> {
        if self.elsewhere.lock().get(&key).is_some_and(|until| Instant::now() < *until) {
            return None;
        }
        match self.join(key, lapse) {
            Part::Lead(lead) => Some(lead),
            Part::Wait(_) => None,
        }
    }

    /// Another process is loading a key anew: for a moment nobody here need ask again.
    pub(super) fn is_elsewhere(&self, key: String) {
        let now = Instant::now();
        let mut elsewhere = self.elsewhere.lock();
        if elsewhere.len() >= MOST_ELSEWHERE {
            elsewhere.retain(|_, until| now < *until);
        }
        if elsewhere.len() < MOST_ELSEWHERE {
            elsewhere.insert(key, now + MOMENT);
        }
    }

    /// The key is deleted: what is being loaded is not to be kept, and whoever comes from now on does not wait for it.
    pub(in crate::cache) fn revoke(&self, key: &str) {
        self.elsewhere.lock().remove(key);
        if let Some(flight) = self.under_way.lock().remove(key) {
            flight.revoke();
        }
    }

    /// The same for all keys that start with `prefix`.
    pub(in crate::cache) fn revoke_all(&self, prefix: &str) {
        self.elsewhere.lock().clear();
        let starts_with = |key: &String, _: &mut Arc<Flight>| key.starts_with(prefix);
        for (_, flight) in self.under_way.lock().extract_if(starts_with) {
            flight.revoke();
        }
    }

    fn land(&self, key: &str, flight: &Flight, landing: Landing) {
        // Counted first: whoever finds no flight must know that there was one.
        self.landed.fetch_add(1, Ordering::Release);
        let mut under_way = self.under_way.lock();
        if under_way.get(key).is_some_and(|current| std::ptr::eq(&**current, flight)) {
            match &flight.before {
                Some(before) if !before.has_landed() => _ = under_way.insert(key.to_owned(), Arc::clone(before)),
                _ => _ = under_way.remove(key),
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
    /// Whether the key was deleted since the lead was taken.
    pub(super) fn is_revoked(&self) -> bool {
        self.flight.is_revoked.load(Ordering::Acquire)
    }

    pub(super) fn land(mut self, landing: Landing) {
        self.landing = landing;
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if self.generation == generation() {
            let landing = std::mem::replace(&mut self.landing, Landing::Failed);
            self.flights.land(&self.key, &self.flight, landing);
        }
    }
}

impl Flight {
    fn revoke(&self) {
        let mut flight = Some(self);
        while let Some(revoked) = flight {
            revoked.is_revoked.store(true, Ordering::Release);
            flight = revoked.before.as_deref();
        }
    }

    fn has_landed(&self) -> bool {
        self.state.lock().landing.is_some()
    }

    /// Whether waiting for this flight would be waiting for oneself: a blocking loader that fetches what it is loading.
    pub(super) fn is_led_by_this_thread(&self) -> bool {
        self.leader_thread == thread_token()
    }

    /// Until when it is worth waiting for: the deadline, unless others may begin another one before.
    pub(super) fn awaited_until(&self, deadline: Instant, lapse: Duration) -> Instant {
        self.since.checked_add(lapse).map_or(deadline, |lapses_at| deadline.min(lapses_at))
    }

    /// How the flight ends; `None` if that takes until after the deadline. Without a runtime, an asynchronous caller has no
    /// clock to wake it: it waits until the flight lands.
    pub(super) async fn landing(&self, deadline: Instant) -> Option<Landing> {
        let mut wait = Wait { flight: self, ticket: None };
        if is_inline() {
            return block_until(Some(deadline), |cx| wait.poll(cx));
        }
        let landing = poll_fn(|cx| wait.poll(cx));
        #[cfg(feature = "tokio")]
        if tokio::runtime::Handle::try_current().is_ok() {
            return match settled(Box::pin(tokio::time::timeout_at(deadline.into(), landing))).await {
                Ok(in_time) => in_time.ok(),
                // In a child: who leads it does so in the parent.
                Err(_) => Some(Landing::Failed),
            };
        }
        Some(landing.await)
    }
}

/// A caller's wait for a flight.
struct Wait<'a> {
    flight: &'a Flight,
    ticket: Option<u64>,
}

impl Wait<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Landing> {
        if self.flight.generation != generation() {
            // Who leads it does so in the parent, and its lock is the parent's.
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

    use super::{Flights, MOST_ELSEWHERE, Part, Wait};

    #[test]
    fn a_wait_that_is_given_up_leaves_nothing_behind() {
        let flights = Arc::new(Flights::default());
        let Part::Lead(lead) = flights.join("k".to_owned(), Duration::MAX) else { panic!("nobody else is under way") };
        for _ in 0..3 {
            let Part::Wait(flight) = flights.join("k".to_owned(), Duration::MAX) else { panic!("there is a leader") };
            let mut wait = Wait { flight: &flight, ticket: None };
            assert!(wait.poll(&mut Context::from_waker(Waker::noop())).is_pending());
            assert_eq!(flight.state.lock().waiting.len(), 1);
        }
        assert!(lead.flight.state.lock().waiting.is_empty());
    }
    #[test]
    fn a_flight_that_has_lapsed_is_replaced_and_takes_nothing_along() {
        let flights = Arc::new(Flights::default());
        let Part::Lead(hanging) = flights.join("k".to_owned(), Duration::MAX) else {
            panic!("nobody else is under way")
        };
        assert!(flights.under_way("k", Duration::ZERO).is_none());
        let Part::Lead(second) = flights.join("k".to_owned(), Duration::ZERO) else { panic!("it has lapsed") };
        drop(hanging);
        assert!(flights.under_way("k", Duration::MAX).is_some(), "the second one's");
        drop(second);
        assert!(flights.under_way("k", Duration::MAX).is_none());
        let Part::Lead(hanging) = flights.join("k".to_owned(), Duration::MAX) else {
            panic!("nobody else is under way")
        };
        drop(flights.join("k".to_owned(), Duration::ZERO));
        flights.revoke("k");
        assert!(hanging.is_revoked(), "also when the second one has ended");
    }

    #[test]
    fn what_is_loaded_elsewhere_is_not_led_for_a_moment() {
        let flights = Arc::new(Flights::default());
        flights.is_elsewhere("k".to_owned());
        assert!(flights.try_lead("k".to_owned(), Duration::MAX).is_none());
        flights.revoke("k");
        assert!(flights.try_lead("k".to_owned(), Duration::MAX).is_some());
        for n in 0..2 * MOST_ELSEWHERE {
            flights.is_elsewhere(n.to_string());
        }
        assert!(flights.elsewhere.lock().len() <= MOST_ELSEWHERE);
    }
}
