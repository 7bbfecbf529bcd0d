//! Slots that are moved between nodes while they are used: no call fails.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prefork_cache::{Cache, CacheStore, Error, Expiry, Op, Outcome, Ttl, When, stores};

use crate::conformance::{current_thread, multi_thread};
use crate::failures::{WAYS, Way, outside_of_a_runtime};
use support::cluster::Cluster;
use support::wait::SetOnDrop;

const HOUR: Duration = Duration::from_secs(3_600);

/// The hash tags whose slots are moved.
const TAGS: [&str; 4] = ["a", "b", "c", "d"];

/// How often each slot is moved.
const MOVES: usize = 12;

/// Returns a cache, and the errors that it has reported.
pub(super) fn watched(cluster: &Cluster) -> (Cache, Arc<Mutex<Vec<String>>>) {
    let reports = Arc::new(Mutex::new(Vec::new()));
    let reported = Arc::clone(&reports);
    let store = stores::from_url(&cluster.url("timeout=20s&connect_timeout=20s")).unwrap();
    let observe = move |error: &Error| reported.lock().unwrap().push(format!("{error:#}"));
    (Cache::builder(store).on_error(observe).build(), reports)
}

/// Moves every slot from node to node, until `MOVES` rounds are done.
fn move_slots(cluster: &Cluster) {
    let slots = TAGS.map(|tag| cluster.slot(tag));
    for _ in 0..MOVES {
        for slot in slots {
            cluster.move_slot(slot, (cluster.owner_of_slot(slot) + 1) % 3);
        }
    }
}

/// Calls the operations of a cache with the keys of one worker, and checks every result.
async fn use_every_operation(cache: &Cache, worker: usize, round: i64) {
    let expiry = Expiry::after(HOUR);
    for tag in TAGS {
        let key = |name: &str| format!("{{{tag}}}:{worker}:{name}");
        cache.set(&key("set"), &round, expiry).await.unwrap();
        assert_eq!(cache.get(&key("set")).await.unwrap(), Some(round));
        assert_eq!(cache.increment(&key("counter"), 1, expiry).await.unwrap(), round + 1);
        let updated = cache.update(&key("update"), expiry, |held: Option<i64>| Some(held.unwrap_or(0) + 1)).await;
        assert_eq!(updated.unwrap(), Some(round + 1));
        assert!(cache.touch(&key("update"), Expiry::NEVER).await.unwrap());
        cache.append(&key("append"), "x", expiry).await.unwrap();
        let loaded = cache.fetch(&key("fetched"), expiry, async || Ok::<_, Infallible>(round)).await.unwrap();
        assert_eq!(loaded, round, "the entry of the last round was deleted");
        assert_eq!(cache.get(&key("fetched")).await.unwrap(), Some(round), "the loaded value was stored");
        assert!(cache.delete(&key("fetched")).await.unwrap());
        assert_eq!(cache.get::<i64>(&key("fetched")).await.unwrap(), None);
    }
    let keys = TAGS.map(|tag| format!("{{{tag}}}:{worker}:many"));
    let entries: Vec<(&str, i64)> = keys.iter().map(|key| (key.as_str(), round)).collect();
    cache.set_many(&entries, expiry).await.into_iter().for_each(|stored| stored.unwrap());
    let found: Vec<Option<i64>> = cache.get_many(&keys).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(found, [Some(round); TAGS.len()]);
    assert!(cache.delete_many(&keys).await.into_iter().all(|deleted| deleted.unwrap()), "each existed");
}

/// Checks that `work`, which uses a cache, gets and reports no error while slots are moved.
fn no_error_in(work: impl Fn(&Cache, &AtomicBool) -> Vec<i64> + Sync) {
    let cluster = Cluster::without_replicas();
    let (cache, reports) = watched(&cluster);
    let is_done = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let users = scope.spawn(|| work(&cache, &is_done));
        let done = SetOnDrop(&is_done);
        move_slots(&cluster);
        drop(done);
        users.join().unwrap()
    });
    assert!(rounds.iter().all(|rounds| *rounds > 2), "{rounds:?} rounds while slots were moved");
    assert_eq!(*reports.lock().unwrap(), [""; 0]);
    println!("{rounds:?} rounds while {} slots were moved", MOVES * TAGS.len());
}

