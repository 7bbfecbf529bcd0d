//! Fresh, refresh-ahead and stale values: reads and fetches of them, on every store.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use prefork_cache::stores::{MemoryStore, TieredStore, from_url};
use prefork_cache::{Blocking, Cache, ErrorKind, Expiry, Loaded};

use crate::cache::everywhere;
use crate::conformance::current_thread;
use support::servers::{Kind, Server};
use support::wait::until;

pub(crate) const HOUR: Duration = Duration::from_secs(3_600);
pub(crate) const STALE_FOR_AN_HOUR: Expiry = Expiry::after(HOUR).stale_for(HOUR);
/// Due for a refresh a millisecond after it was stored.
pub(crate) const ALWAYS_AHEAD: Expiry = Expiry::after(HOUR).refresh_ahead(Duration::from_millis(3_599_999));

fn loads(value: u32) -> impl FnOnce() -> Result<u32, Infallible> {
    move || Ok(value)
}

fn fails() -> Result<u32, &'static str> {
    Err("no")
}

/// Stores a value and makes it stale.
pub(crate) fn make_stale(cache: Blocking<'_>, key: &str, value: u32) {
    cache.set(key, &value, STALE_FOR_AN_HOUR).unwrap();
    assert!(cache.expire(key).unwrap());
}

#[test]
fn an_expired_value_is_read_and_the_next_fetch_loads_it() {
    everywhere(|cache| {
        let cache = cache.blocking();
        for expiry in [Expiry::after(HOUR), STALE_FOR_AN_HOUR, Expiry::NEVER] {
            cache.set("k", &1, expiry).unwrap();
            let before = cache.stats();
            assert!(cache.expire("k").unwrap());
            assert!(cache.expire("k").unwrap(), "the value is stored, and stale already");
            assert_eq!(cache.get("k").unwrap(), Some(1));
            let found: Vec<Option<u32>> = cache.get_many(&["k"]).into_iter().map(Result::unwrap).collect();
            assert_eq!(found, [Some(1)]);
            assert!(cache.exists("k").unwrap());
            assert_eq!(cache.stats().stale, before.stale + 2, "of two reads");
            assert_eq!(cache.fetch("k", expiry, loads(2)), Ok(2));
            assert_eq!(cache.get("k").unwrap(), Some(2));
            assert_eq!(cache.fetch("k", expiry, loads(3)), Ok(2), "the value is fresh again");
            assert_eq!(cache.stats().stale, before.stale + 3, "of two reads and a fetch");
        }
    });
}

#[test]
fn raw_bytes_and_counters_cannot_be_made_stale() {
    everywhere(|cache| {
        let cache = cache.blocking();
        assert!(!cache.expire("nothing").unwrap());
        cache.set_raw("bytes", "bytes", HOUR).unwrap();
        cache.increment("counter", 1, HOUR).unwrap();
        assert!(!cache.expire("bytes").unwrap());
        assert!(!cache.expire("counter").unwrap());
        assert_eq!(cache.get_raw("bytes").unwrap().as_deref(), Some(&b"bytes"[..]));
        assert_eq!(cache.counter("counter").unwrap(), Some(1));
    });
}

#[test]
fn a_value_becomes_stale_and_then_expires() {
    everywhere(|cache| {
        let cache = cache.blocking();
        let brief = Duration::from_millis(50);
        cache.set("k", &1, Expiry::after(brief).stale_for(HOUR)).unwrap();
        until("the value is stale", || {
            assert_eq!(cache.get("k").unwrap(), Some(1));
            cache.stats().stale > 0
        });
        cache.set("k", &2, Expiry::after(brief).stale_for(brief)).unwrap();
        until("the value has expired", || cache.get::<u32>("k").unwrap().is_none());
        assert_eq!(cache.fetch("k", HOUR, loads(3)), Ok(3));
    });
}

/// The old value is returned, and the loader is not called again for a while.
#[test]
fn a_failed_load_keeps_the_stale_value() {
    everywhere(|cache| {
        let cache = cache.blocking();
        make_stale(cache, "k", 1);
        let before = cache.stats();
        assert_eq!(cache.fetch("k", STALE_FOR_AN_HOUR, fails), Ok(1));
        assert_eq!(
            cache.fetch("k", STALE_FOR_AN_HOUR, || panic!("not called again for five seconds")),
            Ok::<u32, &str>(1)
        );
        let stats = cache.stats();
        assert_eq!((stats.loads - before.loads, stats.failed_loads - before.failed_loads), (1, 1));
        assert_eq!(stats.errors, before.errors);
    });
}

