//! Error replies mean the same in the blocking and the asynchronous API.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use prefork_cache::{Cache, Error, ErrorKind};

use super::{cache_at, serve};
use crate::conformance::current_thread;
use support::proxy::Proxy;
use support::servers::{Kind, Server};
use support::wait::until;

const TTL: Duration = Duration::from_secs(600);

/// The errors of two writes in a row through each API.
fn refused_writes(cache: &Cache) -> [Error; 4] {
    let runtime = current_thread();
    [
        cache.blocking().set_raw("k", "v", TTL).unwrap_err(),
        cache.blocking().set_raw("k", "v", TTL).unwrap_err(),
        runtime.block_on(cache.set_raw("k", "v", TTL)).unwrap_err(),
        runtime.block_on(cache.set_raw("k", "v", TTL)).unwrap_err(),
    ]
}

#[test]
fn error_replies_of_redis() {
    use ErrorKind::{Auth, Protocol, Server, Unsupported, ValueTooLarge};
    for (message, kind, is_transient) in [
        ("READONLY You can't write against a read only replica.", Server, true),
        ("MASTERDOWN Link with MASTER is down", Server, true),
        ("LOADING Redis is loading the dataset in memory", Server, true),
        ("BUSY Redis is busy running a script.", Server, true),
        ("OOM command not allowed when used memory > 'maxmemory'.", Server, true),
        ("MISCONF Redis is configured to save RDB snapshots", Server, true),
        ("NOREPLICAS Not enough good replicas to write.", Server, true),
        ("TRYAGAIN Multiple keys request during rehashing of slot", Server, true),
        ("CLUSTERDOWN Hash slot not served", Server, true),
        ("MOVED 3999 127.0.0.1:6381", Unsupported, false),
        ("NOPERM this user has no permissions to run the 'set' command", Unsupported, false),
        ("NOAUTH Authentication required.", Auth, false),
        ("ERR unknown command 'SET', with args beginning with: 'k' 'AUTH'", Unsupported, false),
        ("ERR Protocol error: invalid bulk length", ValueTooLarge, false),
        ("ERR Protocol error: expected '$', got 'x'", Protocol, true),
        ("ERR string exceeds maximum allowed size (proto-max-bulk-len)", ValueTooLarge, false),
        ("ERR server is closing", Server, true),
        ("no upstream host", Server, true),
        ("upstream failure", Server, true),
        ("unsupported command 'SET'", Unsupported, false),
        ("ERR something else", Server, false),
        ("WRONGTYPE Operation against a key", Server, false),
    ] {
        let cache = cache_at(Kind::Redis, refuse_sets_with(message), "timeout=20s&failures=1&retry_after=60m");
        for error in refused_writes(&cache) {
            assert_eq!((error.kind(), error.is_transient()), (kind, is_transient), "{message}: {error:?}");
            assert!(error.to_string().contains(message), "{error} does not say {message}");
        }
    }
}

#[test]
fn error_replies_of_redis_to_a_login() {
    use ErrorKind::{Auth, Unsupported};
    for (message, kind, is_transient) in [
        ("ERR DB index is out of range", Unsupported, false),
        ("ERR invalid DB index", Unsupported, false),
        ("DENIED Redis is running in protected mode", Auth, false),
        ("ERR max number of clients reached", ErrorKind::Server, true),
        ("LOADING Redis is loading the dataset in memory", ErrorKind::Server, true),
    ] {
        let line = format!("-{message}\r\n");
        let (port, _) = serve(move |stream| {
            serve_commands(stream, |command| {
                let is_login = matches!(command, "HELLO" | "SELECT");
                let ok = if command == "HELLO" { "%0\r\n" } else { "+OK\r\n" };
                if is_login && (message.contains("DB index") == (command == "SELECT")) {
                    line.clone()
                } else {
                    ok.to_owned()
                }
            })
        });
        let cache = cache_at(Kind::Redis, port, "timeout=20s&failures=1000&retry_after=1ms");
        let url = format!("redis://127.0.0.1:{port}/7?timeout=20s&failures=1000&retry_after=1ms");
        let selecting = Cache::builder(prefork_cache::stores::from_url(&url).unwrap()).build();
        for error in refused_writes(if message.contains("DB index") { &selecting } else { &cache }) {
            assert_eq!((error.kind(), error.is_transient()), (kind, is_transient), "{message}: {error:?}");
        }
    }
    // An empty password is a password too; the error text is not redacted.
    let server = Server::with(Kind::Redis, &["--requirepass", "secret"]);
    let url = format!("redis://:@127.0.0.1:{}", server.port());
    let cache = Cache::builder(prefork_cache::stores::from_url(&url).unwrap()).build();
    let error = cache.blocking().get_raw("k").unwrap_err();
    assert!(error.to_string().contains("WRONGPASS invalid username-password pair"), "{error}");
}

