//! A runtime that is shut down while a caller on another thread waits for a reply: the caller gets an error at once,
//! and the store works in the next runtime.

use std::future::{Future, poll_fn};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use prefork_cache::{Cache, Result, stores};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::conformance::{current_thread, multi_thread};
use support::servers::{Kind, Server};
use support::stress::count;
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
    // What the caller is in the middle of when the runtime ends is different each time.
    for round in 0..count(200, 2_000) {
        let ending = runtime();
        let got = ending.block_on(cache.get_raw("key")).unwrap();
        assert_eq!(got.as_deref(), Some(&b"value"[..]), "in the runtime of round {round}");
        server.pause();
        let ended = end_while_another_thread_waits(ending, &cache);
        server.resume();
        match ended {
            Ok(got) => assert!(got.is_err(), "answered by a server that is paused: {got:?}"),
            Err(RecvTimeoutError::Timeout) => panic!("waited in vain until the caller gets an error, in round {round}"),
            Err(RecvTimeoutError::Disconnected) => panic!("the caller panicked, in round {round}"),
        }
    }
}

type Ended = std::result::Result<Result<Option<Bytes>>, RecvTimeoutError>;

fn end_while_another_thread_waits(ending: Runtime, cache: &Cache) -> Ended {
    let (tell, told) = channel();
    let (asks, asked) = oneshot::channel();
    let (handle, asking) = (ending.handle().clone(), cache.clone());
    // Not joined should it hang: the test has failed by then.
    thread::spawn(move || {
        let got = handle.block_on(async {
            let mut get = Box::pin(asking.get_raw("key"));
            let early = poll_fn(|cx| Poll::Ready(get.as_mut().poll(cx).is_ready())).await;
            assert!(!early, "answered by a server that is paused");
            asks.send(()).expect("the runtime goes on");
            get.await
        });
        let _ = tell.send(got);
    });
    ending.block_on(asked).expect("the caller asks");
    drop(ending);
    told.recv_timeout(PATIENCE)
}
