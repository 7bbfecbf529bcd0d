//! Which loads the running code is part of, since a loader may fetch other keys, and even its own.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;

use crate::cache::observer::is_reporting;

thread_local! {
    /// The numbers of the flights whose loaders run on this thread, the innermost last.
    static LOADING: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };

    /// The numbers of the flights that this thread has claimed in two steps and not settled, the latest last.
    static CLAIMED: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Limit of `CLAIMED`. If another thread settles a claim, its number stays here. That is harmless: numbers are not
/// reused.
const MOST_CLAIMED: usize = 1_000;

/// Records that this thread loads this flight itself, between the two steps of a fetch.
pub(super) fn claimed(flight: u64) {
    CLAIMED.with_borrow_mut(|claimed| {
        if claimed.len() >= MOST_CLAIMED {
            claimed.remove(0);
        }
        claimed.push(flight);
    });
}

pub(super) fn settled(flight: u64) {
    CLAIMED.with_borrow_mut(|claimed| claimed.retain(|other| *other != flight));
}

/// Runs the loader of these flights. Work that it passes to another thread or task is not known to be part of it.
pub(super) async fn loading<F: Future>(flights: Vec<u64>, load: F) -> F::Output {
    let mut load = pin!(load);
    poll_fn(|cx| {
        let _nested = Nested::begin(&flights);
        load.as_mut().poll(cx)
    })
    .await
}

/// Returns whether the running code is part of a loader.
pub(super) fn is_in_loader() -> bool {
    LOADING.with_borrow(|loading| !loading.is_empty())
}

/// Returns whether the running code is, or may be, part of this flight's load: it must not wait for the flight.
pub(super) fn is_part_of(flight: u64) -> bool {
    is_reporting()
        || LOADING.with_borrow(|loading| loading.contains(&flight))
        || CLAIMED.with_borrow(|claimed| claimed.contains(&flight))
}

struct Nested {
    before: usize,
}

impl Nested {
    fn begin(flights: &[u64]) -> Nested {
        LOADING.with_borrow_mut(|loading| {
            let before = loading.len();
            // A forced load has no flight, but runs a loader.
            if flights.is_empty() {
                loading.push(0)
            } else {
                loading.extend_from_slice(flights)
            }
            Nested { before }
        })
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        LOADING.with_borrow_mut(|loading| loading.truncate(self.before));
    }
}
