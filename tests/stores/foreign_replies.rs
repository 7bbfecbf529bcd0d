//! A surplus reply, or one that is lost, never has a request answered by another one's reply.
//!
//! Some callers read keys whose values name their keys, one at a time and in batches, while a proxy damages the stream
//! of replies once a round. No answer is wrong, and a miss is wrong as well: every key is there. At most the requests
//! in flight on the damaged connection fail, and none that was issued after a failure was seen. `STRESS=1` makes 200
//! rounds of each.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prefork_cache::{Cache, Result, stores};

use crate::conformance::current_thread;
use support::proxy::{Proxy, Strike};
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
    /// A surplus reply behind one or more that came together.
    Between,
    /// A surplus reply before the last of those that came together.
    Within,
    /// The same, and the rest comes a little later.
    Apart,
    /// A surplus reply while nothing is in flight, on every connection.
    Idle,
    /// One reply never comes.
    Lost,
}

const TTL: Duration = Duration::from_secs(3600);
const CALLERS: [usize; 4] = [1, 4, 16, 64];
const KEYS: usize = 100;
/// The size of a batch, and one request in so many is one.
const BATCH: usize = 8;
const BATCHES: usize = 3;
/// How many requests each caller makes after the damage is done.
const AFTER: usize = 4;
/// How long after an exchange a surplus comes on an idle connection.
const IDLE: Duration = Duration::from_millis(20);

macro_rules! damages {
    ($($name:ident: $kind:ident, $way:ident, $damage:ident;)*) => {
        $(#[test] fn $name() { with_any_number_of_callers(Kind::$kind, Way::$way, Damage::$damage); })*
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

/// All the numbers at once: most of the time is spent in waiting for lost replies.
fn with_any_number_of_callers(kind: Kind, way: Way, damage: Damage) {
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
    for (callers, figures) in CALLERS.iter().zip(&all) {
        println!("{kind:?}, {way:?}, {damage:?}, {callers} callers: {figures}");
    }
    for (callers, figures) in CALLERS.iter().zip(&all) {
        figures.assert_fine(&format!("{kind:?}, {way:?}, {damage:?}, {callers} callers"));
    }
}

/// One number of callers, with connections of their own.
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
        // A lost reply is noticed by its timeout at the latest; nothing else here should come near one.
        let timeout = if damage == Damage::Lost { "500ms" } else { "20s" };
        let options =
            format!("timeout={timeout}&connect_timeout=20s&pool_size={callers}&failures=1000000&retry_after=1ms");
        let store = stores::from_url(&url_of(server.kind(), proxy.port(), &options)).unwrap();
        Case { cache: Cache::builder(store).build(), proxy, kind: server.kind(), way, damage, callers }
    }

    /// How many requests may fail in a round.
    fn most_failures(&self) -> usize {
        match (self.damage, self.way) {
            (Damage::Idle, _) => 0,
            (_, Way::Blocking) => 1,
            (_, Way::Tokio) => self.callers,
        }
    }

    fn strike(&self, round: usize) {
        let surplus = surplus(self.kind, round);
        match self.damage {
            Damage::Between => self.proxy.strike(Strike::Between(surplus)),
            Damage::Within => self.proxy.strike(Strike::Within(surplus)),
            Damage::Apart => self.proxy.strike(Strike::Apart(surplus)),
            Damage::Lost => self.proxy.strike(Strike::Lose),
            Damage::Idle => self.proxy.send_unasked(surplus),
        }
    }
}

/// Replies that are whole and right, but to nobody's request.
fn surplus(kind: Kind, round: usize) -> &'static [u8] {
    let all: &[&[u8]] = match kind {
        Kind::Redis => &[b"$3\r\nbad\r\n", b"+OK\r\n", b"$-1\r\n"],
        Kind::Memcached => &[b"END\r\n", b"HD\r\n", b"VA 3\r\nbad\r\n", b"EN\r\n"],
    };
    all[round % all.len()]
}

fn rounds(case: &Case) -> Figures {
    let mut figures = Figures::default();
    let runtime = current_thread();
    for round in 0..count(4, 200) {
        let each = |until: Until| match case.way {
            Way::Blocking => ask_in_threads(case, until),
            Way::Tokio => runtime.block_on(ask_in_tasks(case, until)),
        };
        let connected = each(Until::Requests(AFTER));
        figures.add(connected, 0);
        let struck = case.proxy.struck();
        let until = if case.damage == Damage::Idle { Until::Requests(AFTER) } else { Until::Struck(struck + 1) };
        if case.damage == Damage::Idle {
            damage_idle_connections(case, round, &runtime);
        } else {
            case.strike(round);
        }
        figures.add(each(until), case.most_failures());
    }
    figures
}

/// In every other round of tokio's the connection's driver runs meanwhile, and may see the surplus before the next
/// request.
fn damage_idle_connections(case: &Case, round: usize, runtime: &tokio::runtime::Runtime) {
    if case.way == Way::Tokio && round.is_multiple_of(2) {
        runtime.block_on(async {
            tokio::time::sleep(IDLE).await;
            case.strike(round);
            tokio::time::sleep(IDLE).await;
        });
    } else {
        thread::sleep(IDLE);
        case.strike(round);
    }
}

