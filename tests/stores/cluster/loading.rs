//! A node that was restarted and is loading its data set.

use bytes::Bytes;
use prefork_cache::stores::from_url;
use prefork_cache::{CacheStore, Error, ErrorKind, When};

use super::lies::{HOUR, PATIENT};
use super::run;
use crate::failures::{WAYS, Way};
use support::cluster::Cluster;
use support::servers::Server;
use support::wait::until;

/// The node that is restarted.
const RESTARTED: usize = 0;

/// The number of keys on that node. With the delay for each of them, it would load for a minute.
const KEYS: usize = 3_000;

/// The size of a value. The node responds after each kilobyte that it has loaded.
const SIZE: usize = 1_100;

const OPTIONS: [&str; 8] = [
    "--cluster-require-full-coverage",
    "no",
    "--rdbcompression",
    "no",
    "--loading-process-events-interval-bytes",
    "1024",
    "--key-load-delay",
    "20000",
];

fn is_loading(node: &Server) -> bool {
    node.ask("INFO persistence").contains("\r\nloading:1\r\n")
}

fn value(key: &str) -> Bytes {
    format!("{key:SIZE$}").into()
}

/// A node that is loading considers the cluster down. If it serves reads nevertheless, its reply to them is `LOADING`.
#[test]
fn a_loading_master_fails_its_own_keys() {
    for (allows_reads, reply) in [("no", "CLUSTERDOWN"), ("yes", "LOADING")] {
        let options = [&OPTIONS[..], &["--cluster-allow-reads-when-down", allows_reads]].concat();
        let mut cluster = Cluster::with(&options);
        let tag = |node: usize| (0..).map(|tag: u32| tag.to_string()).find(|tag| cluster.owner(tag) == node).unwrap();
        let tags = [0, 1, 2].map(tag);
        let keys = |node: usize, count: usize| (0..count).map(move |key| (node, key));
        let keys = keys(0, KEYS).chain(keys(1, 10)).chain(keys(2, 10));
        let keys: Vec<(usize, String)> = keys.map(|(node, key)| (node, format!("{{{}}}:{key}", tags[node]))).collect();
        let all: Vec<&str> = keys.iter().map(|(_, key)| key.as_str()).collect();
        let entries: Vec<_> = all.iter().map(|key| (*key, value(key))).collect();
        let ports: Vec<u16> = cluster.nodes().iter().map(Server::port).collect();
        let store = || from_url(&cluster.url_with_seeds(&ports, PATIENT)).unwrap();
        let before = WAYS.map(|way| (way, store()));
        let after = WAYS.map(|way| (way, store()));
        run(Way::Blocking, store().set_many(&entries, HOUR)).into_iter().for_each(|stored| stored.unwrap());
        for (way, store) in &before {
            run(*way, store.get_many(&all)).into_iter().for_each(|found| assert!(found.unwrap().is_some()));
        }
        assert!(cluster.nodes()[RESTARTED].ask("SAVE").starts_with("+OK"));
        cluster.kill(RESTARTED);
        cluster.restart(RESTARTED);
        let restarted = &cluster.nodes()[RESTARTED];
        let address = format!("127.0.0.1:{}", restarted.port());
        let is_of_node = |error: &Error, way: Way| {
            let text = format!("{error:#}");
            assert!(text.contains(&address), "{way:?}: {text}");
            assert!(error.is_transient() && error.kind() == ErrorKind::Server, "{way:?}: {error:?}");
        };
        assert!(is_loading(restarted), "the node is loading");
        // Keys of all nodes, the last ones that are loaded among them.
        let some = &keys[KEYS - 5..KEYS + 15];
        let few: Vec<&str> = some.iter().map(|(_, key)| key.as_str()).collect();
        for (way, store) in before.iter().chain(&after) {
            let many = run(*way, store.get_many(&few));
            for ((node, key), many) in some.iter().zip(many) {
                for found in [run(*way, store.get(key)), many] {
                    match found {
                        Ok(found) => assert!(*node != RESTARTED && found == Some(value(key)), "{way:?}: {key}"),
                        Err(error) => {
                            assert_eq!(*node, RESTARTED, "{way:?}, {key}: {error:#}");
                            assert!(format!("{error:#}").contains(reply), "{way:?}, {key}: {error:#}");
                            is_of_node(&error, *way);
                        }
                    }
                }
            }
            let outcomes = run(*way, store.set_many(&[(few[0], value(few[0])), (few[5], value(few[5]))], HOUR));
            is_of_node(outcomes[0].as_ref().unwrap_err(), *way);
            outcomes[1].as_ref().unwrap();
            is_of_node(&run(*way, store.clear("no key has this prefix")).unwrap_err(), *way);
        }
        assert!(is_loading(restarted), "the node is still loading");
        assert!(restarted.ask("CONFIG SET key-load-delay 0").starts_with("+OK"));
        until("the node has loaded its data", || !is_loading(restarted));
        cluster.wait_until_healthy();
        for (way, store) in before.iter().chain(&after) {
            for (key, found) in all.iter().zip(run(*way, store.get_many(&all))) {
                assert_eq!(found.unwrap(), Some(value(key)), "{way:?}");
            }
            run(*way, store.clear("no key has this prefix")).unwrap();
        }
    }
}

