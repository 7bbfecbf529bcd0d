//! A runtime that is shut down while a caller on another thread waits for a reply: the caller gets an error at once, and the
//! store works in the next runtime.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use prefork_cache::{Cache, stores};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::conformance::{current_thread, multi_thread};
use support::servers::{Kind, Server};
use support::wait::PATIENCE;

const TTL: Duration = Duration::from_secs(3600);

#[test]
fn a_current_thread_runtime_that_ends_fails_who_waits_for_redis() {
    a_runtime_that_ends_fails_who_waits(Kind::Redis, current_thread);
}

#[test]
fn a_current_thread_runtime_that_ends_fails_who_waits_for_memcached() {
    a_runtime_that_ends_fails_who_waits(Kind::Memcached, current_thread);
}

#[test]
fn a_multi_thread_runtime_that_ends_fails_who_waits_for_redis() {
    a_runtime_that_ends_fails_who_waits(Kind::Redis, multi_thread);
}

#[test]
fn a_multi_thread_runtime_that_ends_fails_who_waits_for_memcached() {
    a_runtime_that_ends_fails_who_waits(Kind::Memcached, multi_thread);
}

fn a_runtime_that_ends_fails_who_waits(kind: Kind, runtime: fn() -> Runtime) {
    let server = Server::start(kind);
    // A timeout would hide a caller that is forgotten.
    let store = stores::from_url(&server.url("timeout=60m&connect_timeout=60m")).unwrap();
    let cache = Cache::builder(store).build();
    cache.blocking().set_raw("key", "value", TTL).unwrap();
    let ending = runtime();
    ending.block_on(cache.get_raw("key")).unwrap();
    server.pause();

    let (tell, told) = channel();
    let (asks, asked) = oneshot::channel();
    let (handle, asking) = (ending.handle().clone(), cache.clone());
    // Not joined should it hang: the test has failed by then.
    thread::spawn(move || {
        let got = handle.block_on(async {
            let mut get = Box::pin(asking.get_raw("key"));
            let early = std::future::poll_fn(|cx| std::task::Poll::Ready(get.as_mut().poll(cx).is_ready())).await;
            assert!(!early, "answered by a server that is paused");
            asks.send(()).expect("the runtime goes on");
            get.await
        });
        let _ = tell.send(got);
    });
    ending.block_on(async {
        asked.await.expect("the caller asks");
        // Most often its request goes out now; the caller is to hear of the end either way.
        tokio::time::sleep(Duration::from_millis(20)).await;
    });
    drop(ending);
    let got = told.recv_timeout(PATIENCE).expect("waited in vain until the caller gets an error");
    assert!(got.is_err(), "the server is paused: {got:?}");
    println!("{kind:?}: {:#}", got.unwrap_err());

    server.resume();
    let next = runtime();
    assert_eq!(next.block_on(cache.get_raw("key")).unwrap().as_deref(), Some(&b"value"[..]));
}
