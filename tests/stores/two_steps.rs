//! Fetches in two steps, for callers without a closure. Two stores on one server stand for two processes.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use prefork_cache::stores::{MemoryStore, from_url};
use prefork_cache::{Begun, Cache, Claim, Clock, Expiry, Loaded};

use crate::cache::everywhere;
use crate::conformance::{current_thread, multi_thread};
use crate::staleness::{HOUR, STALE_FOR_AN_HOUR, make_stale, until_it_holds};
use support::servers::{Kind, Server};
use support::wait::until;

fn expect_claim<T>(begun: Begun<T>) -> Claim<T> {
    match begun {
        Begun::Claim(claim) => claim,
        Begun::Hit(_) => panic!("a hit without a fresh value"),
    }
}

fn expect_hit<T>(begun: Begun<T>) -> T {
    match begun {
        Begun::Hit(value) => value,
        Begun::Claim(claim) => panic!("{claim:?} despite a stored value"),
    }
}

#[test]
fn a_claim_is_completed_or_failed() {
    everywhere(|cache| {
        let handle = cache.blocking();
        let claim = expect_claim(handle.fetch_begin::<u32>("k"));
        assert_eq!((claim.key(), claim.old()), ("k", None));
        assert_eq!(claim.blocking_fail(), None);
        assert_eq!(expect_claim(handle.fetch_begin("k")).blocking_complete(1, HOUR), 1);
        assert_eq!(expect_hit(handle.fetch_begin::<u32>("k")), 1);
        assert_eq!((handle.stats().loads, handle.stats().failed_loads), (2, 1));
        make_stale(handle, "k", 2);
        let claim = expect_claim(handle.fetch_begin::<u32>("k"));
        assert_eq!(claim.old(), Some(&2));
        assert_eq!(expect_hit(handle.fetch_begin::<u32>("k")), 2, "other callers get the old value");
        assert_eq!(claim.blocking_fail(), Some(2));
        assert_eq!(expect_hit(handle.fetch_begin::<u32>("k")), 2, "the next load is put off");
        let claim = expect_claim(handle.fetch_begin::<Option<u32>>("user"));
        assert_eq!(claim.blocking_complete_loaded(Loaded::uncached(None)), None);
        assert!(!handle.exists("user").unwrap());
        let page = expect_claim(handle.fetch_raw_begin("page")).blocking_complete(Bytes::from_static(b"page"), HOUR);
        assert_eq!(handle.get_raw("page").unwrap(), Some(page.clone()));
        assert_eq!(expect_hit(handle.fetch_raw_begin("page")), page);
    });
}

#[test]
fn a_claim_is_settled_by_a_task() {
    everywhere(|cache| {
        multi_thread().block_on(async {
            let claiming = cache.clone();
            let claim =
                tokio::spawn(async move { expect_claim(claiming.fetch_begin::<u32>("k").await) }).await.unwrap();
            let waiting = tokio::spawn({
                let cache = cache.clone();
                async move {
                    cache
                        .fetch("k", HOUR, async || -> Result<u32, Infallible> { panic!("another task has the claim") })
                        .await
                }
            });
            assert_eq!(tokio::spawn(claim.complete(1, HOUR)).await.unwrap(), 1);
            assert_eq!(waiting.await.unwrap(), Ok(1));
            assert_eq!(expect_hit(cache.fetch_begin::<u32>("k").await), 1);
        });
    });
}

#[test]
fn another_process_waits_for_a_claim_and_takes_over_when_it_fails() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let url = server.url("timeout=20s&connect_timeout=20s");
        let process = || Cache::builder(from_url(&url).unwrap()).lease(HOUR).load_timeout(HOUR).build();
        let [one, other] = [process(), process()];
        for (key, fails) in [("completed", false), ("failed", true), ("dropped", true)] {
            let claim = expect_claim(one.blocking().fetch_begin::<u32>(key));
            let before = server.gets();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| other.blocking().fetch(key, HOUR, || Ok::<u32, Infallible>(2)));
                until("the other process waits", || server.gets() >= before + 5);
                match key {
                    "completed" => assert_eq!(claim.blocking_complete(1, HOUR), 1),
                    "failed" => assert_eq!(claim.blocking_fail(), None),
                    _ => drop(claim),
                }
                assert_eq!(waiting.join().unwrap(), Ok(if fails { 2 } else { 1 }), "{key}");
            });
        }
    }
}

