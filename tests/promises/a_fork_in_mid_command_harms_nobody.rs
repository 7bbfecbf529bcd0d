//! Promises 1 and 2 in the hardest case: the process forks after a command is written and before its reply is read.
//!
//! The parent's exchange continues unchanged. The child's copy of it ends at once: with an error or, for an operation
//! that may be repeated, with a result of the child's own. A write that the child reports as done is done.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::thread;

use prefork_cache::{Cache, Error, ErrorKind, Result, lifecycle};

use crate::callers::{Caller, MINUTE, PATIENT, cache_at, cache_on, current_thread_runtime, until_held};
use crate::harness::{Mode, Scenario, with_each_server};
use support::descriptors::inodes_connected_to;
use support::forks::{CHILD_TIME, Side, Way, fork_by, split};
use support::proxy::Proxy;
use support::servers::{Kind, Server};
use support::signals::{interrupt, on_interrupt, restore_sigpipe, this_thread};
use support::wait::until;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(with_each_server("a_signal_handler_forks_during_a_get", |kind| in_a_handler(kind, Verb::Get)));
    all.extend(with_each_server("a_signal_handler_forks_during_an_increment", |kind| {
        in_a_handler(kind, Verb::Increment);
    }));
    all.extend(with_each_server("a_get_is_polled_again_in_the_child", |kind| {
        polled_again_in_the_child(kind, Verb::Get);
    }));
    all.extend(with_each_server("an_increment_is_polled_again_in_the_child", |kind| {
        polled_again_in_the_child(kind, Verb::Increment);
    }));
    all.extend(with_each_server("a_future_waits_for_a_connection", waits_for_a_connection));
    all.extend(with_each_server("a_fetch_waits_for_the_loader_of_another_task", waits_for_a_loader));
    all.extend(with_each_server("connections_in_use_by_other_threads_are_cut", in_use_by_other_threads));
    all
}

/// Part of every reply that the proxy holds.
const HELD: &str = "10000";
const ROSES: &str = "10000 roses";
const COUNTED: i64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    /// May be repeated.
    Get,
    /// Must not be repeated.
    Increment,
}

impl Verb {
    async fn perform(self, cache: &Cache) -> Result<()> {
        match self {
            Verb::Get => check(cache.get_raw("key").await?),
            Verb::Increment => drop(cache.increment("counter", 1, MINUTE).await?),
        }
        Ok(())
    }

    fn perform_blocking(self, cache: &Cache) -> Result<()> {
        match self {
            Verb::Get => check(cache.blocking().get_raw("key")?),
            Verb::Increment => drop(cache.blocking().increment("counter", 1, MINUTE)?),
        }
        Ok(())
    }
}

fn check(value: Option<bytes::Bytes>) {
    assert_eq!(value.as_deref(), Some(ROSES.as_bytes()));
}

/// Stores the entries that the operations use, and opens a connection.
fn prepare(cache: &Cache) {
    cache.blocking().set_raw("key", ROSES, MINUTE).expect("the server is running");
    cache.blocking().increment("counter", COUNTED, MINUTE).expect("the server is running");
}

/// The result of the fork in the handler. The interrupted code waits for a reply and holds no lock.
static SIDE: Mutex<Option<Side<bool>>> = Mutex::new(None);

fn in_a_handler(kind: Kind, verb: Verb) {
    restore_sigpipe();
    let server = Server::start(kind);
    let proxy = Proxy::before(server.port());
    let cache = cache_at(kind, proxy.port(), PATIENT);
    prepare(&cache);
    let mut done = 0;
    for way in Way::COMMON {
        let before = inodes_connected_to(proxy.port());
        on_interrupt(move || *SIDE.lock().expect("no panic") = Some(split(way, CHILD_TIME).expect("a child")));
        proxy.hold_replies_with(HELD);
        let interrupted = this_thread();
        let child = thread::scope(|scope| {
            scope.spawn(|| {
                let forked = || SIDE.try_lock().is_ok_and(|side| side.is_some());
                proxy.wait_until_held(1);
                interrupt(interrupted);
                until("the handler has forked", forked);
                proxy.release();
            });
            let outcome = verb.perform_blocking(&cache);
            match SIDE.lock().expect("no panic").take().expect("the handler has forked") {
                Side::Parent(child) => {
                    outcome.unwrap_or_else(|error| panic!("the parent, after {way:?}: {error:?}"));
                    child
                }
                // The child never leaves the scope: its other thread does not exist there.
                Side::Child(reporter) => reporter.run_and_exit(|| {
                    let error = outcome.as_ref().err().map(Error::kind);
                    assert!(matches!(error, None | Some(ErrorKind::Forked)), "after {way:?}: {outcome:?}");
                    assert_none_inherited(&before, proxy.port(), way);
                    Caller::new(Mode::Blocking, &cache).converse("child", 20);
                    outcome.is_ok()
                }),
            }
        });
        done += 1 + i64::from(child.join());
        Caller::new(Mode::Blocking, &cache).converse("parent", 20);
        assert_eq!(inodes_connected_to(proxy.port()), before, "the parent keeps its connection after {way:?}");
    }
    println!("{verb:?}: {done} reported as done");
    assert_counted(&cache, if verb == Verb::Increment { done } else { 0 });
}

