//! The promises for one server also hold for a cluster of three masters, each with a replica: during a failover, in a
//! child that is forked during a failover, while its parent refreshes the topology, or during a clear.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;

use prefork_cache::{Cache, ErrorKind, stores};

use crate::callers::{Caller, HOUR, MINUTE, PATIENT, cache_at, current_thread_runtime, until_async};
use crate::harness::{Mode, Scenario, count, scenario};
use crate::one_loads_for_all::{cold_keys_are_loaded_once, key_of};
use support::cluster::Cluster;
use support::forks::{CHILD_TIME, Child, Side, Way, fork, fork_by, split, try_fork_by};
use support::proxy::{Fault, Proxy};
use support::servers::{Kind, Server, cluster_all};
use support::signals::{interrupt, on_interrupt, restore_sigpipe, this_thread};
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
        scenario("a_fork_during_a_clear::blocking", fork_during_a_blocking_clear),
        scenario("a_fork_during_a_clear::tokio", fork_during_an_asynchronous_clear),
        scenario("a_signal_handler_forks_during_a_clear", a_handler_forks_during_a_clear),
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

/// A cluster of three masters, each behind a proxy that can hold the replies of a clear.
struct Proxied {
    /// Keeps the nodes running.
    cluster: Cluster,
    proxies: Vec<Proxy>,
    cache: Cache,
}

/// The replies of a clear that are held at the fork: those with the listed keys, or those that report their removal.
const REPLIES: [&str; 2] = ["cleared:1", ":1\r\n:1\r\n:1\r\n"];

impl Proxied {
    fn start() -> Proxied {
        let mut cluster = Cluster::without_replicas();
        let proxies: Vec<Proxy> = cluster.nodes().iter().map(|node| Proxy::before(node.port())).collect();
        for (node, proxy) in proxies.iter().enumerate() {
            cluster.announce(node, proxy.port());
        }
        let ports: Vec<u16> = proxies.iter().map(Proxy::port).collect();
        let cache = Cache::register(stores::from_url(&cluster.url_with_seeds(&ports, PATIENT)).expect("a good URL"));
        Proxied { cluster, proxies, cache }
    }

    /// Returns the cache that is cleared.
    fn cleared(&self) -> Cache {
        self.cache.namespace("cleared")
    }

    /// Fills the cache that is cleared, and holds one of these replies of each node.
    fn prepare(&self, held: &'static str) {
        fill(&self.cache.namespace("kept"));
        fill(&self.cleared());
        for proxy in &self.proxies {
            let is_found = move |piece: &[u8]| piece.windows(held.len()).any(|window| window == held.as_bytes());
            let has_held = AtomicBool::new(false);
            proxy.plan(move |_, piece| {
                if is_found(piece) && !has_held.swap(true, Ordering::SeqCst) { Fault::Hold } else { Fault::None }
            });
        }
    }

    fn held(&self) -> usize {
        self.proxies.iter().map(Proxy::held).sum()
    }

    fn release(&self) {
        self.proxies.iter().for_each(Proxy::release);
    }

    /// Called in a child that was forked during the clear. Its own clear removes its own entries alone.
    fn use_in_child(&self, mode: Mode) {
        let own = self.cache.namespace(mode.name());
        fill(&own);
        match mode {
            Mode::Blocking => own.blocking().clear(),
            Mode::Tokio => current_thread_runtime().block_on(own.clear()),
        }
        .unwrap_or_else(|error| panic!("the child's clear, {mode:?}: {error:?}"));
        assert_eq!(present(&own), 0, "the child's clear, {mode:?}");
        assert_eq!(present(&self.cache.namespace("kept")), KEYS, "the child's clear, {mode:?}");
        Caller::new(mode, &self.cache).converse("child", 20);
    }

    /// Called in the parent after its clear.
    fn assert_cleared(&self, case: &str) {
        assert_eq!(present(&self.cleared()), 0, "{case}");
        assert_eq!(present(&self.cache.namespace("kept")), KEYS, "{case}");
        Caller::new(Mode::Blocking, &self.cache).converse("parent", 20);
        let owners: BTreeSet<usize> = (0..KEYS).map(|key| self.cluster.owner(&format!("cleared:{key}"))).collect();
        assert_eq!(owners.len(), self.proxies.len(), "each master has some of the keys");
    }
}

/// Writes every key. Each value names its namespace.
fn fill(cache: &Cache) {
    let keys: Vec<String> = (0..KEYS).map(|key| key.to_string()).collect();
    let entries: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), key.as_str())).collect();
    cache.blocking().set_many(&entries, MINUTE).into_iter().for_each(|stored| stored.expect("the cluster is healthy"));
}

