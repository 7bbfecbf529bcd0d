//! The records of exchanges and servers for a subscriber: spans in OpenTelemetry's terms, without keys and values.

use std::collections::BTreeMap;
use std::time::Duration;

use prefork_cache::stores::from_url;
use prefork_cache::{Cache, Expiry, Ttl};
use tokio::runtime::Runtime;
use tracing::Level;

use crate::conformance::current_thread;
use crate::staleness::until_it_holds;
use support::recorder::{Record, recorded};
use support::servers::{Kind, Server};

const TTL: Duration = Duration::from_secs(600);
const KEYS: [&str; 2] = ["geheimer-schlüssel", "geheimer schlüssel"];
const VALUE: &str = "geheimer-wert";

fn cache(url: &str) -> Cache {
    Cache::builder(from_url(url).unwrap()).build()
}

/// Runs the same operations through both APIs, each with its own connection.
fn through_both_apis(cache: &Cache, check: impl Fn(Vec<Record>)) {
    let entries = KEYS.map(|key| (key, VALUE));
    let ((), records) = recorded(|| {
        let cache = cache.blocking();
        cache.set(KEYS[0], VALUE, TTL).unwrap();
        assert_eq!(cache.get::<String>(KEYS[0]).unwrap().as_deref(), Some(VALUE));
        cache.set_many(&entries, TTL).into_iter().for_each(Result::unwrap);
        cache
            .get_many::<String>(&KEYS)
            .into_iter()
            .for_each(|found| assert_eq!(found.unwrap().as_deref(), Some(VALUE)));
        cache.increment("geheimer-zähler", 1, TTL).unwrap();
        cache.get_raw("geheimer-zähler").unwrap();
    });
    check(records);
    let runtime: Runtime = current_thread();
    let ((), records) = recorded(|| {
        runtime.block_on(async {
            cache.set(KEYS[0], VALUE, TTL).await.unwrap();
            assert_eq!(cache.get::<String>(KEYS[0]).await.unwrap().as_deref(), Some(VALUE));
            cache.set_many(&entries, TTL).await.into_iter().for_each(Result::unwrap);
            let found = cache.get_many::<String>(&KEYS).await;
            found.into_iter().for_each(|found| assert_eq!(found.unwrap().as_deref(), Some(VALUE)));
            cache.increment("geheimer-zähler", 1, TTL).await.unwrap();
            cache.get_raw("geheimer-zähler").await.unwrap();
        });
    });
    check(records);
}

fn assert_no_secrets(records: &[Record]) {
    for record in records.iter().filter(|record| record.level <= Level::DEBUG) {
        assert!(!format!("{record:?}").contains("geheim"), "{record:?}");
    }
}

