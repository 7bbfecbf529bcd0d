//! Replicas that are promoted in the middle of large batches. `STRESS=1` makes them larger.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use prefork_cache::stores::from_url;
use prefork_cache::{CacheStore, Error};

use super::lies::HOUR;
use super::run;
use crate::failures::{WAYS, Way};
use support::cluster::Cluster;
use support::stress::count;
use support::wait::{SetOnDrop, until};

/// The number of keys that are cleared in each round.
const CLEARED: usize = 1_000;

/// Writes, reads, deletes and clears many keys, round after round. A value that is read is the one that was written to
/// that key. `lost` is called for a key whose change was lost.
fn use_batches(
    url: &str,
    way: Way,
    rounds: &AtomicUsize,
    goes_on: impl Fn() -> bool,
    failed: impl Fn(&Error),
    lost: impl Fn(&str),
) {
    let store = from_url(url).unwrap();
    let keys: Vec<String> = (0..count(6_000, 50_000)).map(|number| format!("{way:?}:{number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    while goes_on() {
        let round = rounds.fetch_add(1, Ordering::SeqCst);
        let value = |key: &str| format!("{key} in round {round}");
        let entries: Vec<_> = keys.iter().map(|key| (*key, value(key).into())).collect();
        run(way, async {
            let stored = store.set_many(&entries, HOUR).await;
            let found = store.get_many(&keys).await;
            let deleted = store.delete_many(&keys).await;
            for (((key, stored), found), deleted) in keys.iter().zip(stored).zip(found).zip(deleted) {
                let is_stored = stored.inspect_err(&failed).is_ok();
                match found.inspect_err(&failed) {
                    Ok(Some(found)) if is_stored => assert_eq!(found, value(key), "{way:?}, {key}"),
                    Ok(Some(found)) => assert!(found.starts_with(format!("{key} in round ").as_bytes()), "{found:?}"),
                    Ok(None) if is_stored => lost(key),
                    Ok(None) | Err(_) => {}
                }
                if !deleted.inspect_err(&failed).unwrap_or(true) && is_stored {
                    lost(key);
                }
            }
            store
                .set_many(&entries[..CLEARED], HOUR)
                .await
                .into_iter()
                .for_each(|stored| drop(stored.inspect_err(&failed)));
            let is_cleared = store.clear(&format!("{way:?}:")).await.inspect_err(&failed).is_ok();
            for (key, found) in keys[..CLEARED].iter().zip(store.get_many(&keys[..CLEARED]).await) {
                if is_cleared && found.inspect_err(&failed).is_ok_and(|found| found.is_some()) {
                    lost(key);
                }
            }
        });
    }
}

/// `CLUSTER FAILOVER` on a replica loses nothing and causes no error, for reads and for changes.
#[test]
fn a_requested_failover_causes_no_error() {
    let cluster = Cluster::start();
    let url = cluster.url("timeout=10s&connect_timeout=10s");
    let is_done = AtomicBool::new(false);
    let rounds = WAYS.map(|_| AtomicUsize::new(0));
    thread::scope(|scope| {
        for (way, rounds) in WAYS.into_iter().zip(&rounds) {
            let goes_on = || !is_done.load(Ordering::Relaxed);
            let failed = move |error: &Error| panic!("{way:?}: {error:#}");
            let lost = move |key: &str| panic!("{way:?}: {key} is lost");
            let url = url.as_str();
            scope.spawn(move || use_batches(url, way, rounds, goes_on, failed, lost));
        }
        let _done = SetOnDrop(&is_done);
        for shard in [0, 1, 0] {
            let before = rounds.each_ref().map(|rounds| rounds.load(Ordering::SeqCst));
            let is_replica = cluster.nodes()[shard].ask("ROLE").contains("slave");
            cluster.promote(if is_replica { shard } else { shard + 3 });
            let has_begun = |(rounds, before): (&AtomicUsize, usize)| rounds.load(Ordering::SeqCst) > before;
            until("both have begun another round", || rounds.iter().zip(before).all(has_begun));
        }
    });
}

/// Calls fail until a replica has replaced the master, and each error names a node. What the master has not replicated
/// is lost.
#[test]
fn a_master_that_crashes_in_a_batch() {
    let mut cluster = Cluster::start();
    let is_killed = AtomicBool::new(false);
    let rounds = WAYS.map(|_| AtomicUsize::new(0));
    // The rounds that had begun when the cluster was healthy again.
    let begun = WAYS.map(|_| AtomicUsize::new(usize::MAX));
    let ports: Vec<String> = cluster.nodes().iter().map(|node| format!(":{}", node.port())).collect();
    let url = cluster.url("timeout=10s&connect_timeout=10s");
    thread::scope(|scope| {
        for (way, (rounds, begun)) in WAYS.into_iter().zip(rounds.iter().zip(&begun)) {
            let recovered = move || rounds.load(Ordering::SeqCst) > begun.load(Ordering::SeqCst);
            let goes_on = move || rounds.load(Ordering::SeqCst).saturating_sub(1) <= begun.load(Ordering::SeqCst);
            let (ports, is_killed, url) = (&ports, &is_killed, url.as_str());
            let failed = move |error: &Error| {
                let text = error.to_string();
                assert!(is_killed.load(Ordering::SeqCst), "{way:?}, before the crash: {error:#}");
                assert!(!recovered(), "{way:?}, after the failover: {error:#}");
                assert!(error.is_transient(), "{way:?}: {error:#}");
                assert!(ports.iter().any(|port| text.contains(port)), "{way:?}: {error:#}");
            };
            let lost = move |key: &str| assert!(is_killed.load(Ordering::SeqCst) && !recovered(), "{way:?}: {key}");
            scope.spawn(move || use_batches(url, way, rounds, goes_on, failed, lost));
        }
        until("both have begun", || rounds.iter().all(|rounds| rounds.load(Ordering::SeqCst) > 1));
        is_killed.store(true, Ordering::SeqCst);
        cluster.kill(0);
        cluster.wait_until_healthy();
        for (rounds, begun) in rounds.iter().zip(&begun) {
            begun.store(rounds.load(Ordering::SeqCst), Ordering::SeqCst);
        }
    });
}
