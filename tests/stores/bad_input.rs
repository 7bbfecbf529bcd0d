//! Bad input gets an error that names the offending part. The error texts are fixed, because people search for them.

use std::error::Error as _;
use std::time::Duration;

use prefork_cache::stores::{MemoryStore, from_url};
use prefork_cache::{Cache, Codec, Error, ErrorKind, Expiry};

use support::servers::{Kind, Server, free_port};

const TTL: Duration = Duration::from_secs(60);

fn assert_refused(outcome: Result<impl Sized, Error>, kind: ErrorKind, text: &str) {
    let error = outcome.err().unwrap_or_else(|| panic!("expected: {text}"));
    assert_eq!((error.kind(), error.to_string().as_str()), (kind, text));
}

#[test]
fn urls() {
    let cases = [
        ("localhost", "the URL does not begin with scheme://"),
        (
            "gopher://localhost",
            "unknown scheme \"gopher\": this build knows memory, redis, rediss, redis+sentinel, rediss+sentinel, redis+cluster, rediss+cluster, redis+unix, redis+socket, unix, memcached, memcacheds, memcached+unix, null",
        ),
        ("redis://", "a host of the URL is empty"),
        ("redis://ho st", "\"ho st\" is not the name or address of a host"),
        ("redis://localhost:0", "the port 0 of the host \"localhost\" is not between 1 and 65535"),
        ("redis://localhost:65536", "the port 65536 of the host \"localhost\" is not between 1 and 65535"),
        ("redis://localhost:http", "the port of the host \"localhost\" is not a number"),
        ("redis://[::1", "\"[::1\" has no ']'"),
        ("redis://::1", "write the IPv6 address \"::1\" in brackets"),
        ("redis://localhost/two", "the database \"two\" of a redis URL is not a number"),
        ("redis://localhost/-1", "the database \"-1\" of a redis URL is not a number"),
        (
            "redis://a,b",
            "a redis URL names one server, without a comma; the nodes of a cluster are those of a redis+cluster URL",
        ),
        ("redis+cluster://a,b/3", "a cluster has no database 3: it has number 0 alone"),
        ("redis+cluster://a?replicas=always", "replicas=\"always\" is neither never nor prefer"),
        ("redis://a?replicas=prefer", "replicas=prefer is for a cluster: redis+cluster://"),
        (
            "redis://me@localhost",
            "a redis URL has a user name without a password: write user:password@, or :password@, or give a password_file",
        ),
        (
            "redis://localhost?timeuot=1s",
            "unknown option \"timeuot\": known are client_name, connect_timeout, database, db, failures, keepalive, max_age, \
             max_idle, max_value, password_file, pool_size, protocol, replicas, retry_after, sentinel_password, \
             sentinel_password_file, sentinel_username, timeout, tls_accept_any_certificate, tls_ca, tls_cert, tls_key, \
             tls_server_name, topology_refresh",
        ),
        (
            "redis://localhost?timeout=soon",
            "the option timeout=\"soon\" is not a duration above zero and up to a day, such as 500ms, 2s, 1m, 1h or 2 (seconds)",
        ),
        ("redis://localhost?pool_size=0", "the option pool_size=\"0\" is not a number in the allowed range"),
        ("redis://localhost?timeout=1s&timeout=2s", "the option \"timeout\" is given twice"),
        ("redis+unix://localhost/run", "a redis+unix URL has no host: write redis+unix:///path, with three slashes"),
        ("memcached://a,a", "the server a:11211 is listed twice"),
        ("memcached://a/0", "memcached has no databases: remove the path \"/0\""),
        ("memcached://a,b?weights=1", "weights=\"1\" is not one positive whole number for each server"),
        ("memcached://:secret@a", "a login on memcached has a user name: write user:password@"),
        ("memcached://m%20e:secret@a", "the user name of a login on memcached has white space in it"),
        ("redis://:secret@a?password_file=/b", "a password and a password_file are given: a store has one of them"),
        ("redis://localhost?tls_ca=/a", "the option tls_ca is given, and redis has no TLS"),
        ("rediss://localhost?tls_cert=/a", "tls_cert is given without tls_key"),
        (
            "rediss://localhost?tls_ca=/a&tls_accept_any_certificate=true",
            "tls_ca is given, and tls_accept_any_certificate=true, which looks at no authority",
        ),
        (
            "rediss://localhost?tls_accept_any_certificate=true&tls_server_name=a%20b",
            "\"a b\" is no name that a certificate can be for",
        ),
        (
            "redis+sentinel://a,b",
            "\"\" is not the name of a master, which a redis+sentinel URL has behind its hosts: /mymaster, or /mymaster/2 \
             with the database",
        ),
        ("redis+sentinel://a/mymaster/two", "the database \"two\" of a redis URL is not a number"),
        ("redis://a?sentinel_password=b", "the option sentinel_password is given, and redis has no sentinels"),
        ("redis://localhost/1?db=2", "a redis URL gives the database twice: in its path, or as database or db"),
        ("memory://somewhere", "a memory URL names no host and no path: write memory://"),
        ("memory://?max_bytes=much", "the option max_bytes=\"much\" is not a number in the allowed range"),
        ("memory://?max_bytes=1&max_entries=1", "max_bytes and max_entries are given: a memory store has one bound"),
        ("memory://?at_fork=never", "the option at_fork=\"never\" is not inherit or fresh"),
        ("null://?a=1", "unknown option \"a\": known are "),
    ];
    for (url, text) in cases {
        assert_refused(from_url(url), ErrorKind::InvalidUrl, text);
    }
}

