//! What is specific to Redis: logins, databases, push messages, and a server that restarts.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use prefork_cache::stores::RedisStore;
use prefork_cache::{Cache, ErrorKind};

use crate::conformance::current_thread;
use support::proxy::Proxy;
use support::servers::{Kind, Server};

const TTL: Duration = Duration::from_secs(600);
const ONLY_RESP2: [&str; 3] = ["--rename-command", "HELLO", ""];

fn cache(url: &str) -> Cache {
    Cache::builder(RedisStore::new(url).unwrap()).build()
}

/// Uses the cache through both APIs.
fn assert_logs_in(cache: &Cache) {
    cache.blocking().set("k", "v", TTL).unwrap();
    let read = current_thread().block_on(cache.get::<String>("k")).unwrap();
    assert_eq!(read.as_deref(), Some("v"));
}

fn assert_refused(cache: &Cache, text: &str) {
    let kind = if text == "NOPERM" { ErrorKind::Unsupported } else { ErrorKind::Auth };
    let blocking = cache.blocking().get::<String>("k").unwrap_err();
    let asynchronous = current_thread().block_on(cache.get::<String>("k")).unwrap_err();
    for error in [blocking, asynchronous] {
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.to_string().contains(text), "{error} does not contain {text:?}");
    }
}

#[test]
fn a_password_for_all_users() {
    for extra in [&[][..], &ONLY_RESP2] {
        let server = Server::with(Kind::Redis, &[&["--requirepass", "geheim/?#"], extra].concat());
        let port = server.port();
        assert_logs_in(&cache(&format!("redis://:geheim%2F%3F%23@127.0.0.1:{port}")));
        assert_logs_in(&cache(&format!("redis://default:geheim%2F%3F%23@127.0.0.1:{port}/3")));
        assert_refused(&cache(&format!("redis://:wrong@127.0.0.1:{port}")), "");
        assert_refused(&cache(&format!("redis://127.0.0.1:{port}")), "NOAUTH");
    }
}

#[test]
fn a_user_with_restricted_rights() {
    for extra in [&[][..], &ONLY_RESP2] {
        let user = ["--user", "worker", "on", ">pass", "~shop:*", "+@all", "--user", "default", "off"];
        let server = Server::with(Kind::Redis, &[&user[..], extra].concat());
        let cache = cache(&format!("redis://worker:pass@127.0.0.1:{}", server.port()));
        assert_logs_in(&cache.namespace("shop"));
        assert_refused(&cache, "NOPERM");
    }
}

/// The error reply to an unknown command repeats its arguments.
#[test]
fn a_login_that_a_server_repeats_is_not_shown() {
    let server = Server::with(Kind::Redis, &[&["--rename-command", "AUTH", ""], &ONLY_RESP2[..]].concat());
    for login in ["me:hunter2", ":hunter2"] {
        let cache = cache(&format!("redis://{login}@127.0.0.1:{}", server.port()));
        let blocking = cache.blocking().get::<String>("k").unwrap_err();
        let asynchronous = current_thread().block_on(cache.get::<String>("k")).unwrap_err();
        for error in [blocking, asynchronous] {
            assert_eq!(error.kind(), ErrorKind::Auth, "{error}");
            assert!(!format!("{error:#} {error:?}").contains("hunter2"), "{error:#}");
        }
    }
}

/// For any reason of the refusal, the server is dialled no more often than one that is down.
#[test]
fn a_server_that_refuses_the_login_is_not_dialled_on_every_call() {
    let server = Server::with(Kind::Redis, &["--requirepass", "right"]);
    let runtime = current_thread();
    for way in ["blocking", "asynchronous"] {
        let proxy = Proxy::before(server.port());
        let cache = cache(&format!("redis://:wrong@127.0.0.1:{}?failures=3&retry_after=60m", proxy.port()));
        let failures = [(); 5].map(|()| {
            let failed =
                if way == "blocking" { cache.blocking().exists("k") } else { runtime.block_on(cache.exists("k")) };
            failed.unwrap_err().kind()
        });
        assert_eq!(failures[..3], [ErrorKind::Auth; 3], "{way}");
        assert_eq!(failures[3..], [ErrorKind::Unavailable; 2], "{way}");
        assert_eq!(proxy.connects(), 3, "{way}");
    }
}

