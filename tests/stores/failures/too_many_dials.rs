//! Servers that accept connections and do not serve them are dialled by one caller at a time, and not on every call.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use prefork_cache::ErrorKind;

use super::{WAYS, Way, cache_at, read_on, serve};
use crate::conformance::current_thread;
use support::proxy::Proxy;
use support::servers::{Kind, Server, until_nobody_listens};
use support::wait::until;

/// `failures` is the default. After that many, the breaker stays open for longer than any test takes.
const ONE_OUTAGE: &str = "timeout=20s&connect_timeout=20s&retry_after=60m";
const ONE_OUTAGE_SHORT_TIMEOUT: &str = "timeout=300ms&connect_timeout=20s&retry_after=60m";
const MOST: usize = 5;

type Behaviour = (&'static str, fn(TcpStream, Kind));

const BEHAVIOURS: [Behaviour; 5] = [
    ("closes", |stream, _| drop(stream)),
    ("is silent", |stream, _| read_on(stream)),
    ("refuses the login", |mut stream, kind| {
        let text = if kind == Kind::Redis { "-WRONGPASS invalid username-password pair\r\n" } else { "ERROR\r\n" };
        let _ = stream.write_all(text.as_bytes());
        read_on(stream);
    }),
    ("is full", |mut stream, kind| {
        let text = if kind == Kind::Redis {
            "-ERR max number of clients reached\r\n"
        } else {
            "ERROR Too many open connections\r\n"
        };
        let _ = stream.write_all(text.as_bytes());
    }),
    ("resets", |stream, _| {
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
    }),
];

/// From the first call on, with at least as many callers as permits.
#[test]
fn many_callers_dial_a_few_times() {
    for kind in Kind::BOTH {
        for way in WAYS {
            for (what, handle) in BEHAVIOURS {
                let (port, dials) = serve(move |stream| handle(stream, kind));
                let cache = cache_at(kind, port, ONE_OUTAGE_SHORT_TIMEOUT);
                let failures = way.at_once(&cache, |cache| async move {
                    loop {
                        let error = cache.get_raw("k").await.expect_err("the server does not serve");
                        if error.kind() == ErrorKind::Unavailable {
                            return error;
                        }
                    }
                });
                assert!(dials() <= MOST, "{kind:?} {way:?}, one that {what}: {} dials", dials());
                assert!(failures.iter().all(|error| std::error::Error::source(error).is_some()), "{failures:?}");
            }
        }
    }
}

/// Callers whose wait for another caller's dial has timed out do not all dial at once.
#[test]
fn callers_that_time_out_do_not_all_dial() {
    for kind in Kind::BOTH {
        let (port, dials) = serve(read_on);
        let cache = cache_at(kind, port, "timeout=300ms&connect_timeout=300ms&failures=3&retry_after=60m");
        Way::Blocking.at_once(&cache, |cache| async move {
            while cache.get_raw("k").await.expect_err("the server does not serve").kind() != ErrorKind::Unavailable {}
        });
        assert!(dials() <= MOST, "{kind:?}: {} dials", dials());
    }
}

/// Without HELLO, the server refuses the first command after the greeting.
#[test]
fn a_server_that_refuses_logins_is_dialled_a_few_times_without_hello() {
    let locked = Server::with(Kind::Redis, &["--requirepass", "secret"]);
    for way in WAYS {
        let proxy = Proxy::before(locked.port());
        let (full, dials) = serve(|mut stream| _ = stream.write_all(b"-ERR max number of clients reached\r\n"));
        for (port, kind) in [(proxy.port(), ErrorKind::Auth), (full, ErrorKind::Server)] {
            let cache = cache_at(Kind::Redis, port, &format!("protocol=2&{ONE_OUTAGE}"));
            let kinds = way.at_once(&cache, |cache| async move {
                let mut kinds = Vec::new();
                for _ in 0..5 {
                    kinds.push(cache.get_raw("k").await.expect_err("the login is refused").kind());
                }
                kinds
            });
            assert!(kinds.iter().flatten().any(|found| *found == kind), "{way:?}: {kinds:?}");
        }
        assert!(proxy.connects() <= MOST && dials() <= MOST, "{way:?}: {} and {}", proxy.connects(), dials());
    }
}

/// One attempt per `retry_after`, regardless of the number of callers.
#[test]
fn a_server_is_tried_once_per_retry_after() {
    const DELAY: Duration = Duration::from_millis(200);
    for kind in Kind::BOTH {
        for way in WAYS {
            let (port, dials) = serve(drop);
            let cache = cache_at(kind, port, "timeout=300ms&connect_timeout=20s&retry_after=200ms");
            let start = Instant::now();
            way.at_once(&cache, move |cache| async move {
                while start.elapsed() < 5 * DELAY {
                    let _ = cache.get_raw("k").await;
                    tokio_or_thread_yield(way).await;
                }
            });
            let delays = start.elapsed().as_millis() / DELAY.as_millis();
            let most = MOST + usize::try_from(delays).unwrap();
            assert!(dials() <= most, "{kind:?} {way:?}: {} dials in {delays} delays", dials());
        }
    }
}

async fn tokio_or_thread_yield(way: Way) {
    match way {
        Way::Blocking => std::thread::yield_now(),
        Way::Tokio => tokio::task::yield_now().await,
    }
}

/// The callers have passed the breaker and hold connections when the server dies.
#[test]
fn a_server_that_dies_under_load_is_dialled_a_few_times() {
    for kind in Kind::BOTH {
        for way in WAYS {
            let mut server = Server::start(kind);
            let proxy = Proxy::before(server.port());
            let cache = cache_at(kind, proxy.port(), ONE_OUTAGE);
            way.at_once(&cache, |cache| async move { cache.get_raw("k").await.unwrap() });
            server.kill();
            until_nobody_listens(server.port());
            let before = proxy.connects();
            way.at_once(&cache, |cache| async move {
                while cache.get_raw("k").await.expect_err("the server does not serve").kind() != ErrorKind::Unavailable
                {
                }
            });
            let dials = proxy.connects() - before;
            assert!(dials <= MOST, "{kind:?} {way:?}: {dials} dials");
        }
    }
}

/// All callers get through once the first has.
#[test]
fn all_callers_get_through_to_a_working_server() {
    for kind in Kind::BOTH {
        for way in WAYS {
            let server = Server::start(kind);
            let cache = cache_at(kind, server.port(), ONE_OUTAGE);
            let values = way.at_once(&cache, |cache| async move { cache.get_raw("k").await });
            assert!(values.iter().all(|value| matches!(value, Ok(None))), "{values:?}");
            let stats = cache.stats();
            let [server] = stats.servers.as_slice() else { panic!("one server: {stats:?}") };
            assert!(server.dials >= 1 && !server.is_down, "{server:?}");
        }
    }
}

/// A server that was down is used again, even if it never completed a greeting before.
#[test]
fn a_server_that_starts_late_is_used() {
    for kind in Kind::BOTH {
        for way in WAYS {
            let server = Server::start(kind);
            let proxy = Proxy::before(support::servers::free_port());
            let cache = cache_at(kind, proxy.port(), "timeout=20s&connect_timeout=20s&retry_after=10ms");
            way.at_once(
                &cache,
                |cache| async move { cache.get_raw("k").await.expect_err("the server does not serve") },
            );
            proxy.lead_to(server.port());
            until("the server is used", || {
                way.at_once(&cache, |cache| async move { cache.get_raw("k").await.is_ok() }).into_iter().all(|ok| ok)
            });
            if (kind, way) == (Kind::Redis, Way::Blocking) {
                let clients = server.ask("CLIENT LIST");
                assert!(clients.contains("resp=3"), "the connection uses RESP3: {clients}");
            }
        }
    }
}

/// A runtime that ends while it dials leaves no connection open.
#[test]
fn a_cancelled_dial_leaves_no_connection() {
    for kind in Kind::BOTH {
        let (port, dials) = serve(read_on);
        let cache = cache_at(kind, port, "timeout=60s&connect_timeout=60s");
        for number in 1..=20 {
            let runtime = current_thread();
            runtime.block_on(async {
                let task = tokio::spawn({
                    let cache = cache.clone();
                    async move { cache.get_raw("k").await }
                });
                while dials() < number {
                    tokio::task::yield_now().await;
                }
                task.abort();
            });
            drop(runtime);
            assert_eq!(cache.stats().servers[0].connections, 0, "{kind:?}, of {number} runtimes");
        }
    }
}
