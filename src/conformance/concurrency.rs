//! Checks with several operations at once.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::Running;
use super::keys::{LONG, fresh};
use crate::execution::{inline, suspends};
use crate::store::{CacheStore, When};
use crate::sync::block_on;

const WORKERS: usize = 8;

/// Runs one future per worker concurrently: asynchronously if the store suspends, else on threads.
async fn at_once<'a>(work: impl Fn(usize) -> Running<'a> + Sync) {
    if suspends() {
        let mut running: Vec<Option<Running<'a>>> = (0..WORKERS).map(|worker| Some(work(worker))).collect();
        poll_fn(|cx| join(&mut running, cx)).await;
    } else {
        std::thread::scope(|scope| {
            for worker in 0..WORKERS {
                let work = &work;
                scope.spawn(move || inline(|| block_on(&mut work(worker))));
            }
        });
    }
}

fn join(running: &mut [Option<Running<'_>>], cx: &mut Context<'_>) -> Poll<()> {
    for slot in running.iter_mut() {
        if slot.as_mut().is_some_and(|future| future.as_mut().poll(cx).is_ready()) {
            *slot = None;
        }
    }
    if running.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
}

/// No increment of several concurrent workers is lost.
pub async fn no_increment_is_lost(store: &dyn CacheStore) {
    const EACH: i64 = 50;
    let key = fresh("contended-counter");
    at_once(|_| {
        let key = &key;
        Box::pin(async move {
            for _ in 0..EACH {
                store.increment(key, 1, LONG).await.unwrap();
            }
        })
    })
    .await;
    assert_eq!(store.increment(&key, 0, LONG).await.unwrap(), EACH * WORKERS as i64);
    store.delete(&key).await.unwrap();
}

/// When several workers change one value by compare-and-set, each change is based on the one before.
pub async fn one_of_many_compare_and_sets_wins(store: &dyn CacheStore) {
    const EACH: usize = 10;
    let key = fresh("contended-swap");
    store.set(&key, Bytes::new(), LONG, When::Always).await.unwrap();
    at_once(|worker| {
        let key = &key;
        Box::pin(async move {
            for _ in 0..EACH {
                append(store, key, worker).await;
            }
        })
    })
    .await;
    let text = store.get(&key).await.unwrap().expect("the value is there");
    for worker in 0..WORKERS {
        let appended = text.iter().filter(|&&letter| letter == b'a' + worker as u8).count();
        assert_eq!(appended, EACH, "of worker {worker} in {}", String::from_utf8_lossy(&text));
    }
    store.delete(&key).await.unwrap();
}

async fn append(store: &dyn CacheStore, key: &str, worker: usize) {
    loop {
        let held = store.get(key).await.unwrap().expect("the value is there");
        let longer: Vec<u8> = held.iter().copied().chain([b'a' + worker as u8]).collect();
        if store.compare_and_set(key, Some(&held), Some(longer.into()), LONG).await.unwrap() {
            return;
        }
    }
}

/// When several workers store a value if the entry is absent, one succeeds.
pub async fn one_of_many_adds_wins(store: &dyn CacheStore) {
    for _ in 0..20 {
        let key = fresh("contended-add");
        let winners = AtomicUsize::new(0);
        at_once(|worker| {
            let (key, winners) = (&key, &winners);
            Box::pin(async move {
                if store.set(key, worker.to_string().into(), LONG, When::IfAbsent).await.unwrap() {
                    winners.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .await;
        assert_eq!(winners.into_inner(), 1);
        store.delete(&key).await.unwrap();
    }
}

/// A future that is dropped half-way leaves no reply for the next operation.
pub async fn a_dropped_future_disturbs_no_other(store: &dyn CacheStore) {
    let keys: Vec<String> = (0..4).map(|number| fresh(&format!("dropped-{number}"))).collect();
    for key in &keys {
        store.set(key, key.clone().into(), LONG, When::Always).await.unwrap();
    }
    for round in 0..200 {
        let [dropped, read] = [0, 1].map(|offset| &keys[(round + offset) % keys.len()]);
        let mut future = store.get(dropped);
        for _ in 0..round % 3 {
            if Pin::new(&mut future).poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                break;
            }
        }
        drop(future);
        assert_eq!(
            store.get(read).await.unwrap().as_deref(),
            Some(read.as_bytes()),
            "got the reply to another request"
        );
    }
    for key in &keys {
        store.delete(key).await.unwrap();
    }
}
