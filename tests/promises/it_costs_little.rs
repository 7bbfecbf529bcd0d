//! What every operation pays, counted in system calls: one to send and one to receive; none in memory, and none to know
//! which process this is. And a value that is kept takes its own memory, and not that of what came with it.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use prefork_cache::stores::{self, MemoryStore};
use prefork_cache::{Cache, CacheStore, Ttl, lifecycle};

use crate::callers::{MINUTE, PATIENT, cache_on, current_thread_runtime};
use crate::harness::{Scenario, scenario, skip, with_each_server};
use support::forks::fork;
use support::memory::resident;
use support::servers::{Kind, Server};
use support::trace::system_calls;

const OPERATIONS: usize = 100;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = with_each_server("a_blocking_get_is_two_system_calls", a_blocking_get_is_two_system_calls);
    all.extend(with_each_server("values_that_are_kept_keep_no_buffer", values_that_are_kept_keep_no_buffer));
    all.push(scenario("a_hit_in_memory_is_none", a_hit_in_memory_is_none));
    all.push(scenario("which_process_this_is_takes_none", which_process_this_is_takes_none));
    all
}

/// The system calls of so many operations, in a child and after a first one.
fn system_calls_of(operation: impl Fn()) -> Vec<u64> {
    let calls = system_calls(&operation, || (0..OPERATIONS).for_each(|_| operation()));
    calls.unwrap_or_else(|error| skip(&format!("tracing is not permitted: {error}")))
}

fn a_blocking_get_is_two_system_calls(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    cache.blocking().set_raw("key", "value", MINUTE).expect("the server is there");
    let get = || assert_eq!(cache.blocking().get_raw("key").expect("an answer").as_deref(), Some(&b"value"[..]));
    let [send, receive] = [nix::libc::SYS_sendto, nix::libc::SYS_recvfrom].map(i64::cast_unsigned);
    let calls = system_calls_of(get);
    // Under a tracer on a busy machine some operations come after a rest, and look at their connection before they
    // send.
    let looks = calls.windows(2).filter(|pair| *pair == [receive, receive]).count();
    assert!(looks <= OPERATIONS / 10, "{looks} of {OPERATIONS} operations looked at their connection first");
    let sent = calls.iter().filter(|call| **call == send).count();
    assert_eq!((sent, calls.len()), (OPERATIONS, 2 * OPERATIONS + looks));
}

fn a_hit_in_memory_is_none() {
    let cache = Cache::builder(MemoryStore::new()).build();
    cache.blocking().set_raw("key", "value", MINUTE).expect("memory is there");
    let get = || assert!(cache.blocking().get_raw("key").expect("an answer").is_some());
    assert_eq!(system_calls_of(get), Vec::<u64>::new());
}

fn which_process_this_is_takes_none() {
    assert_eq!(lifecycle::generation(), 1);
    let look = || assert_eq!(lifecycle::generation(), 2);
    assert_eq!(system_calls_of(look), Vec::<u64>::new());
}

/// In tokio, where the replies to many tasks are read in one block.
fn values_that_are_kept_keep_no_buffer(kind: Kind) {
    const VALUES: usize = 20_000;
    const LENGTH: usize = 108;
    const TASKS: usize = 64;
    const MOST: usize = 4 * VALUES * LENGTH + (8 << 20);
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    // In a child: what it takes to write them is not counted.
    fork(|| {
        let keys: Vec<String> = (0..VALUES).map(|number| format!("key:{number}")).collect();
        let value = Bytes::from(vec![b'x'; LENGTH]);
        let entries: Vec<_> = keys.iter().map(|key| (key.as_str(), value.clone())).collect();
        let store = stores::from_url(&server.url(PATIENT)).expect("a good URL");
        let mut setting = pin!(store.set_many(&entries, Ttl::Never));
        let Poll::Ready(set) = setting.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("a store that suspends outside of a runtime");
        };
        assert!(set.iter().all(Result::is_ok), "the server is there");
    })
    .join();
    current_thread_runtime().block_on(async {
        let read_first = async |count: usize| {
            let read = |task: usize| {
                let cache = cache.clone();
                tokio::spawn(async move {
                    let mut kept = Vec::with_capacity(count / TASKS + 1);
                    for number in (task..count).step_by(TASKS) {
                        let value = cache.get_raw(&format!("key:{number}")).await.expect("an answer");
                        kept.push(value.expect("a hit"));
                    }
                    kept
                })
            };
            let tasks: Vec<_> = (0..TASKS).map(read).collect();
            let mut kept = Vec::with_capacity(TASKS);
            for task in tasks {
                kept.push(task.await.expect("no panic"));
            }
            kept
        };
        // Everything but the values is there after a few.
        drop(read_first(10 * TASKS).await);
        let before = resident();
        let kept = read_first(VALUES).await;
        let grown = resident().saturating_sub(before);
        println!("{kind:?}: {VALUES} values of {LENGTH} bytes take {} KiB", grown / 1024);
        assert!(kept.iter().flatten().all(|value| value.len() == LENGTH));
        assert!(grown <= MOST, "{kind:?}: {grown} bytes for {VALUES} values of {LENGTH}, of at most {MOST}");
    });
}
