//! Promise 5: everything holds if the host calls no hook. Calling `after_fork` at any time changes nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use nix::unistd::{getpid, getppid, setsid};
use prefork_cache::{Cache, CacheStore, Result, Ttl, When, lifecycle, stores};

use crate::callers::{Caller, MINUTE, PATIENT, cache_at};
use crate::harness::{Mode, Scenario, scenario, skip, with_each_server_and_mode};
use support::descriptors::connected_to;
use support::forks::{CHILD_TIME, End, Way, exit_now, fork, fork_by, try_fork_by};
use support::proxy::Proxy;
use support::recorder::recorded;
use support::servers::{Kind, Server};
use support::wait::Latch;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = vec![
        scenario("every_way_of_forking_is_noticed", every_way_of_forking_is_noticed),
        scenario("every_way_of_forking_is_noticed_from_several_threads", noticed_from_several_threads),
        scenario("a_nested_process_id_namespace_is_noticed", a_nested_process_id_namespace_is_noticed),
        scenario("forks_are_noticed_on_a_kernel_without_wiped_pages", without_wiped_pages),
        scenario("ten_generations_are_counted", ten_generations_are_counted),
        scenario("a_daemon_that_forks_twice_is_counted", a_daemon_that_forks_twice_is_counted),
        scenario("hooks_run_once_per_process_even_if_one_panics", hooks_run_once_per_process),
        scenario("after_fork_in_a_process_that_was_not_forked_does_nothing", after_fork_without_a_fork),
        scenario("a_custom_store_is_reset_once_in_each_process", a_custom_store_is_reset_once),
        scenario("a_refresh_is_logged_once_in_each_process", a_refresh_is_logged_once),
    ];
    all.extend(with_each_server_and_mode("after_fork_may_be_called_at_any_time", after_fork_at_any_time));
    all
}

fn every_way_of_forking_is_noticed() {
    let before = lifecycle::generation();
    for way in Way::COMMON {
        let in_child = fork_by(way, || [lifecycle::generation(), lifecycle::generation()]).join();
        assert_eq!(in_child, [before + 1; 2], "{way:?}");
        assert_eq!(lifecycle::generation(), before, "the parent after {way:?}");
    }
}

/// All threads of a child see the same generation, regardless of which one checks first.
fn noticed_from_several_threads() {
    let before = lifecycle::generation();
    for way in Way::COMMON {
        let resets_at_use = fork_by(way, || {
            let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(lifecycle::generation)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<u64>>()
        });
        assert_eq!(resets_at_use.join(), vec![before + 1; 8], "{way:?}");
    }
}

