//! A claim to load a key, and a lock, are of the process that has taken them, and end with it. What goes on in its
//! background is its own as well.

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
    all.extend(with_each_server_and_mode("a_child_does_nothing_with_a_claim", a_child_inherits_a_claim));
    all.extend(with_each_server_and_mode("a_child_does_not_hold_a_lock", a_child_inherits_a_lock));
    all.extend(with_each_server("what_a_killed_process_has_taken_is_free", a_holder_is_killed));
    all.extend(with_each_server("a_child_waits_for_no_background_of_its_parents", a_child_closes));
    all
}

/// Runs `operation` in a runtime of its own, or through the blocking API.
fn run<T>(mode: Mode, blocking: impl FnOnce() -> T, operation: impl AsyncFnOnce() -> T) -> T {
    match mode {
        Mode::Blocking => blocking(),
        Mode::Tokio => current_thread_runtime().block_on(operation()),
    }
}

#[derive(Clone, Copy, Debug)]
enum Settling {
    Completes,
    Fails,
    Drops,
}

fn settle(mode: Mode, claim: Claim<String>, how: Settling) -> Option<String> {
    let value = || format!("of {}", std::process::id());
    match (how, mode) {
        (Settling::Completes, Mode::Blocking) => Some(claim.blocking_complete(value(), MINUTE)),
        (Settling::Completes, Mode::Tokio) => Some(current_thread_runtime().block_on(claim.complete(value(), MINUTE))),
        (Settling::Fails, Mode::Blocking) => claim.blocking_fail(),
        (Settling::Fails, Mode::Tokio) => current_thread_runtime().block_on(claim.fail()),
        (Settling::Drops, Mode::Blocking) => None,
        (Settling::Drops, Mode::Tokio) => {
            current_thread_runtime().block_on(async { drop(claim) });
            None
        }
    }
}

/// The claim is the parent's all the while, with and without an older value, and on a handle that always loads.
fn a_child_inherits_a_claim(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = builder_on(&server, PATIENT).lease(HOUR).load_timeout(HOUR).register();
    let expiry = Expiry::after(MINUTE).stale_for(HOUR);
    for (number, way) in Way::COMMON.into_iter().enumerate() {
        for how in [Settling::Completes, Settling::Fails, Settling::Drops] {
            for (kind_of_load, handle) in [("missing", cache.clone()), ("stale", cache.clone()), ("forced", cache.force(true))] {
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
                let Begun::Claim(claim) = begun else { panic!("{key}: there is nothing fresh") };
                let mut claim = Some(claim);
                let child = fork_by(way, || {
                    let settled = settle(mode, claim.take().expect("a claim"), how);
                    let is_expected = match how {
                        Settling::Completes => settled == Some(format!("of {}", std::process::id())),
                        Settling::Fails => settled == old,
                        Settling::Drops => true,
                    };
                    let held = cache.blocking().get::<String>(&key).expect("an answer");
                    (is_expected, held)
                });
                assert_eq!(child.join(), (true, old), "{key} after {way:?}");
                assert_eq!(cache.stats().failed_loads, 0, "{key} after {way:?}");
                let claim = claim.expect("this is the parent");
                let completed = match &runtime {
                    None => claim.blocking_complete("the parent's".to_owned(), MINUTE),
                    Some(runtime) => runtime.block_on(claim.complete("the parent's".to_owned(), MINUTE)),
                };
                assert_eq!(completed, "the parent's");
                let held = cache.blocking().get::<String>(&key).expect("an answer");
                assert_eq!(held.as_deref(), Some("the parent's"), "{key} after {way:?}");
            }
        }
    }
}

fn take(mode: Mode, cache: &Cache, key: &str) -> Option<LockGuard> {
    run(mode, || cache.blocking().lock(key, HOUR), async || cache.lock(key, HOUR).await).expect("an answer")
}

fn a_child_inherits_a_lock(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = builder_on(&server, PATIENT).register();
    for way in Way::COMMON {
        for is_released in [true, false] {
            let mut lock = Some(take(mode, &cache, "report").expect("nobody has it"));
            let child = fork_by(way, || {
                let lock = lock.take().expect("a lock");
                let was_held = is_released && lock.blocking_release().expect("an answer");
                (was_held, take(mode, &cache, "report").is_some())
            });
            assert_eq!(child.join(), (false, false), "after {way:?}");
            assert!(lock.expect("this is the parent").blocking_release().expect("an answer"), "after {way:?}");
        }
    }
}

/// At once, though both were taken for an hour.
fn a_holder_is_killed(kind: Kind) {
    let server = Server::start(kind);
    let cache = builder_on(&server, PATIENT).lease(HOUR).load_timeout(HOUR).register();
    let taken = Tally::new();
    let child = fork(|| {
        let lock = take(Mode::Blocking, &cache, "report").expect("nobody has it");
        let claim = cache.blocking().fetch_begin::<u32>("k");
        taken.raise(1);
        until("this process is killed", || false);
        drop((lock, claim));
    });
    until("the child has taken both", || taken.count() == 1);
    assert!(take(Mode::Blocking, &cache, "report").is_none());
    kill(child.process(), Signal::SIGKILL).expect("a child of ours can be killed");
    assert_eq!(child.end(), End::Killed(Signal::SIGKILL));
    assert!(take(Mode::Blocking, &cache, "report").is_some());
    let Begun::Claim(claim) = cache.blocking().fetch_begin::<u32>("k") else { panic!("nothing was stored") };
    assert_eq!(claim.blocking_complete(2, MINUTE), 2);
}

/// A load of the parent's never ends.
fn a_child_closes(kind: Kind) {
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
    assert!(runtime.block_on(cache.close(MINUTE / 1_000)).is_err(), "it still runs");
}
