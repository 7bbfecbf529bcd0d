//! What many processes want is loaded by one of them, and no lease outlives whoever holds it without need.
//!
//! The bounds of a fetch are hours here: only what is promised lets a scenario pass.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prefork_cache::{Cache, Expiry};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::callers::{Caller, HOUR, MINUTE, PATIENT, builder_on, cache_at, current_thread_runtime, until_async};
use crate::harness::{Mode, Scenario, count, is_stress, scenario, with_each_server, with_each_server_and_mode};
use support::forks::{Child, End, Side, Way, split, try_fork_by};
use support::proxy::Proxy;
use support::servers::{Kind, Server};
use support::tally::Tally;
use support::wait::until;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(with_each_server_and_mode("sixty_four_workers_load_a_cold_key_once", load_a_cold_key_once));
    all.extend(with_each_server("sixty_four_workers_load_a_cold_batch_once", load_a_cold_batch_once));
    all.extend(with_each_server_and_mode("a_slow_loader_at_the_defaults_is_run_once", a_slow_loader));
    all.extend(with_each_server_and_mode("loaders_that_wait_for_each_other_return", loaders_that_wait_for_each_other));
    all.extend(with_each_server_and_mode("a_late_answer_is_not_loaded_upon", a_late_answer));
    all.extend(with_each_server_and_mode("a_leader_that_is_killed_is_replaced", a_leader_is_killed));
    all.extend(with_each_server_and_mode("a_leader_that_fails_hands_over_at_once", a_leader_fails));
    all.extend(with_each_server("a_fork_in_a_loader_leaves_the_lease_to_the_parent", a_fork_in_a_loader));
    all.extend(with_each_server_and_mode("a_child_waits_for_what_its_parent_loads", a_child_waits));
    all.extend(with_each_server_and_mode("a_stale_value_is_refreshed_by_one_of_all", a_stale_value));
    all.extend(with_each_server("a_detached_refresh_lets_nobody_wait", a_detached_refresh));
    all.extend(with_each_server_and_mode("a_steady_rate_loads_once_a_period", a_steady_rate));
    all.extend(with_each_server("a_steady_rate_loads_once_a_period::detached", a_steady_detached_rate));
    all.extend(with_each_server_and_mode("the_store_dies_while_others_wait_for_a_lease", the_store_dies));
    all.push(scenario("jitter_differs_between_siblings", jitter_differs));
    all
}

const WORKERS: usize = 64;

/// How long a worker may take.
const WORKER_TIME: Duration = Duration::from_secs(100);

const HELLO: &str = "the value before";

fn patient_cache(server: &Server, lease: Duration) -> Cache {
    builder_on(server, PATIENT).lease(lease).load_timeout(HOUR).register()
}

fn worker<T: Serialize + DeserializeOwned>(work: impl FnOnce() -> T) -> Child<T> {
    try_fork_by(Way::Fork, WORKER_TIME, work).expect("a child")
}

fn workers<T: Serialize + DeserializeOwned>(work: impl Fn() -> T) -> Vec<Child<T>> {
    (0..WORKERS).map(|_| worker(&work)).collect()
}

/// A loader that runs until it is told to end.
#[derive(Clone, Copy)]
struct Load {
    runs: Tally,
    /// The process that was the first to run it.
    first: Tally,
    may_end: Tally,
}

impl Load {
    fn new() -> Load {
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

    async fn run_async(self) -> String {
        self.begin();
        until_async("the load may end", || self.may_end()).await;
        own_value()
    }

    fn fetch(self, caller: &Caller<'_>, key: &str, expiry: impl Into<Expiry>) -> String {
        caller.fetch_with(key, expiry, || self.run(), || self.run_async())
    }
}

/// What a loader of this process returns.
fn own_value() -> String {
    value_of(std::process::id() as usize)
}

fn value_of(process: usize) -> String {
    format!("loaded by {process}")
}

/// Runs `work`, and counts this process in as soon as the cache has answered its first read: from then on, whoever has
/// missed will not learn of a value by that read.
fn counted_in<T>(cache: &Cache, have_looked: Tally, work: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        scope.spawn(|| {
            until("this worker has looked", || cache.stats().hits + cache.stats().misses > 0);
            have_looked.raise(1);
        });
        work()
    })
}