/// For every error in a URL, and every position of the password.
#[test]
fn a_password_is_never_shown() {
    let port = free_port();
    let urls = [
        "redis://me:hunter2@localhost:http".to_owned(),
        "redis://me:hunter2@/".to_owned(),
        "redis://me:hunter2@localhost/x".to_owned(),
        "redis://me:hunter2@localhost?nonsense=1".to_owned(),
        "redis://me:hunter2/@localhost".to_owned(),
        "redis://me:hunter2?@localhost".to_owned(),
        "redis://me:hunter2%zz@localhost".to_owned(),
        "memory://me:hunter2@".to_owned(),
        "gopher://me:hunter2@localhost".to_owned(),
        format!("redis://me:hunter2@127.0.0.1:{port}"),
    ];
    for url in urls {
        let shown = match from_url(&url) {
            Err(error) => format!("{error} {error:?}"),
            Ok(store) => {
                let cache = Cache::builder(store).build();
                let error = cache.blocking().exists("k").expect_err("no server listens there");
                format!("{error} {error:?} {cache:?}")
            }
        };
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn keys_and_times_to_live() {
    let cache = Cache::builder(MemoryStore::new()).namespace("n").build();
    let cache = cache.blocking();
    assert_refused(cache.get::<u8>(""), ErrorKind::InvalidKey, "the key is empty");
    assert_refused(cache.set("", &1, TTL), ErrorKind::InvalidKey, "the key is empty");
    let zero = "a TTL of zero: an entry that does not expire has Ttl::Never, or Expiry::NEVER";
    assert_refused(cache.set("k", &1, Duration::ZERO), ErrorKind::InvalidTtl, zero);
    assert_refused(cache.touch("k", Duration::ZERO), ErrorKind::InvalidTtl, zero);
    assert_refused(
        cache.set("k", &1, Duration::MAX),
        ErrorKind::InvalidTtl,
        "a TTL of 18446744073709551615 s is longer than a hundred years: an entry that does not expire has Ttl::Never, or Expiry::NEVER",
    );
}

#[test]
fn counters() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        counters_on(&Cache::builder(from_url(&server.url("")).unwrap()).build());
    }
    counters_on(&Cache::builder(MemoryStore::new()).build());
}

fn counters_on(cache: &Cache) {
    let cache = cache.blocking();
    cache.set_raw("words", "twelve", TTL).unwrap();
    let text = "the entry \"words\" is not a decimal number of 64 bits";
    assert_refused(cache.increment("words", 1, TTL), ErrorKind::NotANumber, text);
    assert_refused(cache.counter("words"), ErrorKind::NotANumber, text);
    cache.set_raw("full", i64::MAX.to_string(), TTL).unwrap();
    let text = "adding 1 to the counter \"full\" does not fit into 64 bits";
    assert_refused(cache.increment("full", 1, TTL), ErrorKind::NotANumber, text);
    assert_refused(
        cache.decrement("full", i64::MIN, TTL),
        ErrorKind::NotANumber,
        "adding -9223372036854775808 to the counter \"full\" does not fit into 64 bits",
    );
}

/// The error names the key and the size, and the connection stays open.
#[test]
fn values_above_max_value() {
    let memory = Cache::builder(MemoryStore::builder().max_bytes(100).build()).build();
    assert_refused(
        memory.blocking().set_raw("k", vec![0; 200], TTL),
        ErrorKind::ValueTooLarge,
        "the value of \"k\" has 200 bytes (585 with its key and upkeep), and the memory store holds 100 in all",
    );
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let cache = Cache::builder(from_url(&server.url("max_value=1000")).unwrap()).build();
        let cache = cache.blocking();
        let receiver =
            if kind == Kind::Redis { format!("127.0.0.1:{}", server.port()) } else { "memcached".to_owned() };
        let text = format!("the value of \"k\" has 1001 bytes, and {receiver} takes at most 1000");
        assert_refused(cache.set_raw("k", vec![0; 1001], TTL), ErrorKind::ValueTooLarge, &text);
        cache.set_raw("k", vec![0; 1000], TTL).unwrap();
        assert_eq!(cache.get_raw("k").unwrap().map(|value| value.len()), Some(1000));
    }
}

