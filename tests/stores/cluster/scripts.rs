//! Scripts and transactions on slots that are being moved, or were moved: nothing is executed twice, out of order or on
//! the wrong node.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use prefork_cache::stores::from_url;
use prefork_cache::{Cache, CacheStore, Expiry, Op, Outcome, Replacement, Settle, Ttl, When};

use super::lies::{HOUR, PATIENT};
use super::run;
use crate::failures::{WAYS, Way};
use support::cluster::Cluster;

/// The write to a node begins with a script for a slot that the node has given away. So the node does not get to know
/// the script, and the next command runs it by its hash.
#[test]
fn operations_after_a_redirected_script_keep_their_order() {
    let cluster = Cluster::without_replicas();
    for way in WAYS {
        for node in cluster.nodes() {
            assert!(node.ask("SCRIPT FLUSH").starts_with("+OK"));
        }
        let store = from_url(&cluster.url(PATIENT)).unwrap();
        let mut keys = (0..).map(|number| format!("{way:?}:{number}")).filter(|key| cluster.owner(key) == 0);
        let [moved, kept] = [keys.next().unwrap(), keys.next().unwrap()];
        run(way, store.set(&kept, "first".into(), HOUR, When::Always)).unwrap();
        cluster.move_slot(cluster.slot(&moved), 1);
        let compare = |key, expected: Option<&'static [u8]>, new: &'static str| Op::CompareAndSet {
            key,
            expected,
            new: Some(new.into()),
            ttl: HOUR,
        };
        let set = |key, value: &'static str| Op::Set { key, value: value.into(), ttl: HOUR, when: When::Always };
        let operations = [
            compare(&moved, None, "moved"),
            compare(&kept, Some(b"first"), "second"),
            set(&kept, "third"),
            compare(&kept, Some(b"third"), "fourth"),
            compare(&moved, Some(b"moved"), "again"),
            set(&kept, "fifth"),
        ];
        let outcomes = run(way, store.batch(&operations));
        for (operation, outcome) in operations.iter().zip(outcomes) {
            assert_eq!(outcome.unwrap(), Outcome::Done(true), "{way:?}: {operation:?}");
        }
        assert_eq!(run(way, store.get(&kept)).unwrap().unwrap(), "fifth", "{way:?}");
        assert_eq!(run(way, store.get(&moved)).unwrap().unwrap(), "again", "{way:?}");
    }
}

/// Where a key is when a slot has been moved half way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    OldNode,
    NewNode,
    Nowhere,
}

const PLACES: [Place; 3] = [Place::OldNode, Place::NewNode, Place::Nowhere];

