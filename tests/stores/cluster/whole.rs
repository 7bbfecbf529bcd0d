//! Operations on all nodes of a cluster: batches, clear, health; and the nodes that a URL names.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use prefork_cache::stores::{RedisStore, Replicas, from_url};
use prefork_cache::{Cache, CacheStore, ErrorKind, Op, Outcome, Replacement, Settle, Ttl, When};

use super::run;
use crate::failures::{WAYS, outside_of_a_runtime};
use support::cluster::Cluster;
use support::servers::{Kind, Server, free_port};
use support::wait::until;

const HOUR: Ttl = Ttl::After(Duration::from_secs(3_600));
const PATIENT: &str = "timeout=20s&connect_timeout=20s";

#[test]
fn a_batch_over_all_nodes_returns_results_in_order() {
    let cluster = Cluster::without_replicas();
    let store = from_url(&cluster.url(PATIENT)).unwrap();
    for way in WAYS {
        let keys: Vec<String> = (0..5_000).map(|number| format!("{way:?}:{number}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        run(way, async {
            let entries: Vec<_> = keys.iter().map(|key| (*key, key.to_string().into())).collect();
            store.set_many(&entries, HOUR).await.into_iter().for_each(|stored| stored.unwrap());
            let with_gap: Vec<&str> = keys.iter().copied().chain(["", "absent"]).collect();
            let found = store.get_many(&with_gap).await;
            for (key, found) in keys.iter().zip(&found) {
                assert_eq!(found.as_ref().unwrap().as_deref(), Some(key.as_bytes()));
            }
            assert_eq!(found[keys.len()].as_ref().unwrap_err().kind(), ErrorKind::InvalidKey);
            assert_eq!(found[keys.len() + 1].as_ref().unwrap(), &None);
            assert!(store.delete_many(&keys).await.into_iter().all(|deleted| deleted.unwrap()));
        });
    }
}

/// The URL names only one of the masters. Entries with another prefix stay.
#[test]
fn a_clear_reaches_every_master() {
    let cluster = Cluster::without_replicas();
    let store = from_url(&cluster.url(PATIENT)).unwrap();
    for way in WAYS {
        run(way, async {
            let keys = (0..1_500).flat_map(|number| ["cleared*:", "kept:"].map(|prefix| format!("{prefix}{number}")));
            let keys: Vec<String> = keys.collect();
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            let entries: Vec<_> = keys.iter().map(|key| (*key, "value".into())).collect();
            store.set_many(&entries, HOUR).await.into_iter().for_each(|stored| stored.unwrap());
            store.clear("cleared*:").await.unwrap();
            for (key, found) in keys.iter().zip(store.get_many(&keys).await) {
                assert_eq!(found.unwrap().is_some(), key.starts_with("kept:"), "{key}");
            }
        });
    }
}

#[test]
fn a_clear_names_the_node_that_fails() {
    let mut cluster = Cluster::without_replicas();
    let store = from_url(&cluster.url("timeout=5s&connect_timeout=5s")).unwrap();
    outside_of_a_runtime(store.set("key", "value".into(), HOUR, When::Always)).unwrap();
    cluster.kill(1);
    let failed = cluster.nodes()[1].port();
    let error = outside_of_a_runtime(store.clear("")).unwrap_err();
    assert!(error.to_string().contains(&failed.to_string()), "{error:#}");
}

/// The first node of the URL is not running, does not respond, or is not in a cluster. Then the second one is asked.
#[test]
fn any_node_of_a_url_suffices() {
    let cluster = Cluster::without_replicas();
    let (stopped, single) = (Server::start(Kind::Redis), Server::start(Kind::Redis));
    stopped.pause();
    let [first, second, _] = cluster.nodes() else { panic!("three nodes") };
    for seeds in [[free_port(), second.port()], [stopped.port(), first.port()], [single.port(), first.port()]] {
        for way in WAYS {
            let store = RedisStore::new(&cluster.url_with_seeds(&seeds, "timeout=4s&connect_timeout=4s")).unwrap();
            run(way, store.set("key", "value".into(), HOUR, When::Always)).unwrap();
        }
    }
    stopped.resume();
}

#[test]
fn statistics_list_every_node() {
    let cluster = Cluster::start();
    let ports =
        |store: &RedisStore| -> BTreeSet<String> { store.servers().into_iter().map(|server| server.address).collect() };
    let all: BTreeSet<String> = cluster.nodes().iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    let store = RedisStore::new(&cluster.url(PATIENT)).unwrap();
    assert_eq!(ports(&store).len(), 1, "only the seed is known");
    outside_of_a_runtime(store.reconnect()).unwrap();
    assert_eq!(ports(&store), all);
    let connected = store.servers().iter().filter(|server| server.connections > 0).count();
    assert_eq!(connected, 3, "the masters are connected");
    store.reset();
    assert!(store.servers().iter().all(|server| server.connections == 0));
}

