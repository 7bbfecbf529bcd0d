//! Promise 3: a child never waits for a lock, a connection or a load that another thread held at the fork.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use prefork_cache::lifecycle::{self, ProcessLocal};
use prefork_cache::stores::MemoryStore;
use prefork_cache::{Cache, injection};

use crate::callers::{Caller, MINUTE, PATIENT, builder_on, cache_at, cache_on};
use crate::harness::{Mode, Scenario, scenario, with_each_server, with_each_server_and_mode};
use support::forks::{CHILD_TIME, Side, Way, fork_by, split};
use support::proxy::Proxy;
use support::servers::{Kind, Server};
use support::wait::{Latch, until};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(with_each_server("an_exhausted_pool_is_free_in_the_child", exhausted_pool));
    all.extend(with_each_server_and_mode("any_lock_is_held", |kind, mode| {
        let server = Server::start(kind);
        any_lock_is_held(mode, &cache_on(&server, PATIENT));
    }));
    all.push(scenario("any_lock_is_held::memory", || any_lock_is_held(Mode::Blocking, &in_memory())));
    all.extend(with_each_server("a_loader_runs_in_another_thread", |kind| {
        let server = Server::start(kind);
        // The process that holds the lease lives on, so the child waits until the lease ends. It does not wait for the
        // thread.
        a_loader_runs(&builder_on(&server, PATIENT).lease(SHORT_LEASE).load_timeout(SHORT_LEASE).register());
    }));
    all.push(scenario("a_loader_runs_in_another_thread::memory", || a_loader_runs(&in_memory())));
    all.extend(with_each_server("a_loader_forks", |kind| {
        let server = Server::start(kind);
        a_loader_forks(&cache_on(&server, PATIENT));
    }));
    all.push(scenario("a_loader_forks::memory", || a_loader_forks(&in_memory())));
    all
}

/// Memcached rounds it up to a second.
const SHORT_LEASE: Duration = Duration::from_millis(100);

fn in_memory() -> Cache {
    Cache::register(MemoryStore::new())
}

/// At the fork, as many threads as the pool has slots wait for replies. In the child, as many threads get a connection
/// at once.
fn exhausted_pool(kind: Kind) {
    const SLOTS: usize = 4;
    let server = Server::start(kind);
    let proxy = Proxy::before(server.port());
    let cache = cache_at(kind, proxy.port(), &format!("{PATIENT}&pool_size={SLOTS}"));
    cache.blocking().set_raw("key", "precious", MINUTE).expect("the server is running");
    let ask = |_| {
        let value = cache.blocking().get_raw("key").unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(value.as_deref(), Some(&b"precious"[..]));
    };
    let ask_at_once = || thread::scope(|scope| (0..SLOTS).for_each(|n| drop(scope.spawn(move || ask(n)))));
    for way in Way::COMMON {
        proxy.hold_replies_with("precious");
        thread::scope(|scope| {
            scope.spawn(ask_at_once);
            proxy.wait_until_held(SLOTS);
            let child = fork_by(way, ask_at_once);
            // The proxy holds the child's replies beside the parent's: all are in flight at the same time.
            proxy.wait_until_held(2 * SLOTS);
            proxy.release();
            child.join();
        });
        ask_at_once();
    }
}

/// The lock at which a thread stops, and the number of the pass at which it does.
static TARGET: Mutex<Option<(&str, usize)>> = Mutex::new(None);

/// How often the marked thread has reached each lock.
static REACHED: Mutex<BTreeMap<&str, usize>> = Mutex::new(BTreeMap::new());

/// [`RUNNING`], [`STOPPED`] (at the target) or [`RELEASED`].
static STATE: AtomicUsize = AtomicUsize::new(RUNNING);
const RUNNING: usize = 0;
const STOPPED: usize = 1;
const RELEASED: usize = 2;

thread_local! {
    static IS_MARKED: Cell<bool> = const { Cell::new(false) };
}

/// Called wherever this crate holds a lock or is inside a section.
fn observe(name: &'static str) {
    if !IS_MARKED.get() {
        return;
    }
    let count = {
        let mut reached = REACHED.lock().expect("no panic");
        let count = reached.entry(name).or_default();
        *count += 1;
        *count
    };
    let is_target = *TARGET.lock().expect("no panic") == Some((name, count));
    if is_target {
        STATE.store(STOPPED, Ordering::SeqCst);
        until("the parent has forked", || STATE.load(Ordering::SeqCst) == RELEASED);
    }
}

