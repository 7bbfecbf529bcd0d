//! Leases: none is left behind, and no caller waits for one unnecessarily. Two stores on one server stand for two
//! processes.

use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use prefork_cache::stores::{MemoryStore, from_url};
use prefork_cache::{Cache, CacheStore, ErrorKind, Expiry, Loaded};

use crate::conformance::current_thread;
use crate::staleness::until_it_holds;
use support::proxy::Proxy;
use support::servers::{Kind, Server, url_of};
use support::wait::until;

/// With a hash tag, so that the lease's key needs no computed tag.
const KEY: &str = "{k}";
const LEASE: &str = "{k}:prefork-lease";

const HOUR: Duration = Duration::from_secs(3_600);

fn shared(server: &Server) -> (Arc<dyn CacheStore>, impl Fn() -> Cache) {
    let url = server.url("timeout=20s&connect_timeout=20s");
    let store = from_url(&url).unwrap();
    (store, move || Cache::builder(from_url(&url).unwrap()).lease(HOUR).load_timeout(HOUR).build())
}

/// Outside a runtime a store's future is ready at its first poll.
fn is_leased(store: &dyn CacheStore) -> bool {
    let mut found = pin!(store.get(LEASE));
    match found.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        // A mark records that the lease has ended and that nothing was stored.
        Poll::Ready(found) => found.unwrap().is_some_and(|lease| lease != "nothing stored"),
        Poll::Pending => panic!("a store of this crate does not suspend without a runtime"),
    }
}

#[test]
fn a_lease_lasts_as_long_as_the_load() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let (store, process) = shared(&server);
        let cache = process();
        let cache = cache.blocking();
        let loads = |value: u32| {
            assert!(is_leased(&store));
            Ok::<_, &str>(value)
        };
        assert_eq!(cache.fetch(KEY, HOUR, || loads(1)), Ok(1));
        assert!(!is_leased(&store));
        assert!(cache.expire(KEY).unwrap());
        assert_eq!(cache.fetch(KEY, HOUR, || loads(2)), Ok(2));
        assert!(!is_leased(&store));
        assert!(cache.delete(KEY).unwrap());
        assert_eq!(cache.fetch(KEY, HOUR, || Err::<u32, _>("no")), Err("no"));
        assert!(!is_leased(&store));
        let panics = || -> Result<u32, Infallible> { panic!("as planned") };
        catch_unwind(AssertUnwindSafe(|| cache.fetch(KEY, HOUR, panics))).unwrap_err();
        assert!(!is_leased(&store));
    }
}

/// Otherwise a user's key could keep all processes from loading another key.
#[test]
fn a_lease_key_cannot_be_used_by_callers() {
    let cache = Cache::builder(MemoryStore::new()).build();
    for (cache, key) in
        [(cache.clone(), "user:bob:prefork-lease"), (cache.namespace("user").namespace("bob"), "prefork-lease")]
    {
        let refused = cache.blocking().set_raw(key, "bob's", HOUR).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidKey);
        assert!(cache.blocking().get_many_raw(&[key])[0].is_err());
        assert_eq!(cache.blocking().fetch(key, HOUR, || Ok::<u32, Infallible>(1)), Ok(1), "not cached");
    }
}

/// A process that has waited for such a load then loads without a lease, so that all waiting processes load at the same
/// time: each would find out for itself that nothing is to be stored.
#[test]
fn after_a_load_that_stores_nothing_waiters_load_at_once() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let (_, process) = shared(&server);
        let [first, second, third] = [(); 3].map(|()| process());
        let (begun, has_begun) = mpsc::channel();
        let (release, released) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (begun, released) = (begun, released);
                let load = || {
                    begun.send(()).unwrap();
                    released.recv().unwrap();
                    Ok::<_, Infallible>(Loaded::uncached(1))
                };
                assert_eq!(first.blocking().fetch_loaded(KEY, load), Ok(1));
            });
            has_begun.recv().unwrap();
            let before = server.gets();
            let waiting = scope.spawn(|| {
                let load = || {
                    // It would wait for an hour if the second process had a lease.
                    let inner = third.blocking().fetch_loaded(KEY, || Ok::<_, Infallible>(Loaded::uncached(3)));
                    assert_eq!(inner, Ok(3));
                    Ok::<_, Infallible>(Loaded::uncached(2))
                };
                second.blocking().fetch_loaded(KEY, load)
            });
            // The first read, one read of the lease and one of the value, and the last two again.
            until("the second process waits", || server.gets() >= before + 5);
            release.send(()).unwrap();
            assert_eq!(waiting.join().unwrap(), Ok(2));
        });
    }
}

/// The store has granted the lease, and the reply was lost.
#[test]
fn a_lease_whose_reply_was_lost_is_released() {
    let server = Server::start(Kind::Redis);
    let proxy = Proxy::before(server.port());
    let url = url_of(Kind::Redis, proxy.port(), "timeout=300ms&failures=1000");
    let cache = Cache::builder(from_url(&url).unwrap()).lease(HOUR).build();
    let (store, _) = shared(&server);
    assert_eq!(cache.blocking().get::<u32>(KEY).unwrap(), None, "the cache has a connection");
    let fetched = std::thread::scope(|scope| {
        // The reply to the script that takes the lease.
        proxy.hold_replies_with(":1\r\n");
        let fetching = scope.spawn(|| {
            cache.blocking().fetch(KEY, HOUR, || {
                assert!(is_leased(&store), "the lease was granted");
                proxy.release();
                Ok::<u32, Infallible>(1)
            })
        });
        fetching.join().unwrap()
    });
    assert_eq!(fetched, Ok(1));
    assert!(!is_leased(&store));
    assert_eq!(cache.blocking().get::<u32>(KEY).unwrap(), None, "after a lost reply nothing is written");
}

