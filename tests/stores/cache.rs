//! `Cache`: types, namespaces, versions, other programs' bytes, and statistics.

use std::time::Duration;

use prefork_cache::stores::{MemoryStore, from_url};
use prefork_cache::{Cache, Codec};
use serde::{Deserialize, Serialize};

use crate::conformance::current_thread;
use support::servers::{Kind, Server};

const TTL: Duration = Duration::from_secs(600);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Widget {
    id: u32,
    name: String,
}

fn widget(id: u32) -> Widget {
    Widget { id, name: format!("widget ⚙ {id}") }
}

pub(crate) fn everywhere(test: impl Fn(Cache)) {
    test(Cache::builder(MemoryStore::new()).build());
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        test(Cache::builder(from_url(&server.url("")).unwrap()).build());
    }
}

#[test]
fn every_operation_blocking_and_asynchronous() {
    everywhere(|cache| {
        let name = format!("{cache:?}");
        let blocking = cache.blocking();
        blocking.set("a", &widget(1), TTL).unwrap();
        assert_eq!(blocking.get("a").unwrap(), Some(widget(1)), "{name}");
        assert!(!blocking.add("a", &widget(2), TTL).unwrap());
        assert!(blocking.replace("a", &widget(3), TTL).unwrap());
        assert!(blocking.touch("a", TTL).unwrap());
        assert_eq!(blocking.take("a").unwrap(), Some(widget(3)));
        assert!(!blocking.exists("a").unwrap());
        assert!(!blocking.delete("a").unwrap());
        blocking.reset();
        blocking.reconnect().unwrap();

        current_thread().block_on(async {
            cache.set("b", &widget(1), TTL).await.unwrap();
            assert_eq!(cache.get("b").await.unwrap(), Some(widget(1)));
            assert!(!cache.add("b", &widget(2), TTL).await.unwrap());
            assert!(cache.replace("b", &widget(3), TTL).await.unwrap());
            assert!(cache.touch("b", TTL).await.unwrap());
            let entries = [("c", widget(4)), ("d", widget(5))];
            assert!(cache.set_many(&entries, TTL).await.into_iter().all(|stored| stored.is_ok()));
            let found = cache.get_many(&["c", "b", "nothing", "d"]).await;
            let found: Vec<Option<Widget>> = found.into_iter().map(Result::unwrap).collect();
            assert_eq!(found, [Some(widget(4)), Some(widget(3)), None, Some(widget(5))]);
            let deleted = cache.delete_many(&["c", "nothing", "d"]).await;
            assert_eq!(deleted.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [true, false, true]);
            assert_eq!(cache.increment("n", 5, TTL).await.unwrap(), 5);
            assert_eq!(cache.decrement("n", 2, TTL).await.unwrap(), 3);
            assert_eq!(cache.counter("n").await.unwrap(), Some(3));
            let renamed =
                |previous: Option<Widget>| previous.map(|previous| Widget { name: "renamed".into(), ..previous });
            assert_eq!(
                cache.update("b", TTL, renamed).await.unwrap().map(|previous| previous.name).as_deref(),
                Some("renamed")
            );
            assert_eq!(cache.update("b", TTL, |_: Option<Widget>| None).await.unwrap(), None);
            assert_eq!(cache.take::<Widget>("b").await.unwrap(), None);
            cache.reset();
            cache.reconnect().await.unwrap();
        });
    });
}

#[test]
fn a_namespace_is_cleared_alone() {
    everywhere(|cache| {
        let [first, second] = ["a*", "a*b"].map(|part| cache.namespace(part));
        for cache in [&first, &second] {
            cache.blocking().set("k", &1, TTL).unwrap();
        }
        first.blocking().clear().unwrap();
        assert_eq!(first.blocking().get::<u8>("k").unwrap(), None);
        assert_eq!(second.blocking().get("k").unwrap(), Some(1));
        cache.blocking().clear().unwrap();
        assert_eq!(second.blocking().get::<u8>("k").unwrap(), None);
    });
}

/// Foreign bytes are a miss and are counted, and the next fetch overwrites them.
#[test]
fn bytes_without_an_envelope_are_a_miss() {
    everywhere(|cache| {
        let cache = cache.blocking();
        let foreign: [&[u8]; 4] = [b"12", b"", b"\x04\x08i\x11", b"\0\x11\x02\0\0\0\0\0\0\xf0\xbf\xff\xff\xff\xffhi"];
        for (number, bytes) in foreign.into_iter().enumerate() {
            cache.set_raw("k", bytes.to_vec(), TTL).unwrap();
            assert_eq!(cache.get::<u8>("k").unwrap(), None, "{bytes:?}");
            assert_eq!(cache.get_raw("k").unwrap().as_deref(), Some(bytes));
            assert_eq!(cache.stats().undecodable, 2 * number as u64 + 1);
            let loaded = cache.fetch("k", TTL, || Ok::<u8, std::convert::Infallible>(9));
            assert_eq!(loaded, Ok(9));
            assert_eq!(cache.get("k").unwrap(), Some(9));
        }
        cache.set("k", &widget(1), TTL).unwrap();
        assert_eq!(cache.get::<Vec<String>>("k").unwrap(), None, "another type");
    });
}

#[test]
fn every_codec_can_be_read() {
    let server = Server::start(Kind::Redis);
    let [packed, json] = [Codec::MessagePack, Codec::Json]
        .map(|codec| Cache::builder(from_url(&server.url("")).unwrap()).codec(codec).build());
    json.blocking().set("k", &widget(1), TTL).unwrap();
    assert_eq!(packed.blocking().get("k").unwrap(), Some(widget(1)));
    packed.blocking().set("k", &widget(2), TTL).unwrap();
    assert_eq!(json.blocking().get("k").unwrap(), Some(widget(2)));
}

#[test]
fn other_programs_read_raw_values_and_counters() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let cache = Cache::builder(from_url(&server.url("")).unwrap()).build();
        cache.blocking().set_raw("raw", "hello", TTL).unwrap();
        cache.blocking().increment("n", 42, TTL).unwrap();
        let (raw, number) = match kind {
            Kind::Redis => (server.ask("GET raw"), server.ask("GET n")),
            Kind::Memcached => (server.ask("get raw"), server.ask("get n")),
        };
        assert!(raw.contains("\r\nhello\r\n"), "{raw}");
        assert!(number.contains("\r\n42\r\n"), "{number}");
    }
}

#[test]
fn operations_are_counted() {
    let cache = Cache::builder(MemoryStore::new()).build();
    let cache = cache.blocking();
    cache.set("k", &1, TTL).unwrap();
    cache.get::<u8>("k").unwrap();
    cache.get::<u8>("nothing").unwrap();
    cache.get_many::<u8>(&["k", "nothing", "k"]);
    cache.fetch("loaded", TTL, || Ok::<u8, std::convert::Infallible>(1)).unwrap();
    cache.reset();
    assert!(cache.get::<u8>("").is_err());
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.loads, stats.reconnects), (3, 3, 1, 1), "{stats:?}");
}

#[test]
fn the_last_cache_of_a_name_is_found() {
    assert!(Cache::named("the_last_cache_of_a_name").is_none());
    for part in ["first", "second"] {
        Cache::builder(MemoryStore::new()).name("the_last_cache_of_a_name").namespace(part).register();
    }
    let found = Cache::named("the_last_cache_of_a_name").unwrap();
    found.blocking().set_raw("k", "v", TTL).unwrap();
    assert!(format!("{found:?}").contains("second:"), "{found:?}");
}
