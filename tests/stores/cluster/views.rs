//! Nodes whose topology differs from that of the others, or is very long.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use prefork_cache::stores::from_url;
use prefork_cache::{CacheStore, ErrorKind};

use super::lies::{HOUR, PATIENT, all_slots, assert_all, bulk, failures, moved, node, ranges};
use super::run;
use crate::failures::{WAYS, read_on, serve};
use support::cluster::Cluster;
use support::wait::{PATIENCE, until};

/// `redis-cli --cluster del-node` leaves the node running, without slots and without other nodes.
#[test]
fn a_removed_node_does_not_affect_the_topology() {
    for way in WAYS {
        let cluster = Cluster::start();
        let store = from_url(&cluster.url("timeout=20s&connect_timeout=20s")).unwrap();
        run(way, async {
            let keys: Vec<String> = (0..64).map(|number| format!("key:{number}")).collect();
            for key in &keys {
                store.set(key, "value".into(), HOUR, prefork_cache::When::Always).await.unwrap();
            }
            cluster.remove(3);
            // Each time another node is asked first.
            for _ in 0..2 * cluster.nodes().len() {
                store.reset();
                store.reconnect().await.unwrap();
                for key in &keys {
                    assert_eq!(store.get(key).await.unwrap().as_deref(), Some(&b"value"[..]), "{way:?}, {key}");
                }
            }
        });
    }
}

/// The same with a fake node, which is always asked first.
#[test]
fn the_topology_of_a_node_that_knows_all_slots_is_used() {
    let whole = node(all_slots, |_, _| bulk("value"));
    for partial in [ranges(&[]), ranges(&[(0, 100, "127.0.0.1", whole)])] {
        let first = node(move |_| partial.clone(), moved);
        for way in WAYS {
            let url = format!("redis+cluster://127.0.0.1:{first},127.0.0.1:{whole}?{PATIENT}");
            let store = from_url(&url).unwrap();
            run(way, async {
                for _ in 0..4 {
                    assert_eq!(store.get("key").await.unwrap().as_deref(), Some(&b"value"[..]), "{way:?}");
                    store.reconnect().await.unwrap();
                }
            });
        }
    }
}

/// A valid topology has no more ranges than slots, and no slot is in two ranges.
#[test]
fn overlapping_ranges_are_refused() {
    let own = |from: i64, to: i64| (from, to, "127.0.0.1", 1);
    let many = vec![own(7, 7); 100_000];
    for slots in
        [ranges(&many), ranges(&[own(0, 9_000), own(9_000, 16_383)]), ranges(&[own(0, 16_383), own(0, 16_383)])]
    {
        let failures = failures(node(move |_| slots.clone(), moved), PATIENT);
        assert_all(&failures, ErrorKind::Protocol, "two nodes have the same slot");
    }
}

/// By the deadline all of them have been dialled or skipped.
#[test]
fn unresponsive_masters_are_dialled_within_one_deadline() {
    const SILENT: u16 = 16;
    let silent: Vec<u16> = (0..SILENT).map(|_| serve(read_on).0).collect();
    let slots = move |_| {
        let share = |(place, port): (usize, &u16)| {
            let first = i64::try_from(place).unwrap() * 1_024;
            (first, first + 1_023, "127.0.0.1", *port)
        };
        ranges(&silent.iter().enumerate().map(share).collect::<Vec<_>>())
    };
    let port = node(slots, moved);
    for way in WAYS {
        for is_clear in [false, true] {
            let store = from_url(&format!("redis+cluster://127.0.0.1:{port}?timeout=3s&connect_timeout=3s")).unwrap();
            let begun = Instant::now();
            let outcome = if is_clear { run(way, store.clear("")) } else { run(way, store.reconnect()) };
            let failure = outcome.unwrap_err();
            assert!(begun.elapsed() < PATIENCE, "{way:?}: waited for one unresponsive node after the other");
            assert!(matches!(failure.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "{failure:#}");
        }
    }
}

/// A call that is redirected updates the table for the next one, and no failover leaves a server or a connection
/// behind.
#[test]
fn a_thousand_failovers() {
    let masters: Arc<OnceLock<[u16; 2]>> = Arc::default();
    let turn = Arc::new(AtomicUsize::new(0));
    let start = || {
        let (known, turn) = (Arc::clone(&masters), Arc::clone(&turn));
        let (also_known, same_turn) = (Arc::clone(&masters), Arc::clone(&turn));
        let slots = move |_| all_slots(known.wait()[turn.load(Ordering::SeqCst) % 2]);
        let answer = move |command: &[String], own: u16| {
            let master = also_known.wait()[same_turn.load(Ordering::SeqCst) % 2];
            if own == master { bulk("value") } else { moved(command, master) }
        };
        node(slots, answer)
    };
    let both = [(); 2].map(|()| start());
    masters.set(both).unwrap();
    for way in WAYS {
        let store = from_url(&format!("redis+cluster://127.0.0.1:{}?{PATIENT}", both[0])).unwrap();
        run(way, async {
            for _ in 0..1_000 {
                turn.fetch_add(1, Ordering::SeqCst);
                assert_eq!(store.get("key").await.unwrap().as_deref(), Some(&b"value"[..]));
            }
        });
        let servers = store.servers();
        assert!(servers.len() <= 2, "{way:?}: {servers:?}");
        let connections = || store.servers().iter().map(|server| server.connections).sum::<usize>();
        until("no connection is left from each failover", || connections() <= 4);
    }
}
