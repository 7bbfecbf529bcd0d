//! What is specific to Memcached: several servers, a server that is down, other programs' entries, keys that are
//! commands.

use std::thread;
use std::time::Duration;

use prefork_cache::stores::MemcachedStore;
use prefork_cache::{Cache, ErrorKind, Result};

use tokio::runtime::Runtime;

use crate::conformance::current_thread;
use support::proxy::{Fault, Proxy};
use support::servers::{Kind, Server};

const TTL: Duration = Duration::from_secs(600);

fn three_servers() -> ([Server; 3], String) {
    let servers = [(); 3].map(|()| Server::start(Kind::Memcached));
    let hosts = servers.each_ref().map(|server| format!("127.0.0.1:{}", server.port())).join(",");
    (servers, format!("memcached://{hosts}"))
}

fn cache(url: &str) -> Cache {
    Cache::builder(MemcachedStore::new(url).unwrap()).build()
}

fn keys() -> Vec<String> {
    (0..300).map(|number| format!("key:{number}")).collect()
}

#[test]
fn keys_are_spread_over_the_servers() {
    let (servers, url) = three_servers();
    let cache = cache(&url);
    for key in keys() {
        cache.blocking().set(&key, &key, TTL).unwrap();
    }
    for server in &servers {
        let stats = server.ask("stats");
        let items = stats.lines().find_map(|line| line.strip_prefix("STAT curr_items ")).expect("a number of items");
        let items: u32 = items.trim().parse().expect("a number");
        assert!((30..=200).contains(&items), "{items} of 300 keys on one of three servers");
    }
}

#[test]
fn the_keys_of_a_server_that_is_down_go_to_the_others() {
    let (mut servers, url) = three_servers();
    let cache = cache(&format!("{url}?failures=1&retry_after=1m"));
    let cache = cache.blocking();
    let keys = keys();
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    servers[1].kill();
    for key in &names {
        // The call that finds the connection broken may fail; none does after it.
        let _ = cache.set(key, key, TTL);
    }
    for key in &names {
        cache.set(key, key, TTL).unwrap();
        assert_eq!(cache.get::<String>(key).unwrap().as_deref(), Some(*key));
    }
    for (key, found) in names.iter().zip(cache.get_many::<String>(&names)) {
        assert_eq!(found.unwrap().as_deref(), Some(*key));
    }
}

#[test]
fn without_failover_the_keys_of_a_server_that_is_down_are_errors() {
    let (mut servers, url) = three_servers();
    let cache = cache(&format!("{url}?failover=false&failures=1&retry_after=1m&timeout=10s"));
    let cache = cache.blocking();
    servers[1].kill();
    let keys = keys();
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    let entries: Vec<(&str, &str)> = names.iter().map(|key| (*key, *key)).collect();
    let stored = cache.set_many(&entries, TTL);
    let failed = stored.iter().filter(|stored| stored.is_err()).count();
    assert!((30..=200).contains(&failed), "{failed} of 300 keys were on the server that is down");
    for ((key, stored), found) in names.iter().zip(&stored).zip(cache.get_many::<String>(&names)) {
        match stored {
            Ok(()) => assert_eq!(found.unwrap().as_deref(), Some(*key)),
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::Connect | ErrorKind::Unavailable), "{error}");
                assert!(found.is_err());
            }
        }
    }
}

/// Two servers, a proxy before each, and a cache with a connection to both in each API.
fn two_proxied_servers(options: &str) -> ([Server; 2], [Proxy; 2], Cache) {
    let servers = [(); 2].map(|()| Server::start(Kind::Memcached));
    let proxies = servers.each_ref().map(|server| Proxy::before(server.port()));
    let [first, second] = proxies.each_ref().map(Proxy::port);
    let cache = cache(&format!("memcached://127.0.0.1:{first},127.0.0.1:{second}?{options}"));
    (servers, proxies, cache)
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Blocking,
    Asynchronous,
}

impl Way {
    const BOTH: [Way; 2] = [Way::Blocking, Way::Asynchronous];

    /// The connections of a runtime belong to it.
    fn get_many(self, cache: &Cache, runtime: &Runtime, keys: &[&str]) -> Vec<Result<Option<String>>> {
        match self {
            Way::Blocking => cache.blocking().get_many(keys),
            Way::Asynchronous => runtime.block_on(cache.get_many(keys)),
        }
    }
}

