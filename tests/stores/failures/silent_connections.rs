//! Idle connections that a firewall has dropped without telling either side.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use prefork_cache::{Cache, ErrorKind};

use super::{WAYS, Way, cache_at};
use crate::conformance::current_thread;
use support::proxy::Proxy;
use support::servers::{Kind, Server};

const TTL: Duration = Duration::from_secs(600);
const CONNECTIONS: usize = 16;

/// As many idle connections as the pool has permits, or one pipeline in each of as many runtimes; then calls in
/// sequence.
#[test]
fn only_one_of_several_calls_in_sequence_times_out() {
    for kind in Kind::BOTH {
        for way in WAYS {
            let server = Server::start(kind);
            let proxy = Proxy::before(server.port());
            let cache = cache_at(kind, proxy.port(), "timeout=2s&connect_timeout=20s&failures=2&retry_after=60m");
            cache.blocking().set_raw("k", "v", TTL).unwrap();
            let mut runtimes = Vec::new();
            match way {
                Way::Blocking => fill_the_pool(&cache, &proxy),
                Way::Tokio => {
                    runtimes.extend((0..CONNECTIONS).map(|_| current_thread()));
                    for runtime in &runtimes {
                        runtime.block_on(cache.get_raw("k")).unwrap();
                    }
                }
            }
            assert!(proxy.connects() >= CONNECTIONS, "{kind:?} {way:?}");
            proxy.silence();
            let mut kinds = Vec::new();
            for number in 0..2 * CONNECTIONS {
                let outcome = match runtimes.get(number % CONNECTIONS) {
                    Some(runtime) => runtime.block_on(cache.get_raw("k")),
                    None => cache.blocking().get_raw("k"),
                };
                match outcome {
                    Ok(value) => assert_eq!(value.as_deref(), Some(&b"v"[..])),
                    Err(error) => kinds.push(error.kind()),
                }
            }
            assert_eq!(kinds, [ErrorKind::Timeout], "{kind:?} {way:?}");
        }
    }
}

/// Timeouts at the same time count as one failure.
#[test]
fn concurrent_timeouts_do_not_open_the_breaker() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let proxy = Proxy::before(server.port());
        let cache = cache_at(kind, proxy.port(), "timeout=2s&connect_timeout=20s&failures=2&retry_after=60m");
        cache.blocking().set_raw("k", "v", TTL).unwrap();
        fill_the_pool(&cache, &proxy);
        proxy.silence();
        let failed = Way::Blocking.at_once(&cache, |cache| async move { cache.get_raw("k").await.err() });
        let kinds: Vec<_> = failed.iter().flatten().map(prefork_cache::Error::kind).collect();
        assert!(!kinds.is_empty() && kinds.iter().all(|kind| *kind == ErrorKind::Timeout), "{kinds:?}");
        for _ in 0..CONNECTIONS {
            assert_eq!(cache.blocking().get_raw("k").unwrap().as_deref(), Some(&b"v"[..]));
        }
    }
}

/// A shorter timeout says nothing about the server, but its expiry still discards the connections that were idle.
#[test]
fn a_handle_with_a_shorter_timeout_fails_once() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let proxy = Proxy::before(server.port());
        let cache = cache_at(kind, proxy.port(), "timeout=60s&connect_timeout=20s&failures=2&retry_after=60m");
        cache.blocking().set_raw("k", "v", TTL).unwrap();
        fill_the_pool(&cache, &proxy);
        proxy.silence();
        let hurried = cache.timeout(Duration::from_secs(2));
        let failed: Vec<_> = (0..2 * CONNECTIONS).filter_map(|_| hurried.blocking().get_raw("k").err()).collect();
        let kinds: Vec<_> = failed.iter().map(prefork_cache::Error::kind).collect();
        assert_eq!(kinds, [ErrorKind::Timeout], "{kind:?}");
    }
}

/// A stopped server opens the circuit breaker as soon as before.
#[test]
fn a_server_that_has_stopped_counts_as_down() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let cache = cache_at(kind, server.port(), "timeout=200ms&connect_timeout=20s&failures=2&retry_after=60m");
        cache.blocking().set_raw("k", "v", TTL).unwrap();
        server.pause();
        let kinds = [(); 4].map(|()| cache.blocking().get_raw("k").unwrap_err().kind());
        use ErrorKind::{Timeout, Unavailable};
        assert_eq!(kinds, [Timeout, Timeout, Unavailable, Unavailable], "{kind:?}");
        server.resume();
    }
}

/// `/proc/net/tcp` names the timer that the kernel runs for a connection.
#[test]
fn the_kernel_sends_keepalives() {
    let keepalive_timers = |port: u16| {
        let connections = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let remote = format!("0100007F:{port:04X}");
        let timer = |line: &str| -> Option<String> {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            (fields.get(2) == Some(&remote.as_str())).then(|| fields[5][..2].to_owned())
        };
        connections.lines().filter_map(timer).collect::<Vec<_>>()
    };
    for kind in Kind::BOTH {
        for (option, timer) in [("", "02"), ("keepalive=60m", "02"), ("keepalive=off", "00")] {
            let server = Server::start(kind);
            let cache = cache_at(kind, server.port(), option);
            let runtime = current_thread();
            cache.blocking().set_raw("k", "v", TTL).unwrap();
            runtime.block_on(cache.get_raw("k")).unwrap();
            support::wait::until("the peer has acknowledged all bytes", || {
                let timers = keepalive_timers(server.port());
                timers.len() == 2 && timers.iter().all(|set| set == timer)
            });
        }
    }
}

/// So a changed DNS record takes effect.
#[test]
fn an_old_or_long_idle_connection_is_not_used_again() {
    for kind in Kind::BOTH {
        for option in ["max_idle=30ms", "max_age=30ms"] {
            let server = Server::start(kind);
            let proxy = Proxy::before(server.port());
            let cache = cache_at(kind, proxy.port(), &format!("{option}&timeout=20s&connect_timeout=20s"));
            let runtime = current_thread();
            for round in 1..4 {
                cache.blocking().set_raw("k", "v", TTL).unwrap();
                runtime.block_on(cache.get_raw("k")).unwrap();
                assert!(proxy.connects() >= 2 * round, "{kind:?} {option}: {} in round {round}", proxy.connects());
                // The test waits for the time itself; a connection older than that is not used.
                runtime.block_on(async { tokio::time::sleep(Duration::from_millis(60)).await });
            }
        }
    }
}

fn fill_the_pool(cache: &Cache, proxy: &Proxy) {
    proxy.hold_replies_with("v");
    let barrier = Arc::new(Barrier::new(CONNECTIONS + 1));
    thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            let barrier = Arc::clone(&barrier);
            scope.spawn(move || {
                barrier.wait();
                // If the reply is held for longer than the timeout, the call fails and the next call dials again.
                let _ = cache.blocking().get_raw("k");
            });
        }
        barrier.wait();
        proxy.wait_until_held(CONNECTIONS);
        proxy.release();
    });
}
