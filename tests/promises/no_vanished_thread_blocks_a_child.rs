//! Promise 3: nothing of this crate that another thread held at the fork can make the child wait.

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
    all.extend(with_each_server("a_pool_that_was_wholly_leased_is_free_in_the_child", wholly_leased));
    all.extend(with_each_server_and_mode("whichever_lock_is_held", |kind, mode| {
        let server = Server::start(kind);
        whichever_lock_is_held(mode, &cache_on(&server, PATIENT));
    }));
    all.push(scenario("whichever_lock_is_held::memory", || whichever_lock_is_held(Mode::Blocking, &in_memory())));
    all.extend(with_each_server("a_loader_at_work_in_another_thread", |kind| {
        let server = Server::start(kind);
        // The process whose lease it is lives on, and is waited for until that ends; the thread is not.
        a_loader_at_work(&builder_on(&server, PATIENT).lease(SHORT_LEASE).load_timeout(SHORT_LEASE).register());
    }));
    all.push(scenario("a_loader_at_work_in_another_thread::memory", || a_loader_at_work(&in_memory())));
    all.extend(with_each_server("a_fork_from_inside_a_loader", |kind| {
        let server = Server::start(kind);
        a_fork_from_inside_a_loader(&cache_on(&server, PATIENT));
    }));
    all.push(scenario("a_fork_from_inside_a_loader::memory", || a_fork_from_inside_a_loader(&in_memory())));
    all
}

/// Memcached makes a second of it.
const SHORT_LEASE: Duration = Duration::from_millis(100);

fn in_memory() -> Cache {
    Cache::register(MemoryStore::new())
}

/// As many threads as the pool has places wait for replies at the fork; and as many get places in the child, all at
/// once.
fn wholly_leased(kind: Kind) {
    const PLACES: usize = 4;
    let server = Server::start(kind);
    let proxy = Proxy::before(server.port());
    let cache = cache_at(kind, proxy.port(), &format!("{PATIENT}&pool_size={PLACES}"));
    cache.blocking().set_raw("key", "precious", MINUTE).expect("the server is there");
    let ask = |_| {
        let value = cache.blocking().get_raw("key").unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(value.as_deref(), Some(&b"precious"[..]));
    };
    let ask_at_once = || thread::scope(|scope| (0..PLACES).for_each(|n| drop(scope.spawn(move || ask(n)))));
    for way in Way::COMMON {
        proxy.hold_replies_with("precious");
        thread::scope(|scope| {
            scope.spawn(ask_at_once);
            proxy.wait_until_held(PLACES);
            let child = fork_by(way, ask_at_once);
            // The child's are held besides the parent's: they are under way at the same time.
            proxy.wait_until_held(2 * PLACES);
            proxy.release();
            child.join();
        });
        ask_at_once();
    }
}

/// Which lock a thread stops at, and how often it has to come by first.
static TARGET: Mutex<Option<(&str, usize)>> = Mutex::new(None);

/// How often the marked thread has reached each lock.
static REACHED: Mutex<BTreeMap<&str, usize>> = Mutex::new(BTreeMap::new());

/// [`MOVING`], [`STOPPED`] (at the target) or [`RELEASED`].
static STATE: AtomicUsize = AtomicUsize::new(MOVING);
const MOVING: usize = 0;
const STOPPED: usize = 1;
const RELEASED: usize = 2;

thread_local! {
    static IS_MARKED: Cell<bool> = const { Cell::new(false) };
}

/// Called wherever this crate holds a lock, or is inside the gate.
fn observe(name: &'static str) {
    if !IS_MARKED.get() {
        return;
    }
    let times = {
        let mut reached = REACHED.lock().expect("no panic");
        let times = reached.entry(name).or_default();
        *times += 1;
        *times
    };
    let is_target = *TARGET.lock().expect("no panic") == Some((name, times));
    if is_target {
        STATE.store(STOPPED, Ordering::SeqCst);
        until("the parent has forked", || STATE.load(Ordering::SeqCst) == RELEASED);
    }
}

/// A marked thread stops with the lock in its hands, at its first, a middle and its last time there. The process forks,
/// and the child does all that the thread was doing.
fn whichever_lock_is_held(mode: Mode, cache: &Cache) {
    injection::on_reach(observe);
    use_everything_marked(mode, cache);
    let all = std::mem::take(&mut *REACHED.lock().expect("no panic"));
    println!("locks, and how often they are taken: {all:?}");
    assert!(all.contains_key("gate"), "the workload reaches the gate: {all:?}");
    for (name, times) in all {
        let mut moments = vec![1, times.div_ceil(2), times];
        moments.dedup();
        for (moment, way) in moments.into_iter().flat_map(|moment| [(moment, Way::Fork), (moment, Way::RawClone)]) {
            fork_while_it_is_held(mode, cache, (name, moment), way);
        }
    }
}

fn fork_while_it_is_held(mode: Mode, cache: &Cache, target: (&'static str, usize), way: Way) {
    *TARGET.lock().expect("no panic") = Some(target);
    REACHED.lock().expect("no panic").clear();
    STATE.store(MOVING, Ordering::SeqCst);
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
        marked.join().expect("the parent's thread goes on");
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
    caller.reconnect().expect("the server is there");
    caller.converse("everything", 2);
    let hook = lifecycle::on_after_fork(|| {});
    let _ = lifecycle::after_fork();
    assert!(lifecycle::remove_hook(hook));
    drop(Cache::builder(MemoryStore::new()).name("another").register());
    assert!(Cache::named("another").is_some());
    assert_eq!(*ProcessLocal::new().get_or_init(|| 1), 1);
    cache.reset();
}

/// It works until it is told to stop, which is after the child has ended.
fn a_loader_at_work(cache: &Cache) {
    for way in Way::COMMON {
        let key = format!("loaded across a {way:?}");
        let (begun, go_on) = (Latch::new(), Latch::new());
        thread::scope(|scope| {
            let loading = scope.spawn(|| {
                cache.blocking().fetch(&key, MINUTE, || {
                    begun.raise();
                    go_on.wait("the loader may go on");
                    Ok::<_, Infallible>("the parent's".to_owned())
                })
            });
            begun.wait("the loader has begun");
            let child = fork_by(way, || {
                Caller::new(Mode::Blocking, cache).converse("child", 20);
                let fetched = cache.blocking().fetch(&key, MINUTE, || Ok::<_, Infallible>("the child's".to_owned()));
                (fetched.expect("never fails"), go_on.is_raised())
            });
            let (fetched, released) = child.join();
            assert!(!released, "the loader was still at work");
            assert_eq!(fetched, "the child's", "after {way:?}");
            go_on.raise();
            assert_eq!(loading.join().expect("no panic").expect("never fails"), "the parent's");
        });
    }
}

/// Both processes come back from the loader, each with a value of its own.
fn a_fork_from_inside_a_loader(cache: &Cache) {
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
