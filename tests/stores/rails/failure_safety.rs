//! A server that is down: `fetch` works without it, and every other operation reports the outage.

use std::sync::Arc;

use prefork_cache::stores::{MemoryStore, TieredStore, from_url};
use prefork_cache::{Cache, Error, ErrorKind};

use super::{LONG, loads, text};
use crate::conformance::current_thread;
use support::proxy::Proxy;
use support::servers::{Kind, Server, url_of};

/// Caches on servers that are down: no server listens on port 1.
pub(super) fn unavailable() -> Vec<Cache> {
    let [redis, memcached] = Kind::BOTH.map(|kind| from_url(&url_of(kind, 1, "")).unwrap());
    let tiered = TieredStore::new(MemoryStore::new(), Arc::clone(&redis));
    vec![Cache::builder(redis).build(), Cache::builder(memcached).build(), Cache::builder(tiered).build()]
}

/// The first calls fail to connect. After that the circuit breaker is open for a while.
fn assert_outage(error: Option<Error>, verb: &str) {
    let kind = error.map(|error| error.kind());
    assert!(matches!(kind, Some(ErrorKind::Connect | ErrorKind::Unavailable)), "{verb}: {kind:?}");
}

/// Rails returns `nil`, `false`, zero or nothing. Here the caller decides what an outage means.
#[test]
fn every_verb_but_fetch_tells_of_an_outage() {
    for cache in unavailable() {
        println!("on {cache:?}");
        let blocking = cache.blocking();
        assert_outage(blocking.get::<String>("k").err(), "get");
        assert_outage(current_thread().block_on(cache.get::<String>("k")).err(), "get, asynchronous");
        assert_outage(blocking.set("k", "v", LONG).err(), "set");
        assert_outage(blocking.add("k", "v", LONG).err(), "add");
        assert_outage(blocking.replace("k", "v", LONG).err(), "replace");
        assert_outage(blocking.delete("k").err(), "delete");
        assert_outage(blocking.exists("k").err(), "exists");
        assert_outage(blocking.increment("k", 1, LONG).err(), "increment");
        assert_outage(blocking.decrement("k", 1, LONG).err(), "decrement");
        assert_outage(blocking.counter("k").err(), "counter");
        assert_outage(blocking.touch("k", LONG).err(), "touch");
        assert_outage(blocking.clear().err(), "clear");
        for found in blocking.get_many::<String>(&["k", "l"]) {
            assert_outage(found.err(), "get_many");
        }
        for stored in blocking.set_many(&[("k", "v"), ("l", "v")], LONG) {
            assert_outage(stored.err(), "set_many");
        }
        for deleted in blocking.delete_many(&["k", "l"]) {
            assert_outage(deleted.err(), "delete_many");
        }
        assert!(blocking.get::<String>("k").unwrap_err().is_transient());
    }
}

#[test]
fn during_an_outage_a_fetch_answers_what_its_loader_does() {
    for cache in unavailable() {
        println!("on {cache:?}");
        assert_eq!(cache.blocking().fetch("k", LONG, loads("1".to_owned())).as_deref(), Ok("1"));
        assert_eq!(cache.blocking().fetch("k", LONG, || Err::<String, _>("there is none")), Err("there is none"));
        let fetched = current_thread().block_on(cache.fetch("k", LONG, async || loads("2".to_owned())()));
        assert_eq!(fetched.as_deref(), Ok("2"));
    }
}

/// The stored value may be newer than the loaded one. The server works; only the reply to the read is lost.
#[test]
fn a_fetch_whose_read_failed_does_not_write() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let direct = Cache::builder(from_url(&server.url("")).unwrap()).build();
        direct.blocking().set("k", "old", LONG).unwrap();
        let proxy = Proxy::before(server.port());
        proxy.hold_replies_with("old");
        let cache = Cache::builder(from_url(&url_of(kind, proxy.port(), "timeout=100ms")).unwrap()).build();
        assert_eq!(cache.blocking().fetch("k", LONG, loads("new".to_owned())).as_deref(), Ok("new"), "{kind:?}");
        assert_eq!(text(&direct, "k").as_deref(), Some("old"), "{kind:?}");
        proxy.release();
    }
}
