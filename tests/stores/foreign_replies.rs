//! After a surplus or a lost reply, no request gets the reply to another request.
//!
//! Several callers read keys whose values name their keys, one key at a time and in batches, while a proxy damages the
//! stream of replies once per round. No result is wrong. A miss is wrong as well, because every key is stored. At most
//! the requests in flight on the damaged connection fail, and none that was issued after a failure was seen. `STRESS=1`
//! runs 200 rounds of each.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prefork_cache::{Cache, Result, stores};

use crate::conformance::current_thread;
use support::proxy::{FrameFault, Proxy};
use support::servers::{Kind, Server, url_of};
use support::stress::count;
use support::wait::PATIENCE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Blocking,
    Tokio,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    /// A surplus reply after one or more replies that arrived together.
    Between,
    /// A surplus reply before the last of several replies that arrived together.
    Within,
    /// Like `Within`, and the rest arrives a little later.
    Apart,
    /// A surplus reply on every connection while no request is in flight.
    Idle,
    /// One reply never arrives.
    Lost,
}

const TTL: Duration = Duration::from_secs(3600);
const CALLERS: [usize; 4] = [1, 4, 16, 64];
const KEYS: usize = 100;
/// The size of a batch; one request in [`BATCHES`] is a batch.
const BATCH: usize = 8;
const BATCHES: usize = 3;
/// The number of requests that each caller makes after the damage.
const AFTER: usize = 4;
/// The time between an exchange and a surplus reply on an idle connection.
const IDLE: Duration = Duration::from_millis(20);

macro_rules! damages {
    ($($name:ident: $kind:ident, $way:ident, $damage:ident;)*) => {
        $(#[test] fn $name() { with_each_number_of_callers(Kind::$kind, Way::$way, Damage::$damage); })*
    };
}

damages! {
    redis_blocking_surplus_between: Redis, Blocking, Between;
    redis_blocking_surplus_within_a_batch: Redis, Blocking, Within;
    redis_blocking_surplus_within_a_batch_in_two_writes: Redis, Blocking, Apart;
    redis_blocking_surplus_while_idle: Redis, Blocking, Idle;
    redis_blocking_lost_reply: Redis, Blocking, Lost;
    redis_tokio_surplus_between: Redis, Tokio, Between;
    redis_tokio_surplus_within_a_batch: Redis, Tokio, Within;
    redis_tokio_surplus_within_a_batch_in_two_writes: Redis, Tokio, Apart;
    redis_tokio_surplus_while_idle: Redis, Tokio, Idle;
    redis_tokio_lost_reply: Redis, Tokio, Lost;
    memcached_blocking_surplus_between: Memcached, Blocking, Between;
    memcached_blocking_surplus_within_a_batch: Memcached, Blocking, Within;
    memcached_blocking_surplus_within_a_batch_in_two_writes: Memcached, Blocking, Apart;
    memcached_blocking_surplus_while_idle: Memcached, Blocking, Idle;
    memcached_blocking_lost_reply: Memcached, Blocking, Lost;
    memcached_tokio_surplus_between: Memcached, Tokio, Between;
    memcached_tokio_surplus_within_a_batch: Memcached, Tokio, Within;
    memcached_tokio_surplus_within_a_batch_in_two_writes: Memcached, Tokio, Apart;
    memcached_tokio_surplus_while_idle: Memcached, Tokio, Idle;
    memcached_tokio_lost_reply: Memcached, Tokio, Lost;
}

/// Runs all numbers of callers at once: most of the time is spent waiting for lost replies.
fn with_each_number_of_callers(kind: Kind, way: Way, damage: Damage) {
    let server = Server::start(kind);
    let seeding = Cache::builder(stores::from_url(&server.url("")).unwrap()).build();
    for number in 0..KEYS {
        seeding.blocking().set_raw(&key(number), value(&key(number)), TTL).unwrap();
    }
    let all = thread::scope(|scope| {
        let server = &server;
        let cases = CALLERS.map(|callers| scope.spawn(move || rounds(&Case::new(server, way, damage, callers))));
        cases.map(|case| case.join().expect("no panic"))
    });
    for (callers, results) in CALLERS.iter().zip(&all) {
        println!("{kind:?}, {way:?}, {damage:?}, {callers} callers: {results}");
    }
    for (callers, results) in CALLERS.iter().zip(&all) {
        results.assert_correct(&format!("{kind:?}, {way:?}, {damage:?}, {callers} callers"));
    }
}

/// One number of callers, with its own connections.
struct Case {
    cache: Cache,
    proxy: Proxy,
    kind: Kind,
    way: Way,
    damage: Damage,
    callers: usize,
}

impl Case {
    fn new(server: &Server, way: Way, damage: Damage, callers: usize) -> Case {
        let proxy = Proxy::with_frames(server);
        // A lost reply is noticed when its timeout expires, at the latest. Nothing else here should take that long.
        let timeout = if damage == Damage::Lost { "2s" } else { "20s" };
        let options =
            format!("timeout={timeout}&connect_timeout=20s&pool_size={callers}&failures=1000000&retry_after=1ms");
        let store = stores::from_url(&url_of(server.kind(), proxy.port(), &options)).unwrap();
        Case { cache: Cache::builder(store).build(), proxy, kind: server.kind(), way, damage, callers }
    }

    /// The number of requests that may fail in a round.
    fn most_failures(&self) -> usize {
        match (self.damage, self.way) {
            (Damage::Idle, _) => 0,
            (_, Way::Blocking) => 1,
            (_, Way::Tokio) => self.callers,
        }
    }

    fn inject(&self, round: usize) {
        let surplus = surplus(self.kind, round);
        match self.damage {
            Damage::Between => self.proxy.inject(FrameFault::Between(surplus)),
            Damage::Within => self.proxy.inject(FrameFault::Within(surplus)),
            Damage::Apart => self.proxy.inject(FrameFault::Apart(surplus)),
            Damage::Lost => self.proxy.inject(FrameFault::Lose),
            Damage::Idle => self.proxy.send_surplus(surplus),
        }
    }
}

/// Well-formed replies to no request.
fn surplus(kind: Kind, round: usize) -> &'static [u8] {
    let all: &[&[u8]] = match kind {
        Kind::Redis => &[b"$3\r\nbad\r\n", b"+OK\r\n", b"$-1\r\n"],
        Kind::Memcached => &[b"END\r\n", b"HD\r\n", b"VA 3\r\nbad\r\n", b"EN\r\n"],
    };
    all[round % all.len()]
}