#[test]
fn a_key_deleted_after_its_claim_is_not_stored() {
    everywhere(|cache| {
        let handle = cache.blocking();
        let claim = expect_claim(handle.fetch_begin::<u32>("k"));
        handle.delete("k").unwrap();
        assert_eq!(claim.blocking_complete(1, HOUR), 1);
        assert_eq!(handle.get::<u32>("k").unwrap(), None);
    });
}

/// As in a program in another language, where the code between the two steps fetches as well.
#[test]
fn a_thread_does_not_wait_for_its_own_claim() {
    everywhere(|cache| {
        let handle = cache.blocking();
        let claim = expect_claim(handle.fetch_begin::<u32>("k"));
        assert_eq!(handle.fetch("k", HOUR, || Ok::<u32, Infallible>(2)), Ok(2));
        assert_eq!(expect_claim(handle.fetch_begin::<u32>("k")).blocking_complete(3, HOUR), 3);
        assert_eq!(claim.blocking_complete(1, HOUR), 1);
        assert_eq!(handle.get::<u32>("k").unwrap(), Some(1), "the value of the claim");
    });
}

#[test]
fn a_claim_in_a_runtime_renews_its_lease() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let url = server.url("timeout=20s&connect_timeout=20s");
        let process =
            || Cache::builder(from_url(&url).unwrap()).lease(Duration::from_millis(300)).load_timeout(HOUR).build();
        let [one, other] = [process(), process()];
        current_thread().block_on(async {
            let claim = expect_claim(one.fetch_begin::<u32>("k").await);
            let waiting =
                other.fetch("k", HOUR, async || -> Result<u32, Infallible> { panic!("another task has the claim") });
            let completing = async {
                // Several times as long as a lease lasts without a renewal.
                tokio::time::sleep(Duration::from_millis(1_500)).await;
                claim.complete(1, HOUR).await
            };
            assert_eq!(tokio::join!(waiting, completing), (Ok(1), 1));
        });
    }
}

#[test]
fn a_claim_dropped_in_a_runtime_is_released() {
    everywhere(|cache| {
        current_thread().block_on(async {
            drop(expect_claim(cache.fetch_begin::<u32>("k").await));
            cache.close(HOUR).await.unwrap();
            let claim = expect_claim(cache.fetch_begin::<u32>("k").await);
            assert_eq!(claim.complete(1, STALE_FOR_AN_HOUR).await, 1);
            until_it_holds("the value is stored", || cache.blocking().get("k").unwrap() == Some(1)).await;
        });
    });
}

#[test]
fn an_old_value_is_refreshed_by_one_claim_after_another() {
    let clock = Clock::manual();
    let minute = Duration::from_secs(60);
    let cache = Cache::builder(MemoryStore::new()).clock(clock.clone()).load_retry_delay(minute).build();
    let cache = cache.blocking();
    let expiry = Expiry::after(minute).stale_for(10 * minute);
    expect_claim(cache.fetch_begin("k")).blocking_complete(1, expiry);
    clock.advance(minute);
    assert_eq!(expect_claim(cache.fetch_begin::<u32>("k")).blocking_fail(), Some(1));
    assert_eq!(expect_hit(cache.fetch_begin::<u32>("k")), 1);
    clock.advance(minute);
    assert_eq!(expect_claim(cache.fetch_begin::<u32>("k")).blocking_complete(2, expiry), 2);
    assert_eq!(expect_hit(cache.fetch_begin::<u32>("k")), 2);
    clock.advance(11 * minute);
    assert_eq!(expect_claim(cache.fetch_begin::<u32>("k")).old(), None, "the value has expired");
}
