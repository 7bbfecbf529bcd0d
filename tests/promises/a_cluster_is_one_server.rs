//! What is promised for one server holds for the three masters of a cluster, each with a replica: while one of them is
//! killed and replaced, in a child that is forked meanwhile, and in one that is forked while its parent asks who has
//! which slots.

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
        scenario("a_master_is_killed_under_eight_workers::blocking", || a_master_is_killed(Mode::Blocking)),
        scenario("a_master_is_killed_under_eight_workers::tokio", || a_master_is_killed(Mode::Tokio)),
        scenario("a_child_is_forked_in_mid_failover::blocking", || forked_in_mid_failover(Mode::Blocking)),
        scenario("a_child_is_forked_in_mid_failover::tokio", || forked_in_mid_failover(Mode::Tokio)),
        scenario("forks_in_the_midst_of_batches::blocking", || forks_amid_batches(Mode::Blocking)),
        scenario("forks_in_the_midst_of_batches::tokio", || forks_amid_batches(Mode::Tokio)),
        scenario("a_child_learns_for_itself::blocking", || learns_for_itself(Mode::Blocking)),
        scenario("a_child_learns_for_itself::tokio", || learns_for_itself(Mode::Tokio)),
        scenario("inherited_waits_for_the_slots_fail", inherited_waits_fail),
        scenario("sixty_four_workers_load_a_cold_key_once::blocking", || loads_a_cold_key_once(Mode::Blocking)),
        scenario("sixty_four_workers_load_a_cold_key_once::tokio", || loads_a_cold_key_once(Mode::Tokio)),
    ]
}

const WORKERS: usize = 8;

/// Some in the slots of each master.
const KEYS: usize = 48;

const OPTIONS: &str = "timeout=5s&connect_timeout=5s&retry_after=100ms";

fn cache_on(cluster: &Cluster) -> Cache {
    Cache::register(stores::from_url(&cluster.url(OPTIONS)).expect("a good URL"))
}

/// One process that writes and reads keys of its own, and remembers what it has written.
struct User<'c> {
    caller: Caller<'c>,
    name: String,
    round: usize,
}

