//! The promises for one server also hold for a cluster of three masters, each with a replica: during a failover, in a
//! child that is forked during a failover, and in a child that is forked while its parent refreshes the topology.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;

use prefork_cache::{Cache, ErrorKind, stores};

use crate::callers::{Caller, HOUR, MINUTE, PATIENT, cache_at, current_thread_runtime, until_async};
use crate::harness::{Mode, Scenario, count, scenario};
use crate::one_loads_for_all::{cold_keys_are_loaded_once, key_of};
use support::cluster::Cluster;
use support::forks::{Child, Way, fork, fork_by, try_fork_by};
use support::proxy::{Fault, Proxy};
use support::servers::{Kind, Server, cluster_all};
use support::tally::Tally;
use support::wait::{PATIENCE, SetOnDrop, until};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("a_master_crashes_under_eight_workers::blocking", || a_master_crashes(Mode::Blocking)),
        scenario("a_master_crashes_under_eight_workers::tokio", || a_master_crashes(Mode::Tokio)),
        scenario("a_fork_during_a_failover::blocking", || fork_during_a_failover(Mode::Blocking)),
        scenario("a_fork_during_a_failover::tokio", || fork_during_a_failover(Mode::Tokio)),
        scenario("forks_during_batches::blocking", || forks_during_batches(Mode::Blocking)),
        scenario("forks_during_batches::tokio", || forks_during_batches(Mode::Tokio)),
        scenario("a_child_refreshes_the_topology_itself::blocking", || child_refreshes_itself(Mode::Blocking)),
        scenario("a_child_refreshes_the_topology_itself::tokio", || child_refreshes_itself(Mode::Tokio)),
        scenario("inherited_waits_for_the_topology_fail", inherited_waits_fail),
        scenario("sixty_four_workers_load_a_cold_key_once::blocking", || loads_a_cold_key_once(Mode::Blocking)),
        scenario("sixty_four_workers_load_a_cold_key_once::tokio", || loads_a_cold_key_once(Mode::Tokio)),
    ]
}

const WORKERS: usize = 8;

/// Enough keys to have some in the slots of each master.
const KEYS: usize = 48;

const OPTIONS: &str = "timeout=5s&connect_timeout=5s&retry_after=100ms";

fn cache_on(cluster: &Cluster) -> Cache {
    Cache::register(stores::from_url(&cluster.url(OPTIONS)).expect("a good URL"))
}

/// A process that writes and reads its own keys, and checks the values.
struct User<'c> {
    caller: Caller<'c>,
    name: String,
    round: usize,
}

impl<'c> User<'c> {
    fn new(mode: Mode, cache: &'c Cache, name: &str) -> User<'c> {
        User { caller: Caller::new(mode, cache), name: name.to_owned(), round: 0 }
    }

    /// Writes and reads every key once. Returns the number of failed calls. A read returns this process's value: that
    /// of this round, or, if the write has failed or was lost with its master, that of an earlier round.
    fn run_round(&mut self) -> usize {
        self.round += 1;
        let mut failed = 0;
        for number in 0..KEYS {
            let key = format!("{}:{number}", self.name);
            let is_written = self.caller.set(&key, &format!("{key} in round {}", self.round)).is_ok();
            let read = self.caller.get(&key);
            failed += usize::from(!is_written) + usize::from(read.is_err());
            let Ok(Some(value)) = read else { continue };
            let round = value.strip_prefix(&format!("{key} in round ")).unwrap_or_else(|| panic!("{key}: {value}"));
            assert!(round.parse::<usize>().expect("a number") <= self.round, "{key}: {value}");
        }
        failed
    }

    /// Runs rounds until no call fails, and then this many rounds in which no call may fail.
    fn recover(&mut self, rounds: usize) {
        until("every call succeeds again", || self.run_round() == 0);
        self.run(rounds);
    }

    /// Runs this many rounds, in which no call may fail.
    fn run(&mut self, rounds: usize) {
        for _ in 0..rounds {
            assert_eq!(self.run_round(), 0, "failed calls on a healthy cluster");
            for number in 0..KEYS {
                let key = format!("{}:{number}", self.name);
                let value = self.caller.get(&key).expect("the cluster is healthy");
                assert_eq!(value, Some(format!("{key} in round {}", self.round)));
            }
        }
    }
}

fn worker<T: serde::Serialize + serde::de::DeserializeOwned>(work: impl FnOnce() -> T) -> Child<T> {
    try_fork_by(Way::Fork, 2 * PATIENCE, work).expect("a child")
}

/// Calls fail only during the failover. No process has to be restarted.
fn a_master_crashes(mode: Mode) {
    let mut cluster = Cluster::start();
    let cache = cache_on(&cluster);
    // The workers inherit the topology that their master process knows.
    cache.blocking().set("warm", &1, MINUTE).expect("the cluster is healthy");
    let (started, finished) = (Tally::new(), Tally::new());
    let work = |number: usize| {
        let mut user = User::new(mode, &cache, &format!("worker {number}"));
        user.run(2);
        started.raise(1);
        let mut failed = 0;
        while finished.count() == 0 {
            failed += user.run_round();
        }
        user.recover(count(5, 50));
        failed
    };
    let workers: Vec<Child<usize>> = (0..WORKERS).map(|number| worker(|| work(number))).collect();
    until("all workers have started", || started.count() == WORKERS);
    cluster.kill(0);
    cluster.wait_until_healthy();
    finished.raise(1);
    let failed: Vec<usize> = workers.into_iter().map(Child::join).collect();
    println!("{mode:?}: calls that failed during the failover, by worker: {failed:?}");
    assert!(failed.iter().any(|failed| *failed > 0), "no call failed during the failover");
    User::new(Mode::Blocking, &cache, "the master").recover(2);
}

/// The lease of a key is on the master that has its slot.
fn loads_a_cold_key_once(mode: Mode) {
    let cluster = Cluster::without_replicas();
    let store = stores::from_url(&cluster.url(PATIENT)).expect("a good URL");
    let cache = Cache::builder(store).lease(HOUR).load_timeout(HOUR).register();
    let rounds = count(3, 30);
    let owners: BTreeSet<usize> = (0..rounds).map(|round| cluster.owner(&key_of(round))).collect();
    assert!(owners.len() > 1, "all keys are on one master");
    let claims = || cluster.nodes().iter().map(Server::claims).sum();
    cold_keys_are_loaded_once(mode, &cache, claims, rounds);
}

/// The child inherits its parent's topology, which is outdated.
fn fork_during_a_failover(mode: Mode) {
    let mut cluster = Cluster::start();
    let cache = cache_on(&cluster);
    let mut parent = User::new(mode, &cache, "the parent");
    parent.run(1);
    cluster.kill(1);
    until("a call of the parent fails", || parent.run_round() > 0);
    let children: Vec<Child<()>> = Way::COMMON
        .into_iter()
        .map(|way| {
            fork_by(way, || {
                let mut user = User::new(mode, &cache, &format!("a child by {way:?}"));
                user.recover(2);
                fork(|| User::new(mode, &cache, "a grandchild").run(1)).join();
            })
        })
        .collect();
    parent.recover(2);
    children.into_iter().for_each(Child::join);
}

/// Another thread sends batches to all masters while children are forked.
fn forks_during_batches(mode: Mode) {
    let cluster = Cluster::without_replicas();
    let cache = cache_on(&cluster);
    let is_done = AtomicBool::new(false);
    let keys: Vec<String> = (0..600).map(|number| format!("batch:{number}")).collect();
    let entries: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), key.as_str())).collect();
    let get_many = || -> Vec<prefork_cache::Result<Option<String>>> {
        match mode {
            Mode::Blocking => cache.blocking().get_many(&keys),
            Mode::Tokio => current_thread_runtime().block_on(cache.get_many(&keys)),
        }
    };
    let check = |process: &str| {
        for (key, value) in keys.iter().zip(get_many()) {
            let value = value.unwrap_or_else(|error| panic!("{process}, {key}: {error:?}"));
            assert_eq!(value.as_ref(), Some(key), "{process}");
        }
    };
    cache.blocking().set_many(&entries, MINUTE).into_iter().for_each(|stored| stored.expect("the cluster is healthy"));
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut batches = 0;
            while !is_done.load(Ordering::Relaxed) {
                check("the parent");
                batches += 1;
            }
            batches
        });
        let done = SetOnDrop(&is_done);
        for round in 0..count(12, 200) {
            fork_by(Way::COMMON[round % Way::COMMON.len()], || {
                check("a child");
                User::new(mode, &cache, &format!("child {round}")).run(1);
            })
            .join();
        }
        drop(done);
        println!("{} batches while children were forked", asking.join().expect("no panic"));
    });
}

