//! A Redis account that may only log in, read and write.

use std::thread;
use std::time::Duration;

use prefork_cache::{Cache, ErrorKind, stores};

use crate::conformance::current_thread;
use support::proxy::Proxy;
use support::servers::{Kind, Server};

const TTL: Duration = Duration::from_secs(3600);
/// The time between an exchange and a surplus reply.
const IDLE: Duration = Duration::from_millis(20);

fn server() -> Server {
    let server = Server::start(Kind::Redis);
    let reply = server.ask("ACL SETUSER worker on >pass ~* -@all +get +set +hello");
    assert!(reply.starts_with("+OK"), "{reply}");
    server
}

fn cache(port: u16) -> Cache {
    let url = format!("redis://worker:pass@127.0.0.1:{port}?timeout=20s&connect_timeout=20s");
    Cache::builder(stores::from_url(&url).unwrap()).build()
}

#[test]
fn a_restricted_account_can_get_and_set() {
    let server = server();
    let cache = cache(server.port());
    let runtime = current_thread();
    for round in 0..20 {
        let key = format!("key:{round}");
        cache.blocking().set_raw(&key, "blocking", TTL).unwrap();
        assert_eq!(cache.blocking().get_raw(&key).unwrap().as_deref(), Some(&b"blocking"[..]));
        runtime.block_on(async {
            cache.set_raw(&key, "tokio", TTL).await.unwrap();
            assert_eq!(cache.get_raw(&key).await.unwrap().as_deref(), Some(&b"tokio"[..]));
            let (one, none) = tokio::join!(cache.get_raw(&key), cache.get_raw("absent"));
            assert_eq!((one.unwrap().as_deref(), none.unwrap()), (Some(&b"tokio"[..]), None));
        });
    }
    let connections = server.ask("CLIENT LIST");
    let worker_connections = connections.lines().filter(|line| line.contains("user=worker")).count();
    assert_eq!(worker_connections, 2, "one connection for each API, despite refused commands: {connections}");
}

#[test]
fn a_surplus_reply_while_idle_is_noticed() {
    let server = server();
    let proxy = Proxy::with_frames(&server);
    let cache = cache(proxy.port());
    let keys: Vec<String> = (0..4).map(|number| format!("key:{number}")).collect();
    for key in &keys {
        cache.blocking().set_raw(key, key.clone(), TTL).unwrap();
    }
    let mut wrong = Vec::new();
    for round in 0..4 {
        let runtime = current_thread();
        for way in ["blocking", "tokio"] {
            let mut read = |when: &str| {
                for key in &keys {
                    let found = if way == "blocking" {
                        cache.blocking().get_raw(key)
                    } else {
                        runtime.block_on(cache.get_raw(key))
                    };
                    if !matches!(&found, Ok(Some(found)) if found == key) {
                        wrong.push(format!("{way}, round {round}, {when}: asked for {key}, got {found:?}"));
                    }
                }
            };
            read("before");
            thread::sleep(IDLE);
            proxy.send_surplus([&b"$3\r\nbad\r\n"[..], b"+OK\r\n"][round % 2]);
            read("after");
        }
    }
    assert!(wrong.is_empty(), "{} of 64 reads: {wrong:#?}", wrong.len());
}

#[test]
fn a_refused_transaction_fails_no_other_request() {
    let server = Server::start(Kind::Redis);
    let reply = server.ask("ACL SETUSER worker on >pass ~* +@all -multi");
    assert!(reply.starts_with("+OK"), "{reply}");
    let cache = cache(server.port());
    let runtime = current_thread();
    for _ in 0..4 {
        let refused = cache.blocking().increment("counter", 1, TTL).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused:?}");
        runtime.block_on(async {
            let (before, refused, after) =
                tokio::join!(cache.get_raw("a"), cache.increment("counter", 1, TTL), cache.get_raw("b"));
            assert_eq!((before.unwrap(), after.unwrap()), (None, None));
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
        });
    }
}