fn rounds(case: &Case) -> Results {
    let mut results = Results::default();
    let runtime = current_thread();
    for round in 0..count(4, 200) {
        let each = |until: Until| match case.way {
            Way::Blocking => read_in_threads(case, until),
            Way::Tokio => runtime.block_on(read_in_tasks(case, until)),
        };
        let connected = each(Until::Requests(AFTER));
        results.add(connected, 0);
        let injected = case.proxy.injected();
        let until = if case.damage == Damage::Idle { Until::Requests(AFTER) } else { Until::Injected(injected + 1) };
        if case.damage == Damage::Idle {
            damage_idle_connections(case, round, &runtime);
        } else {
            case.inject(round);
        }
        results.add(each(until), case.most_failures());
    }
    results
}

/// In every other round on tokio the connection's driver runs meanwhile, and may see the surplus reply before the next
/// request.
fn damage_idle_connections(case: &Case, round: usize, runtime: &tokio::runtime::Runtime) {
    if case.way == Way::Tokio && round.is_multiple_of(2) {
        runtime.block_on(async {
            tokio::time::sleep(IDLE).await;
            case.inject(round);
            tokio::time::sleep(IDLE).await;
        });
    } else {
        thread::sleep(IDLE);
        case.inject(round);
    }
}

/// When callers stop.
#[derive(Clone, Copy)]
enum Until {
    Requests(usize),
    /// The proxy has injected this many faults, and the caller has made a few more requests.
    Injected(usize),
}

fn read_in_threads(case: &Case, until: Until) -> Results {
    let round = Round::new(until);
    thread::scope(|scope| {
        for caller in 0..case.callers {
            let round = &round;
            scope.spawn(move || {
                let mut left = AFTER;
                for number in 0.. {
                    if !round.continues(case.proxy.injected(), number, &mut left) {
                        break;
                    }
                    let keys = keys(caller, number);
                    let is_after = round.has_failed.load(Ordering::SeqCst);
                    let found = match &keys[..] {
                        [key] => vec![case.cache.blocking().get_raw(key)],
                        _ => case.cache.blocking().get_many_raw(&names(&keys)),
                    };
                    round.record(is_after, &keys, found);
                }
            });
        }
    });
    round.results.into_inner().expect("no panic")
}

