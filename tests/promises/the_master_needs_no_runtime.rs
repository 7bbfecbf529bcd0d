//! Promise 7: everything can be done through the blocking API, which starts no thread and no runtime. Using an
//! inherited runtime is a clear error.

use prefork_cache::ErrorKind;

use crate::callers::{Caller, MINUTE, PATIENT, cache_on, current_thread_runtime};
use crate::harness::{Mode, Scenario, scenario, with_each_server};
use support::descriptors::threads;
use support::forks::{Way, fork, fork_by};
use support::servers::{Kind, Server};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(with_each_server("blocking_use_starts_no_thread", blocking_use_starts_no_thread));
    all.push(scenario("memory_starts_no_thread", memory_starts_no_thread));
    all.extend(with_each_server("an_inherited_runtime_is_refused", an_inherited_runtime_is_refused));
    all
}

fn blocking_use_starts_no_thread(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    use_everything(&Caller::new(Mode::Blocking, &cache));
    assert_eq!(threads(), 1, "threads of the master");
    for way in Way::COMMON {
        let in_child = fork_by(way, || {
            use_everything(&Caller::new(Mode::Blocking, &cache));
            threads()
        });
        assert_eq!(in_child.join(), 1, "threads of a child by {way:?}");
    }
}

fn memory_starts_no_thread() {
    let cache = prefork_cache::Cache::register(prefork_cache::stores::MemoryStore::new());
    use_everything(&Caller::new(Mode::Blocking, &cache));
    assert_eq!(threads(), 1, "threads of the master");
    assert_eq!(fork(threads).join(), 1, "threads of a child");
}

fn use_everything(caller: &Caller<'_>) {
    caller.converse("one thread", 20);
    assert_eq!(caller.fetch("fetched", "loaded"), "loaded");
    caller.increment("counter").expect("a number");
    caller.reconnect().expect("the server is running");
    caller.converse("one thread again", 20);
}

/// The runtime was used with the crate before the fork, or was current at the fork: the crate knows both. After a fork
/// that bypasses the handlers, a runtime that was never used cannot be told from a new one.
fn an_inherited_runtime_is_refused(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    let used = current_thread_runtime();
    let use_it = || used.block_on(cache.set("key", &"value", MINUTE)).expect("the server is running");
    use_it();
    for way in Way::COMMON {
        let in_its_context = fork_by(way, || {
            let _entered = used.enter();
            get_now(&cache)
        });
        assert_eq!(in_its_context.join(), "Forked", "after {way:?}");
        use_it();
    }
    let unused = current_thread_runtime();
    let entered = unused.enter();
    assert_eq!(fork(|| get_now(&cache)).join(), "Forked", "in the runtime that was current at the fork");
    fork(|| Caller::new(Mode::Blocking, &cache).converse("blocking, in an inherited runtime's context", 20)).join();
    drop(entered);
    use_it();
}

/// Polls a `get` once in the context of this thread, and returns its result as a string.
fn get_now(cache: &prefork_cache::Cache) -> String {
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    let mut get = std::pin::pin!(cache.get_raw("key"));
    match get.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(value)) => format!("{value:?}"),
        Poll::Ready(Err(error)) if error.kind() == ErrorKind::Forked => {
            assert!(error.to_string().contains("runtime"), "{error}");
            "Forked".to_owned()
        }
        Poll::Ready(Err(error)) => format!("{error:?}"),
        Poll::Pending => "Pending".to_owned(),
    }
}