/// Returns how many of the keys have their value. The others have none.
fn present(cache: &Cache) -> usize {
    let keys: Vec<String> = (0..KEYS).map(|key| key.to_string()).collect();
    let found = cache.blocking().get_many::<String>(&keys);
    let check = |(key, found): (&String, prefork_cache::Result<Option<String>>)| {
        let found = found.expect("the cluster is healthy");
        assert!(found.as_ref().is_none_or(|found| found == key), "{key}: {found:?}");
        usize::from(found.is_some())
    };
    keys.iter().zip(found).map(check).sum()
}

/// Another thread waits for the replies of all masters.
fn fork_during_a_blocking_clear() {
    let proxied = Proxied::start();
    let cleared = proxied.cleared();
    for held in REPLIES {
        for way in Way::COMMON {
            proxied.prepare(held);
            thread::scope(|scope| {
                let clearing = scope.spawn(|| cleared.blocking().clear());
                until("all masters' replies are held", || proxied.held() == proxied.proxies.len());
                fork_by(way, || Mode::BOTH.into_iter().for_each(|mode| proxied.use_in_child(mode))).join();
                proxied.release();
                let outcome = clearing.join().expect("no panic");
                outcome.unwrap_or_else(|error| panic!("the parent, {held:?}, after {way:?}: {error:?}"));
            });
            proxied.assert_cleared(&format!("{held:?}, after {way:?}"));
        }
    }
}

/// The child polls its copy of the future, and uses the cache.
fn fork_during_an_asynchronous_clear() {
    let proxied = Proxied::start();
    let cleared = proxied.cleared();
    for held in REPLIES {
        for way in Way::COMMON {
            proxied.prepare(held);
            current_thread_runtime().block_on(async {
                let mut clearing = Some(Box::pin(cleared.clear()));
                let mut all_held =
                    pin!(until_async("all masters' replies are held", || { proxied.held() == proxied.proxies.len() }));
                poll_fn(|cx| {
                    let clearing = clearing.as_mut().expect("created above").as_mut();
                    assert!(clearing.poll(cx).is_pending(), "the clear ends without its replies");
                    all_held.as_mut().poll(cx)
                })
                .await;
                fork_by(way, || {
                    let mut stale = clearing.take().expect("created above");
                    let Poll::Ready(outcome) = stale.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
                        panic!("the inherited clear waits for replies that never come");
                    };
                    assert_eq!(outcome.map_err(|error| error.kind()), Err(ErrorKind::Forked));
                    drop(stale);
                    for mode in Mode::BOTH {
                        // This thread is inside the inherited runtime.
                        thread::scope(|scope| scope.spawn(|| proxied.use_in_child(mode)).join()).expect("no panic");
                    }
                })
                .join();
                proxied.release();
                let outcome = clearing.expect("created above").await;
                outcome.unwrap_or_else(|error| panic!("the parent, {held:?}, after {way:?}: {error:?}"));
            });
            proxied.assert_cleared(&format!("{held:?}, after {way:?}"));
        }
    }
}

/// The result of the fork in the handler. The interrupted code waits for a reply and holds no lock.
static SIDE: Mutex<Option<Side<bool>>> = Mutex::new(None);

/// The interrupted clear continues in both processes. In the child it fails, or it is complete.
fn a_handler_forks_during_a_clear() {
    restore_sigpipe();
    let proxied = Proxied::start();
    let cleared = proxied.cleared();
    for held in REPLIES {
        for way in Way::COMMON {
            on_interrupt(move || *SIDE.lock().expect("no panic") = Some(split(way, CHILD_TIME).expect("a child")));
            proxied.prepare(held);
            let interrupted = this_thread();
            let child = thread::scope(|scope| {
                scope.spawn(|| {
                    until("all masters' replies are held", || proxied.held() == proxied.proxies.len());
                    interrupt(interrupted);
                    until("the handler has forked", || SIDE.try_lock().is_ok_and(|side| side.is_some()));
                    proxied.release();
                });
                let outcome = cleared.blocking().clear();
                match SIDE.lock().expect("no panic").take().expect("the handler has forked") {
                    Side::Parent(child) => {
                        outcome.unwrap_or_else(|error| panic!("the parent, {held:?}, after {way:?}: {error:?}"));
                        child
                    }
                    // The child never leaves the scope: its other thread does not exist there.
                    Side::Child(reporter) => reporter.run_and_exit(|| {
                        let error = outcome.as_ref().err().map(prefork_cache::Error::kind);
                        assert!(
                            matches!(error, None | Some(ErrorKind::Forked)),
                            "{held:?}, after {way:?}: {outcome:?}"
                        );
                        if outcome.is_ok() {
                            assert_eq!(present(&cleared), 0, "{held:?}, after {way:?}");
                        }
                        Mode::BOTH.into_iter().for_each(|mode| proxied.use_in_child(mode));
                        outcome.is_ok()
                    }),
                }
            });
            println!("{held:?}, after {way:?}: complete in the child: {}", child.join());
            proxied.assert_cleared(&format!("{held:?}, after {way:?}"));
        }
    }
}