#[test]
fn the_servers_of_a_batch_work_at_the_same_time() {
    let (_servers, proxies, cache) = two_proxied_servers("timeout=2m");
    let keys = keys();
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    let entries: Vec<(&str, &str)> = names.iter().map(|key| (*key, *key)).collect();
    cache.blocking().set_many(&entries, TTL).into_iter().for_each(Result::unwrap);
    let runtime = current_thread();
    for way in Way::BOTH {
        way.get_many(&cache, &runtime, &names).into_iter().for_each(|found| _ = found.unwrap());
        proxies.iter().for_each(|proxy| proxy.plan(|_, _| Fault::Hold));
        thread::scope(|scope| {
            let batch = scope.spawn(|| way.get_many(&cache, &runtime, &names));
            for proxy in &proxies {
                // Neither reply is released before both servers have been asked.
                proxy.wait_until_held(1);
            }
            proxies.iter().for_each(Proxy::release);
            for (key, found) in names.iter().zip(batch.join().unwrap()) {
                assert_eq!(found.unwrap().as_deref(), Some(*key), "{way:?}");
            }
        });
    }
}

/// A reply that has arrived while the wait for another server took all the time is not late. This reply is larger than
/// the socket buffers on both sides.
#[test]
fn a_server_that_hangs_costs_a_batch_its_own_entries_only() {
    let (_servers, proxies, cache) = two_proxied_servers("timeout=2s&failures=100");
    let keys: Vec<String> = (0..20).map(|number| format!("key:{number}")).collect();
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    let value = "v".repeat(900_000);
    let entries: Vec<(&str, &str)> = names.iter().map(|key| (*key, value.as_str())).collect();
    cache.blocking().set_many(&entries, TTL).into_iter().for_each(Result::unwrap);
    let runtime = current_thread();
    for way in Way::BOTH {
        for hanging in &proxies {
            way.get_many(&cache, &runtime, &names).into_iter().for_each(|found| _ = found.unwrap());
            hanging.plan(|_, _| Fault::Hold);
            let found = way.get_many(&cache, &runtime, &names);
            hanging.release();
            let failed = found.iter().filter(|found| found.is_err()).count();
            assert!((2..=18).contains(&failed), "{way:?}: {failed} of 20 keys are on the server that hangs");
            for found in found {
                match found {
                    Ok(found) => assert_eq!(found.as_deref(), Some(value.as_str()), "{way:?}"),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Timeout, "{way:?}: {error}"),
                }
            }
        }
    }
}

/// Each batch waits for a permit of one server while it has one of the other.
#[test]
fn batches_do_not_deadlock() {
    let (_servers, _proxies, cache) = two_proxied_servers("timeout=20s&pool_size=1");
    let keys = keys();
    let value = "v".repeat(2_000);
    let entries: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), value.as_str())).collect();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    cache.blocking().set_many(&entries, TTL).into_iter().for_each(Result::unwrap);
                }
            });
        }
    });
}

#[test]
fn a_batch_on_dead_connections_is_sent_again() {
    let (mut servers, _proxies, cache) = two_proxied_servers("");
    let keys = keys();
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    let runtime = current_thread();
    for _ in 0..3 {
        for way in Way::BOTH {
            way.get_many(&cache, &runtime, &names).into_iter().for_each(|found| _ = found.unwrap());
        }
        servers.iter_mut().for_each(Server::restart);
    }
}

#[test]
fn a_key_cannot_inject_a_command() {
    let server = Server::start(Kind::Memcached);
    let cache = cache(&server.url(""));
    let cache = cache.blocking();
    cache.set("precious", &1, TTL).unwrap();
    for key in ["x\r\nflush_all\r\n", "x\nflush_all\n", "x flush_all", "\r\nmd precious\r\n", "x\0flush_all"] {
        cache.set(key, &2, TTL).unwrap();
        assert_eq!(cache.get(key).unwrap(), Some(2), "{key:?}");
        assert!(cache.delete(key).unwrap(), "{key:?}");
    }
    assert_eq!(cache.get("precious").unwrap(), Some(1));
    assert!(server.ask("stats").contains("STAT cmd_flush 0\r\n"));
}

#[test]
fn a_server_that_does_not_list_its_keys_cannot_be_cleared() {
    let server = Server::with(Kind::Memcached, &["-o", "no_lru_crawler"]);
    let cache = cache(&server.url(""));
    cache.blocking().set("k", &1, TTL).unwrap();
    let error = cache.blocking().clear().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!(cache.blocking().get("k").unwrap(), Some(1), "nothing was flushed instead");
}

/// Dalli and other clients store an empty value where a value is about to be stored.
#[test]
fn a_lease_of_another_client_is_a_miss() {
    let server = Server::start(Kind::Memcached);
    let cache = cache(&server.url(""));
    assert!(server.ask("mg leased N30 v").starts_with("VA 0 W"));
    assert_eq!(cache.blocking().get_raw("leased").unwrap(), None);
    assert!(cache.blocking().get_many_raw(&["leased"])[0].as_ref().unwrap().is_none());
}