/// How long callers go on.
#[derive(Clone, Copy)]
enum Until {
    Requests(usize),
    /// The proxy has struck so often, and then for a few more.
    Struck(usize),
}

fn ask_in_threads(case: &Case, until: Until) -> Figures {
    let asking = Asking::new(until);
    thread::scope(|scope| {
        for caller in 0..case.callers {
            let asking = &asking;
            scope.spawn(move || {
                let mut left = AFTER;
                for number in 0.. {
                    if !asking.goes_on(case.proxy.struck(), number, &mut left) {
                        break;
                    }
                    let keys = keys(caller, number);
                    let is_after = asking.has_failed.load(Ordering::SeqCst);
                    let got = match &keys[..] {
                        [key] => vec![case.cache.blocking().get_raw(key)],
                        _ => case.cache.blocking().get_many_raw(&names(&keys)),
                    };
                    asking.note(is_after, &keys, got);
                }
            });
        }
    });
    asking.figures.into_inner().expect("no panic")
}

async fn ask_in_tasks(case: &Case, until: Until) -> Figures {
    let asking = Arc::new(Asking::new(until));
    let struck = case.proxy.watch();
    let tasks: Vec<_> = (0..case.callers)
        .map(|caller| {
            let (cache, asking, struck) = (case.cache.clone(), Arc::clone(&asking), struck.clone());
            tokio::spawn(async move {
                let mut left = AFTER;
                for number in 0.. {
                    if !asking.goes_on(struck(), number, &mut left) {
                        break;
                    }
                    let keys = keys(caller, number);
                    let is_after = asking.has_failed.load(Ordering::SeqCst);
                    let got = match &keys[..] {
                        [key] => vec![cache.get_raw(key).await],
                        _ => cache.get_many_raw(&names(&keys)).await,
                    };
                    asking.note(is_after, &keys, got);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    Arc::into_inner(asking).expect("every task has ended").figures.into_inner().expect("no panic")
}

/// What the callers of a round share.
struct Asking {
    until: Until,
    begun: Instant,
    has_failed: AtomicBool,
    figures: Mutex<Figures>,
}

impl Asking {
    fn new(until: Until) -> Asking {
        let (has_failed, figures) = (AtomicBool::new(false), Mutex::default());
        Asking { until, begun: Instant::now(), has_failed, figures }
    }

    /// `left` is how many requests a caller makes after the damage.
    fn goes_on(&self, struck: usize, number: usize, left: &mut usize) -> bool {
        match self.until {
            Until::Requests(requests) => number < requests,
            Until::Struck(times) => {
                assert!(self.begun.elapsed() < PATIENCE, "waited in vain until the proxy strikes");
                if struck >= times {
                    *left -= 1;
                }
                *left > 0
            }
        }
    }

    fn note(&self, is_after_a_failure: bool, keys: &[String], got: Vec<Result<Option<Bytes>>>) {
        let mut figures = self.figures.lock().expect("no panic");
        figures.requests += 1;
        if let Some(error) = got.iter().find_map(|got| got.as_ref().err()) {
            figures.failed += 1;
            *figures.kinds.entry(format!("{:?}", error.kind())).or_default() += 1;
            if is_after_a_failure {
                figures.failed_later.push(format!("{keys:?}: {error:#}"));
            }
            self.has_failed.store(true, Ordering::SeqCst);
        }
        for (key, got) in keys.iter().zip(got) {
            match got {
                Ok(Some(found)) if found == value(key) => {}
                Ok(other) => figures.wrong.push(format!("asked for {key}, got {other:?}")),
                Err(_) => {}
            }
        }
    }
}

/// What came of the requests.
#[derive(Debug, Default)]
struct Figures {
    requests: usize,
    failed: usize,
    /// The kinds of the failures.
    kinds: BTreeMap<String, usize>,
    wrong: Vec<String>,
    /// Of those that were issued after a failure was seen.
    failed_later: Vec<String>,
    /// Rounds with more failures than there may be.
    rounds_over: usize,
}

impl Figures {
    fn add(&mut self, round: Figures, most_failures: usize) {
        self.rounds_over += usize::from(round.failed > most_failures);
        self.requests += round.requests;
        self.failed += round.failed;
        self.wrong.extend(round.wrong);
        self.failed_later.extend(round.failed_later);
        for (kind, count) in round.kinds {
            *self.kinds.entry(kind).or_default() += count;
        }
    }

    fn assert_fine(&self, case: &str) {
        let shown = |all: &[String]| all.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
        assert!(self.wrong.is_empty(), "{case}: {self}: {}", shown(&self.wrong));
        assert!(self.failed_later.is_empty(), "{case}: {self}: {}", shown(&self.failed_later));
        assert_eq!(self.rounds_over, 0, "{case}: {self}: rounds with more failures than requests in flight");
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Figures { requests, failed, kinds, wrong, failed_later, rounds_over } = self;
        let (wrong, later) = (wrong.len(), failed_later.len());
        write!(
            f,
            "{requests} requests, {wrong} wrong answers, {failed} failed {kinds:?}, {later} of these issued after"
        )?;
        write!(f, " a failure was seen, {rounds_over} rounds with more failures than allowed")
    }
}

/// One key or a batch of them, never the same twice in a row.
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
