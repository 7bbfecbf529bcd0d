//! The conformance suite on every store and every wrapper, inside and outside a runtime.

use std::sync::Arc;
use std::time::Duration;

use prefork_cache::conformance::{CHECKS, check_all};
use prefork_cache::stores::{MemcachedStore, MemoryStore, RedisStore, TieredStore, from_url};
use prefork_cache::{Cache, CacheStore};
use tokio::runtime::{Builder, Runtime};

use support::certificates::Authority;
use support::cluster::Cluster;
use support::sentinels::Group;
use support::servers::{Encryption, Kind, Server};

/// Runs the suite inline, in a current-thread runtime and in a multi-thread runtime.
fn conforms(store: &dyn CacheStore) {
    check_all(store);
    for runtime in [current_thread(), multi_thread()] {
        runtime.block_on(async {
            for check in CHECKS {
                check.run(store).await;
            }
        });
    }
}

pub(crate) fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

pub(crate) fn multi_thread() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

#[test]
fn memory() {
    conforms(&MemoryStore::new());
}

#[test]
fn memory_bounded_by_entries() {
    conforms(&MemoryStore::builder().max_entries(10_000).build());
}

#[test]
fn redis() {
    let server = Server::start(Kind::Redis);
    conforms(&RedisStore::new(&server.url("")).unwrap());
}

#[test]
fn redis_on_a_unix_socket() {
    let server = Server::on_socket(Kind::Redis);
    conforms(&RedisStore::new(&server.url("")).unwrap());
}

#[test]
fn redis_that_speaks_only_resp2() {
    let server = Server::with(Kind::Redis, &["--rename-command", "HELLO", ""]);
    conforms(&RedisStore::new(&server.url("")).unwrap());
}

#[test]
fn redis_with_a_single_connection() {
    let server = Server::start(Kind::Redis);
    conforms(&RedisStore::new(&server.url("pool_size=1")).unwrap());
}

#[test]
fn redis_cluster() {
    let cluster = Cluster::start();
    conforms(&RedisStore::new(&cluster.url("")).unwrap());
}

#[test]
fn redis_cluster_over_tls() {
    let authority = Authority::new();
    let cluster = Cluster::encrypted(&authority);
    conforms(&RedisStore::new(&cluster.url("")).unwrap());
}

#[test]
fn redis_over_tls() {
    let authority = Authority::new();
    let server = Server::encrypted(Kind::Redis, &Encryption::by(&authority), &[]);
    conforms(&RedisStore::new(&server.url("")).unwrap());
}

#[test]
fn redis_behind_sentinels() {
    let group = Group::with(1, None, Some("s3cret"));
    conforms(&RedisStore::new(&group.url("")).unwrap());
}

#[test]
fn redis_behind_sentinels_over_tls() {
    let authority = Authority::new();
    let group = Group::with(1, Some(&Encryption::by(&authority)), None);
    conforms(&RedisStore::new(&group.url("")).unwrap());
}

#[test]
fn memcached_over_tls() {
    let authority = Authority::new();
    let server = Server::encrypted(Kind::Memcached, &Encryption::by(&authority), &[]);
    conforms(&MemcachedStore::new(&server.url("")).unwrap());
}

#[test]
fn memcached_over_tls_with_a_login() {
    let authority = Authority::new();
    let logins = authority.ca().with_file_name("logins");
    std::fs::write(&logins, "worker:s3cret\n").unwrap();
    let server = Server::with_logins(Some(&Encryption::by(&authority)), &logins, "worker s3cret");
    let store = MemcachedStore::builder(&server.url("")).username("worker").password("s3cret").build();
    conforms(&store.unwrap());
}

#[test]
fn memcached() {
    let server = Server::start(Kind::Memcached);
    conforms(&MemcachedStore::new(&server.url("")).unwrap());
}

#[test]
fn memcached_on_a_unix_socket() {
    let server = Server::on_socket(Kind::Memcached);
    conforms(&MemcachedStore::new(&server.url("")).unwrap());
}

#[test]
fn memcached_on_three_servers() {
    let servers = [(); 3].map(|()| Server::start(Kind::Memcached));
    let hosts = servers.each_ref().map(|server| format!("127.0.0.1:{}", server.port())).join(",");
    conforms(&MemcachedStore::new(&format!("memcached://{hosts}?weights=10,5,1")).unwrap());
}

#[test]
fn behind_dyn_and_arc_and_box() {
    let server = Server::start(Kind::Redis);
    let store: Arc<dyn CacheStore> = from_url(&server.url("")).unwrap();
    conforms(&store);
    conforms(&Box::new(store));
}

#[test]
fn a_tiered_pair() {
    let server = Server::start(Kind::Memcached);
    let far = MemcachedStore::new(&server.url("")).unwrap();
    conforms(&TieredStore::new(MemoryStore::new(), far).near_ttl(Duration::from_millis(300)));
}

/// An entry that one API writes is read by the other.
#[test]
fn blocking_and_asynchronous_callers_share_one_store() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let cache = Cache::builder(from_url(&server.url("")).unwrap()).build();
        let ttl = Duration::from_secs(600);
        multi_thread().block_on(async {
            cache.set("asynchronous", &1, ttl).await.unwrap();
            cache.blocking().set("blocking", &2, ttl).unwrap();
            assert_eq!(cache.blocking().get("asynchronous").unwrap(), Some(1), "{kind:?}");
            assert_eq!(cache.get("blocking").await.unwrap(), Some(2), "{kind:?}");
        });
        assert_eq!(cache.blocking().get("blocking").unwrap(), Some(2), "{kind:?}");
    }
}