#[test]
fn error_replies_of_memcached() {
    use ErrorKind::{Auth, Server, ValueTooLarge};
    for (message, kind, is_transient) in [
        ("SERVER_ERROR out of memory storing object", Server, true),
        ("SERVER_ERROR object too large for cache", ValueTooLarge, false),
        ("SERVER_ERROR backend failure", Server, true),
        ("CLIENT_ERROR unauthenticated", Auth, false),
        ("CLIENT_ERROR something else", Server, false),
    ] {
        let (port, _) = serve(move |stream| {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut stream, mut line) = (stream, String::new());
            while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
                let opaque = line.split_ascii_whitespace().find(|word| word.starts_with('O')).unwrap_or_default();
                let reply = match line.get(..3) {
                    Some("ms ") => {
                        reader.read_line(&mut String::new()).unwrap();
                        format!("{message}\r\n")
                    }
                    _ => format!("EN {opaque}\r\n").replace("EN O", "HD O"),
                };
                if stream.write_all(reply.as_bytes()).is_err() {
                    return;
                }
                line.clear();
            }
        });
        let cache = cache_at(Kind::Memcached, port, "timeout=20s&failures=1000&retry_after=1ms");
        for error in refused_writes(&cache) {
            assert_eq!((error.kind(), error.is_transient()), (kind, is_transient), "{message}: {error:?}");
        }
    }
}

/// A busy server also refuses the marker, which closes no connection.
#[test]
fn a_busy_server_is_not_dialled_for_each_call() {
    let server = Server::with(Kind::Redis, &["--busy-reply-threshold", "1"]);
    let proxy = Proxy::before(server.port());
    let cache = cache_at(Kind::Redis, proxy.port(), "timeout=20s&connect_timeout=20s&retry_after=60m");
    let runtime = current_thread();
    cache.blocking().set_raw("k", "v", TTL).unwrap();
    runtime.block_on(cache.get_raw("k")).unwrap();
    let mut script = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    script.write_all(b"EVAL \"while true do end\" 0\r\n").unwrap();
    until("the server is busy", || server.ask("PING").contains("BUSY"));
    for _ in 0..20 {
        let outcomes = [cache.blocking().get_raw("k"), runtime.block_on(cache.get_raw("k"))];
        for error in outcomes.map(Result::unwrap_err) {
            assert!(error.is_transient() && error.to_string().contains("BUSY"), "{error}");
        }
    }
    server.ask("SCRIPT KILL");
    until("the script has ended", || !server.ask("PING").contains("BUSY"));
    assert_eq!(cache.blocking().get_raw("k").unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(runtime.block_on(cache.get_raw("k")).unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(proxy.connects(), 2);
}

/// Memcached's proxy replies like this to every command while its server is down.
#[test]
fn a_proxy_without_its_server_is_not_dialled_for_each_call() {
    const MESSAGE: &str = "SERVER_ERROR backend failure";
    let (port, dials) = serve(|mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut line, mut has_greeted) = (String::new(), false);
        while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
            let opaque = line.split_ascii_whitespace().find(|word| word.starts_with('O')).unwrap_or_default();
            let reply = if has_greeted { format!("{MESSAGE}\r\n") } else { format!("EN {opaque}\r\n") };
            has_greeted = true;
            if stream.write_all(reply.replace("EN O", "HD O").as_bytes()).is_err() {
                return;
            }
            line.clear();
        }
    });
    let cache = cache_at(Kind::Memcached, port, "timeout=20s&failures=1&retry_after=60m");
    let runtime = current_thread();
    for _ in 0..20 {
        let outcomes = [cache.blocking().get_raw("k"), runtime.block_on(cache.get_raw("k"))];
        for error in outcomes.map(Result::unwrap_err) {
            assert!(error.is_transient() && error.to_string().contains(MESSAGE), "{error}");
        }
    }
    assert_eq!(dials(), 2);
}