#[test]
fn a_failed_load_is_tried_again_after_the_pause() {
    let server = Server::start(Kind::Redis);
    let builder = || Cache::builder(from_url(&server.url("")).unwrap());
    let reported = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&reported);
    let report = move |error: &prefork_cache::Error| log.lock().unwrap().push((error.kind(), error.to_string()));
    let impatient = builder().load_retry_delay(Duration::ZERO).on_error(report).build();
    make_stale(impatient.blocking(), "k", 1);
    assert_eq!(impatient.blocking().fetch("k", HOUR, fails), Ok(1));
    assert_eq!(impatient.blocking().fetch("k", HOUR, fails), Ok(1));
    assert_eq!(impatient.stats().failed_loads, 2);
    let text = "loading \"k\" again failed: the value that was there goes on serving";
    assert_eq!(*reported.lock().unwrap(), vec![(ErrorKind::Loader, text.to_owned()); 2]);
    let patient = builder().load_retry_delay(Duration::from_millis(20)).build();
    assert_eq!(patient.blocking().fetch("k", HOUR, fails), Ok(1));
    until("the loader is tried again", || patient.blocking().fetch("k", HOUR, loads(2)) == Ok(2));
}

/// Without an old value the caller gets the error.
#[test]
fn without_an_old_value_a_failed_load_is_an_error() {
    everywhere(|cache| {
        let cache = cache.blocking();
        assert_eq!(cache.fetch("k", STALE_FOR_AN_HOUR, fails), Err("no"));
        make_stale(cache, "k", 1);
        assert!(cache.delete("k").unwrap());
        assert_eq!(cache.fetch("k", STALE_FOR_AN_HOUR, fails), Err("no"));
    });
}

#[test]
fn one_caller_refreshes_ahead_and_the_others_get_the_current_value() {
    everywhere(|cache| {
        cache.blocking().set("k", &0, ALWAYS_AHEAD).unwrap();
        // Waits until the value is a millisecond old.
        until("the value is due for a refresh", || cache.blocking().fetch("k", STALE_FOR_AN_HOUR, loads(1)) == Ok(1));
        for expiry in [ALWAYS_AHEAD, STALE_FOR_AN_HOUR] {
            cache.blocking().set("k", &1, STALE_FOR_AN_HOUR).unwrap();
            cache.blocking().expire("k").unwrap();
            let (begun, has_begun) = mpsc::channel();
            let (release, released) = mpsc::channel();
            std::thread::scope(|scope| {
                let (leading, cache) = (cache.clone(), &cache);
                let elected = scope.spawn(move || {
                    let load = || {
                        begun.send(()).unwrap();
                        released.recv().unwrap();
                        Ok::<u32, Infallible>(2)
                    };
                    leading.blocking().fetch("k", expiry, load)
                });
                has_begun.recv().unwrap();
                for _ in 0..10 {
                    assert_eq!(
                        cache.blocking().fetch("k", expiry, || panic!("another caller loads")),
                        Ok::<u32, Infallible>(1)
                    );
                }
                release.send(()).unwrap();
                assert_eq!(elected.join().unwrap(), Ok(2));
            });
            assert_eq!(cache.blocking().get("k").unwrap(), Some(2));
        }
    });
}

/// Also if all callers arrive at the same moment.
#[test]
fn one_of_many_concurrent_callers_loads_a_stale_value() {
    everywhere(|cache| {
        for _ in 0..20 {
            make_stale(cache.blocking(), "k", 1);
            let loads = AtomicUsize::new(0);
            let barrier = Barrier::new(8);
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        barrier.wait();
                        let load = || {
                            loads.fetch_add(1, Ordering::SeqCst);
                            Ok::<u32, Infallible>(2)
                        };
                        let fetched = cache.blocking().fetch("k", STALE_FOR_AN_HOUR, load);
                        assert!(fetched == Ok(1) || fetched == Ok(2), "{fetched:?}");
                    });
                }
            });
            assert_eq!(loads.into_inner(), 1);
        }
    });
}

#[test]
fn a_touched_value_has_its_new_times() {
    everywhere(|cache| {
        let cache = cache.blocking();
        make_stale(cache, "k", 1);
        assert!(cache.touch("k", STALE_FOR_AN_HOUR).unwrap());
        assert_eq!(cache.fetch("k", HOUR, || panic!("the value is fresh")), Ok::<u32, Infallible>(1));
        // The new `stale_for` applies, not the previous one.
        assert!(cache.touch("k", Expiry::after(Duration::from_millis(30)).stale_for(HOUR)).unwrap());
        until("the value is stale", || {
            let before = cache.stats().stale;
            assert_eq!(cache.get("k").unwrap(), Some(1));
            cache.stats().stale > before
        });
        assert!(cache.touch("k", Expiry::NEVER).unwrap());
        assert_eq!(cache.fetch("k", HOUR, || panic!("the value is fresh")), Ok::<u32, Infallible>(1));
        cache.set_raw("bytes", "bytes", HOUR).unwrap();
        assert!(cache.touch("bytes", STALE_FOR_AN_HOUR).unwrap());
        assert_eq!(cache.get_raw("bytes").unwrap().as_deref(), Some(&b"bytes"[..]));
        assert_eq!(cache.touch("k", Duration::ZERO).unwrap_err().kind(), ErrorKind::InvalidTtl);
    });
}