/// Has all workers ask for a cold key, and waits until each has missed it while one of them loads.
fn all_miss<T: Serialize + DeserializeOwned>(
    claims: impl Fn() -> usize,
    cache: &Cache,
    load: Load,
    work: impl Fn() -> T,
) -> Vec<Child<T>> {
    let (before, have_looked) = (claims(), Tally::new());
    let workers = workers(|| counted_in(cache, have_looked, &work));
    until("every worker has looked", || have_looked.count() == WORKERS);
    // What is wrong if two load is said in the end.
    let is_clear = || claims() >= before + WORKERS || load.runs.count() > 1;
    until("as many attempts to take the lease as there are workers", is_clear);
    workers
}

/// The one value that all of them have.
fn in_common(values: impl IntoIterator<Item = String>) -> String {
    let mut different: BTreeSet<String> = values.into_iter().collect();
    let value = different.pop_first().expect("at least one");
    assert!(different.is_empty(), "some have {value:?}, others have {different:?}");
    value
}

fn load_a_cold_key_once(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    cold_keys_are_loaded_once(mode, &cache, || server.claims(), count(1, 50));
}

pub(crate) fn key_of(round: usize) -> String {
    format!("cold in round {round}")
}

/// A key in each round, of a cache with leases of an hour. `claims` counts how often a lease was asked for.
pub(crate) fn cold_keys_are_loaded_once(mode: Mode, cache: &Cache, claims: impl Fn() -> usize, rounds: usize) {
    for round in 0..rounds {
        let (key, load) = (key_of(round), Load::new());
        let workers = all_miss(&claims, cache, load, || load.fetch(&Caller::new(mode, cache), &key, MINUTE));
        load.may_end.raise(1);
        let value = in_common(workers.into_iter().map(Child::join));
        assert_eq!(load.runs.count(), 1, "loads of one key by {WORKERS} workers");
        assert_eq!(value, value_of(load.first.count()));
    }
}

const BATCH: usize = 100;

/// Each begins with another key, so that none can claim all of them before the others ask.
fn load_a_cold_batch_once(kind: Kind) {
    let server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    for round in 0..count(1, 10) {
        let (number, loads, may_fetch) = (Tally::new(), Tally::new(), Tally::new());
        let keys: Vec<String> = (0..BATCH).map(|place| format!("{place} in round {round}")).collect();
        let workers = workers(|| {
            let mut keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            keys.rotate_left(number.raise(1) * BATCH / WORKERS);
            until("all workers are there", || may_fetch.count() > 0);
            let load = |missing: &[&str]| {
                loads.raise(missing.len());
                missing.iter().map(|key| Ok::<String, Infallible>((*key).to_owned())).collect()
            };
            let fetched = cache.blocking().fetch_many(&keys, MINUTE, load);
            assert!(fetched.iter().zip(&keys).all(|(value, key)| value.as_deref() == Ok(*key)), "{fetched:?}");
        });
        until("all workers are there", || number.count() == WORKERS);
        may_fetch.raise(1);
        workers.into_iter().for_each(Child::join);
        assert_eq!(loads.count(), BATCH, "loads of {BATCH} keys by {WORKERS} workers");
    }
}

/// The callers of the slow loader.
const SLOW_PROCESSES: usize = 8;
const SLOW_CALLERS: usize = 200 / SLOW_PROCESSES;

