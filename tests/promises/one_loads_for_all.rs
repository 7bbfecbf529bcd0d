//! A value that many processes want is loaded by one of them.
//!
//! The limits of a fetch are hours here: no scenario can pass because a limit expires.

use std::cell::Cell;
use std::convert::Infallible;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use prefork_cache::{Cache, Expiry};

use crate::callers::{Caller, HOUR, MINUTE, PATIENT, builder_on, cache_at, current_thread_runtime};
use crate::harness::{Mode, Scenario, count, is_stress, scenario, with_each_server, with_each_server_and_mode};
use crate::loads::{
    Load, WORKER_TIME, WORKERS, all_miss, common_value, count_first_read, own_value, patient_cache, value_of, worker,
    workers,
};
use support::forks::{Child, Way, try_fork_by};
use support::proxy::Proxy;
use support::servers::{Kind, Server};
use support::tally::Tally;
use support::wait::until;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(with_each_server_and_mode("sixty_four_workers_load_a_cold_key_once", load_a_cold_key_once));
    all.extend(with_each_server("sixty_four_workers_load_a_cold_batch_once", load_a_cold_batch_once));
    all.extend(with_each_server_and_mode("a_slow_loader_at_the_defaults_is_run_once", a_slow_loader));
    all.extend(with_each_server_and_mode("a_late_miss_is_read_again_before_a_load", a_late_miss));
    all.extend(with_each_server_and_mode("a_child_waits_for_the_load_of_its_parent", a_child_waits));
    all.extend(with_each_server_and_mode("a_stale_value_is_refreshed_by_one_worker", a_stale_value));
    all.extend(with_each_server("a_detached_refresh_makes_no_worker_wait", a_detached_refresh));
    all.extend(with_each_server_and_mode("a_steady_rate_loads_once_per_period", a_steady_rate));
    all.extend(with_each_server("a_steady_rate_loads_once_per_period::detached", a_steady_detached_rate));
    all.push(scenario("jitter_differs_between_siblings", jitter_differs));
    all
}

const OLD_VALUE: &str = "the old value";

fn load_a_cold_key_once(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    cold_keys_are_loaded_once(mode, &cache, || server.claims(), count(1, 50));
}

pub(crate) fn key_of(round: usize) -> String {
    format!("cold in round {round}")
}

/// Loads one key in each round, from a cache whose leases last an hour. `claims` counts the attempts to take a lease.
pub(crate) fn cold_keys_are_loaded_once(mode: Mode, cache: &Cache, claims: impl Fn() -> usize, rounds: usize) {
    for round in 0..rounds {
        let (key, load) = (key_of(round), Load::new());
        let workers = all_miss(&claims, cache, load, || load.fetch(&Caller::new(mode, cache), &key, MINUTE));
        load.may_end.raise(1);
        let value = common_value(workers.into_iter().map(Child::join));
        assert_eq!(load.runs.count(), 1, "loads of one key by {WORKERS} workers");
        assert_eq!(value, value_of(load.first.count()));
    }
}

const BATCH: usize = 100;

/// Each worker begins with another key, so that none can claim all of them before the others ask.
fn load_a_cold_batch_once(kind: Kind) {
    let server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    for round in 0..count(1, 10) {
        let (workers_started, loads, may_fetch) = (Tally::new(), Tally::new(), Tally::new());
        let keys: Vec<String> = (0..BATCH).map(|index| format!("{index} in round {round}")).collect();
        let workers = workers(|| {
            let mut keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            keys.rotate_left(workers_started.raise(1) * BATCH / WORKERS);
            until("all workers have started", || may_fetch.count() > 0);
            let load = |missing: &[&str]| {
                loads.raise(missing.len());
                missing.iter().map(|key| Ok::<String, Infallible>((*key).to_owned())).collect()
            };
            let fetched = cache.blocking().fetch_many(&keys, MINUTE, load);
            assert!(fetched.iter().zip(&keys).all(|(value, key)| value.as_deref() == Ok(*key)), "{fetched:?}");
        });
        until("all workers have started", || workers_started.count() == WORKERS);
        may_fetch.raise(1);
        workers.into_iter().for_each(Child::join);
        assert_eq!(loads.count(), BATCH, "loads of {BATCH} keys by {WORKERS} workers");
    }
}