/// A marked thread stops while it holds the lock, at its first, a middle and its last pass. The process forks, and the
/// child runs the same operations as the thread.
fn any_lock_is_held(mode: Mode, cache: &Cache) {
    injection::on_reach(observe);
    use_everything_marked(mode, cache);
    let all = std::mem::take(&mut *REACHED.lock().expect("no panic"));
    println!("locks, and how often each is taken: {all:?}");
    assert!(all.contains_key("gate"), "the workload reaches the gate: {all:?}");
    for (name, count) in all {
        let mut passes = vec![1, count.div_ceil(2), count];
        passes.dedup();
        for (pass, way) in passes.into_iter().flat_map(|pass| [(pass, Way::Fork), (pass, Way::RawClone)]) {
            fork_while_it_is_held(mode, cache, (name, pass), way);
        }
    }
}

fn fork_while_it_is_held(mode: Mode, cache: &Cache, target: (&'static str, usize), way: Way) {
    *TARGET.lock().expect("no panic") = Some(target);
    REACHED.lock().expect("no panic").clear();
    STATE.store(RUNNING, Ordering::SeqCst);
    thread::scope(|scope| {
        let marked = scope.spawn(|| use_everything_marked(mode, cache));
        until("the thread stops at its target, or has ended", || {
            STATE.load(Ordering::SeqCst) == STOPPED || marked.is_finished()
        });
        if !marked.is_finished() {
            let child = fork_by(way, || use_everything(mode, cache));
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| child.join()));
            STATE.store(RELEASED, Ordering::SeqCst);
            assert!(ended.is_ok(), "the child of a process whose thread held {target:?}, by {way:?}");
        }
        marked.join().expect("the parent's thread continues");
    });
}

fn use_everything_marked(mode: Mode, cache: &Cache) {
    thread::scope(|scope| {
        let marked = scope.spawn(|| {
            IS_MARKED.set(true);
            use_everything(mode, cache);
        });
        marked.join().expect("no panic");
    });
}

fn use_everything(mode: Mode, cache: &Cache) {
    let caller = Caller::new(mode, cache);
    caller.converse("everything", 6);
    caller.fetch("fetched", "loaded");
    caller.increment("counter").expect("a number");
    caller.reconnect().expect("the server is running");
    caller.converse("everything", 2);
    let hook = lifecycle::on_after_fork(|| {});
    let _ = lifecycle::after_fork();
    assert!(lifecycle::remove_hook(hook));
    drop(Cache::builder(MemoryStore::new()).name("another").register());
    assert!(Cache::named("another").is_some());
    assert_eq!(*ProcessLocal::new().get_or_init(|| 1), 1);
    cache.reset();
}

/// The loader runs until it is released, after the child has ended.
fn a_loader_runs(cache: &Cache) {
    for way in Way::COMMON {
        let key = format!("loaded across a {way:?}");
        let (started, release) = (Latch::new(), Latch::new());
        thread::scope(|scope| {
            let loading = scope.spawn(|| {
                cache.blocking().fetch(&key, MINUTE, || {
                    started.raise();
                    release.wait("the loader is released");
                    Ok::<_, Infallible>("the parent's".to_owned())
                })
            });
            started.wait("the loader has begun");
            let child = fork_by(way, || {
                Caller::new(Mode::Blocking, cache).converse("child", 20);
                let fetched = cache.blocking().fetch(&key, MINUTE, || Ok::<_, Infallible>("the child's".to_owned()));
                (fetched.expect("never fails"), release.is_raised())
            });
            let (fetched, released) = child.join();
            assert!(!released, "the loader was still running");
            assert_eq!(fetched, "the child's", "after {way:?}");
            release.raise();
            assert_eq!(loading.join().expect("no panic").expect("never fails"), "the parent's");
        });
    }
}

/// Both processes return from the loader, each with its own value.
fn a_loader_forks(cache: &Cache) {
    for way in Way::COMMON {
        let key = format!("loaded across a {way:?}");
        let mut side = None;
        let fetched = cache.blocking().fetch(&key, MINUTE, || {
            let (forked, text) = match split::<String>(way, CHILD_TIME).expect("a child") {
                Side::Parent(child) => (Side::Parent(child), "the parent's"),
                Side::Child(reporter) => {
                    Caller::new(Mode::Blocking, cache).converse("child, in the loader", 20);
                    (Side::Child(reporter), "the child's")
                }
            };
            side = Some(forked);
            Ok::<_, Infallible>(text.to_owned())
        });
        let fetched = fetched.expect("never fails");
        match side.expect("the loader has run") {
            Side::Child(reporter) => reporter.run_and_exit(|| {
                Caller::new(Mode::Blocking, cache).converse("child, after the loader", 20);
                fetched
            }),
            Side::Parent(child) => {
                assert_eq!(fetched, "the parent's", "after {way:?}");
                assert_eq!(child.join(), "the child's", "after {way:?}");
                Caller::new(Mode::Blocking, cache).converse("parent", 20);
            }
        }
    }
}