/// Every operation, on keys of a slot whose move has stopped half way.
#[test]
fn every_operation_on_a_slot_that_is_moved_half_way() {
    let cluster = Cluster::without_replicas();
    for (way, tag) in WAYS.into_iter().zip(["a", "b"]) {
        let slot = cluster.slot(tag);
        let from = cluster.owner_of_slot(slot);
        let store = from_url(&cluster.url(PATIENT)).unwrap();
        let names = [
            "cas", "removed", "many", "absent", "present", "set", "delete", "count", "persist", "touch", "append",
            "ttl", "batch", "settle", "revoked",
        ];
        let key = |name: &str, place: Place| format!("{{{tag}}}:{name}:{place:?}");
        let mut before = Vec::new();
        let mut moving = Vec::new();
        for name in names {
            for place in [Place::OldNode, Place::NewNode] {
                before.push(key(name, place));
                if place == Place::NewNode {
                    moving.push(key(name, place));
                }
            }
        }
        let entries: Vec<(&str, Bytes)> = before
            .iter()
            .map(|key| (key.as_str(), if key.contains("count") { "7".into() } else { "old".into() }))
            .collect();
        run(way, store.set_many(&entries, HOUR)).into_iter().for_each(|stored| stored.unwrap());
        // Both nodes do not know the scripts.
        for node in cluster.nodes() {
            assert!(node.ask("SCRIPT FLUSH").starts_with("+OK"));
        }
        let mut moved = cluster.start_move(slot, (from + 1) % 3);
        moved.migrate(&moving);
        run(way, async {
            let new = || Some(Bytes::from("new"));
            for place in PLACES {
                let exists = place != Place::Nowhere;
                let held: Option<&[u8]> = exists.then_some(b"old");
                let case = format!("{way:?}, {place:?}");
                let key = |name: &str| key(name, place);
                let get = async |name: &str| store.get(&key(name)).await.unwrap();

                let cas = key("cas");
                assert!(!store.compare_and_set(&cas, Some(b"other"), new(), HOUR).await.unwrap(), "{case}");
                assert!(store.compare_and_set(&cas, held, new(), HOUR).await.unwrap(), "{case}");
                assert_eq!(get("cas").await, new(), "{case}");
                assert!(store.compare_and_set(&key("removed"), held, None, HOUR).await.unwrap(), "{case}");
                assert_eq!(get("removed").await, None, "{case}");
                assert_eq!(
                    store.set(&key("absent"), "new".into(), HOUR, When::IfAbsent).await.unwrap(),
                    !exists,
                    "{case}"
                );
                assert_eq!(
                    store.set(&key("present"), "new".into(), HOUR, When::IfPresent).await.unwrap(),
                    exists,
                    "{case}"
                );
                assert!(store.set(&key("set"), "new".into(), HOUR, When::Always).await.unwrap(), "{case}");
                assert_eq!(get("set").await, new(), "{case}");
                assert_eq!(store.delete(&key("delete")).await.unwrap(), exists, "{case}");
                assert_eq!(get("delete").await, None, "{case}");
                assert_eq!(
                    store.increment(&key("count"), 2, HOUR).await.unwrap(),
                    if exists { 9 } else { 2 },
                    "{case}"
                );
                assert_eq!(
                    store.increment(&key("count"), 2, HOUR).await.unwrap(),
                    if exists { 11 } else { 4 },
                    "{case}"
                );
                assert_eq!(store.touch(&key("persist"), Ttl::Never).await.unwrap(), exists, "{case}");
                assert_eq!(store.ttl(&key("persist")).await.unwrap(), exists.then_some(Ttl::Never), "{case}");
                assert_eq!(store.touch(&key("touch"), HOUR).await.unwrap(), exists, "{case}");
                assert_eq!(store.ttl(&key("ttl")).await.unwrap().is_some(), exists, "{case}");
                store.append(&key("append"), "+".into(), HOUR).await.unwrap();
                store.append(&key("append"), "+".into(), HOUR).await.unwrap();
                assert_eq!(get("append").await.unwrap(), if exists { "old++" } else { "++" }, "{case}");
            }
            // All of them in one write.
            let keys: Vec<[String; 3]> =
                PLACES.map(|place| [key("batch", place), key("settle", place), key("revoked", place)]).into();
            let lease = |key: &str| format!("{key}:prefork-lease");
            let leases: Vec<[String; 2]> =
                keys.iter().map(|[_, settle, revoked]| [lease(settle), lease(revoked)]).collect();
            for [held, _] in &leases {
                store.set(held, "token".into(), HOUR, When::Always).await.unwrap();
            }
            let value = Bytes::from("loaded");
            let mut operations = Vec::new();
            let mut expected = Vec::new();
            for ((place, [batch, settle, revoked]), [held, lost]) in PLACES.into_iter().zip(&keys).zip(&leases) {
                let seen: Option<&[u8]> = (place != Place::Nowhere).then_some(b"old");
                operations.push(Op::CompareAndSet {
                    key: batch,
                    expected: seen,
                    new: Some("second".into()),
                    ttl: HOUR,
                });
                expected.push(Outcome::Done(true));
                operations.push(Op::CompareAndSet {
                    key: batch,
                    expected: Some(b"second"),
                    new: Some("third".into()),
                    ttl: HOUR,
                });
                expected.push(Outcome::Done(true));
                operations.push(Op::Get { key: batch });
                expected.push(Outcome::Value(Some("third".into())));
                let store_it = Replacement { seen, value: &value, ttl: HOUR };
                operations.push(Op::Settle(Settle {
                    key: settle,
                    lease: held,
                    token: b"token",
                    store: Some(store_it),
                    mark: None,
                }));
                expected.push(Outcome::Settled { was_held: true, is_stored: true });
                operations.push(Op::Settle(Settle {
                    key: revoked,
                    lease: lost,
                    token: b"token",
                    store: Some(store_it),
                    mark: None,
                }));
                expected.push(Outcome::Settled { was_held: false, is_stored: false });
                operations.push(Op::Delete { key: batch });
                expected.push(Outcome::Done(true));
                operations.push(Op::Get { key: settle });
                expected.push(Outcome::Value(Some("loaded".into())));
            }
            let outcomes = store.batch(&operations).await;
            for ((operation, outcome), expected) in operations.iter().zip(outcomes).zip(expected) {
                assert_eq!(outcome.unwrap(), expected, "{way:?}: {operation:?}");
            }
        });
        let cache = Cache::builder(store).on_error(|error| panic!("{error:#}")).build();
        use_cache(&cache, way, tag);
        moved.finish();
        use_cache(&cache, way, tag);
    }
}