#[test]
fn a_loader_may_choose_the_expiry_or_decline() {
    everywhere(|cache| {
        let cache = cache.blocking();
        let declined = || Ok::<_, Infallible>(Loaded::uncached(1));
        assert_eq!(cache.fetch_loaded("k", declined), Ok(1));
        assert!(!cache.exists("k").unwrap());
        let brief = Expiry::after(Duration::from_millis(30)).stale_for(HOUR);
        assert_eq!(cache.fetch_loaded("k", || Ok::<_, Infallible>(Loaded::new(2, brief))), Ok(2));
        until("the loader's expiry has passed", || {
            let fetched = cache.fetch_loaded("k", || Ok::<_, Infallible>(Loaded::uncached(3))).unwrap();
            assert!(fetched == 2 || fetched == 3);
            fetched == 3
        });
        assert_eq!(cache.get("k").unwrap(), Some(2), "an uncached load keeps the stale value");
    });
}

/// A caller whose value was not cached loads again, because the old value is still stale.
#[test]
fn waiting_callers_share_an_uncached_value() {
    let cache = Cache::builder(MemoryStore::new()).build();
    current_thread().block_on(async {
        let loads = AtomicUsize::new(0);
        let load = async || {
            loads.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(Loaded::uncached(1))
        };
        let (one, other) = tokio::join!(cache.fetch_loaded("k", load), cache.fetch_loaded("k", load));
        assert_eq!((one, other), (Ok(1), Ok(1)));
        assert_eq!((loads.into_inner(), cache.stats().coalesced), (1, 1));
    });
}

#[test]
fn a_forced_fetch_loads_and_stores() {
    everywhere(|cache| {
        cache.blocking().set("k", &1, HOUR).unwrap();
        let forced = cache.force(true);
        assert_eq!(forced.blocking().fetch("k", HOUR, loads(2)), Ok(2));
        assert_eq!(cache.blocking().get("k").unwrap(), Some(2));
        assert_eq!(forced.blocking().fetch("k", HOUR, fails), Err("no"), "no old value is returned instead");
        assert_eq!(forced.force(false).blocking().fetch("k", HOUR, loads(3)), Ok(2));
        let many = forced.blocking().fetch_many(&["k"], HOUR, |_| vec![Ok::<u32, Infallible>(4)]);
        assert_eq!(many, [Ok(4)]);
        assert_eq!(cache.blocking().get("k").unwrap(), Some(4));
    });
}

#[test]
fn a_near_copy_is_stale_if_the_far_one_is() {
    let server = Server::start(Kind::Memcached);
    let store = TieredStore::new(MemoryStore::new(), from_url(&server.url("")).unwrap()).near_ttl(HOUR);
    let cache = Cache::builder(store).build();
    let cache = cache.blocking();
    make_stale(cache, "k", 1);
    assert_eq!(cache.get("k").unwrap(), Some(1));
    assert_eq!(cache.fetch("k", STALE_FOR_AN_HOUR, fails), Ok(1));
    assert_eq!(cache.fetch("k", STALE_FOR_AN_HOUR, || panic!("put off")), Ok::<u32, Infallible>(1));
    assert!(cache.expire("k").unwrap());
    assert_eq!(cache.fetch("k", STALE_FOR_AN_HOUR, loads(2)), Ok(2));
    assert_eq!(cache.get("k").unwrap(), Some(2));
}

/// Two caches stand for two processes, each with its own near store.
#[test]
fn a_tiered_pair_loads_once_for_both() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let tiered = || TieredStore::new(MemoryStore::new(), from_url(&server.url("")).unwrap()).near_ttl(HOUR);
        let [one, other] = [(); 2].map(|()| Cache::builder(tiered()).load_timeout(HOUR).lease(HOUR).build());
        let (begun, has_begun) = mpsc::channel();
        let (release, released) = mpsc::channel();
        std::thread::scope(|scope| {
            let loading = scope.spawn(|| {
                let (begun, released) = (begun, released);
                let load = || {
                    begun.send(()).unwrap();
                    released.recv().unwrap();
                    Ok::<u32, Infallible>(1)
                };
                one.blocking().fetch("k", STALE_FOR_AN_HOUR, load)
            });
            has_begun.recv().unwrap();
            let waiting = scope.spawn(|| {
                other
                    .blocking()
                    .fetch("k", STALE_FOR_AN_HOUR, || panic!("another caller loads"))
                    .map_err(|never: Infallible| never)
            });
            release.send(()).unwrap();
            assert_eq!((loading.join().unwrap(), waiting.join().unwrap()), (Ok(1), Ok(1)));
        });
        // Both near stores have a copy. The stale copy is detected before a load.
        assert!(one.blocking().expire("k").unwrap());
        assert_eq!(one.blocking().fetch("k", STALE_FOR_AN_HOUR, loads(2)), Ok(2));
        make_stale(other.blocking(), "k", 3);
        assert_eq!(other.blocking().get("k").unwrap(), Some(3));
        one.blocking().set("k", &4, STALE_FOR_AN_HOUR).unwrap();
        assert_eq!(
            other.blocking().fetch("k", HOUR, || panic!("another process has loaded")),
            Ok::<u32, Infallible>(4)
        );
    }
}

pub(crate) async fn until_it_holds(what: &str, condition: impl Fn() -> bool) {
    let held = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(support::wait::PATIENCE, held).await.is_ok(), "timed out waiting until {what}");
}