/// The first refresh in a process is by the hook or by an operation.
fn a_refresh_is_logged_once() {
    let server = Server::start(Kind::Redis);
    let store = stores::TieredStore::new(stores::MemoryStore::new(), stores::from_url(&server.url("")).expect("a URL"));
    let cache = Cache::builder(store).name("words").register();
    cache.blocking().set("k", &1, MINUTE).expect("the server is running");
    for hook_comes_first in [true, false] {
        let logged = fork(|| {
            let ((), records) = recorded(|| {
                for _ in 0..2 {
                    if hook_comes_first {
                        let _ = lifecycle::after_fork();
                    }
                    cache.blocking().touch("k", MINUTE).expect("the server is running");
                    let _ = lifecycle::after_fork();
                }
            });
            let refreshes = records.into_iter().filter(|record| record.name == "refreshed after a fork");
            refreshes.map(|record| (record.level.to_string(), record.fields)).collect::<Vec<_>>()
        });
        let expected = [
            ("cache.name", "words"),
            ("refresh", "tiered (near warm, far reset)"),
            ("generation", "2"),
            ("sockets_cut", "1"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        assert_eq!(logged.join(), [("DEBUG".to_owned(), expected)]);
    }
}

/// The child's process id in its namespace may be equal to its parent's.
fn a_nested_process_id_namespace_is_noticed() {
    let before = lifecycle::generation();
    let child = try_fork_by(Way::NewNamespace, CHILD_TIME, || (getpid().as_raw(), lifecycle::generation()));
    match child {
        Ok(child) => assert_eq!(child.join(), (1, before + 1)),
        Err(error) => skip(&format!("no user namespaces here: {error}")),
    }
}

fn without_wiped_pages() {
    prefork_cache::injection::without_wipe();
    every_way_of_forking_is_noticed();
}

fn ten_generations_are_counted() {
    fn descend(depth: u64) -> Vec<u64> {
        let own = lifecycle::generation();
        let way = Way::COMMON[usize::try_from(depth % 3).expect("a small number")];
        let mut all = if depth < 10 { fork_by(way, || descend(depth + 1)).join() } else { Vec::new() };
        assert_eq!(lifecycle::generation(), own, "a process keeps its generation");
        all.push(own);
        all
    }
    let first = lifecycle::generation();
    let expected: Vec<u64> = (first..=first + 10).rev().collect();
    assert_eq!(descend(0), expected);
}

/// The classic daemon: the intermediate process ends before it uses the crate.
fn a_daemon_that_forks_twice_is_counted() {
    let before = lifecycle::generation();
    let (adopted, reported) = (Latch::new(), Latch::new());
    let (read_end, write_end) = nix::unistd::pipe().expect("a pipe");
    let middle = fork::<()>(|| {
        setsid().expect("a new session");
        let middle = getpid();
        // Not waited for: the process that adopts it reaps it.
        let _daemon = fork::<()>(|| {
            support::wait::until("the daemon is adopted", || getppid() != middle);
            adopted.raise();
            nix::unistd::write(&write_end, &lifecycle::generation().to_ne_bytes()).expect("room in a pipe");
            reported.raise();
        });
        exit_now(0);
    });
    assert_eq!(middle.end(), End::Exited(0));
    adopted.wait("the daemon is adopted");
    reported.wait("the daemon has reported");
    let mut generation = [0; 8];
    nix::unistd::read(&read_end, &mut generation).expect("eight bytes");
    let generation = u64::from_ne_bytes(generation);
    // The fork handlers run in the intermediate process as well: it is a generation of its own.
    assert_eq!(generation, before + 2, "the daemon's generation");
}

fn hooks_run_once_per_process() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let count = || {
        RUNS.fetch_add(1, Ordering::SeqCst);
    };
    lifecycle::on_after_fork(count);
    let bad = lifecycle::on_after_fork(|| panic!("as planned"));
    let removed = lifecycle::on_after_fork(count);
    lifecycle::on_after_fork(count);
    assert!(lifecycle::remove_hook(removed));
    for way in Way::COMMON {
        let child = fork_by(way, || {
            let first = lifecycle::after_fork();
            assert!(first.forked());
            assert_eq!(first.hooks_run(), 2, "{first}");
            assert_eq!(first.failed_hooks().len(), 1, "{first}");
            assert_eq!(first.failed_hooks()[0].id(), bad);
            assert_eq!(first.failed_hooks()[0].message(), "as planned");
            for _ in 0..4 {
                let again = lifecycle::after_fork();
                assert_eq!((again.hooks_run(), again.failed_hooks().len()), (0, 0), "{again}");
            }
            let grandchild = fork(|| {
                let report = lifecycle::after_fork();
                (report.hooks_run(), RUNS.load(Ordering::SeqCst))
            });
            assert_eq!(grandchild.join(), (2, 4), "a grandchild runs them again");
            RUNS.load(Ordering::SeqCst)
        });
        assert_eq!(child.join(), 2, "{way:?}");
    }
    assert_eq!(RUNS.load(Ordering::SeqCst), 0, "none ran in the parent");
    let report = lifecycle::after_fork();
    assert!(!report.forked() && report.hooks_run() == 0, "{report}");
}

fn after_fork_without_a_fork() {
    lifecycle::on_after_fork(|| panic!("a hook ran without a fork"));
    for _ in 0..5 {
        let report = lifecycle::after_fork();
        assert!(!report.forked(), "{report}");
        assert_eq!((report.sockets_cut(), report.hooks_run(), report.failed_hooks().len()), (0, 0, 0), "{report}");
        assert_eq!(report.generation(), lifecycle::generation());
    }
}

/// It is called never, once or five times before the first use, or later, or in the parent. Only a use dials, and a
/// process keeps the connections that it has opened.
fn after_fork_at_any_time(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let proxy = Proxy::before(server.port());
    let cache = cache_at(kind, proxy.port(), PATIENT);
    let caller = Caller::new(mode, &cache);
    caller.converse("parent", 4);
    let call_often = |times| (0..times).for_each(|_| drop(lifecycle::after_fork()));
    for (early, late) in [(0, 0), (1, 0), (5, 0), (0, 1), (0, 5), (5, 5)] {
        for way in Way::COMMON {
            let dialled = proxy.connects();
            let child = fork_by(way, || {
                call_often(early);
                assert!(early == 0 || connected_to(proxy.port()).is_empty(), "after_fork dials nothing");
                let caller = Caller::new(mode, &cache);
                caller.converse("child", 4);
                let own = connected_to(proxy.port());
                call_often(late);
                caller.converse("child", 4);
                assert_eq!(connected_to(proxy.port()), own, "a connection of its own is kept");
                own.len()
            });
            let connections = child.join();
            assert_eq!(connections, 1, "{early} calls before the first use, {late} after it");
            call_often(early);
            caller.converse("parent", 4);
            assert_eq!(proxy.connects() - dialled, 1, "only the child dials");
        }
    }
}

/// A store without knowledge of forks: only `reset` is specific to this crate.
#[derive(Debug, Default)]
struct Custom {
    resets: AtomicUsize,
    /// The number of resets at the time of the last use.
    resets_at_use: AtomicUsize,
}

#[async_trait]
impl CacheStore for Custom {
    fn name(&self) -> &str {
        "custom"
    }

    async fn get(&self, _: &str) -> Result<Option<Bytes>> {
        self.resets_at_use.store(self.resets.load(Ordering::SeqCst), Ordering::SeqCst);
        Ok(None)
    }

    async fn set(&self, _: &str, _: Bytes, _: Ttl, _: When) -> Result<bool> {
        self.get("").await.map(|_| true)
    }

    async fn delete(&self, _: &str) -> Result<bool> {
        Ok(false)
    }

    async fn compare_and_set(&self, _: &str, _: Option<&[u8]>, _: Option<Bytes>, _: Ttl) -> Result<bool> {
        Ok(false)
    }

    async fn clear(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }

    async fn reconnect(&self) -> Result<()> {
        self.reset();
        Ok(())
    }
}

fn a_custom_store_is_reset_once() {
    let store = Arc::new(Custom::default());
    let cache = Cache::register(Arc::clone(&store));
    let use_it = || cache.blocking().set("key", &1, MINUTE).expect("the store never fails");
    use_it();
    assert_eq!(store.resets.load(Ordering::SeqCst), 0, "the parent's store is not reset");
    for (way, calls) in Way::COMMON.into_iter().flat_map(|way| [(way, 0), (way, 1), (way, 5)]) {
        let child = fork_by(way, || {
            (0..calls).for_each(|_| drop(lifecycle::after_fork()));
            std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(use_it))));
            let in_child = (store.resets.load(Ordering::SeqCst), store.resets_at_use.load(Ordering::SeqCst));
            let grandchild = fork(|| {
                use_it();
                store.resets.load(Ordering::SeqCst)
            });
            (in_child, grandchild.join())
        });
        assert_eq!(child.join(), ((1, 1), 2), "reset before the first use, and once, after {way:?} with {calls} calls");
    }
    use_it();
    assert_eq!(store.resets.load(Ordering::SeqCst), 0);
}