/// Fetches, under leases.
fn use_cache(cache: &Cache, way: Way, tag: &str) {
    let expiry = Expiry::after(Duration::from_secs(3_600));
    let keys: Vec<String> = (0..8).map(|number| format!("{{{tag}}}:fetched:{number}")).collect();
    run(way, async {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let load = async |missing: Vec<&str>| missing.iter().map(|_| Ok::<_, Infallible>(0)).collect();
        assert_eq!(cache.fetch_many(&keys, expiry, load).await, vec![Ok(0); keys.len()]);
        for (key, found) in keys.iter().zip(cache.get_many::<i32>(&keys).await) {
            assert_eq!(found.unwrap(), Some(0), "{way:?}: the loaded value of {key} is stored");
            assert!(cache.delete(key).await.unwrap());
        }
        for key in &keys {
            let fetched = cache.fetch(key, expiry, async || Ok::<_, Infallible>(1)).await;
            assert_eq!(fetched, Ok(1));
            assert_eq!(cache.get(key).await.unwrap(), Some(1), "{way:?}: the loaded value is stored");
            assert_eq!(
                cache.update(key, expiry, |held: Option<i32>| held.map(|held| held + 1)).await.unwrap(),
                Some(2)
            );
        }
        assert!(cache.delete_many(&keys).await.into_iter().all(|deleted| deleted.unwrap()));
        for key in &keys {
            assert_eq!(cache.get::<i32>(key).await.unwrap(), None);
        }
    });
}

/// Some of the keys are on the old node, and the others are not.
#[test]
fn a_batch_on_a_slot_that_is_moved_half_way_finds_and_keeps_every_entry() {
    let cluster = Cluster::without_replicas();
    for (way, tag) in WAYS.into_iter().zip(["a", "b"]) {
        let store = from_url(&cluster.url(PATIENT)).unwrap();
        let key = |name: &str| format!("{{{tag}}}:{name}");
        let keys = ["absent", "old", "new", "settled", "lease", "replaced"].map(key);
        let [absent, old, new, settled, lease, replaced] = keys.each_ref().map(String::as_str);
        let entries = [old, new, settled, lease, replaced].map(|key| (key, Bytes::from("first")));
        run(way, store.set_many(&entries, HOUR)).into_iter().for_each(|stored| stored.unwrap());
        let slot = cluster.slot(tag);
        let mut moved = cluster.start_move(slot, (cluster.owner_of_slot(slot) + 1) % 3);
        moved.migrate(&[new, lease]);
        let found = run(way, store.get_many(&[absent, old, new, old]));
        let found: Vec<bool> = found.into_iter().map(|found| found.unwrap().is_some()).collect();
        assert_eq!(found, [false, true, true, true], "{way:?}");
        // The settle is executed last, since its two keys are on two nodes.
        let settle = Settle { key: settled, lease, token: b"first", store: None, mark: None };
        let set = Op::Set { key: replaced, value: "second".into(), ttl: HOUR, when: When::Always };
        let delete = |key| Op::Delete { key };
        let outcomes = run(way, store.batch(&[Op::Settle(settle), delete(replaced), set, delete(settled)]));
        for (outcome, expected) in outcomes.into_iter().zip([
            Outcome::Settled { was_held: true, is_stored: false },
            Outcome::Done(true),
            Outcome::Done(true),
            Outcome::Done(true),
        ]) {
            assert_eq!(outcome.unwrap(), expected, "{way:?}");
        }
        for is_moved in [false, true] {
            let found = run(way, store.get_many(&[replaced, settled, lease, old]));
            let found: Vec<Option<Bytes>> = found.into_iter().map(Result::unwrap).collect();
            assert_eq!(found, [Some("second".into()), None, None, Some("first".into())], "{way:?}, {is_moved}");
            if !is_moved {
                moved.migrate(&[old]);
            }
        }
        moved.finish();
    }
}

/// A delete that follows a settle in a batch removes what the settle stores.
#[test]
fn a_delete_after_a_settle_on_two_nodes_is_final() {
    let cluster = Cluster::without_replicas();
    for (way, tag) in WAYS.into_iter().zip(["a", "b"]) {
        let store = from_url(&cluster.url(PATIENT)).unwrap();
        let [key, lease] = ["key", "lease"].map(|name| format!("{{{tag}}}:{name}"));
        let [key, lease] = [key.as_str(), lease.as_str()];
        let entries = [key, lease].map(|key| (key, Bytes::from("first")));
        run(way, store.set_many(&entries, HOUR)).into_iter().for_each(|stored| stored.unwrap());
        let slot = cluster.slot(tag);
        let mut moved = cluster.start_move(slot, (cluster.owner_of_slot(slot) + 1) % 3);
        moved.migrate(&[lease]);
        let value = "loaded".into();
        let store_it = Replacement { seen: Some(b"first"), value: &value, ttl: HOUR };
        let settle = Settle { key, lease, token: b"first", store: Some(store_it), mark: None };
        let outcomes =
            run(way, store.batch(&[Op::Settle(settle), Op::Get { key }, Op::Delete { key }, Op::Get { key }]));
        let last = outcomes.into_iter().next_back().unwrap().unwrap();
        assert_eq!(last, Outcome::Value(None), "{way:?}");
        assert_eq!(run(way, store.get(key)).unwrap(), None, "{way:?}");
        moved.finish();
    }
}
