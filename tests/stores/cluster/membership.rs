//! Nodes that join and leave a cluster.

use std::sync::atomic::AtomicBool;
use std::thread;

use bytes::Bytes;
use prefork_cache::stores::{RedisStore, from_url};
use prefork_cache::{CacheStore, When};

use super::lies::{HOUR, PATIENT};
use super::moves::{use_until, watched};
use super::run;
use crate::failures::{WAYS, Way};
use support::cluster::Cluster;
use support::wait::{SetOnDrop, until};

/// A store that was not used in the meantime knows an outdated topology. The node that has left answers `CLUSTERDOWN`.
#[test]
fn a_node_that_has_left_is_not_believed() {
    let cluster = Cluster::without_replicas();
    let stores = WAYS.map(|way| (way, [0, 1].map(|_| from_url(&cluster.url(PATIENT)).unwrap())));
    let keys: Vec<String> = (0..64).map(|number| format!("key:{number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let entries: Vec<_> = keys.iter().map(|key| (*key, Bytes::from((*key).to_owned()))).collect();
    for (way, stores) in &stores {
        for store in stores {
            run(*way, store.set_many(&entries, HOUR)).into_iter().for_each(|stored| stored.unwrap());
        }
    }
    let left = cluster.owners(&keys).iter().position(|owner| *owner == 0).unwrap();
    cluster.move_all_slots(0, 1);
    cluster.remove(0);
    for (way, [one, many]) in stores {
        assert_eq!(run(way, one.get(keys[left])).unwrap().unwrap(), keys[left], "{way:?}");
        for (key, found) in keys.iter().zip(run(way, many.get_many(&keys))) {
            assert_eq!(found.unwrap().unwrap(), *key, "{way:?}");
        }
    }
}

/// A replica that has left refuses all reads, and the master serves them. The topology is read again, so that not every
/// read has to be sent twice.
#[test]
fn a_replica_that_has_left_is_not_read_any_more() {
    let cluster = Cluster::start();
    let key = (0..).map(|number| format!("key:{number}")).find(|key| cluster.owner(key) == 0).unwrap();
    let stores = WAYS.map(|way| (way, RedisStore::new(&cluster.url(&format!("{PATIENT}&replicas=prefer"))).unwrap()));
    for (way, store) in &stores {
        run(*way, store.set(&key, "value".into(), HOUR, When::Always)).unwrap();
        until("the replica has the entry", || run(*way, store.get(&key)).unwrap().is_some());
    }
    cluster.remove(3);
    let left = format!("127.0.0.1:{}", cluster.nodes()[3].port());
    for (way, store) in &stores {
        until("the replica is not listed any more", || {
            assert_eq!(run(*way, store.get(&key)).unwrap().unwrap(), "value", "{way:?}");
            store.servers().iter().all(|server| server.address != left)
        });
    }
}

/// A cluster of three nodes grows to four and shrinks to one, while it is used. The node of the URL leaves first.
#[test]
fn a_cluster_that_grows_and_shrinks_causes_no_error() {
    let mut cluster = Cluster::without_replicas();
    let (cache, reports) = watched(&cluster);
    let is_done = AtomicBool::new(false);
    let rounds = thread::scope(|scope| {
        let (cache, is_done) = (&cache, &is_done);
        let use_by = |way: Way| scope.spawn(move || run(way, use_until(is_done, cache, way as usize)));
        let users = WAYS.map(use_by);
        let done = SetOnDrop(is_done);
        let new = cluster.add_master();
        for leaving in 0..new {
            cluster.move_all_slots(leaving, new);
            cluster.remove(leaving);
            cluster.kill(leaving);
        }
        drop(done);
        users.map(|user| user.join().unwrap())
    });
    assert!(rounds.iter().all(|rounds| *rounds > 2), "{rounds:?} rounds while nodes joined and left");
    assert_eq!(*reports.lock().unwrap(), [""; 0]);
}

/// A node comes back at its address as another one, without its slots and its entries. The others work all the time,
/// and its slots do once they are assigned again.
#[test]
fn a_node_that_comes_back_as_another_one() {
    let cluster = Cluster::with(&["--cluster-require-full-coverage", "no"]);
    let keys: Vec<String> = (0..64).map(|number| format!("key:{number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let owners = cluster.owners(&keys);
    let entries: Vec<_> = keys.iter().map(|key| (*key, Bytes::from((*key).to_owned()))).collect();
    let stores = WAYS.map(|way| (way, from_url(&cluster.url(PATIENT)).unwrap()));
    for (way, store) in &stores {
        run(*way, store.set_many(&entries, HOUR)).into_iter().for_each(|stored| stored.unwrap());
    }
    cluster.replace(0);
    for (way, store) in &stores {
        for ((key, owner), found) in keys.iter().zip(&owners).zip(run(*way, store.get_many(&keys))) {
            match (owner, found) {
                (0, found) => assert!(found.unwrap_err().is_transient(), "{way:?}, {key}"),
                (_, found) => assert_eq!(found.unwrap().unwrap(), *key, "{way:?}"),
            }
        }
    }
    cluster.assign(0, 0, 5_460);
    for (way, store) in &stores {
        for ((key, owner), found) in keys.iter().zip(&owners).zip(run(*way, store.get_many(&keys))) {
            assert_eq!(found.unwrap().is_some(), *owner != 0, "{way:?}, {key}");
        }
    }
}
