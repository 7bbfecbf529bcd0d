//! Deletes during a load: a value that the loader had read before the delete is not kept.

use std::convert::Infallible;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use prefork_cache::stores::{MemoryStore, from_url};
use prefork_cache::{Cache, Expiry, Loaded, Ttl, When};

use crate::conformance::current_thread;
use support::proxy::{Fault, Proxy};
use support::servers::{Kind, Server, url_of};
use support::wait::until;

const HOUR: Duration = Duration::from_secs(3_600);
const STALE_FOR_AN_HOUR: Expiry = Expiry::after(HOUR).stale_for(HOUR);

/// A cache that loads and one that makes changes meanwhile: the same one, or one that stands for another process.
fn everywhere(test: impl Fn(&Cache, &Cache)) {
    let store = Arc::new(MemoryStore::new());
    let [memory, same] = [(); 2].map(|()| Cache::builder(Arc::clone(&store)).build());
    test(&memory, &memory);
    memory.blocking().clear().unwrap();
    test(&memory, &same);
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let [one, other] = [(); 2].map(|()| Cache::builder(from_url(&server.url("")).unwrap()).build());
        test(&one, &one);
        one.blocking().clear().unwrap();
        test(&one, &other);
    }
}

/// Fetches with a loader that returns 1 after `change` has run.
fn fetch_during(cache: &Cache, change: impl FnOnce()) -> Result<u32, Infallible> {
    let (begun, has_begun) = mpsc::channel();
    let (changed, has_changed) = mpsc::channel();
    std::thread::scope(|scope| {
        let loading = scope.spawn(move || {
            let load = || {
                begun.send(()).unwrap();
                has_changed.recv().unwrap();
                Ok(1)
            };
            cache.blocking().fetch("k", STALE_FOR_AN_HOUR, load)
        });
        has_begun.recv().unwrap();
        change();
        changed.send(()).unwrap();
        loading.join().unwrap()
    })
}

#[test]
fn a_key_deleted_during_its_load_is_not_stored() {
    everywhere(|loading, changing| {
        let changing = changing.blocking();
        assert_eq!(fetch_during(loading, || assert!(!changing.delete("k").unwrap())), Ok(1));
        assert_eq!(changing.get::<u32>("k").unwrap(), None);
        let deleted =
            || changing.delete_many(&["other", "k"]).into_iter().for_each(|deleted| assert!(!deleted.unwrap()));
        assert_eq!(fetch_during(loading, deleted), Ok(1));
        assert_eq!(changing.get::<u32>("k").unwrap(), None);
        assert_eq!(fetch_during(loading, || changing.clear().unwrap()), Ok(1));
        assert_eq!(changing.get::<u32>("k").unwrap(), None);
        assert_eq!(fetch_during(loading, || assert!(!changing.expire("k").unwrap())), Ok(1));
        assert_eq!(changing.get::<u32>("k").unwrap(), None);
        assert_eq!(fetch_during(loading, || ()), Ok(1));
        assert_eq!(changing.get("k").unwrap(), Some(1), "nothing was changed meanwhile");
    });
}

#[test]
fn a_value_stored_during_a_load_stays() {
    everywhere(|loading, changing| {
        let changing = changing.blocking();
        assert_eq!(fetch_during(loading, || changing.set("k", &2, HOUR).unwrap()), Ok(1));
        assert_eq!(changing.get("k").unwrap(), Some(2));
        assert!(changing.expire("k").unwrap());
        assert_eq!(fetch_during(loading, || changing.set("k", &3, HOUR).unwrap()), Ok(1));
        assert_eq!(changing.get("k").unwrap(), Some(3));
        assert!(changing.expire("k").unwrap());
        assert_eq!(fetch_during(loading, || assert!(changing.delete("k").unwrap())), Ok(1));
        assert_eq!(changing.get::<u32>("k").unwrap(), None);
    });
}