/// The number of callers of the slow loader, by process.
const SLOW_PROCESSES: usize = 8;

const SLOW_CALLERS: usize = 200 / SLOW_PROCESSES;

/// All settings are the defaults, except for the timeouts of a busy machine.
fn a_slow_loader(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = builder_on(&server, PATIENT).register();
    // Longer than a lease lives without a renewal, and than `fetch_wait`, the limit for a fetch inside a loader.
    let duration = Duration::from_secs(if is_stress() { 30 } else { 7 });
    let loads = Tally::new();
    let slow = || {
        loads.raise(1);
        thread::sleep(duration);
        Ok::<usize, Infallible>(1)
    };
    let slow_async = async || {
        loads.raise(1);
        tokio::time::sleep(duration).await;
        Ok::<usize, Infallible>(1)
    };
    let callers = || match mode {
        Mode::Blocking => thread::scope(|scope| {
            let fetch = || cache.blocking().fetch("slow", MINUTE, slow);
            let callers: Vec<_> = (0..SLOW_CALLERS).map(|_| scope.spawn(fetch)).collect();
            callers.into_iter().for_each(|caller| assert_eq!(caller.join().expect("no panic"), Ok(1)));
        }),
        Mode::Tokio => current_thread_runtime().block_on(async {
            let mut callers: Vec<_> =
                (0..SLOW_CALLERS).map(|_| Box::pin(cache.fetch("slow", MINUTE, slow_async))).collect();
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
    assert_eq!(
        loads.count(),
        1,
        "loads of {duration:?} by {SLOW_CALLERS} callers in each of {SLOW_PROCESSES} processes"
    );
}

/// A worker's first read returns late: meanwhile another process has loaded, stored and released the lease. The worker
/// gets the lease, and has to read again before it loads.
fn a_late_miss(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let proxy = Proxy::before(server.port());
    let (behind_proxy, direct) = (cache_at(kind, proxy.port(), PATIENT), patient_cache(&server, HOUR));
    let miss = match kind {
        Kind::Redis => "_\r\n",
        Kind::Memcached => "EN ",
    };
    make_stale(&direct, "stale");
    for (key, reply) in [("missing", miss), ("stale", OLD_VALUE)] {
        let (load, is_connected, may_fetch) = (Load::new(), Tally::new(), Tally::new());
        load.may_end.raise(1);
        let late = worker(|| {
            let caller = Caller::new(mode, &behind_proxy);
            caller.get("another key").expect("the server is running");
            is_connected.raise(1);
            until("this worker may fetch", || may_fetch.count() > 0);
            load.fetch(&caller, key, STALE_SOON)
        });
        until("the worker has a connection", || is_connected.count() > 0);
        proxy.hold_replies_with(reply);
        may_fetch.raise(1);
        proxy.wait_until_held(1);
        assert_eq!(Caller::new(Mode::Blocking, &direct).fetch(key, "loaded meanwhile"), "loaded meanwhile");
        proxy.release();
        assert_eq!(late.join(), "loaded meanwhile", "{key}");
        assert_eq!(load.runs.count(), 0, "loads of what was {key}");
    }
}

/// The loading thread does not exist in the child, but its process is alive and will store the value.
fn a_child_waits(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    for way in Way::COMMON {
        let key = format!("loaded across a {way:?}");
        let (of_parent, of_child) = (Load::new(), Load::new());
        of_child.may_end.raise(1);
        let (fetched, fetched_by_child) = thread::scope(|scope| {
            let leading = scope.spawn(|| of_parent.fetch(&Caller::new(mode, &cache), &key, MINUTE));
            until("the parent loads", || of_parent.runs.count() == 1);
            let (before, has_read) = (server.claims(), Tally::new());
            let child = try_fork_by(way, WORKER_TIME, || {
                let fetch = || of_child.fetch(&Caller::new(mode, &cache), &key, MINUTE);
                count_first_read(&cache, has_read, fetch)
            });
            let child = child.expect("a child");
            until("the child waits", || has_read.count() == 1 && server.claims() > before);
            of_parent.may_end.raise(1);
            (leading.join().expect("no panic"), child.join())
        });
        assert_eq!((fetched, fetched_by_child), (own_value(), own_value()), "after {way:?}");
        assert_eq!(of_child.runs.count(), 0, "loads by the child, after {way:?}");
    }
}

/// Counts the old values that the workers of a stale value have read.
#[derive(Clone, Copy)]
struct OldValues {
    /// Workers that have read the old value.
    workers: Tally,
    /// Reads of the old value by all workers together.
    all: Tally,
}

impl OldValues {
    fn new() -> OldValues {
        OldValues { workers: Tally::new(), all: Tally::new() }
    }

    /// Counts a value that was read. Returns `true` for the new value.
    fn count(self, value: &str, is_first: bool) -> bool {
        if value == OLD_VALUE {
            self.workers.raise(usize::from(is_first));
            self.all.raise(1);
        }
        value != OLD_VALUE
    }

    /// Returns whether this many workers have read the old value, and all workers together a few times more often.
    fn is_enough(self, workers: usize) -> bool {
        self.workers.count() >= workers && self.all.count() >= 8 * WORKERS
    }
}

/// The pause between two fetches of a worker: many processes share a few processors.
const PACE: Duration = Duration::from_millis(10);

const STALE_SOON: Expiry = Expiry::after(HOUR).stale_for(HOUR);

fn make_stale(cache: &Cache, key: &str) {
    cache.blocking().set(key, &OLD_VALUE, STALE_SOON).expect("the server is running");
    assert!(cache.blocking().expire(key).expect("the server is running"));
}

/// One worker refreshes, and is held in its loader until all others have read the old value.
fn a_stale_value(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    for round in 0..count(1, 20) {
        let (key, load, old_values) = (format!("stale in round {round}"), Load::new(), OldValues::new());
        make_stale(&cache, &key);
        let workers = workers(|| {
            let caller = Caller::new(mode, &cache);
            for turn in 0.. {
                let value = load.fetch(&caller, &key, STALE_SOON);
                if old_values.count(&value, turn == 0) {
                    return value;
                }
                thread::sleep(PACE);
            }
            unreachable!("the turns do not end")
        });
        until("the others have read the old value", || old_values.is_enough(WORKERS - 1));
        load.may_end.raise(1);
        let value = common_value(workers.into_iter().map(Child::join));
        assert_eq!(load.runs.count(), 1, "loads of one stale value by {WORKERS} workers");
        assert_eq!(value, value_of(load.first.count()));
    }
}

/// Like [`a_stale_value`], and the worker that refreshes reads the old value too.
fn a_detached_refresh(kind: Kind) {
    let server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    for round in 0..count(1, 20) {
        let (key, load, old_values) = (format!("stale in round {round}"), Load::new(), OldValues::new());
        make_stale(&cache, &key);
        let workers = workers(|| {
            current_thread_runtime().block_on(async {
                for turn in 0.. {
                    let load = move || async move { Ok::<_, Infallible>(load.run_async().await) };
                    let Ok(value) = cache.fetch_detached(&key, STALE_SOON, load).await;
                    if old_values.count(&value, turn == 0) {
                        return value;
                    }
                    tokio::time::sleep(PACE).await;
                }
                unreachable!("the turns do not end")
            })
        });
        until("all workers have read the old value", || old_values.is_enough(WORKERS));
        load.may_end.raise(1);
        let value = common_value(workers.into_iter().map(Child::join));
        assert_eq!(load.runs.count(), 1, "loads of one stale value by {WORKERS} workers");
        assert_eq!(value, value_of(load.first.count()));
    }
}

/// The age at which a value is due for a load.
const PERIOD: Duration = Duration::from_millis(700);

fn kept_fresh() -> Expiry {
    let fresh = Duration::from_secs(1);
    Expiry::after(fresh).refresh_ahead(fresh - PERIOD).stale_for(MINUTE)
}

/// How long the workers fetch; each continues until there have been two loads.
fn steady_time() -> Duration {
    Duration::from_secs(if is_stress() { 60 } else { 4 })
}

fn a_steady_rate(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    at_a_steady_rate(|begun, loads| {
        let caller = Caller::new(mode, &cache);
        let (mut fetches, last_load) = (0_usize, Cell::new(0));
        let next = || {
            last_load.set(loads.raise(1) + 1);
            last_load.get().to_string()
        };
        while begun.elapsed() < steady_time() || loads.count() < 2 {
            caller.fetch_with("key", kept_fresh(), next, async || next());
            fetches += 1;
            thread::sleep(PACE);
        }
        until("the loaded value is stored", || number(caller.get("key")) >= last_load.get());
        fetches
    });
}

fn a_steady_detached_rate(kind: Kind) {
    let server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    at_a_steady_rate(|begun, loads| {
        let last_load = Tally::new();
        let mut fetches = 0_usize;
        let runtime = current_thread_runtime();
        runtime.block_on(async {
            while begun.elapsed() < steady_time() || loads.count() < 2 {
                let load = move || async move {
                    let number = loads.raise(1) + 1;
                    last_load.raise(number - last_load.count());
                    Ok::<_, Infallible>(number.to_string())
                };
                let Ok(_) = cache.fetch_detached("key", kept_fresh(), load).await;
                fetches += 1;
                tokio::time::sleep(PACE).await;
            }
            // A load that the end of a runtime cuts short is repeated by another worker.
            let deadline = Instant::now() + support::wait::PATIENCE;
            while number(cache.get("key").await) < last_load.count() {
                assert!(Instant::now() < deadline, "timed out waiting until the loaded value is stored");
                tokio::time::sleep(PACE).await;
            }
        });
        fetches
    });
}

fn number(value: prefork_cache::Result<Option<String>>) -> usize {
    value.expect("the server is running").map_or(0, |number| number.parse().expect("a number"))
}

/// No time is asserted. The age at which a value is due limits the number of loads, however fast or slow the machine
/// is.
fn at_a_steady_rate(work: impl Fn(Instant, Tally) -> usize) {
    let (begun, loads) = (Instant::now(), Tally::new());
    let fetches: usize = workers(|| work(begun, loads)).into_iter().map(Child::join).sum();
    let elapsed = begun.elapsed();
    let most = usize::try_from(elapsed.as_millis() / PERIOD.as_millis()).expect("a small number") + 2;
    let loads = loads.count();
    let rate = loads as f64 / elapsed.as_secs_f64();
    println!("{fetches} fetches by {WORKERS} workers in {elapsed:.1?}: {loads} loads, {rate:.2} per second");
    assert!((2..=most).contains(&loads), "{loads} loads in {elapsed:?}, at most {most} were due");
}

/// If all processes drew the same jitter, the expiries would be within minutes of each other. By chance, two are once
/// in 300,000 runs.
fn jitter_differs() {
    const DAY: u64 = 24 * 60 * 60;
    let server = Server::start(Kind::Redis);
    let cache = patient_cache(&server, HOUR);
    let expiry = Expiry::after(Duration::from_secs(50 * 365 * DAY)).jitter(1.0);
    let set = |key: &str| cache.blocking().set(key, "value", expiry).expect("the server is running");
    set("parent");
    let keys: Vec<String> = (0..8).map(|number| format!("child-{number}")).collect();
    let children: Vec<_> = keys.iter().map(|key| worker(|| set(key))).collect();
    children.into_iter().for_each(Child::join);
    let seconds_left = |key: &str| -> u64 {
        let reply = server.ask(&format!("TTL {key}"));
        let number = reply.lines().next().and_then(|line| line.strip_prefix(':'));
        number.unwrap_or_else(|| panic!("no number: {reply:?}")).parse().expect("a TTL")
    };
    let mut left: Vec<u64> = keys.iter().map(|key| seconds_left(key)).collect();
    left.push(seconds_left("parent"));
    left.sort_unstable();
    println!("days left: {:?}", left.iter().map(|seconds| seconds / DAY).collect::<Vec<_>>());
    assert!(left.windows(2).all(|pair| pair[1] - pair[0] > 60), "seconds left: {left:?}");
}
