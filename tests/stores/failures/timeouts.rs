//! A handle with its own timeout.

use std::thread;
use std::time::Duration;

use prefork_cache::{Cache, ErrorKind};

use super::cache_at;
use crate::conformance::current_thread;
use support::proxy::Proxy;
use support::servers::{Kind, Server};

const TTL: Duration = Duration::from_secs(600);
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

fn cache(kind: Kind, proxy: &Proxy, options: &str) -> Cache {
    let cache = cache_at(kind, proxy.port(), &format!("connect_timeout=20s&failures=1&retry_after=60m&{options}"));
    cache.blocking().set_raw("k", "held", TTL).unwrap();
    cache
}

/// The server may need longer, so it has not failed. No other request loses its reply.
#[test]
fn a_shorter_timeout_fails_its_own_call_only() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let proxy = Proxy::before(server.port());
        let cache = cache(kind, &proxy, "timeout=60s");
        let runtime = current_thread();
        runtime.block_on(cache.get_raw("none")).unwrap();
        let dials = proxy.connects();
        proxy.hold_replies_with("held");
        runtime.block_on(async {
            let patient = tokio::spawn({
                let cache = cache.clone();
                async move { cache.get_raw("k").await }
            });
            for _ in 0..3 {
                let error = cache.timeout(SHORT).get_raw("k").await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
            }
            proxy.release();
            assert_eq!(patient.await.unwrap().unwrap().as_deref(), Some(&b"held"[..]));
        });
        assert_eq!(proxy.connects(), dials, "over the same connection");

        proxy.hold_replies_with("held");
        for _ in 0..3 {
            let error = cache.timeout(SHORT).blocking().get_raw("k").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        }
        proxy.release();
        assert_eq!(cache.blocking().get_raw("k").unwrap().as_deref(), Some(&b"held"[..]));
        assert!(!cache.stats().servers[0].is_down);
    }
}

/// The timeout is longer than the clock can represent.
#[test]
fn the_longest_timeout_works() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let cache = cache_at(kind, server.port(), "").timeout(Duration::MAX);
        cache.blocking().set_raw("k", "v", TTL).unwrap();
        assert_eq!(current_thread().block_on(cache.get_raw("k")).unwrap().as_deref(), Some(&b"v"[..]));
    }
}

/// Meanwhile the timeout of another request on the same connection expires.
#[test]
fn a_longer_timeout_waits_longer() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let proxy = Proxy::before(server.port());
        let cache = cache(kind, &proxy, "timeout=500ms");
        let patient = cache.timeout(LONG);
        proxy.hold_replies_with("held");
        current_thread().block_on(async {
            let patient = tokio::spawn({
                let patient = patient.clone();
                async move { patient.get_raw("k").await }
            });
            let error = cache.get_raw("k").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
            assert!(!patient.is_finished());
            proxy.release();
            assert_eq!(patient.await.unwrap().unwrap().as_deref(), Some(&b"held"[..]));
        });

        cache.reset();
        proxy.hold_replies_with("held");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| patient.blocking().get_raw("k"));
            proxy.wait_until_held(1);
            cache.blocking().get_raw("k").unwrap_err();
            proxy.release();
            assert_eq!(waiting.join().unwrap().unwrap().as_deref(), Some(&b"held"[..]));
        });
    }
}