/// The second edit comes during the load that follows the first one.
#[test]
fn a_value_expired_again_during_its_refresh_is_still_stale() {
    everywhere(|loading, changing| {
        let changing = changing.blocking();
        changing.set("k", &0, STALE_FOR_AN_HOUR).unwrap();
        assert!(changing.expire("k").unwrap());
        assert_eq!(fetch_during(loading, || assert!(changing.expire("k").unwrap())), Ok(1));
        assert_eq!(changing.get("k").unwrap(), Some(0));
        assert_eq!(changing.fetch("k", STALE_FOR_AN_HOUR, || Ok::<u32, Infallible>(2)), Ok(2));
        assert_eq!(changing.get("k").unwrap(), Some(2));
    });
}

/// A caller after the delete loads again, and does not wait for a value that was read before it.
#[test]
fn a_fetch_after_a_delete_does_not_wait_for_the_earlier_load() {
    everywhere(|loading, changing| {
        let changing = changing.blocking();
        let fetched = fetch_during(loading, || {
            changing.delete("k").unwrap();
            assert_eq!(changing.fetch("k", HOUR, || Ok::<u32, Infallible>(2)), Ok(2));
        });
        assert_eq!(fetched, Ok(1), "the load had begun before the delete");
        assert_eq!(changing.get("k").unwrap(), Some(2));
    });
}

#[test]
fn the_keys_of_a_batch_are_revoked_one_by_one() {
    let cache = Cache::builder(MemoryStore::new()).build();
    let cache = cache.blocking();
    let fetched = cache.fetch_many(&["a", "b"], HOUR, |missing| {
        cache.delete("a").unwrap();
        missing.iter().map(|_| Ok::<u32, Infallible>(1)).collect()
    });
    assert_eq!(fetched, [Ok(1), Ok(1)]);
    assert_eq!((cache.get::<u32>("a").unwrap(), cache.get("b").unwrap()), (None, Some(1)));
}

/// Raw bytes and values of another version are replaced, unless they were changed meanwhile.
#[test]
fn raw_bytes_and_other_versions_are_replaced() {
    everywhere(|loading, changing| {
        changing.blocking().set_raw("k", "bytes", HOUR).unwrap();
        assert_eq!(fetch_during(loading, || ()), Ok(1));
        assert_eq!(changing.blocking().get("k").unwrap(), Some(1));
        changing.version("2").blocking().set("k", &2, HOUR).unwrap();
        assert_eq!(fetch_during(loading, || ()), Ok(1));
        changing.version("2").blocking().set("k", &2, HOUR).unwrap();
        assert_eq!(fetch_during(loading, || changing.blocking().set_raw("k", "changed", HOUR).unwrap()), Ok(1));
        assert_eq!(changing.blocking().get_raw("k").unwrap().as_deref(), Some(&b"changed"[..]));
    });
}

/// A caller creates a record right after another caller has found none.
#[test]
fn a_load_after_one_that_stored_nothing_can_be_revoked() {
    everywhere(|loading, changing| {
        let declined = || Ok::<_, Infallible>(Loaded::uncached(0));
        assert_eq!(changing.blocking().fetch_loaded("k", declined), Ok(0));
        assert_eq!(fetch_during(loading, || assert!(!changing.blocking().delete("k").unwrap())), Ok(1));
        assert_eq!(changing.blocking().get::<u32>("k").unwrap(), None);
        assert_eq!(changing.blocking().fetch_loaded("k", declined), Ok(0));
        assert_eq!(fetch_during(loading, || ()), Ok(1));
        assert_eq!(changing.blocking().get("k").unwrap(), Some(1));
    });
}

/// It is unknown whether the value was stored: a delete comes after it, or finds its lease.
#[test]
fn a_lost_reply_keeps_no_deleted_value() {
    let server = Server::start(Kind::Redis);
    let proxy = Proxy::before(server.port());
    let options = "timeout=300ms&failures=1000";
    let loading = Cache::builder(from_url(&url_of(Kind::Redis, proxy.port(), options)).unwrap()).build();
    let changing = Cache::builder(from_url(&server.url("timeout=20s")).unwrap()).build();
    let fetched = loading.blocking().fetch("k", HOUR, || {
        proxy.plan(|_, piece| if piece.starts_with(b":2") { Fault::Swallow } else { Fault::None });
        Ok::<u32, Infallible>(1)
    });
    assert_eq!(fetched, Ok(1));
    proxy.plan(|_, _| Fault::None);
    assert_eq!(changing.blocking().get("k").unwrap(), Some(1), "the value was stored");
    assert!(changing.blocking().delete("k").unwrap());
    assert_eq!(changing.blocking().get::<u32>("k").unwrap(), None);
}

