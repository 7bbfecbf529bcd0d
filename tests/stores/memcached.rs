//! What is particular to Memcached: many servers, one that is down, other programs' entries, keys that are commands.

use std::time::Duration;

use prefork_cache::stores::MemcachedStore;
use prefork_cache::{Cache, ErrorKind};

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
fn without_failover_they_are_errors() {
    let (mut servers, url) = three_servers();
    let cache = cache(&format!("{url}?failover=false&failures=1&retry_after=1m"));
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

#[test]
fn a_key_is_no_command() {
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

/// Dalli and others put an empty value where one is about to be stored.
#[test]
fn somebody_elses_lease_is_no_value() {
    let server = Server::start(Kind::Memcached);
    let cache = cache(&server.url(""));
    assert!(server.ask("mg leased N30 v").starts_with("VA 0 W"));
    assert_eq!(cache.blocking().get_raw("leased").unwrap(), None);
    assert!(cache.blocking().get_many_raw(&["leased"])[0].as_ref().unwrap().is_none());
}
