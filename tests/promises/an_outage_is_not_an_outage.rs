//! Promise 6: a cache outage is not an application outage. Every wait has a bound, and a server that is down is not
//! dialled.

use std::convert::Infallible;
use std::time::Duration;

use prefork_cache::{Cache, ErrorKind};

use crate::callers::{Caller, MINUTE, PATIENT, cache_at, cache_on};
use crate::harness::{Mode, Scenario, with_each_server, with_each_server_and_mode};
use support::forks::{Way, fork, fork_by};
use support::proxy::Proxy;
use support::servers::{Kind, Server, until_nobody_listens};
use support::signals::{caught, interrupt_every, on_interrupt};
use support::wait::until;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(with_each_server_and_mode("fetch_returns_the_loaded_value_while_the_server_is_down", while_it_is_down));
    all.extend(with_each_server_and_mode(
        "a_server_that_is_down_is_not_dialled_on_every_call",
        not_dialled_on_every_call,
    ));
    all.extend(with_each_server_and_mode("the_wait_for_a_server_that_hangs_is_bounded", bounded_wait));
    all.extend(with_each_server("a_signal_is_not_an_error", a_signal_is_not_an_error));
    all
}

/// Loads in this process and in a child while the server is running, killed, and running again.
fn while_it_is_down(kind: Kind, mode: Mode) {
    let mut server = Server::start(kind);
    let cache = cache_on(&server, "timeout=20s&connect_timeout=20s&retry_after=50ms");
    let caller = Caller::new(mode, &cache);
    assert_eq!(caller.fetch("key", "first"), "first");
    assert_eq!(caller.fetch("key", "unused"), "first", "the first value is cached");

    server.kill();
    until_nobody_listens(server.port());
    for round in 0..200 {
        let fresh = format!("loaded in round {round}");
        assert_eq!(caller.fetch("key", &fresh), fresh, "the server is down");
    }
    for way in Way::COMMON {
        fork_by(way, || assert_eq!(Caller::new(mode, &cache).fetch("key", "the child's"), "the child's")).join();
    }

    server.restart();
    works_again(&caller);
    fork(|| works_again(&Caller::new(mode, &cache))).join();
}

fn works_again(caller: &Caller<'_>) {
    until("the server is used again", || caller.set("again", "yes").is_ok());
    until("the written value is read", || caller.get("again").is_ok_and(|value| value.as_deref() == Some("yes")));
}

/// A proxy without a server behind it counts the connections. `retry_after` is an hour, so even a slow machine dials no
/// second time.
fn not_dialled_on_every_call(kind: Kind, mode: Mode) {
    let mut server = Server::start(kind);
    let proxy = Proxy::before(server.port());
    let cache = cache_at(kind, proxy.port(), "timeout=20s&connect_timeout=20s&failures=2&retry_after=3600s");
    let caller = Caller::new(mode, &cache);
    caller.set("key", "value").expect("the server is running");
    server.kill();
    until_nobody_listens(server.port());

    let before = proxy.connects();
    let failed = (0..300).filter(|_| caller.get("key").is_err()).count();
    let dialled = proxy.connects() - before;
    assert_eq!(failed, 300, "the server is down");
    assert!((1..=4).contains(&dialled), "{dialled} connections for 300 calls");
    assert_eq!(caller.get("key").map_err(|error| error.kind()), Err(ErrorKind::Unavailable));
    println!("{dialled} connections for 300 calls to a server that is down");

    // A child inherits the state of the circuit breaker, or finds the outage by itself.
    fork(|| {
        let caller = Caller::new(mode, &cache);
        for _ in 0..300 {
            assert!(caller.get("key").is_err(), "the server is down");
        }
    })
    .join();
    let dialled = proxy.connects() - before;
    assert!(dialled <= 8, "{dialled} connections, including the child's");

    server.restart();
    cache.reset();
    caller.converse("after the reset", 4);
}

/// The kernel accepts connections for a stopped process, and no reply comes. If a wait had no bound, the watchdog would
/// end the scenario.
fn bounded_wait(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = cache_on(&server, "timeout=100ms&connect_timeout=100ms&failures=3&retry_after=100ms");
    let caller = Caller::new(mode, &cache);
    until("the server is used", || caller.set("key", "value").is_ok());
    server.pause();
    let kinds: Vec<_> = (0..6).map(|_| caller.get("key").expect_err("the server does not respond").kind()).collect();
    assert_eq!(kinds[0], ErrorKind::Timeout);
    assert_eq!(caller.fetch("key", "loaded"), "loaded");
    fork(|| {
        let caller = Caller::new(mode, &cache);
        caller.get("key").expect_err("the server does not respond");
        assert_eq!(caller.fetch("key", "loaded"), "loaded");
    })
    .join();
    server.resume();
    works_again(&caller);
    println!("a server that hangs: {kinds:?}");
}

/// A timer interrupts the exchanges. Its handler has no `SA_RESTART`, so system calls return `EINTR`.
fn a_signal_is_not_an_error(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    on_interrupt(|| {});
    let timer = interrupt_every(Duration::from_millis(1));
    Caller::new(Mode::Blocking, &cache).converse("under signals", 2_000);
    let before = caught();
    while caught() < before + 100 {
        dial_again(&cache);
    }
    drop(timer);
    println!("2,000 operations, and dials, under {} signals", caught());
    fork(|| {
        let _timer = interrupt_every(Duration::from_millis(1));
        Caller::new(Mode::Blocking, &cache).converse("a child under signals", 2_000);
    })
    .join();
}

fn dial_again(cache: &Cache) {
    cache.reset();
    let loaded = cache.blocking().fetch("dialled", MINUTE, || Ok::<_, Infallible>(1)).expect("never fails");
    assert_eq!(loaded, 1);
    cache.blocking().set("dialled", &1, MINUTE).expect("a signal is not an error");
}