/// Each increment that was reported as done was applied, and none was applied twice.
fn assert_counted(cache: &Cache, done: i64) {
    assert_eq!(cache.blocking().counter("counter").expect("the server is running"), Some(COUNTED + done));
}

/// Called in a child. Asserts that it holds none of its parent's sockets.
fn assert_none_inherited(inherited: &[u64], port: u16, way: Way) {
    let held = inodes_connected_to(port);
    assert!(
        held.iter().all(|inode| !inherited.contains(inode)),
        "the child holds a socket of its parent after {way:?}"
    );
}

/// Polls in the context of the inherited runtime, where an inherited future is.
fn polled_again_in_the_child(kind: Kind, verb: Verb) {
    restore_sigpipe();
    let server = Server::start(kind);
    let proxy = Proxy::before(server.port());
    let cache = cache_at(kind, proxy.port(), PATIENT);
    prepare(&cache);
    let runtime = current_thread_runtime();
    for way in Way::COMMON {
        runtime.block_on(async {
            verb.perform(&cache).await.expect("the server is running");
            let before = inodes_connected_to(proxy.port());
            proxy.hold_replies_with(HELD);
            let mut exchange = Some(Box::pin(verb.perform(&cache)));
            until_held(&proxy, 1, exchange.as_mut().expect("created above").as_mut()).await;
            let child = fork_by(way, || {
                let mut stale = exchange.take().expect("created above");
                let ended = poll_stale(stale.as_mut());
                // Dropped in the child only: the parent's future, which waits for its reply, is not affected.
                drop(stale);
                assert_none_inherited(&before, proxy.port(), way);
                in_a_thread_with_a_new_runtime(&cache);
                ended
            });
            let ended = child.join();
            assert!(ended.starts_with("Err"), "the child's copy of the future, after {way:?}: {ended}");
            proxy.release();
            exchange
                .expect("created above")
                .await
                .unwrap_or_else(|error| panic!("the parent, after {way:?}: {error:?}"));
            assert_eq!(inodes_connected_to(proxy.port()), before, "the parent keeps its connection after {way:?}");
        });
    }
    let ways = i64::try_from(Way::COMMON.len()).expect("a few");
    assert_counted(&cache, if verb == Verb::Increment { 2 * ways } else { 0 });
}

/// Polls a stale future twice. It must not wait for an event that will never occur.
fn poll_stale<T: std::fmt::Debug>(mut stale: Pin<&mut impl Future<Output = T>>) -> String {
    for _ in 0..2 {
        if let Poll::Ready(ended) = stale.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return format!("{ended:?}");
        }
    }
    "still pending".to_owned()
}

/// Uses another thread: this one is inside the inherited runtime, where no other runtime can be started.
fn in_a_thread_with_a_new_runtime(cache: &Cache) {
    Caller::new(Mode::Blocking, cache).converse("child, blocking", 20);
    let tokio =
        thread::scope(|scope| scope.spawn(|| Caller::new(Mode::Tokio, cache).converse("child, on tokio", 20)).join());
    tokio.expect("no panic");
}

