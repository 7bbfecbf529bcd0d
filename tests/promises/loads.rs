//! Workers and loaders for the scenarios of `fetch`.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use prefork_cache::{Cache, Expiry};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::callers::{Caller, HOUR, PATIENT, builder_on, until_async};
use support::forks::{Child, Way, try_fork_by};
use support::servers::Server;
use support::tally::Tally;
use support::wait::until;

pub(crate) const WORKERS: usize = 64;

/// The time limit of a worker.
pub(crate) const WORKER_TIME: Duration = Duration::from_secs(100);

pub(crate) fn patient_cache(server: &Server, lease: Duration) -> Cache {
    builder_on(server, PATIENT).lease(lease).load_timeout(HOUR).register()
}

pub(crate) fn worker<T: Serialize + DeserializeOwned>(work: impl FnOnce() -> T) -> Child<T> {
    try_fork_by(Way::Fork, WORKER_TIME, work).expect("a child")
}

pub(crate) fn workers<T: Serialize + DeserializeOwned>(work: impl Fn() -> T) -> Vec<Child<T>> {
    (0..WORKERS).map(|_| worker(&work)).collect()
}

/// A loader that runs until it is allowed to end.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) runs: Tally,
    /// The id of the first process that ran it.
    pub(crate) first: Tally,
    pub(crate) may_end: Tally,
}

impl Load {
    pub(crate) fn new() -> Load {
        Load { runs: Tally::new(), first: Tally::new(), may_end: Tally::new() }
    }

    fn begin(self) {
        if self.runs.raise(1) == 0 {
            self.first.raise(std::process::id() as usize);
        }
    }

    fn may_end(self) -> bool {
        self.may_end.count() > 0
    }

    fn run(self) -> String {
        self.begin();
        until("the load may end", || self.may_end());
        own_value()
    }

    pub(crate) async fn run_async(self) -> String {
        self.begin();
        until_async("the load may end", || self.may_end()).await;
        own_value()
    }

    pub(crate) fn fetch(self, caller: &Caller<'_>, key: &str, expiry: impl Into<Expiry>) -> String {
        caller.fetch_with(key, expiry, || self.run(), || self.run_async())
    }
}

/// The value that a loader of this process returns.
pub(crate) fn own_value() -> String {
    value_of(std::process::id() as usize)
}

pub(crate) fn value_of(process: usize) -> String {
    format!("loaded by {process}")
}

/// Runs `work`, and counts this process as soon as the cache has completed its first read. From then on, a worker that
/// missed cannot get the value from that read.
pub(crate) fn count_first_read<T>(cache: &Cache, have_read: Tally, work: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        scope.spawn(|| {
            until("this worker has read", || cache.stats().hits + cache.stats().misses > 0);
            have_read.raise(1);
        });
        work()
    })
}

/// Makes all workers ask for a cold key. Returns when each has missed while one of them loads.
pub(crate) fn all_miss<T: Serialize + DeserializeOwned>(
    claims: impl Fn() -> usize,
    cache: &Cache,
    load: Load,
    work: impl Fn() -> T,
) -> Vec<Child<T>> {
    let (before, have_read) = (claims(), Tally::new());
    let workers = workers(|| count_first_read(cache, have_read, &work));
    until("every worker has read", || have_read.count() == WORKERS);
    // A second load ends the wait; the scenario reports it at its end.
    let all_claimed = || claims() >= before + WORKERS || load.runs.count() > 1;
    until("as many attempts to take the lease as there are workers", all_claimed);
    workers
}

/// Asserts that all values are equal, and returns that value.
pub(crate) fn common_value(values: impl IntoIterator<Item = String>) -> String {
    let mut different: BTreeSet<String> = values.into_iter().collect();
    let value = different.pop_first().expect("at least one");
    assert!(different.is_empty(), "some have {value:?}, others have {different:?}");
    value
}