/// In reply to a greeting it is a refused login. In reply to a command it is an error of that command, and the
/// connection stays open.
#[test]
fn a_server_that_loads_its_data_is_an_error() {
    const GREETED: &[u8] = b"%1\r\n+proto\r\n:3\r\n";
    const LOADING: &[u8] = b"-LOADING Redis is loading the dataset in memory\r\n";
    let runtime = current_thread();
    for (greeting, expected_connects) in [(LOADING, 2), (GREETED, 1)] {
        for way in ["blocking", "asynchronous"] {
            let (port, connects) = reply_with(greeting, LOADING);
            let cache = cache(&format!("redis://127.0.0.1:{port}?failures=2&retry_after=60m"));
            for call in 0..5 {
                let failed =
                    if way == "blocking" { cache.blocking().exists("k") } else { runtime.block_on(cache.exists("k")) };
                let error = failed.unwrap_err();
                let is_breaker_open = greeting == LOADING && call >= 2;
                let kind = if is_breaker_open { ErrorKind::Unavailable } else { ErrorKind::Server };
                assert_eq!(error.kind(), kind, "{way}, call {call}: {error}");
                if kind == ErrorKind::Server {
                    let text = format!("127.0.0.1:{port} answered LOADING Redis is loading the dataset in memory");
                    assert_eq!(format!("{error:#}"), text, "{way}");
                }
            }
            assert_eq!(connects.load(Ordering::SeqCst), expected_connects, "{way}");
        }
    }
}

/// Starts a server with one reply to a greeting and another to everything else. Returns its port and the number of
/// connections.
fn reply_with(greeting: &'static [u8], others: &'static [u8]) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let connects = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connects);
    thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut stream = stream.unwrap();
            let mut request = [0; 1024];
            while let Ok(1..) = stream.read(&mut request) {
                let has = |word: &[u8]| request.windows(word.len()).any(|window| window == word);
                let reply = if has(b"HELLO") { greeting } else { others };
                // A server that is loading replies to ECHO, which comes alone or last.
                let echo = request.rsplit(|byte| *byte == b'$').next().unwrap_or_default();
                let echo = [b"$", echo.split(|byte| *byte == 0).next().unwrap_or_default()].concat();
                let reply = match (has(b"ECHO"), request.starts_with(b"*2\r\n$4\r\nECHO")) {
                    (true, true) => echo,
                    (true, false) => [reply, &echo].concat(),
                    (false, _) => reply.to_vec(),
                };
                if stream.write_all(&reply).is_err() {
                    break;
                }
                request.fill(0);
            }
        }
    });
    (port, connects)
}

#[test]
fn databases_are_separate() {
    let server = Server::start(Kind::Redis);
    let in_database = |number: u8| cache(&format!("redis://127.0.0.1:{}/{number}", server.port()));
    let [zero, seven] = [0, 7].map(in_database);
    for cache in [&zero, &seven] {
        cache.blocking().set("k", &format!("{cache:?}"), TTL).unwrap();
    }
    zero.blocking().clear().unwrap();
    assert!(!zero.blocking().exists("k").unwrap());
    assert!(seven.blocking().exists("k").unwrap());
    assert!(current_thread().block_on(seven.exists("k")).unwrap());
    let error = in_database(99).blocking().exists("k").unwrap_err();
    assert!(error.to_string().ends_with("answered ERR DB index is out of range"), "{error}");
}

#[test]
fn a_restarted_server_is_used_again() {
    let mut server = Server::start(Kind::Redis);
    let cache = cache(&server.url("retry_after=1ms"));
    let runtime = current_thread();
    let both = |value: u32| {
        cache.blocking().set("blocking", &value, TTL).unwrap();
        assert_eq!(cache.blocking().get("blocking").unwrap(), Some(value));
        runtime.block_on(async {
            cache.set("asynchronous", &value, TTL).await.unwrap();
            assert_eq!(cache.get("asynchronous").await.unwrap(), Some(value));
        });
    };
    for value in 0..3 {
        both(value);
        server.restart();
    }
    both(3);
}