/// At the fork, every connection of the pool is in use and a future is queued for one.
fn waits_for_a_connection(kind: Kind) {
    let server = Server::start(kind);
    let proxy = Proxy::before(server.port());
    let cache = cache_at(kind, proxy.port(), &format!("{PATIENT}&pool_size=1"));
    prepare(&cache);
    let runtime = current_thread_runtime();
    runtime.block_on(async {
        for way in Way::COMMON {
            proxy.hold_replies_with(HELD);
            let mut first = pin!(cache.get_raw("key"));
            let mut queued = Some(Box::pin(cache.get_raw("key")));
            until_held(&proxy, 1, first.as_mut()).await;
            assert_pending(queued.as_mut().expect("created above").as_mut()).await;
            let child = fork_by(way, || {
                let mut stale = queued.take().expect("created above");
                let ended = poll_stale(stale.as_mut());
                drop(stale);
                in_a_thread_with_a_new_runtime(&cache);
                ended
            });
            let ended = child.join();
            assert!(ended.starts_with("Err"), "the child's copy of the queued future, after {way:?}: {ended}");
            proxy.release();
            for answer in [first.await, queued.expect("created above").await] {
                check(answer.unwrap_or_else(|error| panic!("the parent, after {way:?}: {error:?}")));
            }
        }
    });
}

/// Polls a future once, and asserts that it is pending.
async fn assert_pending(mut waiting: Pin<&mut impl Future>) {
    let pending = std::future::poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await;
    assert!(pending, "the future has to wait");
}

/// Polls a future, which has to stay pending, until `condition` holds.
async fn pend_until(mut waiting: Pin<&mut impl Future>, condition: impl Fn() -> bool) {
    while !condition() {
        assert_pending(waiting.as_mut()).await;
        tokio::task::yield_now().await;
    }
}

/// At the fork, one task loads and another waits for the loaded value. In the child the load never ends: the waiting
/// future loads by itself when it is polled there.
fn waits_for_a_loader(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    let runtime = current_thread_runtime();
    runtime.block_on(async {
        for way in Way::COMMON {
            let (release, released) = tokio::sync::oneshot::channel::<()>();
            let key = format!("loaded across a {way:?}");
            let misses = cache.stats().misses;
            let mut loading = pin!(cache.fetch(&key, MINUTE, async || {
                released.await.expect("the loader is released");
                Ok::<_, Infallible>("the loader's".to_owned())
            }));
            pend_until(loading.as_mut(), || cache.stats().misses == misses + 1).await;
            let mut waiting = pin!(cache.fetch(&key, MINUTE, async || Ok::<_, Infallible>("the waiter's".to_owned())));
            pend_until(waiting.as_mut(), || cache.stats().misses == misses + 2).await;
            let child = fork_by(way, || {
                let ended = poll_stale(waiting.as_mut());
                in_a_thread_with_a_new_runtime(&cache);
                ended
            });
            assert_eq!(child.join(), r#"Ok("the waiter's")"#, "the child's copy of the waiting future, after {way:?}");
            release.send(()).expect("the loader waits");
            assert_eq!(loading.await.expect("never fails"), "the loader's");
            assert_eq!(waiting.await.expect("never fails"), "the loader's");
        }
    });
}

/// The threads do not exist in the child, so they cannot return their connections to the pool there.
fn in_use_by_other_threads(kind: Kind) {
    const THREADS: usize = 4;
    let server = Server::start(kind);
    let proxy = Proxy::before(server.port());
    let cache = cache_at(kind, proxy.port(), PATIENT);
    prepare(&cache);
    for way in Way::COMMON {
        proxy.hold_replies_with(HELD);
        thread::scope(|scope| {
            let requests: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| cache.blocking().get_raw("key"))).collect();
            proxy.wait_until_held(THREADS);
            let before = inodes_connected_to(proxy.port());
            assert_eq!(before.len(), THREADS, "a connection for each thread");
            let child = fork_by(way, || {
                let report = lifecycle::after_fork();
                assert_eq!(report.sockets_cut(), THREADS, "{report}");
                let held = inodes_connected_to(proxy.port());
                assert!(held.is_empty(), "after {way:?} the child is still connected: {held:?}, parent {before:?}");
                Caller::new(Mode::Blocking, &cache).converse("child", 20);
            });
            child.join();
            proxy.release();
            for request in requests {
                check(request.join().expect("no panic").expect("the parent's exchange continues"));
            }
            assert_eq!(inodes_connected_to(proxy.port()), before, "the parent keeps its connections");
        });
    }
}
