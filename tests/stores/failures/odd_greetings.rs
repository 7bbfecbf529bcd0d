//! Servers and proxies that know only a part of Redis's commands: they refuse the others in various ways, or
//! disconnect.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::{WAYS, cache_at, serve};
use support::servers::{Kind, Server};

const TTL: Duration = Duration::from_secs(600);
const UNKNOWN: [&str; 4] = [
    "-ERR unknown command 'HELLO'\r\n",
    "-unsupported command 'HELLO'\r\n",
    "-ERR what is that?\r\n",
    "-NOPERM this user has no permissions to run the 'hello' command\r\n",
];

/// Starts a proxy that forwards known commands to a real server, and refuses unknown ones with `refusal` or
/// disconnects.
fn before(server: u16, unknown: &'static [&'static str], refusal: Option<&'static str>) -> (u16, impl Fn() -> usize) {
    serve(move |mut client| {
        let mut server = TcpStream::connect(("127.0.0.1", server)).unwrap();
        let mut reader = BufReader::new(client.try_clone().unwrap());
        let mut replies = BufReader::new(server.try_clone().unwrap());
        while let Some((name, command)) = command(&mut reader) {
            if unknown.contains(&name.as_str()) {
                match refusal {
                    Some(refusal) => client.write_all(refusal.as_bytes()).unwrap(),
                    None => return,
                }
                continue;
            }
            server.write_all(&command).unwrap();
            let Some(reply) = reply(&mut replies) else { return };
            if client.write_all(&reply).is_err() {
                return;
            }
        }
    })
}

fn command(reader: &mut impl BufRead) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut name = String::new();
    let words: usize = line(reader, &mut bytes)?[1..].trim().parse().ok()?;
    for number in 0..words {
        let length: usize = line(reader, &mut bytes)?[1..].trim().parse().ok()?;
        let mut word = vec![0; length + 2];
        reader.read_exact(&mut word).ok()?;
        if number == 0 {
            name = String::from_utf8_lossy(&word[..length]).into_owned();
        }
        bytes.extend(word);
    }
    Some((name, bytes))
}

/// A reply of RESP2 that is one line or one string.
fn reply(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let header = line(reader, &mut bytes)?;
    if let Some(Ok(length)) = header.strip_prefix('$').map(|length| length.trim().parse::<usize>()) {
        let mut value = vec![0; length + 2];
        reader.read_exact(&mut value).ok()?;
        bytes.extend(value);
    }
    Some(bytes)
}

fn line(reader: &mut impl BufRead, bytes: &mut Vec<u8>) -> Option<String> {
    let mut line = String::new();
    let length = reader.read_line(&mut line).ok()?;
    bytes.extend_from_slice(line.as_bytes());
    (length > 0).then_some(line)
}

/// The right password logs in without HELLO. A wrong one is refused, and the error says so.
#[test]
fn a_refused_hello_is_left_out() {
    let server = Server::with(Kind::Redis, &["--requirepass", "secret"]);
    for refusal in UNKNOWN {
        let (port, dials) = before(server.port(), &["HELLO"], Some(refusal));
        for way in WAYS {
            let cache = |password: &str| {
                let url = format!("redis://:{password}@127.0.0.1:{port}/1?timeout=20s&failures=1000&retry_after=1ms");
                prefork_cache::Cache::builder(prefork_cache::stores::from_url(&url).unwrap()).build()
            };
            let before = dials();
            let outcomes = way.at_once(&cache("secret"), |cache| async move {
                cache.set_raw("k", "v", TTL).await?;
                cache.get_raw("k").await
            });
            for outcome in outcomes {
                assert_eq!(outcome.unwrap().as_deref(), Some(&b"v"[..]), "{refusal}");
            }
            assert!(dials() > before);
            for error in way.at_once(&cache("wrong"), |cache| async move { cache.get_raw("k").await.unwrap_err() }) {
                assert_eq!(error.kind(), prefork_cache::ErrorKind::Auth, "{refusal}: {error}");
                assert!(!format!("{error:#} {error:?}").contains("secret"));
            }
        }
    }
}

/// The refusal has no error code, like Envoy's.
#[test]
fn a_refused_echo_is_left_out() {
    let server = Server::start(Kind::Redis);
    for unknown in [&["HELLO", "ECHO"][..], &["HELLO", "ECHO", "PING"]] {
        for way in WAYS {
            let (port, _) = before(server.port(), unknown, Some("-unsupported command 'ECHO'\r\n"));
            let cache = cache_at(Kind::Redis, port, "timeout=20s&connect_timeout=20s");
            let outcomes = way.at_once(&cache, |cache| async move {
                cache.set_raw("k", "v", TTL).await?;
                cache.get_raw("k").await
            });
            for outcome in outcomes {
                assert_eq!(outcome.unwrap().as_deref(), Some(&b"v"[..]), "{unknown:?} {way:?}");
            }
        }
    }
}

/// twemproxy disconnects on a command that it does not know.
#[test]
fn a_proxy_that_disconnects_gets_another_greeting() {
    const PROXIES: [(&str, &[&str]); 4] =
        [("3", &["HELLO"]), ("3", &["HELLO", "ECHO"]), ("3", &["HELLO", "ECHO", "PING"]), ("2", &["ECHO"])];
    let server = Server::start(Kind::Redis);
    for (protocol, unknown) in PROXIES {
        for way in WAYS {
            let (port, dials) = before(server.port(), unknown, None);
            let cache = cache_at(Kind::Redis, port, &format!("protocol={protocol}&timeout=20s&connect_timeout=20s"));
            for _ in 0..2 {
                let outcomes = way.at_once(&cache, |cache| async move {
                    cache.set_raw("k", "v", TTL).await?;
                    cache.get_raw("k").await
                });
                for outcome in outcomes {
                    assert_eq!(outcome.unwrap().as_deref(), Some(&b"v"[..]), "{unknown:?} {way:?}");
                }
            }
            let before = dials();
            cache.blocking().reset();
            cache.blocking().get_raw("k").unwrap();
            assert_eq!(dials(), before + 1, "{unknown:?} {way:?}: the known commands are remembered");
        }
    }
}

#[test]
fn resp2_can_be_configured() {
    let server = Server::start(Kind::Redis);
    let (port, dials) = before(server.port(), &["HELLO"], None);
    let cache = cache_at(Kind::Redis, port, "protocol=2");
    cache.blocking().set_raw("k", "v", TTL).unwrap();
    assert_eq!(dials(), 1);
}

/// The name has the process id, so that a worker can be found by it.
#[test]
fn a_connection_has_the_configured_name() {
    let server = Server::start(Kind::Redis);
    for protocol in ["2", "3"] {
        let cache = cache_at(Kind::Redis, server.port(), &format!("client_name=widgets&protocol={protocol}"));
        cache.blocking().set_raw("k", "v", TTL).unwrap();
        let clients = server.ask("CLIENT LIST");
        let name = format!("name=widgets-{} ", std::process::id());
        assert!(clients.lines().any(|client| client.contains(&name) && client.contains(&format!("resp={protocol}"))));
    }
}