fn cluster_and_keys_of_restarted(allows_reads: &'static str) -> (Cluster, Vec<String>) {
    let options = [&OPTIONS[..], &["--cluster-allow-reads-when-down", allows_reads]].concat();
    let cluster = Cluster::with_replicas(&options);
    let tag = (0..).map(|tag: u32| tag.to_string()).find(|tag| cluster.owner(tag) == RESTARTED).unwrap();
    let keys = (0..KEYS).map(|key| format!("{{{tag}}}:{key}")).collect();
    (cluster, keys)
}

/// A replica has replaced the node while it was down. The node does not know that yet. Neither do the stores, which
/// were not used in the meantime, or are new and ask this node first.
#[test]
fn a_loading_master_that_was_replaced_is_left() {
    for allows_reads in ["no", "yes"] {
        let (mut cluster, keys) = cluster_and_keys_of_restarted(allows_reads);
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let entries: Vec<_> = keys.iter().map(|key| (*key, value(key))).collect();
        let ports: Vec<u16> = cluster.nodes()[..3].iter().map(Server::port).collect();
        let stores = |replicas: &'static str| {
            let url = cluster.url_with_seeds(&ports, &format!("{PATIENT}&replicas={replicas}"));
            // One for each operation.
            let stores = || [0, 1, 2, 3].map(|_| from_url(&url).unwrap());
            WAYS.map(|way| (way, replicas, stores()))
        };
        let known = ["never", "prefer"].map(stores);
        let new = ["never", "prefer"].map(stores);
        for (way, _, stores) in known.as_flattened() {
            for store in stores {
                run(*way, store.set_many(&entries[..1], HOUR)).into_iter().for_each(|stored| stored.unwrap());
            }
        }
        run(Way::Blocking, new[0][0].2[0].set_many(&entries, HOUR)).into_iter().for_each(|stored| stored.unwrap());
        assert!(cluster.nodes()[RESTARTED].ask("SAVE").starts_with("+OK"));
        cluster.kill(RESTARTED);
        cluster.wait_until_healthy();
        cluster.restart(RESTARTED);
        assert!(is_loading(&cluster.nodes()[RESTARTED]), "the node is loading");
        let key = keys[0];
        for (way, replicas, [get, get_many, set, clear]) in known.iter().chain(&new).flatten() {
            let case = format!("reads when down: {allows_reads}, {way:?}, replicas: {replicas}");
            let found = run(*way, get.get(key)).unwrap_or_else(|error| panic!("get, {case}: {error:#}"));
            assert_eq!(found, Some(value(key)), "{case}");
            let found = run(*way, get_many.get_many(&[key])).remove(0);
            let found = found.unwrap_or_else(|error| panic!("get_many, {case}: {error:#}"));
            assert_eq!(found, Some(value(key)), "{case}");
            let stored = run(*way, set.set(key, value(key), HOUR, When::Always));
            stored.unwrap_or_else(|error| panic!("set, {case}: {error:#}"));
            let cleared = run(*way, clear.clear("no key has this prefix"));
            cleared.unwrap_or_else(|error| panic!("clear, {case}: {error:#}"));
        }
        assert!(is_loading(&cluster.nodes()[RESTARTED]), "the node is still loading");
    }
}

/// Its master is read instead.
#[test]
fn a_loading_replica_is_not_read() {
    const REPLICA: usize = RESTARTED + 3;
    for allows_reads in ["no", "yes"] {
        let (mut cluster, keys) = cluster_and_keys_of_restarted(allows_reads);
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let entries: Vec<_> = keys.iter().map(|key| (*key, value(key))).collect();
        let url = cluster.url(&format!("{PATIENT}&replicas=prefer"));
        let stores = WAYS.map(|way| (way, from_url(&url).unwrap()));
        run(Way::Blocking, stores[0].1.set_many(&entries, HOUR)).into_iter().for_each(|stored| stored.unwrap());
        let count = format!(":{KEYS}\r\n");
        until("the replica has the keys", || cluster.nodes()[REPLICA].ask("DBSIZE").starts_with(&count));
        let read_all = |rounds: usize| {
            for (way, store) in &stores {
                for key in &keys[..rounds] {
                    assert_eq!(run(*way, store.get(key)).unwrap(), Some(value(key)), "{allows_reads}, {way:?}");
                    let found = run(*way, store.get_many(&[key])).remove(0);
                    assert_eq!(found.unwrap(), Some(value(key)), "{allows_reads}, {way:?}");
                }
            }
        };
        read_all(8);
        assert!(cluster.nodes()[REPLICA].gets() > 0, "the replica is read");
        assert!(cluster.nodes()[REPLICA].ask("SAVE").starts_with("+OK"));
        cluster.kill(REPLICA);
        cluster.restart(REPLICA);
        assert!(is_loading(&cluster.nodes()[REPLICA]), "the replica is loading");
        read_all(16);
        assert!(is_loading(&cluster.nodes()[REPLICA]), "the replica is still loading");
        assert_eq!(cluster.nodes()[REPLICA].gets(), 0, "the replica has no values yet");
    }
}
