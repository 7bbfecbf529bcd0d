//! Two namespaces share keys only if one contains the other, whatever their names are.

use std::sync::Arc;
use std::time::Duration;

use prefork_cache::stores::{MemoryStore, from_url};
use prefork_cache::{Cache, ErrorKind};

use crate::cache::everywhere;
use support::servers::{Kind, Server};

const TTL: Duration = Duration::from_secs(600);

#[test]
fn tenants_share_no_keys_whatever_their_names_are() {
    everywhere(|cache| {
        let tenants = [
            cache.namespace("acme").namespace("profile"),
            cache.namespace("acme:profile"),
            cache.namespace("acme%3Aprofile"),
            cache.namespace("acme%253Aprofile"),
            cache.namespace("acme:").namespace("profile"),
            cache.namespace("acme").namespace(":profile"),
            cache.namespace("acme%").namespace("profile"),
        ];
        for (number, tenant) in tenants.iter().enumerate() {
            tenant.blocking().set("k", &number, TTL).unwrap();
        }
        for (number, tenant) in tenants.iter().enumerate() {
            assert_eq!(tenant.blocking().get("k").unwrap(), Some(number), "{tenant:?}");
        }
        cache.namespace("acme").blocking().clear().unwrap();
        let remaining: Vec<bool> = tenants.iter().map(|tenant| tenant.blocking().exists("k").unwrap()).collect();
        assert_eq!(remaining, [false, true, true, true, true, false, true], "a namespace contains its sub-namespaces");
    });
}

#[test]
fn an_empty_part_is_refused_by_every_verb() {
    let store = Arc::new(MemoryStore::new());
    let cache = Cache::builder(store.clone()).build();
    cache.blocking().set("k", &1, TTL).unwrap();
    for invalid in
        [cache.namespace(""), cache.namespace("").namespace("7"), Cache::builder(store).namespace("").build()]
    {
        let kind = |outcome: Result<(), prefork_cache::Error>| outcome.unwrap_err().kind();
        let handle = invalid.blocking();
        assert_eq!(kind(handle.get::<u8>("k").map(|_| ())), ErrorKind::InvalidKey);
        assert_eq!(kind(handle.set("k", &2, TTL)), ErrorKind::InvalidKey);
        assert_eq!(kind(handle.delete("k").map(|_| ())), ErrorKind::InvalidKey);
        assert_eq!(kind(handle.increment("n", 1, TTL).map(|_| ())), ErrorKind::InvalidKey);
        assert_eq!(kind(handle.clear()), ErrorKind::InvalidKey, "the whole store is not cleared");
        assert_eq!(kind(handle.get_many::<u8>(&["k"]).remove(0).map(|_| ())), ErrorKind::InvalidKey);
        assert_eq!(handle.fetch("k", TTL, || Ok::<_, std::convert::Infallible>(3)), Ok(3), "not cached");
    }
    assert_eq!(cache.blocking().get("k").unwrap(), Some(1));
}

/// Dalli with `namespace: "app:v2"` and Rails write keys like this.
#[test]
fn a_namespace_of_another_client_with_colons_is_given_as_several_parts() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let cache = Cache::builder(from_url(&server.url("")).unwrap()).namespace("app").namespace("v2").build();
        match kind {
            Kind::Redis => server.ask("SET app:v2:motd hello"),
            Kind::Memcached => server.ask("set app:v2:motd 0 0 5\r\nhello"),
        };
        assert_eq!(cache.blocking().get_raw("motd").unwrap().as_deref(), Some(&b"hello"[..]));
    }
}
