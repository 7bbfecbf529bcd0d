//! `clear` while slots are moved to other nodes, and while a master does not respond.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use prefork_cache::stores::from_url;
use prefork_cache::{CacheStore, When};

use super::lies::{HOUR, PATIENT};
use super::run;
use crate::failures::{WAYS, Way, outside_of_a_runtime};
use support::cluster::{Cluster, Move};
use support::proxy::{Fault, Proxy};
use support::servers::Server;
use support::wait::{SetOnDrop, until};

/// A key is moved from a node that is not scanned yet to one that was scanned already, or to a new node that has no
/// slots yet. Either the slot is moved completely, or it is still being moved when the clear ends.
#[test]
fn a_key_that_is_moved_behind_the_scan_is_removed() {
    let mut cluster = Cluster::without_replicas();
    let new = cluster.add_master();
    // The last one to be dialled.
    let from = 2;
    let proxy = Proxy::before(cluster.nodes()[from].port());
    cluster.announce(from, proxy.port());
    let mut tags = (0..).map(|number: u32| number.to_string()).filter(|tag| cluster.owner(tag) == from);
    let mut check = |case: &str| {
        for (way, to, is_finished) in
            [(Way::Blocking, 0, false), (Way::Blocking, new, true), (Way::Tokio, new, false), (Way::Tokio, 0, true)]
        {
            let tag = tags.next().unwrap();
            let store = from_url(&cluster.url_with_seeds(&[cluster.nodes()[0].port()], PATIENT)).unwrap();
            let keys = ["cleared:a", "cleared:b", "kept"].map(|name| format!("{name}{{{tag}}}"));
            let keys = keys.each_ref().map(String::as_str);
            for key in keys {
                run(way, store.set(key, "value".into(), HOUR, When::Always)).unwrap();
            }
            store.reset();
            let scanned = count_scans(&cluster.nodes()[0]);
            let mut moved = Some(cluster.start_move(cluster.slot(&tag), to));
            proxy.plan(|_, _| Fault::Hold);
            thread::scope(|scope| {
                let clearing = scope.spawn(|| run(way, store.clear("cleared:")));
                proxy.wait_until_held(1);
                until("the first node is scanned", || count_scans(&cluster.nodes()[0]) != scanned);
                moved.as_mut().unwrap().migrate(&keys);
                moved.take_if(|_| is_finished).into_iter().for_each(Move::finish);
                proxy.release();
                clearing.join().unwrap().unwrap();
            });
            moved.into_iter().for_each(Move::finish);
            let found = run(way, store.get_many(&keys));
            let found: Vec<bool> = found.into_iter().map(|found| found.unwrap().is_some()).collect();
            assert_eq!(found, [false, false, true], "{case}, {way:?}, moved to {to}, finished: {is_finished}");
        }
    };
    check("any account");
    for node in cluster.nodes() {
        assert!(node.ask("ACL SETUSER default -cluster|nodes").starts_with("+OK"));
    }
    check("an account that may not use CLUSTER NODES");
}

fn count_scans(node: &Server) -> Option<String> {
    let statistics = node.ask("INFO commandstats");
    statistics.lines().find(|line| line.starts_with("cmdstat_scan:")).map(str::to_owned)
}

/// Slots are moved from node to node all the time. Each clear removes what was stored before it, and no clear fails.
#[test]
fn clearing_while_slots_are_moved() {
    let cluster = Cluster::without_replicas();
    let is_done = AtomicBool::new(false);
    let slots = ["a", "b", "c", "d"].map(|tag| cluster.slot(tag));
    let work = |way: Way| {
        // A key that was moved after it was listed is removed over the connection that lists its new node.
        let store = from_url(&cluster.url(&format!("{PATIENT}&pool_size=1"))).unwrap();
        let keys: Vec<String> =
            (0..200).map(|number| format!("{way:?}:{{{}}}:{number}", ["a", "b", "c", "d"][number % 4])).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let entries: Vec<_> = keys.iter().map(|key| (*key, "value".into())).collect();
        let mut rounds = 0;
        while !is_done.load(Ordering::Relaxed) {
            run(way, async {
                store.set_many(&entries, HOUR).await.into_iter().for_each(|stored| stored.unwrap());
                store.clear(&format!("{way:?}:")).await.unwrap();
                let left: Vec<_> = keys
                    .iter()
                    .zip(store.get_many(&keys).await)
                    .filter(|(_, found)| found.as_ref().unwrap().is_some())
                    .collect();
                assert!(
                    left.is_empty(),
                    "{way:?}: {} keys are left after round {rounds}, such as {}",
                    left.len(),
                    left[0].0
                );
            });
            rounds += 1;
        }
        rounds
    };
    thread::scope(|scope| {
        let workers = WAYS.map(|way| scope.spawn(move || work(way)));
        let done = SetOnDrop(&is_done);
        for _ in 0..12 {
            for slot in slots {
                cluster.move_slot(slot, (cluster.owner_of_slot(slot) + 1) % 3);
            }
        }
        drop(done);
        let rounds = workers.map(|worker| worker.join().unwrap());
        assert!(rounds.iter().all(|rounds| *rounds > 2), "{rounds:?} rounds while slots were moved");
    });
}

/// The one that does not respond is asked for the topology first, or is not.
#[test]
fn an_unresponsive_master_does_not_keep_the_others_from_being_used() {
    let cluster = Cluster::without_replicas();
    for node in cluster.nodes() {
        // Otherwise the others refuse all commands while one does not respond.
        assert!(node.ask("CONFIG SET cluster-require-full-coverage no").starts_with("+OK"));
    }
    let seeds: Vec<u16> = cluster.nodes().iter().map(Server::port).collect();
    let store = || from_url(&cluster.url_with_seeds(&seeds, "timeout=500ms&connect_timeout=500ms")).unwrap();
    let keys: Vec<String> = (0..100).map(|number| format!("key:{number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let entries: Vec<_> = keys.iter().map(|key| (*key, "value".into())).collect();
    let owners = cluster.owners(&keys);
    for silent in [0, 1] {
        let connected = store();
        outside_of_a_runtime(connected.set_many(&entries, HOUR)).into_iter().for_each(|stored| stored.unwrap());
        cluster.nodes()[silent].pause();
        let port = cluster.nodes()[silent].port().to_string();
        for way in WAYS {
            for (key, (found, owner)) in keys.iter().zip(run(way, store().get_many(&keys)).into_iter().zip(&owners)) {
                match found {
                    Ok(found) => assert!(found.is_some() && *owner != silent, "{way:?}, {silent} is silent: {key}"),
                    Err(error) => assert_eq!(*owner, silent, "{way:?}, {key}: {error:#}"),
                }
            }
        }
        for (way, store) in [(Way::Blocking, connected), (Way::Blocking, store()), (Way::Tokio, store())] {
            for (node, server) in cluster.nodes().iter().enumerate().filter(|(node, _)| *node != silent) {
                let key = keys[owners.iter().position(|owner| *owner == node).unwrap()];
                assert!(server.ask(&format!("SET {key} value")).starts_with("+OK"));
            }
            let error = run(way, store.clear("")).unwrap_err();
            assert!(error.to_string().contains(&port), "{way:?}, {silent} is silent: {error:#}");
            let left = cluster.nodes().iter().enumerate().filter(|(node, _)| *node != silent);
            for (node, server) in left {
                assert!(
                    server.ask("DBSIZE").starts_with(":0\r\n"),
                    "{way:?}, {silent} is silent: {node} is not cleared"
                );
            }
        }
        cluster.nodes()[silent].resume();
        cluster.wait_until_healthy();
    }
}
