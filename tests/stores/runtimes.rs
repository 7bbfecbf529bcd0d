//! A runtime is shut down while a caller on another thread waits for a reply: the caller gets an error at once, and the
//! store works in the next runtime.

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
fn the_end_of_a_current_thread_runtime_fails_callers_waiting_for_redis() {
    the_end_of_a_runtime_fails_waiting_callers(Kind::Redis, current_thread);
}

#[test]
fn the_end_of_a_current_thread_runtime_fails_callers_waiting_for_memcached() {
    the_end_of_a_runtime_fails_waiting_callers(Kind::Memcached, current_thread);
}

#[test]
fn the_end_of_a_multi_thread_runtime_fails_callers_waiting_for_redis() {
    the_end_of_a_runtime_fails_waiting_callers(Kind::Redis, multi_thread);
}

#[test]
fn the_end_of_a_multi_thread_runtime_fails_callers_waiting_for_memcached() {
    the_end_of_a_runtime_fails_waiting_callers(Kind::Memcached, multi_thread);
}

fn the_end_of_a_runtime_fails_waiting_callers(kind: Kind, runtime: fn() -> Runtime) {
    let server = Server::start(kind);
    // A short timeout would hide a caller that is never woken.
    let store = stores::from_url(&server.url("timeout=60m&connect_timeout=60m")).unwrap();
    let cache = Cache::builder(store).build();
    cache.blocking().set_raw("key", "value", TTL).unwrap();
    // In each round the runtime ends at a different point of the call.
    for round in 0..count(200, 2_000) {
        let ending = runtime();
        let found = ending.block_on(cache.get_raw("key")).unwrap();
        assert_eq!(found.as_deref(), Some(&b"value"[..]), "in the runtime of round {round}");
        server.pause();
        let ended = end_while_another_thread_waits(ending, &cache);
        server.resume();
        match ended {
            Ok(found) => assert!(found.is_err(), "a reply from a paused server: {found:?}"),
            Err(RecvTimeoutError::Timeout) => {
                panic!("timed out waiting until the caller gets an error, in round {round}")
            }
            Err(RecvTimeoutError::Disconnected) => panic!("the caller panicked, in round {round}"),
        }
    }
}

type Ended = std::result::Result<Result<Option<Bytes>>, RecvTimeoutError>;

fn end_while_another_thread_waits(ending: Runtime, cache: &Cache) -> Ended {
    let (ended, has_ended) = channel();
    let (started, has_started) = oneshot::channel();
    let (handle, caller) = (ending.handle().clone(), cache.clone());
    // Not joined: if it hangs, the test has failed by then.
    thread::spawn(move || {
        let found = handle.block_on(async {
            let mut get = Box::pin(caller.get_raw("key"));
            let early = poll_fn(|cx| Poll::Ready(get.as_mut().poll(cx).is_ready())).await;
            assert!(!early, "a reply from a paused server");
            started.send(()).expect("the runtime is running");
            get.await
        });
        let _ = ended.send(found);
    });
    ending.block_on(has_started).expect("the caller has sent its request");
    drop(ending);
    has_ended.recv_timeout(PATIENCE)
}