/// A value may be outdated, but is never that of another key. If a replica is down, its master is read.
#[test]
fn replicas_are_read_with_replicas_prefer() {
    let mut cluster = Cluster::start();
    let url = cluster.url("timeout=5s&connect_timeout=5s");
    let store = RedisStore::builder(&url).replicas(Replicas::Prefer).build().unwrap();
    let keys: Vec<String> = (0..300).map(|number| format!("key:{number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    outside_of_a_runtime(async {
        let entries: Vec<_> = keys.iter().map(|key| (*key, key.to_string().into())).collect();
        store.set_many(&entries, HOUR).await.into_iter().for_each(|stored| stored.unwrap());
    });
    let read = |key: &&str| outside_of_a_runtime(store.get(key)).unwrap().as_deref() == Some(key.as_bytes());
    until("the replicas have all entries", || keys.iter().all(read));
    let gets = |nodes: &[Server]| nodes.iter().map(Server::gets).sum::<usize>();
    let (masters, replicas) = cluster.nodes().split_at(3);
    let before = (gets(masters), gets(replicas));
    for way in WAYS {
        run(way, async {
            for (key, found) in keys.iter().zip(store.get_many(&keys).await) {
                assert_eq!(found.unwrap().as_deref(), Some(key.as_bytes()));
            }
            for key in &keys {
                assert!(store.get(key).await.unwrap().is_some());
                assert!(store.get_latest(key).await.unwrap().is_some());
            }
        });
    }
    let asked = (gets(masters) - before.0, gets(replicas) - before.1);
    assert_eq!(asked, (2 * keys.len(), 4 * keys.len()), "get_latest reads from the masters");
    cluster.kill(3);
    assert!(keys.iter().all(read));
    let found = outside_of_a_runtime(store.get_many(&keys));
    assert!(found.into_iter().all(|found| found.unwrap().is_some()));
}

/// The URL is that of one server, but the server is a node of a cluster. The error names the right scheme.
#[test]
fn the_url_of_one_server_for_a_cluster_node_is_an_error() {
    let cluster = Cluster::without_replicas();
    let url = cluster.url(PATIENT).replace("redis+cluster", "redis");
    let store = from_url(&url).unwrap();
    for number in 0..10 {
        if let Err(error) = outside_of_a_runtime(store.get(&format!("key:{number}"))) {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("redis+cluster://"), "{error}");
        }
    }
    let error = outside_of_a_runtime(store.get_many(&["a", "b"])).pop().unwrap().unwrap_err();
    assert!(error.to_string().contains("redis+cluster://"), "{error}");
}

#[test]
fn a_cluster_url_for_a_single_server_is_an_error() {
    let server = Server::start(Kind::Redis);
    for way in WAYS {
        let store = from_url(&format!("redis+cluster://127.0.0.1:{}?{PATIENT}", server.port())).unwrap();
        let error = run(way, store.get("key")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:#}");
        assert!(format!("{error:#}").contains("cluster support disabled"), "{error:#}");
    }
}

/// The lease of a key with braces is in the slot of the key. Otherwise a fetch would fail and be reported.
#[test]
fn keys_with_any_braces_are_fetched_under_a_lease() {
    let cluster = Cluster::without_replicas();
    let store = from_url(&cluster.url(PATIENT)).unwrap();
    let cache = Cache::builder(store).on_error(|error| panic!("{error:#}")).build();
    for key in ["user:7", "{t}y", "a{b", "{}x", "{}{t}", "x}y{", "{{t}}", "a{b}c{d", "ä{", "}"] {
        for (number, expected) in [(1, 1), (2, 1)] {
            let fetched = cache.blocking().fetch(key, Duration::from_secs(60), || Ok::<_, Infallible>(number));
            assert_eq!(fetched, Ok(expected), "{key}");
        }
        assert!(cache.blocking().delete(key).unwrap(), "{key}");
        let fetched = cache.blocking().fetch(key, Duration::from_secs(60), || {
            cache.blocking().delete(key).unwrap();
            Ok::<_, Infallible>(3)
        });
        assert_eq!((fetched, cache.blocking().get::<i32>(key).unwrap()), (Ok(3), None), "revoked by the delete: {key}");
    }
}

/// A lease whose name the caller has chosen need not be in the slot of its key.
#[test]
fn a_settle_may_have_its_keys_in_two_slots() {
    let cluster = Cluster::without_replicas();
    let store = from_url(&cluster.url(PATIENT)).unwrap();
    let value = "value".into();
    for way in WAYS {
        run(way, async {
            let key = "settled";
            let is_elsewhere = |lease: &String| cluster.owner(lease) != cluster.owner(key);
            let lease = (0..).map(|number| format!("lease {number}")).find(is_elsewhere).unwrap();
            let lease = lease.as_str();
            store.set(lease, "token and more".into(), HOUR, When::Always).await.unwrap();
            let store_it = Replacement { seen: None, value: &value, ttl: HOUR };
            let settle = Settle { key, lease, token: b"token", store: Some(store_it), mark: None };
            for (was_held, is_stored) in [(true, true), (false, false)] {
                let outcomes = store.batch(&[Op::Settle(settle), Op::Get { key }]).await;
                let outcomes: Vec<Outcome> = outcomes.into_iter().map(Result::unwrap).collect();
                let stored = Outcome::Value(Some(value.clone()));
                assert_eq!(outcomes, [Outcome::Settled { was_held, is_stored }, stored], "{way:?}");
            }
            assert_eq!(store.get(lease).await.unwrap(), None);
            assert!(store.delete(key).await.unwrap());
        });
    }
}
