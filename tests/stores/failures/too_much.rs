//! Servers that send more than a client can hold, or never stop sending.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prefork_cache::{Cache, ErrorKind};

use super::{WAYS, cache_at, serve};
use crate::conformance::current_thread;
use support::servers::{Kind, Server};

const TTL: Duration = Duration::from_secs(600);
const MIB: usize = 1 << 20;

/// One value is too large to be read. The values beside it are read as usual, including those in flight after it.
#[test]
fn a_value_above_the_limit_is_skipped_without_closing_the_connection() {
    for kind in Kind::BOTH {
        let extra: &[&str] = if kind == Kind::Memcached { &["-I", "8m"] } else { &[] };
        let server = Server::with(kind, extra);
        let writer = cache_at(kind, server.port(), "max_value=8000000&timeout=20s");
        writer.blocking().set_raw("large", vec![b'x'; 4 * MIB], TTL).unwrap();
        writer.blocking().set_raw("small", "v", TTL).unwrap();
        let cache = cache_at(kind, server.port(), "max_value=1000000&timeout=20s&failures=1&retry_after=60m");
        for way in WAYS {
            let outcomes = way.at_once(&cache, |cache| async move {
                let large = cache.get_raw("large").await.unwrap_err();
                let small = cache.get_raw("small").await.unwrap();
                let both = cache.get_many_raw(&["small", "large", "small", "none"]).await;
                (large, small, both)
            });
            for (large, small, both) in outcomes {
                assert_eq!(large.kind(), ErrorKind::ValueTooLarge, "{large}");
                assert!(large.to_string().contains("larger than max_value"), "{large}");
                assert_eq!(small.as_deref(), Some(&b"v"[..]));
                let kinds: Vec<_> = both.into_iter().map(|result| result.map_err(|error| error.kind())).collect();
                let found = Ok(Some("v".into()));
                assert_eq!(kinds, [found.clone(), Err(ErrorKind::ValueTooLarge), found, Ok(None)], "{kind:?}");
            }
        }
    }
}

/// Memcached deletes the previous value when the new one is too large.
#[test]
fn a_value_that_does_not_fit_keeps_the_previous_value() {
    let server = Server::start(Kind::Memcached);
    let cache = cache_at(Kind::Memcached, server.port(), "timeout=20s");
    let cache = cache.blocking();
    for key in ["k", "ü", &"l".repeat(250), &"m".repeat(400)] {
        cache.set_raw(key, "before", TTL).unwrap();
        let mut fitting = 0;
        for length in (1_048_200..1_048_600).step_by(1) {
            match cache.set_raw(key, vec![b'x'; length], TTL) {
                Ok(()) => {
                    fitting += 1;
                    cache.set_raw(key, "before", TTL).unwrap();
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::ValueTooLarge, "{error}");
                    let left = cache.get_raw(key).unwrap();
                    assert_eq!(left.as_deref(), Some(&b"before"[..]), "{length} bytes for a key of {}", key.len());
                }
            }
        }
        assert!(fitting > 0, "{key}");
    }
}

/// `clear` ends if the cursor runs in a circle, and if it never returns to 0.
#[test]
fn an_endless_key_listing_is_an_error() {
    for circle in [1_u64, 2, 1_000] {
        let next = Arc::new(AtomicU64::new(0));
        let (port, _) = serve(move |mut stream| {
            let mut request = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut request) {
                let text = String::from_utf8_lossy(&request[..length]).into_owned();
                let token = text.trim_end().rsplit("\r\n").next().unwrap_or_default().to_owned();
                let mut reply = String::new();
                if text.contains("HELLO") {
                    reply.push_str("%0\r\n");
                }
                if text.contains("SCAN") {
                    let cursor = (1 + next.fetch_add(1, Ordering::Relaxed) % circle).to_string();
                    reply.push_str(&format!("*2\r\n${}\r\n{cursor}\r\n*0\r\n", cursor.len()));
                }
                if text.contains("ECHO") {
                    reply.push_str(&format!("${}\r\n{token}\r\n", token.len()));
                }
                if stream.write_all(reply.as_bytes()).is_err() {
                    return;
                }
            }
        });
        let cache = cache_at(Kind::Redis, port, "timeout=20s");
        let error = cache.blocking().clear().unwrap_err();
        assert!(error.to_string().contains("lists its keys without an end"), "{error}");
        let error = current_thread().block_on(cache.clear()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    }
}

/// A key of another Redis type is absent in every kind of read.
#[test]
fn a_key_of_another_type_is_absent_in_every_read() {
    let server = Server::start(Kind::Redis);
    let cache: Cache = cache_at(Kind::Redis, server.port(), "");
    server.ask("LPUSH list 1");
    let cache = cache.blocking();
    assert_eq!(cache.get_raw("list").unwrap(), None);
    assert_eq!(cache.get_many_raw(&["list"]).pop().unwrap().unwrap(), None);
}