/// Of the settings none is changed but how long a busy machine may take to answer.
fn a_slow_loader(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = builder_on(&server, PATIENT).register();
    // Longer than a lease lives without a beat, and than a fetch inside of a loader waits.
    let takes = Duration::from_secs(if is_stress() { 30 } else { 7 });
    let loads = Tally::new();
    let slowly = || {
        loads.raise(1);
        thread::sleep(takes);
        Ok::<usize, Infallible>(1)
    };
    let slowly_async = async || {
        loads.raise(1);
        tokio::time::sleep(takes).await;
        Ok::<usize, Infallible>(1)
    };
    let callers = || match mode {
        Mode::Blocking => thread::scope(|scope| {
            let fetch = || cache.blocking().fetch("slow", MINUTE, slowly);
            let callers: Vec<_> = (0..SLOW_CALLERS).map(|_| scope.spawn(fetch)).collect();
            callers.into_iter().for_each(|caller| assert_eq!(caller.join().expect("no panic"), Ok(1)));
        }),
        Mode::Tokio => current_thread_runtime().block_on(async {
            let mut callers: Vec<_> =
                (0..SLOW_CALLERS).map(|_| Box::pin(cache.fetch("slow", MINUTE, slowly_async))).collect();
            let mut fetched = vec![None; SLOW_CALLERS];
            std::future::poll_fn(|cx| {
                for (caller, fetched) in callers.iter_mut().zip(&mut fetched) {
                    if fetched.is_none()
                        && let Poll::Ready(value) = caller.as_mut().poll(cx)
                    {
                        *fetched = Some(value);
                    }
                }
                if fetched.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            assert_eq!(fetched, vec![Some(Ok(1)); SLOW_CALLERS]);
        }),
    };
    let children: Vec<Child<()>> = (0..SLOW_PROCESSES).map(|_| worker(callers)).collect();
    children.into_iter().for_each(Child::join);
    assert_eq!(loads.count(), 1, "loads of {takes:?} by {SLOW_CALLERS} callers in each of {SLOW_PROCESSES} processes");
}

/// Each loads its key, and fetches the other one's meanwhile. A wait that nothing else would end is bounded by
/// `fetch_wait`; all other bounds are an hour.
fn loaders_that_wait_for_each_other(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache =
        builder_on(&server, PATIENT).lease(HOUR).load_timeout(HOUR).fetch_wait(Duration::from_millis(500)).register();
    let loading = Tally::new();
    let work = |[own, other]: [&'static str; 2]| {
        let inner = |own: &str| format!("{own} for a loader");
        match mode {
            Mode::Blocking => cache.blocking().fetch(own, MINUTE, || {
                loading.raise(1);
                until("both load", || loading.count() == 2);
                let Ok(fetched) = cache.blocking().fetch(other, MINUTE, || Ok::<_, Infallible>(inner(other)));
                Ok::<String, Infallible>(fetched)
            }),
            Mode::Tokio => current_thread_runtime().block_on(cache.fetch(own, MINUTE, async || {
                loading.raise(1);
                until_async("both load", || loading.count() == 2).await;
                let Ok(fetched) = cache.fetch(other, MINUTE, async || Ok::<_, Infallible>(inner(other))).await;
                Ok::<String, Infallible>(fetched)
            })),
        }
        .expect("never fails")
    };
    let begun = Instant::now();
    let children = [["a", "b"], ["b", "a"]].map(|keys| worker(move || work(keys)));
    let values = children.map(Child::join);
    // One of them may have had the other's value, once that one had given up.
    assert!(
        values.contains(&"b for a loader".to_owned()) || values.contains(&"a for a loader".to_owned()),
        "{values:?}"
    );
    let took = begun.elapsed();
    assert!(took < MINUTE, "{took:?}");
}

/// A worker's first look is answered late: another process has loaded, stored and given the lease back meanwhile. So it
/// gets the lease, and has to look again.
fn a_late_answer(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let proxy = Proxy::before(server.port());
    let (near, far) = (cache_at(kind, proxy.port(), PATIENT), patient_cache(&server, HOUR));
    let nothing = match kind {
        Kind::Redis => "_\r\n",
        Kind::Memcached => "EN ",
    };
    make_stale(&far, "stale");
    for (key, answer) in [("missing", nothing), ("stale", HELLO)] {
        let (load, is_connected, may_fetch) = (Load::new(), Tally::new(), Tally::new());
        load.may_end.raise(1);
        let late = worker(|| {
            let caller = Caller::new(mode, &near);
            caller.get("another key").expect("the server is there");
            is_connected.raise(1);
            until("this worker may fetch", || may_fetch.count() > 0);
            load.fetch(&caller, key, STALE_SOON)
        });
        until("the worker has a connection", || is_connected.count() > 0);
        proxy.hold_replies_with(answer);
        may_fetch.raise(1);
        proxy.wait_until_held(1);
        assert_eq!(Caller::new(Mode::Blocking, &far).fetch(key, "loaded meanwhile"), "loaded meanwhile");
        proxy.release();
        assert_eq!(late.join(), "loaded meanwhile", "{key}");
        assert_eq!(load.runs.count(), 0, "loads of what was {key}");
    }
}

fn a_leader_is_killed(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    for round in 0..count(1, 10) {
        let (key, load) = (format!("cold in round {round}"), Load::new());
        let mut workers =
            all_miss(|| server.claims(), &cache, load, || load.fetch(&Caller::new(mode, &cache), &key, MINUTE));
        let leader = Pid::from_raw(i32::try_from(load.first.count()).expect("a process id"));
        let leader = workers.iter().position(|worker| worker.process() == leader).expect("one of them leads");
        let leader = workers.swap_remove(leader);
        kill(leader.process(), Signal::SIGKILL).expect("a child of ours can be killed");
        assert_eq!(leader.end(), End::Killed(Signal::SIGKILL));
        load.may_end.raise(1);
        let value = in_common(workers.into_iter().map(Child::join));
        assert_eq!(load.runs.count(), 2, "the one that was killed, and one more");
        assert_ne!(value, value_of(load.first.count()));
    }
}

/// How a load ends without a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Error,
    Panic,
    /// Its future is dropped inside the runtime.
    Cancelled,
    /// Its future is dropped where there is no runtime.
    DroppedOutside,
    /// Its future is dropped along with the runtime.
    ShutDown,
}

/// This process leads, and another one waits for it. The lease and the wait are an hour long: only a lease that is
/// given back lets the other one load.
fn a_leader_fails(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    let failures: &[Failure] = match mode {
        Mode::Blocking => &[Failure::Error, Failure::Panic],
        Mode::Tokio => {
            &[Failure::Error, Failure::Panic, Failure::Cancelled, Failure::DroppedOutside, Failure::ShutDown]
        }
    };
    for &failure in failures {
        let key = format!("{failure:?}");
        let before = server.claims();
        let (has_begun, has_looked, is_done) = (Tally::new(), Tally::new(), Tally::new());
        let waiting = worker(|| {
            until("the other one loads", || has_begun.count() > 0);
            let fetch = || Caller::new(mode, &cache).fetch(&key, "the other one's");
            let value = counted_in(&cache, has_looked, fetch);
            is_done.raise(1);
            value
        });
        // The leader's attempt, and that of the one that waits.
        let is_waited_for = || has_looked.count() > 0 && server.claims() >= before + 2;
        match mode {
            Mode::Blocking => fail_blocking(&cache, failure, &key, has_begun, is_waited_for),
            Mode::Tokio => fail_on_tokio(&cache, failure, &key, has_begun, is_waited_for, is_done),
        }
        until(&format!("the other one has loaded, after {failure:?}"), || is_done.count() > 0);
        assert_eq!(waiting.join(), "the other one's", "after {failure:?}");
    }
}

fn fail_blocking(cache: &Cache, failure: Failure, key: &str, has_begun: Tally, is_waited_for: impl Fn() -> bool) {
    let ended = catch_unwind(AssertUnwindSafe(|| {
        cache.blocking().fetch(key, MINUTE, || {
            has_begun.raise(1);
            until("the other one waits", &is_waited_for);
            assert_ne!(failure, Failure::Panic, "as planned");
            Err::<String, _>("as planned")
        })
    }));
    assert_eq!(ended.is_err(), failure == Failure::Panic, "{ended:?}");
}

fn fail_on_tokio(
    cache: &Cache,
    failure: Failure,
    key: &str,
    has_begun: Tally,
    is_waited_for: impl Fn() -> bool,
    is_done: Tally,
) {
    let runtime = current_thread_runtime();
    let fails = async |key: &str, is_waited_for: &dyn Fn() -> bool| {
        let load = async || {
            has_begun.raise(1);
            until_async("the other one waits", is_waited_for).await;
            assert_ne!(failure, Failure::Panic, "as planned");
            Err::<String, _>("as planned")
        };
        cache.fetch(key, MINUTE, load).await
    };
    let never = || false;
    match failure {
        Failure::Error => {
            assert_eq!(runtime.block_on(fails(key, &is_waited_for)), Err("as planned"));
        }
        Failure::Panic => {
            catch_unwind(AssertUnwindSafe(|| runtime.block_on(fails(key, &is_waited_for)))).expect_err("a panic");
            // What the drop has begun goes on while the runtime runs.
            runtime.block_on(until_async("the other one has loaded", || is_done.count() > 0));
        }
        Failure::Cancelled => runtime.block_on(async {
            tokio::select! {
                ended = fails(key, &never) => panic!("ended by itself: {ended:?}"),
                () = until_async("the other one waits", &is_waited_for) => {}
            }
            until_async("the other one has loaded", || is_done.count() > 0).await;
        }),
        Failure::DroppedOutside => {
            let mut ends = Box::pin(fails(key, &never));
            runtime.block_on(async {
                tokio::select! {
                    ended = &mut ends => panic!("ended by itself: {ended:?}"),
                    () = until_async("the other one waits", &is_waited_for) => {}
                }
            });
            drop(ends);
        }
        Failure::ShutDown => {
            let (cache, key) = (cache.clone(), key.to_owned());
            runtime.spawn(async move {
                let load = async || {
                    has_begun.raise(1);
                    std::future::pending::<Result<String, Infallible>>().await
                };
                cache.fetch(&key, MINUTE, load).await
            });
            runtime.block_on(until_async("the other one waits", &is_waited_for));
            drop(runtime);
        }
    }
}

/// Whether the server has an entry under a key without spaces.
fn is_held(server: &Server, key: &str) -> bool {
    match server.kind() {
        Kind::Redis => server.ask(&format!("EXISTS {key}")).starts_with(":1"),
        Kind::Memcached => server.ask(&format!("get {key}")).starts_with("VALUE"),
    }
}

/// The child comes back from the loader first, and ends. The lease is its parent's all the while.
fn a_fork_in_a_loader(kind: Kind) {
    let server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    for way in Way::COMMON {
        // With a tag, so that its lease has no letters that are to be guessed.
        let key = format!("{{loaded-across-{way:?}}}");
        let is_leased = || is_held(&server, &format!("{key}:prefork-lease"));
        let mut reporter = None;
        let fetched = cache.blocking().fetch(&key, MINUTE, || {
            assert!(is_leased(), "before {way:?}");
            match split::<String>(way, WORKER_TIME).expect("a child") {
                Side::Child(child) => {
                    reporter = Some(child);
                    Ok::<_, Infallible>("the child's".to_owned())
                }
                Side::Parent(child) => {
                    assert_eq!(child.join(), "the child's", "after {way:?}");
                    assert!(is_leased(), "a child has ended the lease of its parent, after {way:?}");
                    Ok("the parent's".to_owned())
                }
            }
        });
        let fetched = fetched.expect("never fails");
        match reporter {
            Some(reporter) => reporter.run_and_exit(|| fetched),
            None => {
                assert_eq!(fetched, "the parent's", "after {way:?}");
                assert!(!is_leased(), "the parent is done, after {way:?}");
            }
        }
    }
}

/// The thread that loads is not in the child; its process is alive all the same, and will have the value.
fn a_child_waits(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    for way in Way::COMMON {
        let key = format!("loaded across a {way:?}");
        let (parents, childs) = (Load::new(), Load::new());
        childs.may_end.raise(1);
        let (fetched, of_child) = thread::scope(|scope| {
            let leading = scope.spawn(|| parents.fetch(&Caller::new(mode, &cache), &key, MINUTE));
            until("the parent loads", || parents.runs.count() == 1);
            let (before, has_looked) = (server.claims(), Tally::new());
            let child = try_fork_by(way, WORKER_TIME, || {
                let fetch = || childs.fetch(&Caller::new(mode, &cache), &key, MINUTE);
                counted_in(&cache, has_looked, fetch)
            });
            let child = child.expect("a child");
            until("the child waits", || has_looked.count() == 1 && server.claims() > before);
            parents.may_end.raise(1);
            (leading.join().expect("no panic"), child.join())
        });
        assert_eq!((fetched, of_child), (own_value(), own_value()), "after {way:?}");
        assert_eq!(childs.runs.count(), 0, "loads of the child's, after {way:?}");
    }
}

/// What the workers of a stale value have been answered.
#[derive(Clone, Copy)]
struct Answers {
    /// Workers that have had the old value.
    workers: Tally,
    /// How often that was, for all together.
    all: Tally,
}

impl Answers {
    fn new() -> Answers {
        Answers { workers: Tally::new(), all: Tally::new() }
    }

    /// Answers `true` for the new value.
    fn take_in(self, value: &str, is_first: bool) -> bool {
        if value == HELLO {
            self.workers.raise(usize::from(is_first));
            self.all.raise(1);
        }
        value != HELLO
    }

    /// Each of so many workers has been answered, and all together a few times more often.
    fn are_there(self, workers: usize) -> bool {
        self.workers.count() >= workers && self.all.count() >= 8 * WORKERS
    }
}

/// Between two fetches of a worker: as many processes share a few processors.
const PACE: Duration = Duration::from_millis(10);

const STALE_SOON: Expiry = Expiry::after(HOUR).stale_for(HOUR);

fn make_stale(cache: &Cache, key: &str) {
    cache.blocking().set(key, &HELLO, STALE_SOON).expect("the server is there");
    assert!(cache.blocking().expire(key).expect("the server is there"));
}

/// The elected one is held in its loader until all the others have been answered with the old value.
fn a_stale_value(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    for round in 0..count(1, 20) {
        let (key, load, answers) = (format!("stale in round {round}"), Load::new(), Answers::new());
        make_stale(&cache, &key);
        let workers = workers(|| {
            let caller = Caller::new(mode, &cache);
            for turn in 0.. {
                let value = load.fetch(&caller, &key, STALE_SOON);
                if answers.take_in(&value, turn == 0) {
                    return value;
                }
                thread::sleep(PACE);
            }
            unreachable!("the turns do not end")
        });
        until("the others have had the old value", || answers.are_there(WORKERS - 1));
        load.may_end.raise(1);
        let value = in_common(workers.into_iter().map(Child::join));
        assert_eq!(load.runs.count(), 1, "loads of one stale value by {WORKERS} workers");
        assert_eq!(value, value_of(load.first.count()));
    }
}

/// As above, and the elected one's caller is answered with the old value too.
fn a_detached_refresh(kind: Kind) {
    let server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    for round in 0..count(1, 20) {
        let (key, load, answers) = (format!("stale in round {round}"), Load::new(), Answers::new());
        make_stale(&cache, &key);
        let workers = workers(|| {
            current_thread_runtime().block_on(async {
                for turn in 0.. {
                    let load = move || async move { Ok::<_, Infallible>(load.run_async().await) };
                    let Ok(value) = cache.fetch_detached(&key, STALE_SOON, load).await;
                    if answers.take_in(&value, turn == 0) {
                        return value;
                    }
                    tokio::time::sleep(PACE).await;
                }
                unreachable!("the turns do not end")
            })
        });
        until("all have had the old value", || answers.are_there(WORKERS));
        load.may_end.raise(1);
        let value = in_common(workers.into_iter().map(Child::join));
        assert_eq!(load.runs.count(), 1, "loads of one stale value by {WORKERS} workers");
        assert_eq!(value, value_of(load.first.count()));
    }
}

/// A value is due for a load this long after it was stored, and not earlier.
const PERIOD: Duration = Duration::from_millis(700);

fn kept_fresh() -> Expiry {
    let fresh = Duration::from_secs(1);
    Expiry::after(fresh).refresh_ahead(fresh - PERIOD).stale_for(MINUTE)
}

/// For how long the workers ask, and each a little longer if it must.
fn steady_time() -> Duration {
    Duration::from_secs(if is_stress() { 60 } else { 4 })
}

fn a_steady_rate(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    at_a_steady_rate(|begun, loads| {
        let caller = Caller::new(mode, &cache);
        let (mut fetches, own) = (0_usize, Cell::new(0));
        let next = || {
            own.set(loads.raise(1) + 1);
            own.get().to_string()
        };
        while begun.elapsed() < steady_time() || loads.count() < 2 {
            caller.fetch_with("key", kept_fresh(), next, async || next());
            fetches += 1;
            thread::sleep(PACE);
        }
        until("what it has loaded is stored", || number(caller.get("key")) >= own.get());
        fetches
    });
}

fn a_steady_detached_rate(kind: Kind) {
    let server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    at_a_steady_rate(|begun, loads| {
        let own = Tally::new();
        let mut fetches = 0_usize;
        let runtime = current_thread_runtime();
        runtime.block_on(async {
            while begun.elapsed() < steady_time() || loads.count() < 2 {
                let load = move || async move {
                    let number = loads.raise(1) + 1;
                    own.raise(number - own.count());
                    Ok::<_, Infallible>(number.to_string())
                };
                let Ok(_) = cache.fetch_detached("key", kept_fresh(), load).await;
                fetches += 1;
                tokio::time::sleep(PACE).await;
            }
            // A load that is cut short is repeated by another one.
            let deadline = Instant::now() + support::wait::PATIENCE;
            while number(cache.get("key").await) < own.count() {
                assert!(Instant::now() < deadline, "waited in vain until what it has loaded is stored");
                tokio::time::sleep(PACE).await;
            }
        });
        fetches
    });
}

fn number(value: prefork_cache::Result<Option<String>>) -> usize {
    value.expect("the server is there").map_or(0, |number| number.parse().expect("a number"))
}

/// No time is asserted: that a value is not due earlier bounds the loads, however fast or slow the machine is.
fn at_a_steady_rate(work: impl Fn(Instant, Tally) -> usize) {
    let (begun, loads) = (Instant::now(), Tally::new());
    let fetches: usize = workers(|| work(begun, loads)).into_iter().map(Child::join).sum();
    let elapsed = begun.elapsed();
    let most = usize::try_from(elapsed.as_millis() / PERIOD.as_millis()).expect("a small number") + 2;
    let loads = loads.count();
    let rate = loads as f64 / elapsed.as_secs_f64();
    println!("{fetches} fetches by {WORKERS} workers in {elapsed:.1?}: {loads} loads, {rate:.2} a second");
    assert!((2..=most).contains(&loads), "{loads} loads in {elapsed:?}, at most {most} were due");
}

/// All load at the same time once it is dead, while the one that has the lease still does.
fn the_store_dies(kind: Kind, mode: Mode) {
    let mut server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    let load = Load::new();
    let fetch = || (load.fetch(&Caller::new(mode, &cache), "cold", MINUTE), own_value());
    let workers = all_miss(|| server.claims(), &cache, load, fetch);
    assert_eq!(load.runs.count(), 1, "one of them loads");
    server.kill();
    until("every worker loads for itself", || load.runs.count() == WORKERS);
    load.may_end.raise(1);
    for worker in workers {
        let (fetched, loaded) = worker.join();
        assert_eq!(fetched, loaded);
    }
}

/// The ends would be within minutes of each other if all drew alike; by chance, two are once in 300,000 runs.
fn jitter_differs() {
    const DAY: u64 = 24 * 60 * 60;
    let server = Server::start(Kind::Redis);
    let cache = patient_cache(&server, HOUR);
    let expiry = Expiry::after(Duration::from_secs(50 * 365 * DAY)).jitter(1.0);
    let set = |key: &str| cache.blocking().set(key, "value", expiry).expect("the server is there");
    set("parent");
    let keys: Vec<String> = (0..8).map(|number| format!("child-{number}")).collect();
    let children: Vec<_> = keys.iter().map(|key| worker(|| set(key))).collect();
    children.into_iter().for_each(Child::join);
    let seconds_left = |key: &str| -> u64 {
        let answer = server.ask(&format!("TTL {key}"));
        let number = answer.lines().next().and_then(|line| line.strip_prefix(':'));
        number.unwrap_or_else(|| panic!("no number: {answer:?}")).parse().expect("a TTL")
    };
    let mut left: Vec<u64> = keys.iter().map(|key| seconds_left(key)).collect();
    left.push(seconds_left("parent"));
    left.sort_unstable();
    println!("days left: {:?}", left.iter().map(|seconds| seconds / DAY).collect::<Vec<_>>());
    assert!(left.windows(2).all(|pair| pair[1] - pair[0] > 60), "seconds left: {left:?}");
}
