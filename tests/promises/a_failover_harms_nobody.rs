//! Promises 2, 3 and 6 behind sentinels: during a failover no call hangs or returns another key's value, and after it
//! no call fails.

use std::thread;

use prefork_cache::{Cache, stores};

use crate::callers::{Caller, PATIENT};
use crate::harness::{Mode, Scenario, count, scenario};
use support::descriptors::connected_to;
use support::fake_sentinel::{FakeSentinel, Reaction};
use support::forks::{Child, Way, fork_by};
use support::sentinels::{Group, Sentinel};
use support::servers::{Kind, Server};
use support::tally::Tally;
use support::wait::{Latch, until};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("a_master_crashes::blocking", || a_master_crashes(Mode::Blocking)),
        scenario("a_master_crashes::tokio", || a_master_crashes(Mode::Tokio)),
        scenario("a_fork_while_a_sentinel_is_asked::blocking", || fork_while_a_sentinel_is_asked(Mode::Blocking)),
        scenario("a_fork_while_a_sentinel_is_asked::tokio", || fork_while_a_sentinel_is_asked(Mode::Tokio)),
        scenario("a_fork_without_a_sentinel::blocking", || fork_without_a_sentinel(Mode::Blocking)),
        scenario("a_fork_without_a_sentinel::tokio", || fork_without_a_sentinel(Mode::Tokio)),
    ]
}

const WORKERS: usize = 8;

/// The number of consecutive calls that have to succeed after the failover.
const CALM: usize = 300;

/// The progress of the failover, in memory that all processes share.
struct Progress {
    /// The number of calls that have succeeded in workers.
    calls: Tally,
    killed: Latch,
    elected: Latch,
}

fn a_master_crashes(mode: Mode) {
    let mut group = Group::start();
    let url = group.url("timeout=2s&connect_timeout=2s&retry_after=100ms");
    let cache = Cache::register(stores::from_url(&url).expect("a good URL"));
    let caller = Caller::new(Mode::Blocking, &cache);
    caller.converse("master process", 20);

    let progress = Progress { calls: Tally::new(), killed: Latch::new(), elected: Latch::new() };
    let in_load: Vec<Child<usize>> = (0..WORKERS).map(|number| worker(number, mode, &cache, &progress)).collect();
    until("the workers have made many calls", || progress.calls.count() > WORKERS * count(100, 1_000));
    progress.killed.raise();
    group.kill_master();
    let in_failover: Vec<Child<usize>> = Way::COMMON
        .into_iter()
        .zip(WORKERS..)
        .map(|(way, number)| {
            // The call may fail.
            let _ = caller.get("key");
            fork_by(way, || work(number, mode, &cache, &progress))
        })
        .collect();
    let new = group.new_master().port();
    progress.elected.raise();

    let failed: Vec<usize> = in_load.into_iter().chain(in_failover).map(Child::join).collect();
    until("the parent finds the new master", || caller.set("k", "v").is_ok());
    caller.converse("master process", CALM);
    assert_eq!(cache.stats().servers[0].address, format!("127.0.0.1:{new}"));
    println!("{} calls; failed during the failover, by worker: {failed:?}", progress.calls.count());
}

fn worker(number: usize, mode: Mode, cache: &Cache, progress: &Progress) -> Child<usize> {
    fork_by(Way::Fork, || work(number, mode, cache, progress))
}

/// Makes calls until [`CALM`] of them have succeeded after the failover. Returns the number of failed calls.
fn work(number: usize, mode: Mode, cache: &Cache, progress: &Progress) -> usize {
    let caller = Caller::new(mode, cache);
    let (mut failed, mut calm, mut round) = (0, 0, 0);
    while calm < CALM {
        // Read before the call: a call that started before the election may fail.
        let was_elected = progress.elected.is_raised();
        let key = format!("{number}:{}", round % 16);
        let value = format!("{key} in round {round}");
        round += 1;
        match caller.set(&key, &value).and_then(|()| caller.get(&key)) {
            Ok(read) => {
                // The last writes to the old master may be lost.
                let is_own = read.as_deref() == Some(&*value);
                assert!(is_own || (read.is_none() && progress.killed.is_raised()), "{read:?} instead of {value:?}");
                progress.calls.raise(1);
                calm += usize::from(was_elected);
            }
            Err(error) => {
                assert!(progress.killed.is_raised(), "a call fails before the master is killed: {error:#}");
                assert!(calm == 0, "a call fails after {calm} calls have succeeded since the failover: {error:#}");
                assert!(error.is_transient(), "{error:#}");
                failed += 1;
            }
        }
    }
    failed
}

/// The thread that asks the sentinel does not exist in the child, where its socket is cut.
fn fork_while_a_sentinel_is_asked(mode: Mode) {
    let server = Server::start(Kind::Redis);
    for way in Way::COMMON {
        let sentinel = FakeSentinel::start(Reaction::Silence);
        let url = format!("redis+sentinel://127.0.0.1:{}/mymaster?{PATIENT}&retry_after=1ms", sentinel.port());
        let cache = Cache::builder(stores::from_url(&url).expect("a good URL")).build();
        thread::scope(|scope| {
            let cache = &cache;
            let waiting = scope.spawn(move || Caller::new(mode, cache).get("key"));
            until("the sentinel is asked", || sentinel.asked() == 1);
            assert_eq!(connected_to(sentinel.port()).len(), 1);
            sentinel.set_reaction(Reaction::port(server.port()));
            let child = fork_by(way, || {
                prefork_cache::lifecycle::generation();
                assert!(connected_to(sentinel.port()).is_empty(), "the inherited connection is cut");
                Caller::new(mode, cache).converse("child", 20);
            });
            child.join();
            sentinel.disconnect();
            waiting.join().expect("no panic").expect_err("the only sentinel has disconnected");
        });
        until("the parent finds the master too", || Caller::new(mode, &cache).set("k", "v").is_ok());
    }
}

/// The master runs, and all sentinels are killed. A child uses the address that its parent knew.
fn fork_without_a_sentinel(mode: Mode) {
    let mut group = Group::with(0, None, None);
    let url = group.url(&format!("{PATIENT}&topology_refresh=1ms"));
    let cache = Cache::register(stores::from_url(&url).expect("a good URL"));
    Caller::new(mode, &cache).converse("parent", 20);
    group.sentinels.iter_mut().for_each(Sentinel::kill);
    for way in Way::COMMON {
        fork_by(way, || {
            Caller::new(mode, &cache).converse("child", 20);
            fork_by(Way::Fork, || Caller::new(mode, &cache).converse("grandchild", 20)).join();
        })
        .join();
    }
    cache.reset();
    Caller::new(mode, &cache).converse("parent", 20);
    // If the server at that address is no longer a master, it is not used.
    let other = Server::start(Kind::Redis);
    group.servers[0].ask(&format!("REPLICAOF 127.0.0.1 {}", other.port()));
    fork_by(Way::Fork, || {
        let error = Caller::new(mode, &cache).get("key").expect_err("the only server that is known is a replica");
        assert!(error.to_string().contains("no sentinel has named"), "{error:#}");
    })
    .join();
}
