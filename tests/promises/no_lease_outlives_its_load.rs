//! A lease ends with its load, however the load ends, and no caller waits for a load that nothing can end.
//!
//! The limits of a fetch are hours here: no scenario can pass because a limit expires.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prefork_cache::Cache;

use crate::callers::{Caller, HOUR, MINUTE, PATIENT, builder_on, current_thread_runtime, until_async};
use crate::harness::{Mode, Scenario, count, with_each_server, with_each_server_and_mode};
use crate::loads::{
    Load, WORKER_TIME, WORKERS, all_miss, common_value, count_first_read, own_value, patient_cache, value_of, worker,
};
use support::forks::{Child, End, Side, Way, split};
use support::servers::{Kind, Server};
use support::tally::Tally;
use support::wait::until;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(with_each_server_and_mode("loaders_that_fetch_each_others_keys_return", loaders_fetch_each_others_keys));
    all.extend(with_each_server_and_mode("a_leader_that_is_killed_is_replaced", a_leader_is_killed));
    all.extend(with_each_server_and_mode("a_leader_that_fails_releases_its_lease_at_once", a_leader_fails));
    all.extend(with_each_server("a_fork_in_a_loader_keeps_the_parents_lease", a_fork_in_a_loader));
    all.extend(with_each_server_and_mode("the_store_dies_while_others_wait_for_a_lease", the_store_dies));
    all
}

/// Each loader fetches the other one's key while it loads its own. `fetch_wait` ends the wait; all other limits are an
/// hour.
fn loaders_fetch_each_others_keys(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache =
        builder_on(&server, PATIENT).lease(HOUR).load_timeout(HOUR).fetch_wait(Duration::from_millis(500)).register();
    let loading = Tally::new();
    let work = |[own, other]: [&'static str; 2]| {
        let inner = |own: &str| format!("{own} for the other loader");
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
    // One of them may have the other one's value, if its wait ended first.
    let loaded_inside = ["a", "b"].map(|key| format!("{key} for the other loader"));
    assert!(values.iter().any(|value| loaded_inside.contains(value)), "{values:?}");
    let took = begun.elapsed();
    assert!(took < MINUTE, "{took:?}");
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
        let value = common_value(workers.into_iter().map(Child::join));
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
    /// Its future is dropped outside a runtime.
    DroppedOutside,
    /// Its future is dropped along with the runtime.
    ShutDown,
}

/// This process leads and another one waits. The lease and the wait are an hour long, so the other process can load
/// only if the lease is released.
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
        let (has_begun, has_read, is_done) = (Tally::new(), Tally::new(), Tally::new());
        let waiting = worker(|| {
            until("this process loads", || has_begun.count() > 0);
            let fetch = || Caller::new(mode, &cache).fetch(&key, "the waiter's");
            let value = count_first_read(&cache, has_read, fetch);
            is_done.raise(1);
            value
        });
        // One attempt by the leader, and one by the waiter.
        let is_waited_for = || has_read.count() > 0 && server.claims() >= before + 2;
        match mode {
            Mode::Blocking => fail_blocking(&cache, failure, &key, has_begun, is_waited_for),
            Mode::Tokio => fail_on_tokio(&cache, failure, &key, has_begun, is_waited_for, is_done),
        }
        until(&format!("the waiter has loaded, after {failure:?}"), || is_done.count() > 0);
        assert_eq!(waiting.join(), "the waiter's", "after {failure:?}");
    }
}

fn fail_blocking(cache: &Cache, failure: Failure, key: &str, has_begun: Tally, is_waited_for: impl Fn() -> bool) {
    let ended = catch_unwind(AssertUnwindSafe(|| {
        cache.blocking().fetch(key, MINUTE, || {
            has_begun.raise(1);
            until("the waiter waits for the lease", &is_waited_for);
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
            until_async("the waiter waits for the lease", is_waited_for).await;
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
            // The release that the drop has started continues while the runtime runs.
            runtime.block_on(until_async("the waiter has loaded", || is_done.count() > 0));
        }
        Failure::Cancelled => runtime.block_on(async {
            tokio::select! {
                ended = fails(key, &never) => panic!("ended by itself: {ended:?}"),
                () = until_async("the waiter waits for the lease", &is_waited_for) => {}
            }
            until_async("the waiter has loaded", || is_done.count() > 0).await;
        }),
        Failure::DroppedOutside => {
            let mut ends = Box::pin(fails(key, &never));
            runtime.block_on(async {
                tokio::select! {
                    ended = &mut ends => panic!("ended by itself: {ended:?}"),
                    () = until_async("the waiter waits for the lease", &is_waited_for) => {}
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
            runtime.block_on(until_async("the waiter waits for the lease", &is_waited_for));
            drop(runtime);
        }
    }
}

/// Returns whether the server has an entry under a key without spaces.
fn has_entry(server: &Server, key: &str) -> bool {
    match server.kind() {
        Kind::Redis => server.ask(&format!("EXISTS {key}")).starts_with(":1"),
        Kind::Memcached => server.ask(&format!("get {key}")).starts_with("VALUE"),
    }
}

/// The child returns from the loader first, and ends. The lease remains its parent's.
fn a_fork_in_a_loader(kind: Kind) {
    let server = Server::start(kind);
    let cache = patient_cache(&server, HOUR);
    for way in Way::COMMON {
        // With a hash tag, so that the lease's key needs no computed tag.
        let key = format!("{{loaded-across-{way:?}}}");
        let is_leased = || has_entry(&server, &format!("{key}:prefork-lease"));
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
                    assert!(is_leased(), "a child has released the lease of its parent, after {way:?}");
                    Ok("the parent's".to_owned())
                }
            }
        });
        let fetched = fetched.expect("never fails");
        match reporter {
            Some(reporter) => reporter.run_and_exit(|| fetched),
            None => {
                assert_eq!(fetched, "the parent's", "after {way:?}");
                assert!(!is_leased(), "the parent has released its lease, after {way:?}");
            }
        }
    }
}

/// Once the server is dead, all workers load at the same time, while the lease holder is still loading.
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