/// Large batches are sent in parts, each with the whole timeout. Nothing is sent after a part that fails.
#[test]
fn large_batches_are_sent_in_parts() {
    let server = Server::start(Kind::Redis);
    let cache = cache(&server.url(""));
    let runtime = current_thread();
    let keys: Vec<String> = (0..2_500).map(|number| format!("key:{number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let values: Vec<(&str, String)> = keys.iter().map(|key| (*key, key.repeat(100))).collect();
    for way in ["blocking", "asynchronous"] {
        let here = way == "blocking";
        let set =
            if here { cache.blocking().set_many(&values, TTL) } else { runtime.block_on(cache.set_many(&values, TTL)) };
        assert!(set.len() == keys.len() && set.iter().all(Result::is_ok), "{way}: {set:?}");
        let found = if here { cache.blocking().get_many(&keys) } else { runtime.block_on(cache.get_many(&keys)) };
        let found: Vec<Option<String>> = found.into_iter().collect::<Result<_, _>>().unwrap();
        assert!(found.into_iter().eq(values.iter().map(|(_, value)| Some(value.clone()))), "{way}");
        let deleted =
            if here { cache.blocking().delete_many(&keys) } else { runtime.block_on(cache.delete_many(&keys)) };
        assert!(deleted.len() == keys.len() && deleted.iter().all(|deleted| *deleted.as_ref().unwrap()), "{way}");
    }
    let commands = server.ask("INFO commandstats");
    assert!(commands.contains("cmdstat_mget:calls=6,"), "{commands}");
    drop(server);
    let found = cache.blocking().get_many::<String>(&keys);
    assert!(found.len() == keys.len() && found.iter().all(Result::is_err));
    assert_eq!(cache.blocking().stats().errors, 2_500);
}

/// A refused command discards the transaction that an increment uses.
#[test]
fn a_refused_increment_reports_the_reason() {
    let server = Server::start(Kind::Redis);
    let cache = cache(&server.url(""));
    for (setting, kind, text) in [
        ("CONFIG SET maxmemory 1", ErrorKind::Server, "OOM"),
        ("CONFIG SET maxmemory 0", ErrorKind::NotANumber, ""),
        ("ACL SETUSER default -incrby", ErrorKind::Unsupported, "NOPERM"),
    ] {
        server.ask(setting);
        server.ask("SET n word");
        let blocking = cache.blocking().increment("n", 1, TTL).unwrap_err();
        let asynchronous = current_thread().block_on(cache.increment("n", 1, TTL)).unwrap_err();
        for error in [blocking, asynchronous] {
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(text), "{error} does not contain {text:?}");
        }
    }
}

/// The server replies with an error and disconnects in the middle of the request. That is not an outage.
#[test]
fn a_request_that_is_cut_off_reports_the_servers_error() {
    let server = Server::with(Kind::Redis, &["--proto-max-bulk-len", "1mb"]);
    let cache = cache(&server.url(""));
    let runtime = current_thread();
    for _ in 0..5 {
        let blocking = cache.blocking().set_raw("large", vec![0; 8 << 20], TTL).unwrap_err();
        let asynchronous = runtime.block_on(cache.set_raw("large", vec![0; 8 << 20], TTL)).unwrap_err();
        for error in [blocking, asynchronous] {
            assert_eq!(error.kind(), ErrorKind::ValueTooLarge, "{error}");
            assert!(error.to_string().contains("invalid bulk length"), "{error}");
        }
    }
    cache.blocking().set("small", "v", TTL).unwrap();
}

/// A command that may not be sent twice is not sent on a connection that is known to be closed, even if the runtime
/// slept meanwhile.
#[test]
fn a_connection_closed_by_the_server_fails_no_call() {
    let server = Server::start(Kind::Redis);
    let cache = cache(&server.url(""));
    let runtime = current_thread();
    for sum in 1..=5 {
        for key in ["blocking", "asynchronous"] {
            server.ask("CLIENT KILL TYPE normal SKIPME yes");
            let counted = match key {
                "blocking" => cache.blocking().increment(key, 1, TTL),
                _ => runtime.block_on(cache.increment(key, 1, TTL)),
            };
            assert_eq!(counted.unwrap(), sum, "{key}");
        }
    }
}

#[test]
fn a_truncated_reply_is_a_connection_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let cache = cache(&format!("redis://{}", listener.local_addr().unwrap()));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            for reply in [&b"%1\r\n+proto\r\n:3\r\n"[..], b"$100\r\nabc"] {
                let _ = stream.read(&mut [0; 1024]).unwrap();
                stream.write_all(reply).unwrap();
            }
        }
    });
    let blocking = cache.blocking().get_raw("k").unwrap_err();
    let asynchronous = current_thread().block_on(cache.get_raw("k")).unwrap_err();
    assert_eq!([blocking.kind(), asynchronous.kind()], [ErrorKind::Io; 2], "{blocking:#}, {asynchronous:#}");
}

/// A RESP3 server sends push messages: here, that a key has changed that the client read.
#[test]
fn a_push_message_is_not_a_reply() {
    let server = Server::start(Kind::Redis);
    let cache = cache(&server.url("pool_size=1"));
    cache.blocking().set_raw("watched", "1", TTL).unwrap();
    let port = server.port();
    let id = server.ask("CLIENT LIST");
    assert!(id.contains("resp=3"), "{id} of {port}");
    let mut other = ::redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap().get_connection().unwrap();
    let number: i64 = id.lines().find(|line| line.contains("resp=3")).and_then(client_id).expect("a client's number");
    let mut tracking = ::redis::cmd("CLIENT");
    tracking.arg("TRACKING").arg("ON").arg("REDIRECT").arg(number).arg("BCAST").exec(&mut other).unwrap();
    for value in 0..100 {
        ::redis::cmd("SET").arg("watched").arg(value).exec(&mut other).unwrap();
        let read = cache.blocking().get_raw("watched").unwrap();
        assert_eq!(read.as_deref(), Some(value.to_string().as_bytes()));
    }
}

fn client_id(line: &str) -> Option<i64> {
    line.split(' ').find_map(|field| field.strip_prefix("id="))?.parse().ok()
}