/// The value's own server is up, so the value is stored, although another process could load it at the same time.
#[test]
fn without_a_lease_the_value_is_still_stored() {
    let mut servers = [(); 2].map(|()| Server::start(Kind::Memcached));
    let hosts = servers.each_ref().map(|server| format!("127.0.0.1:{}", server.port())).join(",");
    let url = format!("memcached://{hosts}?failover=false&timeout=20s&connect_timeout=20s");
    let cache = Cache::builder(from_url(&url).unwrap()).build();
    let cache = cache.blocking();
    servers[0].kill();
    let keys: Vec<String> = (0..40).map(|n| format!("k{n}")).collect();
    let reachable: Vec<&String> = keys.iter().filter(|key| cache.get::<u32>(key).is_ok()).collect();
    assert!((1..40).contains(&reachable.len()), "{} of 40 keys", reachable.len());
    for key in reachable {
        assert_eq!(cache.fetch(key, HOUR, || Ok::<u32, Infallible>(1)), Ok(1));
        assert_eq!(cache.get(key).unwrap(), Some(1), "{key}");
    }
}

/// On an executor other than tokio, in the blocking loader's own thread: nothing else could end the wait.
#[test]
fn a_blocking_loader_does_not_wait_for_itself_asynchronously() {
    let cache = Cache::builder(MemoryStore::new()).fetch_wait(HOUR).lease(HOUR).build();
    let inner = || {
        let mut fetch = pin!(cache.fetch(KEY, HOUR, async || Ok::<u32, Infallible>(1)));
        match fetch.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(fetched) => fetched,
            Poll::Pending => panic!("the fetch waits for itself"),
        }
    };
    assert_eq!(cache.blocking().fetch(KEY, HOUR, || inner().map(|value| value + 1)), Ok(2));
}

/// Other processes do the same once the lease has ended.
#[test]
fn a_load_that_hangs_is_started_again() {
    let server = Server::start(Kind::Redis);
    for store in [Arc::new(MemoryStore::new()) as Arc<dyn CacheStore>, from_url(&server.url("")).unwrap()] {
        let cache =
            Cache::builder(store).lease(Duration::from_millis(50)).load_timeout(Duration::from_millis(50)).build();
        let stale = Expiry::after(HOUR).stale_for(HOUR);
        current_thread().block_on(async {
            let hanging = async || std::future::pending::<Result<u32, Infallible>>().await;
            cache.set(KEY, &1, stale).await.unwrap();
            cache.expire(KEY).await.unwrap();
            assert_eq!(cache.fetch_detached(KEY, stale, hanging).await, Ok(1));
            until_it_has_begun(&cache, 1).await;
            until("the value is loaded again", || {
                cache.blocking().fetch(KEY, stale, || Ok::<u32, Infallible>(2)) == Ok(2)
            });
            let hangs = tokio::spawn({
                let cache = cache.clone();
                async move { cache.fetch_detached("other", stale, hanging).await }
            });
            until_it_has_begun(&cache, 3).await;
            until("the missing value is loaded", || {
                let cache = Cache::clone(&cache);
                std::thread::spawn(move || cache.blocking().fetch("other", stale, || Ok::<u32, Infallible>(3)))
                    .join()
                    .unwrap()
                    == Ok(3)
            });
            hangs.abort();
        });
    }
}

async fn until_it_has_begun(cache: &Cache, loads: u64) {
    until_it_holds("the load has begun", || cache.stats().loads == loads).await;
}

/// No caller would see the panic, and the next refresh would panic at once.
#[test]
fn a_detached_refresh_that_panics_is_a_failure() {
    let cache = Cache::builder(MemoryStore::new()).build();
    let stale = Expiry::after(HOUR).stale_for(HOUR);
    current_thread().block_on(async {
        cache.set(KEY, &1, stale).await.unwrap();
        cache.expire(KEY).await.unwrap();
        let fetch = || cache.fetch_detached(KEY, stale, async || -> Result<u32, Infallible> { panic!("as planned") });
        assert_eq!(fetch().await, Ok(1));
        until_it_holds("the load has failed", || cache.stats().failed_loads > 0).await;
        for _ in 0..10 {
            assert_eq!(fetch().await, Ok(1));
            tokio::task::yield_now().await;
        }
        assert_eq!((cache.stats().loads, cache.stats().failed_loads), (1, 1), "the next load is put off");
    });
}

/// Stale values whose refresh has failed are not loaded again for a while, each on its own.
#[test]
fn failed_refreshes_of_a_batch_are_put_off() {
    let cache = Cache::builder(MemoryStore::new()).build();
    let cache = cache.blocking();
    let stale = Expiry::after(HOUR).stale_for(HOUR);
    for key in ["a", "b"] {
        cache.set(key, &1, stale).unwrap();
        cache.expire(key).unwrap();
    }
    let fetched = cache.fetch_many(&["a", "b"], stale, |_| vec![Err("no"), Ok(2)]);
    assert_eq!(fetched, [Ok(1), Ok(2)]);
    let none = |_: &[&str]| -> Vec<Result<u32, &str>> { panic!("nothing is to be loaded") };
    assert_eq!(cache.fetch_many(&["a", "b"], stale, none), [Ok(1), Ok(2)]);
}
