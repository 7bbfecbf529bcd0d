//! `replicas=prefer`: the list of conformance checks that it is exempt from, and reads while replicas are promoted and
//! slots are moved.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use prefork_cache::CacheStore;
use prefork_cache::conformance::{CHECKS, Check};
use prefork_cache::stores::{RedisStore, from_url};

use super::lies::{HOUR, PATIENT};
use super::run;
use crate::conformance::{current_thread, multi_thread};
use crate::failures::{WAYS, Way};
use support::cluster::Cluster;
use support::servers::Server;
use support::wait::until;

/// The checks that read by `get` or `get_many` what was changed immediately before, as [`prefork_cache::conformance`]
/// lists them.
const EXEMPT: [&str; 16] = [
    "get_returns_the_last_set",
    "empty_binary_and_large_values_are_returned_unchanged",
    "keys_with_special_characters_are_distinct",
    "conditional_writes_check_for_an_entry",
    "compare_and_set_compares",
    "append_appends",
    "counters_count",
    "an_increment_of_a_non_number_is_refused",
    "entries_expire",
    "an_increment_keeps_the_remaining_time",
    "batch_results_are_in_key_order",
    "an_invalid_key_fails_alone",
    "one_of_many_compare_and_sets_wins",
    "a_dropped_future_disturbs_no_other",
    "clear_removes_what_starts_with_the_prefix",
    "reset_and_reconnect_leave_the_store_usable",
];

fn is_exempt(check: &Check) -> bool {
    EXEMPT.contains(&check.name())
}

#[test]
fn checks_that_are_not_exempt_pass() {
    let cluster = Cluster::start();
    let store = RedisStore::new(&cluster.url("replicas=prefer&timeout=20s&connect_timeout=20s")).unwrap();
    let required = || CHECKS.iter().filter(|check| !is_exempt(check));
    required().for_each(|check| check.run_inline(&store));
    for runtime in [current_thread(), multi_thread()] {
        runtime.block_on(async {
            for check in required() {
                check.run(&store).await;
            }
        });
    }
}

/// The replicas have lost their masters. Exactly the checks on the list fail.
#[test]
fn checks_that_are_exempt_fail_on_outdated_replicas() {
    let cluster = Cluster::start();
    for replica in 3..cluster.nodes().len() {
        cluster.disconnect_replica(replica);
    }
    let store = RedisStore::new(&cluster.url("replicas=prefer&timeout=20s&connect_timeout=20s")).unwrap();
    let fails = |check: &&Check| catch_unwind(AssertUnwindSafe(|| check.run_inline(&store))).is_err();
    let failed: Vec<&str> = CHECKS.iter().filter(fails).map(Check::name).collect();
    assert_eq!(failed, EXEMPT);
}

fn preferring_replicas(cluster: &Cluster) -> RedisStore {
    RedisStore::new(&cluster.url(&format!("replicas=prefer&{PATIENT}"))).unwrap()
}

/// Writes each key with its name and this round, and waits until every replica has the values.
fn write(cluster: &Cluster, keys: &[&str], round: usize) {
    let store = from_url(&cluster.url(PATIENT)).unwrap();
    let entries: Vec<_> = keys.iter().map(|key| (*key, value(key, round))).collect();
    run(Way::Blocking, store.set_many(&entries, HOUR)).into_iter().for_each(|stored| stored.unwrap());
    wait_for_replicas(cluster);
}

fn value(key: &str, round: usize) -> Bytes {
    format!("{key} in round {round}").into()
}

/// Waits until every replica has executed all that its master has.
fn wait_for_replicas(cluster: &Cluster) {
    let field = |node: &Server, name: &str| {
        let described = node.ask("INFO replication");
        described.lines().find_map(|line| line.strip_prefix(name)?.trim_end().parse::<u64>().ok())
    };
    cluster.wait_until_healthy();
    for replica in cluster.nodes() {
        let Some(port) = field(replica, "master_port:") else { continue };
        let master = cluster.nodes().iter().find(|node| u64::from(node.port()) == port).unwrap();
        let executed = field(master, "master_repl_offset:").unwrap();
        until("a replica has what its master has", || {
            field(replica, "slave_repl_offset:").is_some_and(|offset| offset >= executed)
        });
    }
}

/// Reads each key by `get` and all by `get_many`.
fn read(store: &RedisStore, way: Way, keys: &[&str]) -> Vec<[Option<Bytes>; 2]> {
    run(way, async {
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            found.push(store.get(key).await.unwrap());
        }
        let many = store.get_many(keys).await.into_iter().map(|found| found.unwrap());
        found.into_iter().zip(many).map(|(one, many)| [one, many]).collect()
    })
}

