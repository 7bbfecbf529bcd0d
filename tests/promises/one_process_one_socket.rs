//! Promise 1: a cache socket is used only by the process that opened it.

use std::collections::BTreeSet;

use prefork_cache::Cache;
use tokio::runtime::Builder;

use crate::callers::{Caller, MINUTE, PATIENT, cache_on};
use crate::harness::{Mode, Scenario, skip, with_each_server, with_each_server_and_mode};
use support::forks::{CHILD_TIME, Child, End, Way, exit_now, fork_by, try_fork_by};
use support::identity::{Identity, own_connections};
use support::servers::{Kind, Server};
use support::wait::Latch;

const OPERATIONS: usize = 2_000;
const FEWER: usize = 200;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(with_each_server_and_mode("both_sides_use_the_cache_after_a_fork", |kind, mode| {
        both_sides_use_the_cache(kind, mode, Way::Fork, OPERATIONS);
    }));
    all.extend(with_each_server_and_mode("both_sides_use_the_cache_after_an_underscore_fork", |kind, mode| {
        both_sides_use_the_cache(kind, mode, Way::UnderscoreFork, FEWER);
    }));
    all.extend(with_each_server_and_mode("both_sides_use_the_cache_after_a_raw_clone", |kind, mode| {
        both_sides_use_the_cache(kind, mode, Way::RawClone, FEWER);
    }));
    all.extend(with_each_server_and_mode("both_sides_use_the_cache_in_a_nested_namespace", |kind, mode| {
        both_sides_use_the_cache(kind, mode, Way::NewNamespace, FEWER);
    }));
    all.extend(with_each_server_and_mode("both_sides_use_the_cache_on_a_kernel_without_wiped_pages", |kind, mode| {
        prefork_cache::injection::without_wipe();
        both_sides_use_the_cache(kind, mode, Way::Fork, FEWER);
    }));
    all.extend(with_each_server_and_mode("five_generations_use_the_cache", five_generations_use_the_cache));
    all.extend(with_each_server_and_mode("a_daemon_that_forks_twice", a_daemon_that_forks_twice));
    all.extend(with_each_server("a_fork_on_a_runtimes_thread", a_fork_on_a_runtimes_thread));
    all
}

/// No hook is called. No reply is wrong, no operation fails, and each side has its own connections.
fn both_sides_use_the_cache(kind: Kind, mode: Mode, way: Way, operations: usize) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    let caller = Caller::new(mode, &cache);
    caller.converse("parent before", 20);
    let before = own_connections(&server);
    assert!(!before.is_empty(), "the parent is connected");

    let start = Latch::new();
    let child = try_fork_by(way, CHILD_TIME, || {
        start.wait("both sides start");
        use_as_a_child(mode, &cache, &server, "child", operations)
    });
    let child = child.unwrap_or_else(|error| skip(&format!("{way:?} is not permitted here: {error}")));
    start.raise();
    caller.converse("parent", operations);
    let in_child = child.join();

    assert_eq!(own_connections(&server), before, "the parent keeps its connections");
    assert_disjoint(&before, &in_child);
    println!("{operations} operations per side; parent {before:?}; child {in_child:?}");
}

/// Uses the cache with a new caller. Returns the connections of this process as the server sees them.
fn use_as_a_child(mode: Mode, cache: &Cache, server: &Server, side: &str, operations: usize) -> BTreeSet<Identity> {
    let caller = Caller::new(mode, cache);
    caller.converse(side, operations);
    own_connections(server)
}

fn assert_disjoint(of_parent: &BTreeSet<Identity>, of_child: &BTreeSet<Identity>) {
    assert!(!of_child.is_empty(), "the child is connected");
    let ports = |identities: &BTreeSet<Identity>| identities.iter().map(|i| i.local_port).collect::<BTreeSet<_>>();
    assert!(ports(of_parent).is_disjoint(&ports(of_child)), "no connection is shared: {of_parent:?} and {of_child:?}");
}

/// Each generation forks the next while it uses the cache.
fn five_generations_use_the_cache(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    let all = generation(mode, &cache, &server, 0);
    assert_eq!(all.len(), 6, "the parent and five generations");
    let ports: BTreeSet<u16> = all.iter().flatten().map(|identity| identity.local_port).collect();
    assert_eq!(ports.len(), all.iter().map(BTreeSet::len).sum::<usize>(), "no connection is shared: {all:?}");
}

/// Returns the connections of this generation and of all later ones.
fn generation(mode: Mode, cache: &Cache, server: &Server, depth: usize) -> Vec<BTreeSet<Identity>> {
    let side = format!("generation {depth}");
    let caller = Caller::new(mode, cache);
    caller.converse(&side, 20);
    let own = own_connections(server);
    let next: Option<Child<Vec<_>>> =
        (depth < 5).then(|| fork_by(Way::Fork, || generation(mode, cache, server, depth + 1)));
    caller.converse(&side, FEWER);
    let mut all = next.map(Child::join).unwrap_or_default();
    assert_eq!(own_connections(server), own, "{side} keeps its connections");
    all.push(own);
    all
}

/// The intermediate process never uses the cache.
fn a_daemon_that_forks_twice(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    let caller = Caller::new(mode, &cache);
    caller.converse("parent before", 20);
    let before = own_connections(&server);
    let done = Latch::new();
    let middle = fork_by::<()>(Way::Fork, || {
        nix::unistd::setsid().expect("a new session");
        // Not waited for: the process that adopts it reaps it.
        let _daemon = fork_by::<()>(Way::Fork, || {
            let own = use_as_a_child(mode, &cache, &server, "daemon", FEWER);
            assert_disjoint(&before, &own);
            done.raise();
        });
        exit_now(0);
    });
    caller.converse("parent", FEWER);
    assert_eq!(middle.end(), End::Exited(0));
    done.wait("the daemon is done");
    assert_eq!(own_connections(&server), before, "the parent keeps its connections");
}

/// The child uses the blocking API: its runtime is inherited.
fn a_fork_on_a_runtimes_thread(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let set = async |cache: &Cache| cache.set("parent", &"value", MINUTE).await.expect("the server is running");
        set(&cache).await;
        let (in_task, before) = (cache.clone(), own_connections(&server));
        let on_a_worker = tokio::spawn(async move {
            set(&in_task).await;
            // Joined here: this worker waits, and the other one continues.
            fork_by(Way::Fork, || Caller::new(Mode::Blocking, &in_task).converse("child", FEWER)).join();
            set(&in_task).await;
        });
        on_a_worker.await.expect("no panic");
        set(&cache).await;
        let after = own_connections(&server);
        assert!(before.is_subset(&after), "the parent keeps its connections: {before:?}, {after:?}");
    });
}