/// Memcached cannot store a value and end its lease in one operation. A delete that comes between the two waits for the
/// load to settle, at most as long as the server may take to reply, and deletes the stored value.
#[test]
fn a_delete_waits_for_a_load_that_is_settling() {
    const MARK: &str = "k:prefork-lease:prefork-lease";
    let server = Server::start(Kind::Memcached);
    let runtime = current_thread();
    let store = from_url(&server.url("timeout=20s")).unwrap();
    let set = |key, value: &'static str| {
        let hour = Ttl::After(HOUR);
        runtime.block_on(store.set(key, value.into(), hour, When::Always)).unwrap();
    };
    let changing = Cache::builder(from_url(&server.url("timeout=20s")).unwrap()).build();
    let fetched = changing.blocking().fetch_raw("k", HOUR, || {
        set(MARK, "another load's");
        Ok::<_, Infallible>("not stored")
    });
    assert_eq!(fetched.unwrap(), "not stored");
    assert_eq!(changing.blocking().get_raw("k").unwrap(), None, "only one load settles at a time");
    let before = server.gets();
    std::thread::scope(|scope| {
        let deleting = scope.spawn(|| changing.blocking().delete("k"));
        until("the delete reads the mark again", || server.gets() >= before + 3);
        set("k", "stored behind the delete");
        assert!(runtime.block_on(store.delete(MARK)).unwrap());
        assert!(deleting.join().unwrap().unwrap(), "there was something to delete");
    });
    assert_eq!(changing.blocking().get_raw("k").unwrap(), None);
    set(MARK, "never removed");
    set("k", "value");
    let hurried = Cache::builder(from_url(&server.url("timeout=200ms")).unwrap()).build();
    assert!(hurried.blocking().delete("k").unwrap(), "the wait is bounded");
}

/// A lease is on the server of its key, so the operations on both are ordered.
#[test]
fn a_delete_revokes_a_load_on_a_ring_too() {
    let servers = [(); 2].map(|()| Server::start(Kind::Memcached));
    let hosts = servers.each_ref().map(|server| format!("127.0.0.1:{}", server.port())).join(",");
    let process = || Cache::builder(from_url(&format!("memcached://{hosts}?timeout=20s")).unwrap()).build();
    let [loading, changing] = [process(), process()];
    for n in 0..40 {
        let key = format!("k{n}");
        let fetched = loading.blocking().fetch(&key, HOUR, || {
            changing.blocking().delete(&key).unwrap();
            Ok::<u32, Infallible>(1)
        });
        assert_eq!(fetched, Ok(1));
        assert_eq!(changing.blocking().get::<u32>(&key).unwrap(), None, "{key}");
    }
}

/// Also near the end of its lease, and after a second load has begun in the same process.
#[test]
fn a_slow_load_is_revoked() {
    let server = Server::start(Kind::Redis);
    let process = || Cache::builder(from_url(&server.url("")).unwrap()).lease(Duration::from_millis(900)).build();
    let [loading, changing] = [process(), process()];
    assert_eq!(fetch_during(&loading, || assert!(!changing.blocking().delete("k").unwrap())), Ok(1));
    assert_eq!(changing.blocking().get::<u32>("k").unwrap(), None, "a lease of less than a second");
    let memory = Cache::builder(MemoryStore::new()).load_timeout(Duration::from_millis(1)).build();
    let fetched = fetch_during(&memory, || {
        until("a second load may begin", || memory.blocking().fetch("k", HOUR, || Err::<u32, _>("no")) == Err("no"));
        assert!(!memory.blocking().delete("k").unwrap());
    });
    assert_eq!(fetched, Ok(1));
    assert_eq!(memory.blocking().get::<u32>("k").unwrap(), None);
}