fn moved_errors(cluster: &Cluster) -> Vec<Option<String>> {
    let count = |node: &Server| {
        let statistics = node.ask("INFO errorstats");
        statistics.lines().find(|line| line.starts_with("errorstat_MOVED:")).map(str::to_owned)
    };
    cluster.nodes().iter().map(count).collect()
}

/// A store that was not used in the meantime still knows the node as a replica of its former master.
#[test]
fn a_replica_that_has_become_a_master_of_other_slots() {
    const FORMER_REPLICA: usize = 3;
    let cluster = Cluster::start();
    let names: Vec<String> = (0..96).map(|number| format!("key:{number}")).collect();
    let keys: Vec<&str> = names.iter().map(String::as_str).collect();
    let owners = cluster.owners(&keys);
    let of = |owner: usize| keys.iter().zip(&owners).filter(move |(_, known)| **known == owner).map(|(key, _)| *key);
    let stores = WAYS.map(|way| (way, [0, 1, 2].map(|_| preferring_replicas(&cluster))));
    write(&cluster, &keys, 0);
    for (way, stores) in &stores {
        for (store, key) in stores.iter().flat_map(|store| keys.iter().map(move |key| (store, key))) {
            assert_eq!(run(*way, store.get(key)).unwrap(), Some(value(key, 0)), "{way:?}");
        }
    }
    cluster.promote(FORMER_REPLICA);
    // It gets slots of another master, and gives some of its own away.
    of(1).take(4).for_each(|key| cluster.move_slot(cluster.slot(key), FORMER_REPLICA));
    of(0).take(4).for_each(|key| cluster.move_slot(cluster.slot(key), 2));
    cluster.wait_until_healthy();
    write(&cluster, &keys, 1);
    for (way, [one, many, both]) in &stores {
        for key in &keys {
            assert_eq!(run(*way, one.get(key)).unwrap(), Some(value(key, 1)), "{way:?}");
        }
        for (key, found) in keys.iter().zip(run(*way, many.get_many(&keys))) {
            assert_eq!(found.unwrap(), Some(value(key, 1)), "{way:?}");
        }
        for store in [one, many, both] {
            until("the topology is up to date", || {
                let before = moved_errors(&cluster);
                for (key, found) in keys.iter().zip(read(store, *way, &keys)) {
                    assert_eq!(found, [Some(value(key, 1)), Some(value(key, 1))], "{way:?}");
                }
                moved_errors(&cluster) == before
            });
        }
    }
}

/// The replica of the old master does not find the entries that were moved. It never has an outdated one.
#[test]
fn reading_replicas_while_a_slot_is_moved() {
    let cluster = Cluster::start();
    for (way, tag) in WAYS.into_iter().zip(["a", "b"]) {
        let names: Vec<String> = (0..16).map(|number| format!("{{{tag}}}:{number}")).collect();
        let keys: Vec<&str> = names.iter().map(String::as_str).collect();
        let (to_move, to_stay) = keys.split_at(8);
        let [store, unused] = [0, 1].map(|_| preferring_replicas(&cluster));
        let all = |round: usize| move |key: &&str| [Some(value(key, round)), Some(value(key, round))];
        write(&cluster, &keys, 0);
        for store in [&store, &unused] {
            assert_eq!(read(store, way, &keys), keys.iter().map(all(0)).collect::<Vec<_>>(), "{way:?}");
        }
        let to = (cluster.owner(keys[0]) + 1) % 3;
        let mut moved = cluster.start_move(cluster.slot(keys[0]), to);
        moved.migrate(to_move);
        for round in [1, 2] {
            // Entries that were moved are changed on their new node.
            write(&cluster, &keys, round);
            for store in [&store, &preferring_replicas(&cluster)] {
                for (key, found) in to_move.iter().zip(read(store, way, to_move)) {
                    for found in found {
                        assert!(found.is_none() || found == Some(value(key, round)), "{way:?}, {key}: {found:?}");
                    }
                }
                assert_eq!(read(store, way, to_stay), to_stay.iter().map(all(round)).collect::<Vec<_>>(), "{way:?}");
                for key in &keys {
                    assert_eq!(run(way, store.get_latest(key)).unwrap(), Some(value(key, round)), "{way:?}");
                }
            }
        }
        moved.finish();
        wait_for_replicas(&cluster);
        for store in [&store, &unused] {
            assert_eq!(read(store, way, &keys), keys.iter().map(all(2)).collect::<Vec<_>>(), "{way:?}");
        }
    }
}
