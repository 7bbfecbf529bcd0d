//! Nodes that join and leave a cluster.

use bytes::Bytes;
use prefork_cache::CacheStore;
use prefork_cache::stores::from_url;

use super::lies::{HOUR, PATIENT};
use super::run;
use crate::failures::WAYS;
use support::cluster::Cluster;

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