async fn read_in_tasks(case: &Case, until: Until) -> Results {
    let round = Arc::new(Round::new(until));
    let injected = case.proxy.watch();
    let tasks: Vec<_> = (0..case.callers)
        .map(|caller| {
            let (cache, round, injected) = (case.cache.clone(), Arc::clone(&round), injected.clone());
            tokio::spawn(async move {
                let mut left = AFTER;
                for number in 0.. {
                    if !round.continues(injected(), number, &mut left) {
                        break;
                    }
                    let keys = keys(caller, number);
                    let is_after = round.has_failed.load(Ordering::SeqCst);
                    let found = match &keys[..] {
                        [key] => vec![cache.get_raw(key).await],
                        _ => cache.get_many_raw(&names(&keys)).await,
                    };
                    round.record(is_after, &keys, found);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    Arc::into_inner(round).expect("every task has ended").results.into_inner().expect("no panic")
}

/// The state that the callers of a round share.
struct Round {
    until: Until,
    begun: Instant,
    has_failed: AtomicBool,
    results: Mutex<Results>,
}

impl Round {
    fn new(until: Until) -> Round {
        let (has_failed, results) = (AtomicBool::new(false), Mutex::default());
        Round { until, begun: Instant::now(), has_failed, results }
    }

    /// Returns whether a caller makes another request. `left` is the number of requests that it makes after the damage.
    fn continues(&self, injected: usize, number: usize, left: &mut usize) -> bool {
        match self.until {
            Until::Requests(requests) => number < requests,
            Until::Injected(times) => {
                assert!(self.begun.elapsed() < PATIENCE, "timed out waiting until the proxy injects a fault");
                if injected >= times {
                    *left -= 1;
                }
                *left > 0
            }
        }
    }

    fn record(&self, is_after_a_failure: bool, keys: &[String], found: Vec<Result<Option<Bytes>>>) {
        let mut results = self.results.lock().expect("no panic");
        results.requests += 1;
        if let Some(error) = found.iter().find_map(|found| found.as_ref().err()) {
            results.failed += 1;
            *results.kinds.entry(format!("{:?}", error.kind())).or_default() += 1;
            if is_after_a_failure {
                results.failed_later.push(format!("{keys:?}: {error:#}"));
            }
            self.has_failed.store(true, Ordering::SeqCst);
        }
        for (key, found) in keys.iter().zip(found) {
            match found {
                Ok(Some(found)) if found == value(key) => {}
                Ok(other) => results.wrong.push(format!("asked for {key}, got {other:?}")),
                Err(_) => {}
            }
        }
    }
}

/// The results of the requests.
#[derive(Debug, Default)]
struct Results {
    requests: usize,
    failed: usize,
    /// The number of failures by kind.
    kinds: BTreeMap<String, usize>,
    wrong: Vec<String>,
    /// Failures of requests that were issued after a failure was seen.
    failed_later: Vec<String>,
    /// Rounds with more failures than permitted.
    rounds_over: usize,
}

impl Results {
    fn add(&mut self, round: Results, most_failures: usize) {
        self.rounds_over += usize::from(round.failed > most_failures);
        self.requests += round.requests;
        self.failed += round.failed;
        self.wrong.extend(round.wrong);
        self.failed_later.extend(round.failed_later);
        for (kind, count) in round.kinds {
            *self.kinds.entry(kind).or_default() += count;
        }
    }

    fn assert_correct(&self, case: &str) {
        let shown = |all: &[String]| all.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
        assert!(self.wrong.is_empty(), "{case}: {self}: {}", shown(&self.wrong));
        assert!(self.failed_later.is_empty(), "{case}: {self}: {}", shown(&self.failed_later));
        assert_eq!(self.rounds_over, 0, "{case}: {self}: rounds with more failures than requests in flight");
    }
}

impl std::fmt::Display for Results {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Results { requests, failed, kinds, wrong, failed_later, rounds_over } = self;
        let (wrong, later) = (wrong.len(), failed_later.len());
        write!(
            f,
            "{requests} requests, {wrong} wrong answers, {failed} failed {kinds:?}, {later} of these issued after"
        )?;
        write!(f, " a failure was seen, {rounds_over} rounds with more failures than allowed")
    }
}

/// One key or a batch of keys, never the same as in the previous request.
fn keys(caller: usize, number: usize) -> Vec<String> {
    let first = caller * 31 + number * 17;
    let many = if number % BATCHES == BATCHES - 1 { BATCH } else { 1 };
    (first..first + many).map(key).collect()
}

fn names(keys: &[String]) -> Vec<&str> {
    keys.iter().map(String::as_str).collect()
}

fn key(number: usize) -> String {
    format!("key:{}", number % KEYS)
}

fn value(key: &str) -> String {
    format!("the value of {key}")
}
