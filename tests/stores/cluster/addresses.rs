//! The addresses that nodes give for themselves and each other: IPv6, host names, and none.

use std::collections::BTreeSet;

use bytes::Bytes;
use prefork_cache::CacheStore;
use prefork_cache::stores::RedisStore;

use super::lies::{HOUR, PATIENT};
use super::run;
use crate::failures::WAYS;
use support::cluster::Cluster;
use support::wait::until;

/// Uses all nodes, a slot that was moved and one that is being moved. Returns the hosts of the nodes.
fn use_all(cluster: &Cluster, seed: &str, case: &str) -> BTreeSet<String> {
    let mut hosts = BTreeSet::new();
    for (way, tags) in WAYS.into_iter().zip([["a", "b"], ["c", "d"]]) {
        let store =
            RedisStore::new(&format!("redis+cluster://{seed}:{}?{PATIENT}", cluster.nodes()[0].port())).unwrap();
        let keys: Vec<String> =
            (0..30).map(|number| number.to_string()).chain(tags.map(|tag| format!("{{{tag}}}"))).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let entries: Vec<_> = keys.iter().map(|key| (*key, Bytes::from((*key).to_owned()))).collect();
        run(way, store.set_many(&entries, HOUR)).into_iter().for_each(|stored| stored.unwrap());
        let [moved, moving] = tags.map(|tag| cluster.slot(tag));
        cluster.move_slot(moved, (cluster.owner_of_slot(moved) + 1) % 3);
        let mut half = cluster.start_move(moving, (cluster.owner_of_slot(moving) + 1) % 3);
        half.migrate(&[keys[31]]);
        for key in &keys {
            let found = run(way, store.get(key)).unwrap_or_else(|error| panic!("{case}, {way:?}, {key}: {error:#}"));
            assert_eq!(found.unwrap(), *key, "{case}, {way:?}");
        }
        for (key, found) in keys.iter().zip(run(way, store.get_many(&keys))) {
            assert_eq!(found.unwrap().unwrap(), *key, "{case}, {way:?}");
        }
        run(way, store.reconnect()).unwrap();
        run(way, store.clear("")).unwrap();
        assert!(cluster.nodes().iter().all(|node| node.ask("DBSIZE").starts_with(":0\r\n")), "{case}, {way:?}");
        half.finish();
        let address = |address: &str| address.rsplit_once(':').unwrap().0.to_owned();
        hosts.extend(store.servers().into_iter().map(|server| address(&server.address)));
    }
    hosts
}

fn configure(cluster: &Cluster, setting: &str, is_known: impl Fn(&str) -> bool) {
    for node in cluster.nodes() {
        assert!(node.ask(&format!("CONFIG SET {setting}")).starts_with("+OK"), "{setting}");
    }
    until("all nodes give the addresses", || cluster.nodes().iter().all(|node| is_known(&node.ask("CLUSTER SLOTS"))));
}

#[test]
fn nodes_are_reached_under_the_addresses_that_they_give() {
    let cluster = Cluster::with(&["--bind", "127.0.0.1", "::1"]);
    let hosts = |hosts: &[&str]| -> BTreeSet<String> { hosts.iter().map(|host| (*host).to_owned()).collect() };

    configure(&cluster, "cluster-announce-ip ::1", |slots| !slots.contains("127.0.0.1"));
    assert_eq!(use_all(&cluster, "[::1]", "IPv6"), hosts(&["[::1]"]));

    configure(&cluster, "cluster-announce-hostname localhost", |slots| slots.contains("::1"));
    configure(&cluster, "cluster-preferred-endpoint-type hostname", |slots| {
        slots.contains("localhost") && !slots.contains("?")
    });
    assert_eq!(use_all(&cluster, "localhost", "host names"), hosts(&["localhost"]));

    configure(&cluster, "cluster-preferred-endpoint-type unknown-endpoint", |slots| slots.contains("*4\r\n$-1\r\n"));
    assert_eq!(use_all(&cluster, "127.0.0.1", "no names"), hosts(&["127.0.0.1"]));
}