/// A demoted primary whose name meanwhile points to another server: one error for each API.
#[test]
fn a_demoted_primary_is_replaced_by_the_new_one() {
    let [old, new] = [(); 2].map(|()| Server::start(Kind::Redis));
    let proxy = Proxy::before(old.port());
    let cache = cache_at(Kind::Redis, proxy.port(), "timeout=20s&connect_timeout=20s&retry_after=1ms");
    let runtime = current_thread();
    cache.blocking().set_raw("k", "v", TTL).unwrap();
    runtime.block_on(cache.set_raw("k", "v", TTL)).unwrap();
    old.ask(&format!("REPLICAOF 127.0.0.1 {}", new.port()));
    proxy.lead_to(new.port());
    let error = cache.blocking().set_raw("k", "new", TTL).unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("READONLY"), "{error}");
    for _ in 0..12 {
        cache.blocking().set_raw("k", "new", TTL).unwrap();
        runtime.block_on(cache.set_raw("k", "new", TTL)).unwrap();
    }
    assert!(new.ask("GET k").contains("new"));
}

/// A server that stays a replica still serves reads on the existing connections.
#[test]
fn a_replica_is_not_dialled_for_each_write() {
    let primary = Server::start(Kind::Redis);
    let replica = Server::with(Kind::Redis, &["--replicaof", "127.0.0.1", &primary.port().to_string()]);
    until("the replica has caught up", || replica.ask("INFO replication").contains("master_link_status:up"));
    let proxy = Proxy::before(replica.port());
    let cache = cache_at(Kind::Redis, proxy.port(), "timeout=20s&connect_timeout=20s&retry_after=60m");
    let runtime = current_thread();
    for _ in 0..50 {
        cache.blocking().set_raw("k", "v", TTL).unwrap_err();
        runtime.block_on(cache.set_raw("k", "v", TTL)).unwrap_err();
        assert_eq!(cache.blocking().get_raw("k").unwrap(), None);
    }
    assert_eq!(proxy.connects(), 2);
}

/// Starts a server that greets and replies to each SET with this error.
fn refuse_sets_with(message: &'static str) -> u16 {
    let (port, _) = serve(move |stream| {
        serve_commands(stream, |command| match command {
            "HELLO" => "%0\r\n".to_owned(),
            "SET" => format!("-{message}\r\n"),
            _ => "+OK\r\n".to_owned(),
        });
    });
    port
}

/// Replies to each command by its name, and to ECHO with its argument.
fn serve_commands(mut stream: TcpStream, reply: impl Fn(&str) -> String) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    let mut next = || -> Option<String> {
        line.clear();
        let length = reader.read_line(&mut line).ok()?;
        (length > 0).then(|| line.trim_end().to_owned())
    };
    while let Some(header) = next() {
        let count: usize = header[1..].parse().unwrap();
        let words: Option<Vec<String>> = (0..count).map(|_| next().and_then(|_| next())).collect();
        let Some(words) = words else { return };
        let reply = match words[0].as_str() {
            "ECHO" => format!("${}\r\n{}\r\n", words[1].len(), words[1]),
            command => reply(command),
        };
        if stream.write_all(reply.as_bytes()).is_err() {
            return;
        }
    }
}
