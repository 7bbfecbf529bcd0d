//! A claim to load a key, a lock and background work belong to the process that took or started them, and end with it.

use std::convert::Infallible;
use std::future::pending;

use nix::sys::signal::{Signal, kill};
use prefork_cache::{Begun, Cache, Claim, Expiry, LockGuard};

use crate::callers::{HOUR, MINUTE, PATIENT, builder_on, current_thread_runtime};
use crate::harness::{Mode, Scenario, with_each_server, with_each_server_and_mode};
use support::forks::{End, Way, fork, fork_by};
use support::servers::{Kind, Server};
use support::tally::Tally;
use support::wait::until;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(with_each_server_and_mode("a_child_cannot_settle_an_inherited_claim", inherited_claim));
    all.extend(with_each_server_and_mode("a_child_does_not_hold_an_inherited_lock", inherited_lock));
    all.extend(with_each_server("claims_and_locks_of_a_killed_process_are_free", holder_is_killed));
    all.extend(with_each_server("closing_in_a_child_ignores_the_parents_background_work", close_in_a_child));
    all
}

/// Runs `operation` in a new runtime, or `blocking` through the blocking API.
fn run<T>(mode: Mode, blocking: impl FnOnce() -> T, operation: impl AsyncFnOnce() -> T) -> T {
    match mode {
        Mode::Blocking => blocking(),
        Mode::Tokio => current_thread_runtime().block_on(operation()),
    }
}

#[derive(Clone, Copy, Debug)]
enum Settlement {
    Completes,
    Fails,
    Drops,
}

fn settle(mode: Mode, claim: Claim<String>, how: Settlement) -> Option<String> {
    let value = || format!("value of {}", std::process::id());
    match (how, mode) {
        (Settlement::Completes, Mode::Blocking) => Some(claim.blocking_complete(value(), MINUTE)),
        (Settlement::Completes, Mode::Tokio) => {
            Some(current_thread_runtime().block_on(claim.complete(value(), MINUTE)))
        }
        (Settlement::Fails, Mode::Blocking) => claim.blocking_fail(),
        (Settlement::Fails, Mode::Tokio) => current_thread_runtime().block_on(claim.fail()),
        (Settlement::Drops, Mode::Blocking) => None,
        (Settlement::Drops, Mode::Tokio) => {
            current_thread_runtime().block_on(async { drop(claim) });
            None
        }
    }
}

/// The claim stays the parent's, for a missing key, a stale value and a handle that always loads.
fn inherited_claim(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = builder_on(&server, PATIENT).lease(HOUR).load_timeout(HOUR).register();
    let expiry = Expiry::after(MINUTE).stale_for(HOUR);
    for (number, way) in Way::COMMON.into_iter().enumerate() {
        for how in [Settlement::Completes, Settlement::Fails, Settlement::Drops] {
            for (kind_of_load, handle) in
                [("missing", cache.clone()), ("stale", cache.clone()), ("forced", cache.force(true))]
            {
                let key = format!("{kind_of_load}-{number}-{how:?}");
                let old = (kind_of_load == "stale").then(|| "old".to_owned());
                if let Some(old) = &old {
                    cache.blocking().set(&key, old, expiry).expect("stored");
                    cache.blocking().expire(&key).expect("expired");
                }
                let runtime = (mode == Mode::Tokio).then(current_thread_runtime);
                let begun = match &runtime {
                    None => handle.blocking().fetch_begin::<String>(&key),
                    Some(runtime) => runtime.block_on(handle.fetch_begin(&key)),
                };
                let Begun::Claim(claim) = begun else { panic!("{key}: there is no fresh value") };
                let mut claim = Some(claim);
                let child = fork_by(way, || {
                    let settled = settle(mode, claim.take().expect("a claim"), how);
                    let is_expected = match how {
                        Settlement::Completes => settled == Some(format!("value of {}", std::process::id())),
                        Settlement::Fails => settled == old,
                        Settlement::Drops => true,
                    };
                    let stored = cache.blocking().get::<String>(&key).expect("the server is running");
                    (is_expected, stored)
                });
                assert_eq!(child.join(), (true, old), "{key} after {way:?}");
                assert_eq!(cache.stats().failed_loads, 0, "{key} after {way:?}");
                let claim = claim.expect("this is the parent");
                let completed = match &runtime {
                    None => claim.blocking_complete("the parent's".to_owned(), MINUTE),
                    Some(runtime) => runtime.block_on(claim.complete("the parent's".to_owned(), MINUTE)),
                };
                assert_eq!(completed, "the parent's");
                let stored = cache.blocking().get::<String>(&key).expect("the server is running");
                assert_eq!(stored.as_deref(), Some("the parent's"), "{key} after {way:?}");
            }
        }
    }
}

fn take_lock(mode: Mode, cache: &Cache, key: &str) -> Option<LockGuard> {
    run(mode, || cache.blocking().lock(key, HOUR), async || cache.lock(key, HOUR).await).expect("the server is running")
}

fn inherited_lock(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = builder_on(&server, PATIENT).register();
    for way in Way::COMMON {
        for is_released in [true, false] {
            let mut lock = Some(take_lock(mode, &cache, "report").expect("the lock is free"));
            let child = fork_by(way, || {
                let lock = lock.take().expect("a lock");
                let was_held = is_released && lock.blocking_release().expect("the server is running");
                (was_held, take_lock(mode, &cache, "report").is_some())
            });
            assert_eq!(child.join(), (false, false), "after {way:?}");
            assert!(
                lock.expect("this is the parent").blocking_release().expect("the server is running"),
                "after {way:?}"
            );
        }
    }
}

/// The lock and the claim are free at once, though both were taken for an hour.
fn holder_is_killed(kind: Kind) {
    let server = Server::start(kind);
    let cache = builder_on(&server, PATIENT).lease(HOUR).load_timeout(HOUR).register();
    let taken = Tally::new();
    let child = fork(|| {
        let lock = take_lock(Mode::Blocking, &cache, "report").expect("the lock is free");
        let claim = cache.blocking().fetch_begin::<u32>("k");
        taken.raise(1);
        until("this process is killed", || false);
        drop((lock, claim));
    });
    until("the child has taken both", || taken.count() == 1);
    assert!(take_lock(Mode::Blocking, &cache, "report").is_none());
    kill(child.process(), Signal::SIGKILL).expect("a child of ours can be killed");
    assert_eq!(child.end(), End::Killed(Signal::SIGKILL));
    assert!(take_lock(Mode::Blocking, &cache, "report").is_some());
    let Begun::Claim(claim) = cache.blocking().fetch_begin::<u32>("k") else { panic!("no value is stored") };
    assert_eq!(claim.blocking_complete(2, MINUTE), 2);
}

/// The parent's background load never ends.
fn close_in_a_child(kind: Kind) {
    let server = Server::start(kind);
    let cache = builder_on(&server, PATIENT).register();
    let runtime = current_thread_runtime();
    let expiry = Expiry::after(MINUTE).stale_for(HOUR);
    runtime.block_on(async {
        cache.set("k", &1, expiry).await.expect("stored");
        cache.expire("k").await.expect("expired");
        let never = async || pending::<Result<u32, Infallible>>().await;
        assert_eq!(cache.fetch_detached("k", expiry, never).await, Ok(1));
    });
    for mode in Mode::BOTH {
        let child = fork(|| run(mode, || cache.blocking().close(HOUR), async || cache.close(HOUR).await).is_ok());
        assert!(child.join(), "{}", mode.name());
    }
    assert!(runtime.block_on(cache.close(MINUTE / 1_000)).is_err(), "the load is still running");
}