/// `max_value` may be configured higher than the server's own limit.
#[test]
fn values_above_the_servers_own_limit() {
    let server = Server::start(Kind::Memcached);
    let port = server.port();
    let cache = Cache::builder(from_url(&server.url("max_value=3000000&pool_size=1")).unwrap()).build();
    let cache = cache.blocking();
    cache.set_raw("k", "small", TTL).unwrap();
    let connections = || server.ask("stats").lines().find(|line| line.contains("total_connections")).map(str::to_owned);
    let before = connections();
    let error = cache.set_raw("k", vec![0; 2_000_000], TTL).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ValueTooLarge, "{error}");
    assert_eq!(error.to_string(), format!("the value of 2000000 bytes for \"k\" is too large for 127.0.0.1:{port}"));
    cache.set_raw("k", "small", TTL).unwrap();
    let count = |line: Option<String>| line.and_then(|line| line.trim().rsplit(' ').next()?.parse::<u32>().ok());
    assert_eq!(
        count(connections()),
        count(before).map(|before| before + 1),
        "only the connection that reads the statistics is new"
    );
}

/// An error of the cache does not fail a fetch.
#[test]
fn a_fetch_returns_the_loaded_value_if_the_cache_refuses_it() {
    let reported = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = std::sync::Arc::clone(&reported);
    let cache = Cache::builder(MemoryStore::new()).on_error(move |error| log.lock().unwrap().push(error.to_string()));
    let cache = cache.build();
    let cache = cache.blocking();
    let load = || Ok::<u8, std::convert::Infallible>(7);
    assert_eq!(cache.fetch("", TTL, load), Ok(7));
    assert_eq!(cache.fetch("k", Expiry::after(Duration::ZERO), load), Ok(7));
    let zero = "a TTL of zero: an entry that does not expire has Ttl::Never, or Expiry::NEVER";
    assert_eq!(*reported.lock().unwrap(), ["the key is empty", zero]);
    assert!(!cache.exists("k").unwrap());
    assert_eq!(cache.stats().errors, 2);
}

/// An operation that is refused before it reaches the store counts as failed.
#[test]
fn every_refused_operation_is_counted() {
    let cache = Cache::builder(MemoryStore::new()).codec(Codec::Json).build();
    let cache = cache.blocking();
    // JSON has no keys of this type.
    let unencodable = || std::collections::HashMap::from([((1, 2), 3)]);
    cache.get_raw("").unwrap_err();
    cache.set("k", &unencodable(), TTL).unwrap_err();
    cache.update("k", TTL, |_: Option<std::collections::HashMap<(u8, u8), u8>>| Some(unencodable())).unwrap_err();
    cache.decrement("k", i64::MIN, TTL).unwrap_err();
    cache.set_raw("k", "words", TTL).unwrap();
    cache.counter("k").unwrap_err();
    assert_eq!(cache.stats().errors, 5);
    let loaded = cache.fetch("other", TTL, || Ok::<_, std::convert::Infallible>(unencodable()));
    assert_eq!(loaded, Ok(unencodable()));
    assert_eq!(cache.stats().errors, 6);
    cache.set_many(&[("", 1)], TTL).pop().unwrap().unwrap_err();
    assert_eq!(cache.stats().errors, 7);
}

#[test]
fn a_server_that_does_not_listen() {
    let port = free_port();
    for scheme in ["redis", "memcached"] {
        let cache =
            Cache::builder(from_url(&format!("{scheme}://127.0.0.1:{port}?failures=1&retry_after=1m")).unwrap());
        let cache = cache.build();
        let text = format!("could not connect to 127.0.0.1:{port}");
        assert_refused(cache.blocking().exists("k"), ErrorKind::Connect, &text);
        let error = cache.blocking().exists("k").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let unavailable = format!("127.0.0.1:{port} has failed, and is not tried again before retry_after is over");
        assert_eq!(error.to_string(), unavailable, "the text is the same each time, so errors can be grouped by it");
        assert_eq!(error.source().map(ToString::to_string), Some(text), "the first failure");
        assert!(error.is_transient());
    }
}

/// The other stores follow Redis in what a counter is.
#[test]
fn memory_and_redis_accept_the_same_counters() {
    let server = Server::start(Kind::Redis);
    let redis = Cache::builder(from_url(&server.url("")).unwrap()).build();
    let memory = Cache::builder(MemoryStore::new()).build();
    for text in ["5", "-5", "0", "5 ", " 5", "+5", "05", "-0", "", "5\n", "5.0", "9223372036854775808"] {
        let [in_redis, in_memory] = [&redis, &memory].map(|cache| {
            cache.blocking().set_raw("k", text, TTL).unwrap();
            cache.blocking().increment("k", 1, TTL).map_err(|error| error.kind())
        });
        assert_eq!(in_memory, in_redis, "{text:?}");
    }
}