/// The parent's query for the topology gets no reply before the children have ended.
fn child_refreshes_itself(mode: Mode) {
    cluster_all();
    let server = Server::start(Kind::Redis);
    let proxy = Proxy::before(server.port());
    let cache = cache_at(Kind::Redis, proxy.port(), "timeout=30s&connect_timeout=30s");
    let has_held = AtomicBool::new(false);
    proxy.plan(move |_, piece| {
        let has_slots = piece.windows(8).any(|window| window == b":16383\r\n");
        if has_slots && !has_held.swap(true, Ordering::SeqCst) { Fault::Hold } else { Fault::None }
    });
    thread::scope(|scope| {
        let asking = scope.spawn(|| Caller::new(mode, &cache).set("key", "the parent's"));
        proxy.wait_until_held(1);
        for way in Way::COMMON {
            fork_by(way, || Caller::new(mode, &cache).converse("a child", 10)).join();
        }
        proxy.release();
        asking.join().expect("no panic").expect("the reply arrives in the end");
    });
    assert_eq!(
        cache.blocking().get::<String>("key").map_err(|error| error.kind()),
        Ok::<_, ErrorKind>(Some("the parent's".to_owned()))
    );
}

/// One of the futures refreshes the topology, and the others wait for it.
fn inherited_waits_fail() {
    cluster_all();
    let server = Server::start(Kind::Redis);
    let proxy = Proxy::before(server.port());
    let cache = cache_at(Kind::Redis, proxy.port(), "timeout=30s&connect_timeout=30s");
    proxy.hold_replies_with(":16383");
    current_thread_runtime().block_on(async {
        let mut asking: Vec<_> = (0..8).map(|_| Box::pin(cache.get_raw("key"))).collect();
        let mut held = pin!(until_async("the proxy holds the slots", || proxy.held() == 1));
        poll_fn(|cx| {
            assert!(
                asking.iter_mut().all(|asking| asking.as_mut().poll(cx).is_pending()),
                "a future completes without a reply"
            );
            held.as_mut().poll(cx)
        })
        .await;
        for way in Way::COMMON {
            fork_by(way, || {
                for mut asking in asking.drain(..) {
                    let Poll::Ready(answer) = asking.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
                        panic!("an inherited future waits for a reply that never comes");
                    };
                    assert_eq!(answer.map_err(|error| error.kind()), Err(ErrorKind::Forked));
                }
            })
            .join();
        }
        proxy.release();
        for asking in asking {
            assert_eq!(asking.await.expect("the reply arrives in the end"), None);
        }
    });
}