fn fields<const N: usize>(fields: [(&str, &str); N]) -> BTreeMap<String, String> {
    fields.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// The names of the spans, and their numbers of commands.
fn operations(records: &[Record]) -> Vec<(&str, Option<&str>)> {
    let spans = records.iter().filter(|record| record.is_span);
    spans
        .map(|span| (&*span.fields["otel.name"], span.fields.get("db.operation.batch.size").map(|size| &**size)))
        .collect()
}

#[test]
fn exchanges_with_redis_are_spans() {
    let server = Server::start(Kind::Redis);
    let port = server.port().to_string();
    through_both_apis(&cache(&format!("redis://127.0.0.1:{port}/3")), |records| {
        assert_no_secrets(&records);
        let expected = [
            ("SET", None),
            ("GET", None),
            ("PIPELINE SET", Some("2")),
            ("MGET", None),
            ("MULTI", Some("2")),
            ("GET", None),
        ];
        assert_eq!(operations(&records), expected);
        let server_fields = [("server.address", "127.0.0.1"), ("server.port", &*port)];
        // Inside a runtime, a separate task dials for all callers.
        let connected = records.iter().find(|record| record.name == "connected").expect("a connection was opened");
        assert_eq!((connected.level, connected.fields.clone()), (Level::DEBUG, fields(server_fields)));
        let spans: Vec<_> = records.iter().filter(|record| record.is_span).collect();
        for (span, name) in [(spans[0], "SET"), (spans[1], "GET")] {
            assert_eq!((&*span.name, span.level, span.within), ("exchange", Level::DEBUG, None));
            let mut expected = fields([
                ("otel.kind", "client"),
                ("otel.name", name),
                ("db.system.name", "redis"),
                ("db.operation.name", name),
                ("db.namespace", "3"),
            ]);
            expected.extend(fields(server_fields));
            assert_eq!(span.fields, expected);
        }
    });
}

#[test]
fn exchanges_with_memcached_are_spans() {
    let server = Server::on_socket(Kind::Memcached);
    let url = server.url("");
    let path = url.trim_start_matches("memcached+unix://").trim_end_matches('?');
    through_both_apis(&cache(&url), |records| {
        assert_no_secrets(&records);
        let expected = [
            ("set", None),
            ("get", None),
            ("BATCH set", Some("2")),
            ("BATCH get", Some("2")),
            ("incr", None),
            ("get", None),
        ];
        assert_eq!(operations(&records), expected);
        let expected = [
            ("otel.kind", "client"),
            ("otel.name", "set"),
            ("db.system.name", "memcached"),
            ("db.operation.name", "set"),
            ("server.address", path),
            ("network.transport", "unix"),
        ];
        assert_eq!(records[0].fields, fields(expected));
    });
}

#[test]
fn a_servers_outage_and_return_are_logged() {
    for kind in Kind::BOTH {
        let mut server = Server::start(kind);
        let port = server.port().to_string();
        let cache = cache(&server.url("failures=2&retry_after=1ms&timeout=30s"));
        let runtime = current_thread();
        server.kill();
        let (errors, records) = recorded(|| {
            [
                cache.blocking().exists(KEYS[0]),
                runtime.block_on(cache.exists(KEYS[0])),
                cache.blocking().exists(KEYS[0]),
            ]
        });
        assert!(errors.iter().all(Result::is_err), "{errors:?}");
        assert_no_secrets(&records);
        let failed = records.iter().filter(|record| record.is_span);
        for span in failed.clone().take(2) {
            assert_eq!((&*span.fields["error.type"], &*span.fields["otel.status_code"]), ("connect", "ERROR"));
        }
        assert_eq!(failed.count(), 3);
        let server_fields = fields([("server.address", "127.0.0.1"), ("server.port", &port)]);
        let warned: Vec<_> = records.iter().filter(|record| record.level == Level::WARN).collect();
        assert_eq!(warned.len(), 1, "{records:?}");
        assert_eq!(warned[0].fields, server_fields);
        server.restart();
        let ((), records) = recorded(|| {
            support::wait::until("the server is used again", || cache.blocking().exists(KEYS[0]).is_ok());
            runtime.block_on(cache.exists(KEYS[0])).unwrap();
        });
        let logged: Vec<_> = records.iter().filter(|record| record.level == Level::INFO).collect();
        assert_eq!(logged.len(), 1, "{records:?}");
        assert_eq!(logged[0].fields, server_fields);
    }
}

/// The span has the kind of the error, also inside a transaction, but not its text, which may name the key.
#[test]
fn error_replies_are_recorded() {
    let server = Server::start(Kind::Redis);
    server.ask("LPUSH geheim 1");
    let redis = cache(&server.url(""));
    let ((), records) = recorded(|| {
        redis.blocking().increment("geheim", 1, Ttl::Never).unwrap_err();
        server.ask("CONFIG SET maxmemory 1");
        redis.blocking().set_raw("geheim", VALUE, TTL).unwrap_err();
    });
    assert_no_secrets(&records);
    let server = Server::start(Kind::Memcached);
    let memcached = cache(&server.url(""));
    memcached.blocking().set_raw("geheim", VALUE, TTL).unwrap();
    let (_, others) = recorded(|| memcached.blocking().increment("geheim", 1, TTL).unwrap_err());
    assert_no_secrets(&others);
    let kinds = |records: &[Record]| -> Vec<String> {
        let spans = records.iter().filter(|record| record.is_span);
        spans.map(|span| span.fields["error.type"].clone()).collect()
    };
    assert_eq!(kinds(&records), ["server", "server"]);
    assert_eq!(kinds(&others), ["not_a_number"]);
}

/// The exchanges of a batch on several servers alternate on one thread.
#[test]
fn spans_of_concurrent_exchanges_are_not_nested() {
    let servers = [(); 2].map(|()| Server::start(Kind::Memcached));
    let [first, second] = servers.each_ref().map(Server::port);
    let cache = cache(&format!("memcached://127.0.0.1:{first},127.0.0.1:{second}"));
    let keys: Vec<String> = (0..50).map(|number| format!("key:{number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let (found, records) = recorded(|| cache.blocking().get_many_raw(&keys));
    assert!(found.iter().all(Result::is_ok));
    let spans: Vec<_> = records.iter().filter(|record| record.is_span).collect();
    assert_eq!(spans.len(), 2, "{records:?}");
    assert!(spans.iter().all(|span| span.within.is_none() && span.fields["otel.name"] == "BATCH get"), "{spans:?}");
}

/// Failures that a fetch ignores are logged: as a warning, unless they pass by themselves like an outage.
#[test]
fn ignored_failures_are_events() {
    let server = Server::start(Kind::Redis);
    let load = || Ok::<u32, std::convert::Infallible>(1);
    let logged = |url: &str| {
        let cache = Cache::builder(from_url(url).unwrap()).name("prices").build();
        let ((), records) = recorded(|| {
            cache.blocking().fetch("", TTL, load).unwrap();
            cache.blocking().fetch(KEYS[0], Duration::ZERO, load).unwrap();
        });
        assert_no_secrets(&records);
        let logged = records.into_iter().filter(|record| record.name == "a failure that no caller hears of");
        logged.map(|record| (record.level, record.fields)).collect::<Vec<_>>()
    };
    let fields = |kind: &str| {
        let fields = [("cache.name", "prices"), ("cache.verb", "fetch"), ("error.type", kind)];
        BTreeMap::from(fields.map(|(name, value)| (name.to_owned(), value.to_owned())))
    };
    let mistakes = [(Level::WARN, fields("invalid_key")), (Level::WARN, fields("invalid_ttl"))];
    assert_eq!(logged(&server.url("")), mistakes);
    let down = logged("redis://127.0.0.1:1");
    assert!(down.contains(&(Level::DEBUG, fields("connect"))) && down.contains(&mistakes[0]), "{down:?}");
}

/// One span for each fetch, around its exchanges, with its outcome.
#[test]
fn fetches_are_spans_with_an_outcome() {
    let server = Server::start(Kind::Redis);
    let cache = Cache::builder(from_url(&server.url("")).unwrap()).name("prices").build();
    let fetch = |cache: &Cache, loaded: Result<u32, &'static str>| {
        cache.blocking().fetch(KEYS[0], Expiry::after(TTL).stale_for(TTL), || loaded)
    };
    let ((), records) = recorded(|| {
        assert_eq!(fetch(&cache, Err("no")), Err("no"));
        assert_eq!(fetch(&cache, Ok(1)), Ok(1));
        assert_eq!(fetch(&cache, Ok(2)), Ok(1));
        assert!(cache.blocking().expire(KEYS[0]).unwrap());
        assert_eq!(fetch(&cache, Err("no")), Ok(1));
        assert!(cache.blocking().expire(KEYS[0]).unwrap());
        assert_eq!(fetch(&cache, Ok(2)), Ok(2));
        current_thread().block_on(async {
            let load = async || Ok::<u32, &str>(3);
            assert_eq!(cache.fetch_detached(KEYS[0], TTL, load).await, Ok(2));
            assert_eq!(cache.force(true).fetch_detached(KEYS[0], TTL, load).await, Ok(3));
            cache.set(KEYS[0], &3, Expiry::after(TTL).stale_for(TTL)).await.unwrap();
            assert!(cache.expire(KEYS[0]).await.unwrap());
            let load = async || Ok::<u32, &str>(4);
            assert_eq!(cache.fetch_detached(KEYS[0], TTL, load).await, Ok(3));
            let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
            until_it_holds("the load has ended", || cache.blocking().get(KEYS[0]).unwrap() == Some(4)).await;
            cache.reset();
            until_it_holds("the task has ended", || tasks() == 0).await;
        });
    });
    assert_no_secrets(&records);
    let fetches: Vec<&Record> = records.iter().filter(|record| record.is_span && record.name == "fetch").collect();
    let outcomes: Vec<&str> = fetches.iter().map(|fetch| &*fetch.fields["cache.outcome"]).collect();
    assert_eq!(outcomes, ["failed", "loaded", "hit", "stale", "loaded", "hit", "loaded", "stale", "loaded"]);
    assert!(fetches.iter().all(|fetch| fetch.fields["cache.name"] == "prices"));
    let index = records.iter().position(|record| record.name == "fetch").unwrap();
    let inside = records.iter().filter(|record| record.is_span && record.within == Some(index));
    let operations: Vec<&str> = inside.map(|span| &*span.fields["otel.name"]).collect();
    assert_eq!(
        operations,
        ["GET", "PIPELINE", "EVAL"],
        "a read; the lease, with another read; and the end of the lease"
    );
}