/// Calls every operation until `is_done`, with the keys of one worker. Returns the number of rounds.
pub(super) async fn use_until(is_done: &AtomicBool, cache: &Cache, worker: usize) -> i64 {
    let mut round = 0;
    while !is_done.load(Ordering::Relaxed) {
        use_every_operation(cache, worker, round).await;
        round += 1;
    }
    round
}

#[test]
fn moving_slots_causes_no_error_in_tokio() {
    no_error_in(|cache, is_done| {
        multi_thread().block_on(async {
            let worker = |worker| use_until(is_done, cache, worker);
            let (first, second, third) = tokio::join!(worker(0), worker(1), worker(2));
            vec![first, second, third]
        })
    });
}

#[test]
fn moving_slots_causes_no_error_for_blocking_callers() {
    no_error_in(|cache, is_done| {
        std::thread::scope(|scope| {
            let work = |worker| scope.spawn(move || outside_of_a_runtime(use_until(is_done, cache, worker)));
            let workers = [0, 1, 2].map(work);
            workers.map(|worker| worker.join().unwrap()).into()
        })
    });
}

/// A delete replaces the lease by a mark first. If the lease has been moved and its key has not, the delete of the key
/// in the same write is executed before the mark is set, and is executed again after it.
#[test]
fn a_delete_that_overtakes_the_mark_is_executed_again() {
    let cluster = Cluster::without_replicas();
    let store = stores::from_url(&cluster.url("timeout=20s&connect_timeout=20s")).unwrap();
    current_thread().block_on(async {
        let (key, lease, hour) = ("{t}", "{t}:prefork-lease", Ttl::After(HOUR));
        store.set(key, "value".into(), hour, When::Always).await.unwrap();
        store.set(lease, "another's".into(), hour, When::Always).await.unwrap();
        let to = (cluster.owner(key) + 1) % 3;
        let mut moved = cluster.start_move(cluster.slot(key), to);
        moved.migrate(&[lease]);
        let mark = Op::Set { key: lease, value: "mark".into(), ttl: hour, when: When::IfPresent };
        let outcomes = store.batch(&[mark, Op::Delete { key }]).await;
        let outcomes: Vec<Outcome> = outcomes.into_iter().map(Result::unwrap).collect();
        assert_eq!(outcomes, [Outcome::Done(true), Outcome::Done(true)], "there was a lease and an entry");
        assert!(cluster.nodes()[to].ask("INFO commandstats").contains("cmdstat_unlink:calls=1,"), "after the mark");
        assert_eq!(store.get(lease).await.unwrap().as_deref(), Some(&b"mark"[..]));
        moved.finish();
        assert_eq!(store.get(key).await.unwrap(), None);
        assert_eq!(store.get(lease).await.unwrap().as_deref(), Some(&b"mark"[..]));
    });
}

/// The settle script needs the key and the lease on one node. While they are on two, its steps are executed one by one.
#[test]
fn a_value_is_stored_while_its_lease_is_on_another_node() {
    let cluster = Cluster::without_replicas();
    for way in WAYS {
        let store = stores::from_url(&cluster.url("timeout=100ms&connect_timeout=20s")).unwrap();
        let cache = Cache::builder(store).on_error(|error| panic!("{error:#}")).build();
        let (key, lease) = (format!("{{t}}:{way:?}"), format!("{{t}}:{way:?}:prefork-lease"));
        cache.blocking().exists(&key).unwrap();
        let to = (cluster.owner(&key) + 1) % 3;
        let mut begun = None;
        let mut load = || {
            let mut moved = cluster.start_move(cluster.slot(&key), to);
            moved.migrate(&[lease.as_str()]);
            begun = Some(moved);
            Ok::<_, Infallible>(7)
        };
        let fetched = match way {
            Way::Blocking => cache.blocking().fetch(&key, HOUR, load),
            Way::Tokio => current_thread().block_on(cache.fetch(&key, HOUR, async move || load())),
        };
        assert_eq!(fetched, Ok(7));
        assert_eq!(cache.blocking().get(&key).unwrap(), Some(7), "{way:?}");
        begun.expect("the loader ran").finish();
        assert_eq!(cache.blocking().get(&key).unwrap(), Some(7), "{way:?}");
    }
}