impl<'c> User<'c> {
    fn new(mode: Mode, cache: &'c Cache, name: &str) -> User<'c> {
        User { caller: Caller::new(mode, cache), name: name.to_owned(), round: 0 }
    }

    /// Writes and reads every key once. Returns how many calls have failed. What is read is this process's: of this
    /// round, or where the write has failed, or was lost with its master, of an earlier one.
    fn go_round(&mut self) -> usize {
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

    /// Goes on until nothing fails any more, and then for so many rounds, in which nothing must.
    fn recover(&mut self, rounds: usize) {
        until("every call succeeds again", || self.go_round() == 0);
        self.go_on(rounds);
    }

    fn go_on(&mut self, rounds: usize) {
        for _ in 0..rounds {
            assert_eq!(self.go_round(), 0, "calls that fail, with the cluster in order");
            for number in 0..KEYS {
                let key = format!("{}:{number}", self.name);
                let value = self.caller.get(&key).expect("the cluster is in order");
                assert_eq!(value, Some(format!("{key} in round {}", self.round)));
            }
        }
    }
}

fn worker<T: serde::Serialize + serde::de::DeserializeOwned>(work: impl FnOnce() -> T) -> Child<T> {
    try_fork_by(Way::Fork, 2 * PATIENCE, work).expect("a child")
}

/// Errors come while the failover lasts, and then no more; nothing is restarted.
fn a_master_is_killed(mode: Mode) {
    let mut cluster = Cluster::start();
    let cache = cache_on(&cluster);
    // The workers inherit what their master has learnt.
    cache.blocking().set("warm", &1, MINUTE).expect("the cluster is in order");
    let (at_work, is_over) = (Tally::new(), Tally::new());
    let work = |number: usize| {
        let mut user = User::new(mode, &cache, &format!("worker {number}"));
        user.go_on(2);
        at_work.raise(1);
        let mut failed = 0;
        while is_over.count() == 0 {
            failed += user.go_round();
        }
        user.recover(count(5, 50));
        failed
    };
    let workers: Vec<Child<usize>> = (0..WORKERS).map(|number| worker(|| work(number))).collect();
    until("all workers are at work", || at_work.count() == WORKERS);
    cluster.kill(0);
    cluster.until_well();
    is_over.raise(1);
    let failed: Vec<usize> = workers.into_iter().map(Child::join).collect();
    println!("{mode:?}: calls that failed while a master was replaced, by worker: {failed:?}");
    assert!(failed.iter().any(|failed| *failed > 0), "nobody has met with the failover");
    User::new(Mode::Blocking, &cache, "the master").recover(2);
}

/// The lease of a key is on the master that has its slot, whichever that is.
fn loads_a_cold_key_once(mode: Mode) {
    let cluster = Cluster::without_replicas();
    let store = stores::from_url(&cluster.url(PATIENT)).expect("a good URL");
    let cache = Cache::builder(store).lease(HOUR).load_timeout(HOUR).register();
    let rounds = count(3, 30);
    let owners: BTreeSet<usize> = (0..rounds).map(|round| cluster.owner(&key_of(round))).collect();
    assert!(owners.len() > 1, "all keys are in slots of one master");
    let claims = || cluster.nodes().iter().map(Server::claims).sum();
    cold_keys_are_loaded_once(mode, &cache, claims, rounds);
}

/// The child has what its parent knew, which is not so any more.
fn forked_in_mid_failover(mode: Mode) {
    let mut cluster = Cluster::start();
    let cache = cache_on(&cluster);
    let mut parent = User::new(mode, &cache, "the parent");
    parent.go_on(1);
    cluster.kill(1);
    until("the parent meets with the failover", || parent.go_round() > 0);
    let children: Vec<Child<()>> = Way::COMMON
        .into_iter()
        .map(|way| {
            fork_by(way, || {
                let mut user = User::new(mode, &cache, &format!("a child by {way:?}"));
                user.recover(2);
                fork(|| User::new(mode, &cache, "a grandchild").go_on(1)).join();
            })
        })
        .collect();
    parent.recover(2);
    children.into_iter().for_each(Child::join);
}

/// Requests to all masters are under way in another thread, over and over, while children are born.
fn forks_amid_batches(mode: Mode) {
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
    let check = |who: &str| {
        for (key, value) in keys.iter().zip(get_many()) {
            assert_eq!(value.unwrap_or_else(|error| panic!("{who}, {key}: {error:?}")).as_ref(), Some(key), "{who}");
        }
    };
    cache.blocking().set_many(&entries, MINUTE).into_iter().for_each(|stored| stored.expect("the cluster is in order"));
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
                User::new(mode, &cache, &format!("child {round}")).go_on(1);
            })
            .join();
        }
        drop(done);
        println!("{} batches while children were born", asking.join().expect("no panic"));
    });
}

/// Its parent's question who has which slots is never answered.
fn learns_for_itself(mode: Mode) {
    cluster_all();
    let server = Server::start(Kind::Redis);
    let proxy = Proxy::before(server.port());
    let cache = cache_at(Kind::Redis, proxy.port(), "timeout=30s&connect_timeout=30s");
    let has_held = AtomicBool::new(false);
    proxy.plan(move |_, piece| {
        let says_slots = piece.windows(8).any(|window| window == b":16383\r\n");
        if says_slots && !has_held.swap(true, Ordering::SeqCst) { Fault::Hold } else { Fault::None }
    });
    thread::scope(|scope| {
        let asking = scope.spawn(|| Caller::new(mode, &cache).set("key", "the parent's"));
        proxy.wait_until_held(1);
        for way in Way::COMMON {
            fork_by(way, || Caller::new(mode, &cache).converse("a child", 10)).join();
        }
        proxy.release();
        asking.join().expect("no panic").expect("it is answered after all");
    });
    assert_eq!(
        cache.blocking().get::<String>("key").map_err(|error| error.kind()),
        Ok::<_, ErrorKind>(Some("the parent's".to_owned()))
    );
}

/// One of the futures asks who has which slots, and the others wait for that.
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
            assert!(asking.iter_mut().all(|asking| asking.as_mut().poll(cx).is_pending()), "answered without a reply");
            held.as_mut().poll(cx)
        })
        .await;
        for way in Way::COMMON {
            fork_by(way, || {
                for mut asking in asking.drain(..) {
                    let Poll::Ready(answer) = asking.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
                        panic!("an inherited future waits for what never comes");
                    };
                    assert_eq!(answer.map_err(|error| error.kind()), Err(ErrorKind::Forked));
                }
            })
            .join();
        }
        proxy.release();
        for asking in asking {
            assert_eq!(asking.await.expect("it is answered after all"), None);
        }
    });
}
