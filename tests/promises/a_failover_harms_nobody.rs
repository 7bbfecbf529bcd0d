//! Promises 2, 3 and 6 behind sentinels: while the master is replaced nobody gets a foreign value or hangs, and once it is,
//! everybody goes on without an error.

use std::thread;

use prefork_cache::{Cache, stores};

use crate::callers::{Caller, PATIENT};
use crate::harness::{Mode, Scenario, count, scenario};
use support::descriptors::connected_to;
use support::fake_sentinel::{FakeSentinel, Says};
use support::forks::{Child, Way, fork_by};
use support::sentinels::{Group, Sentinel};
use support::servers::{Kind, Server};
use support::tally::Tally;
use support::wait::{Latch, until};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("of_a_master_that_is_killed::blocking", || of_a_master_that_is_killed(Mode::Blocking)),
        scenario("of_a_master_that_is_killed::tokio", || of_a_master_that_is_killed(Mode::Tokio)),
        scenario("a_fork_while_a_sentinel_is_asked::blocking", || fork_while_a_sentinel_is_asked(Mode::Blocking)),
        scenario("a_fork_while_a_sentinel_is_asked::tokio", || fork_while_a_sentinel_is_asked(Mode::Tokio)),
        scenario("a_fork_after_the_last_sentinel::blocking", || fork_after_the_last_sentinel(Mode::Blocking)),
        scenario("a_fork_after_the_last_sentinel::tokio", || fork_after_the_last_sentinel(Mode::Tokio)),
    ]
}

const WORKERS: usize = 8;

/// How many calls have to succeed, one after the other, where there is no failover.
const CALM: usize = 300;

/// What goes on, as all processes see it.
struct Course {
    /// How many calls have succeeded in workers.
    calls: Tally,
    killed: Latch,
    elected: Latch,
}

fn of_a_master_that_is_killed(mode: Mode) {
    let mut group = Group::start();
    let url = group.url("timeout=2s&connect_timeout=2s&retry_after=100ms");
    let cache = Cache::register(stores::from_url(&url).expect("a good URL"));
    let caller = Caller::new(Mode::Blocking, &cache);
    caller.converse("master process", 20);

    let course = Course { calls: Tally::new(), killed: Latch::new(), elected: Latch::new() };
    let in_load: Vec<Child<usize>> = (0..WORKERS).map(|number| worker(number, mode, &cache, &course)).collect();
    until("every worker is busy", || course.calls.count() > WORKERS * count(100, 1_000));
    course.killed.raise();
    group.kill_master();
    let in_failover: Vec<Child<usize>> = Way::COMMON
        .into_iter()
        .zip(WORKERS..)
        .map(|(way, number)| {
            let _ = caller.get("whatever comes of it");
            fork_by(way, || work(number, mode, &cache, &course))
        })
        .collect();
    let new = group.new_master().port();
    course.elected.raise();

    let failed: Vec<usize> = in_load.into_iter().chain(in_failover).map(Child::join).collect();
    until("the process that has forked them finds it too", || caller.set("k", "v").is_ok());
    caller.converse("master process", CALM);
    assert_eq!(cache.stats().servers[0].address, format!("127.0.0.1:{new}"));
    println!("{} calls, failed while the failover lasted: {failed:?}", course.calls.count());
}

fn worker(number: usize, mode: Mode, cache: &Cache, course: &Course) -> Child<usize> {
    fork_by(Way::Fork, || work(number, mode, cache, course))
}

/// Calls until the failover is over, and then some more. Returns how many calls have failed meanwhile.
fn work(number: usize, mode: Mode, cache: &Cache, course: &Course) -> usize {
    let caller = Caller::new(mode, cache);
    let (mut failed, mut calm, mut round) = (0, 0, 0);
    while calm < CALM {
        // Before the call: what fails later is not to be blamed on what came first.
        let was_elected = course.elected.is_raised();
        let key = format!("{number}:{}", round % 16);
        let value = format!("{key} in round {round}");
        round += 1;
        match caller.set(&key, &value).and_then(|()| caller.get(&key)) {
            Ok(read) => {
                // What the old master took last is lost with it.
                let is_own = read.as_deref() == Some(&*value);
                assert!(is_own || (read.is_none() && course.killed.is_raised()), "{read:?} instead of {value:?}");
                course.calls.raise(1);
                calm += usize::from(was_elected);
            }
            Err(error) => {
                assert!(course.killed.is_raised(), "nothing was killed, and a call fails: {error:#}");
                assert!(calm == 0, "a call fails after the failover, and after {calm} that did not: {error:#}");
                assert!(error.is_transient(), "{error:#}");
                failed += 1;
            }
        }
    }
    failed
}

/// The thread that asks has vanished in the child, and its socket is cut.
fn fork_while_a_sentinel_is_asked(mode: Mode) {
    let server = Server::start(Kind::Redis);
    for way in Way::COMMON {
        let sentinel = FakeSentinel::start(Says::Nothing);
        let url = format!("redis+sentinel://127.0.0.1:{}/mymaster?{PATIENT}&retry_after=1ms", sentinel.port());
        let cache = Cache::builder(stores::from_url(&url).expect("a good URL")).build();
        thread::scope(|scope| {
            let cache = &cache;
            let waiting = scope.spawn(move || Caller::new(mode, cache).get("key"));
            until("the sentinel is asked", || sentinel.asked() == 1);
            assert_eq!(connected_to(sentinel.port()).len(), 1);
            sentinel.say(Says::port(server.port()));
            let child = fork_by(way, || {
                prefork_cache::lifecycle::generation();
                assert!(connected_to(sentinel.port()).is_empty(), "the inherited connection is cut");
                Caller::new(mode, cache).converse("child", 20);
            });
            child.join();
            sentinel.hang_up();
            waiting.join().expect("no panic").expect_err("the only sentinel has hung up");
        });
        until("the parent finds it as well", || Caller::new(mode, &cache).set("k", "v").is_ok());
    }
}

/// The master is there, and what the parent knew is all that a child has.
fn fork_after_the_last_sentinel(mode: Mode) {
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
    // What is there and no master is not used.
    let other = Server::start(Kind::Redis);
    group.servers[0].ask(&format!("REPLICAOF 127.0.0.1 {}", other.port()));
    fork_by(Way::Fork, || {
        let error = Caller::new(mode, &cache).get("key").expect_err("the only server that is known is a replica");
        assert!(error.to_string().contains("no sentinel has named"), "{error:#}");
    })
    .join();
}
