//! Promises 1 to 4 for a fork in a task, with many requests in flight on the connections of its runtime.
//!
//! The child returns from `block_on` and drops the runtime, or polls and drops the futures that it has inherited, or
//! awaits something in the inherited runtime, or uses the cache in a way that it may. It neither hangs nor crashes, and
//! the parent's answers come as if nothing had been, over the same connections. The same holds for a store without a
//! `Cache` around it.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;

use bytes::Bytes;
use prefork_cache::{Cache, CacheStore, ErrorKind, Result, Ttl, When, stores};
use tokio::runtime::Runtime;
use tokio::task::yield_now;

use crate::callers::{Caller, HOUR, PATIENT, cache_on, current_thread_runtime, until_async};
use crate::harness::{Mode, Scenario, with_each_server};
use support::descriptors::inodes_connected_to;
use support::forks::{CHILD_TIME, Reporter, Side, Way, split};
use support::proxy::Proxy;
use support::servers::{Kind, Server, url_of};
use support::signals::restore_sigpipe;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(with_each_server("of_a_cache_in_a_current_thread_runtime", |kind| {
        whatever_the_child_does(kind, Face::cache, Flavour::CurrentThread);
    }));
    all.extend(with_each_server("of_a_cache_in_a_multi_thread_runtime", |kind| {
        whatever_the_child_does(kind, Face::cache, Flavour::MultiThread);
    }));
    all.extend(with_each_server("of_a_cache_on_a_worker", |kind| {
        whatever_the_child_does(kind, Face::cache, Flavour::Worker);
    }));
    all.extend(with_each_server("of_a_store_in_a_current_thread_runtime", |kind| {
        whatever_the_child_does(kind, Face::store, Flavour::CurrentThread);
    }));
    all.extend(with_each_server("of_a_store_in_a_multi_thread_runtime", |kind| {
        whatever_the_child_does(kind, Face::store, Flavour::MultiThread);
    }));
    all.extend(with_each_server("of_a_store_on_a_worker", |kind| {
        whatever_the_child_does(kind, Face::store, Flavour::Worker);
    }));
    all
}

const IN_FLIGHT: usize = 64;
/// In each reply that the proxy holds.
const HELD: &str = "held back";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flavour {
    CurrentThread,
    /// In the thread that calls `block_on`.
    MultiThread,
    /// In a task that a worker of a multi-thread runtime runs: there is nothing to return to.
    Worker,
}

impl Flavour {
    fn runtime(self) -> Runtime {
        match self {
            Flavour::CurrentThread => current_thread_runtime(),
            Flavour::MultiThread | Flavour::Worker => {
                let mut builder = tokio::runtime::Builder::new_multi_thread();
                builder.worker_threads(2).enable_all().build().expect("a runtime")
            }
        }
    }
}

/// What the child does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    /// It returns from `block_on`, drops the runtime (a multi-thread one cannot be dropped in a child: it forgets that)
    /// and ends.
    ReturnAndDrop,
    /// It polls the futures, which fail, and drops them.
    PollAndDrop,
    /// It awaits something in the inherited runtime, which fails; lets others of its tasks run; and returns from
    /// `block_on`.
    AwaitInIt,
    /// It uses the cache inline, in the midst of the inherited runtime.
    Blocking,
    /// It returns from `block_on`, keeps the inherited runtime, and uses the cache in one of its own.
    NewRuntime,
}

const DEEDS: [Deed; 5] = [Deed::ReturnAndDrop, Deed::PollAndDrop, Deed::AwaitInIt, Deed::Blocking, Deed::NewRuntime];

impl Deed {
    /// Whether it returns from `block_on`.
    fn returns(self) -> bool {
        !matches!(self, Deed::PollAndDrop | Deed::Blocking)
    }
}

/// How the store is held.
#[derive(Clone, Debug)]
enum Face {
    Cache(Cache),
    Store(Arc<dyn CacheStore>),
}

impl Face {
    fn cache(url: &str) -> Face {
        Face::Cache(Cache::register(stores::from_url(url).expect("a good URL")))
    }

    fn store(url: &str) -> Face {
        Face::Store(stores::from_url(url).expect("a good URL"))
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        match self {
            Face::Cache(cache) => cache.get_raw(key).await,
            Face::Store(store) => store.get(key).await,
        }
    }

    async fn set(&self, key: &str, value: String) -> Result<()> {
        match self {
            Face::Cache(cache) => cache.set_raw(key, value, HOUR).await,
            Face::Store(store) => store.set(key, value.into(), Ttl::Never, When::Always).await.map(|_| ()),
        }
    }

    /// Sets and gets a few, in a thread that is in no runtime.
    fn converse(&self, side: &str, mode: Mode) {
        let runtime = (mode == Mode::Tokio).then(current_thread_runtime);
        for round in 0..10 {
            let (key, value) = (format!("{side}:{round}"), format!("{side} in round {round}"));
            let exchange = async {
                self.set(&key, value.clone()).await?;
                self.get(&key).await
            };
            let got = match &runtime {
                Some(runtime) => runtime.block_on(exchange),
                None => at_once(exchange),
            };
            let got = got.unwrap_or_else(|error| panic!("{side}, {mode:?}: {error:?}"));
            assert_eq!(got.as_deref(), Some(value.as_bytes()), "{side}, {mode:?}, asked for {key}");
        }
    }

    fn converse_in_a_thread(&self, side: &str, mode: Mode) {
        thread::scope(|scope| scope.spawn(|| self.converse(side, mode)).join()).expect("no panic");
    }
}

/// Outside of a runtime a future is ready at its first poll.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a future that suspends outside of a runtime"),
    }
}

type Answer = Result<Option<Bytes>>;
type Asking = Pin<Box<dyn Future<Output = Answer> + Send>>;

fn whatever_the_child_does(kind: Kind, open: fn(&str) -> Face, flavour: Flavour) {
    restore_sigpipe();
    let server = Server::start(kind);
    // For tasks, until the process ends.
    let proxy: &Proxy = Box::leak(Box::new(Proxy::before(server.port())));
    let face = open(&url_of(kind, proxy.port(), PATIENT));
    // Not through the proxy, where a connection that is idle would be taken for one with a reply to come.
    let seeding = cache_on(&server, PATIENT);
    for number in 0..IN_FLIGHT {
        seeding.blocking().set_raw(&key(number), value(number), HOUR).expect("the server is there");
    }
    for (deed, way) in DEEDS.into_iter().flat_map(|deed| Way::COMMON.map(|way| (deed, way))) {
        println!("{deed:?}, {way:?}");
        let runtime = flavour.runtime();
        let forked = fork_in_a_task(proxy, face.clone(), deed, way);
        match flavour {
            Flavour::Worker if deed.returns() => {}
            Flavour::Worker => drop(runtime.block_on(runtime.spawn(forked)).expect("no panic")),
            Flavour::CurrentThread | Flavour::MultiThread => {
                if let Some((reporter, awaited)) = runtime.block_on(forked) {
                    reporter.run_and_exit(|| after_block_on(runtime, &face, deed, flavour, awaited));
                }
            }
        }
    }
}

/// What a child has that is to return from `block_on`, and what came of what it awaited.
type Returning = Option<(Reporter<()>, Option<Answer>)>;

async fn fork_in_a_task(proxy: &Proxy, face: Face, deed: Deed, way: Way) -> Returning {
    let case = format!("{deed:?} after {way:?}");
    let mut asking = InFlight::begin(&face);
    proxy.hold_replies_with(HELD);
    asking.until_held(proxy).await;
    let before = inodes_connected_to(proxy.port());
    match split::<()>(way, CHILD_TIME).expect("a child") {
        Side::Parent(child) => {
            child.join();
            proxy.release();
            asking.assert_answers(&case).await;
            let after = inodes_connected_to(proxy.port());
            assert!(before.iter().all(|inode| after.contains(inode)), "the parent keeps its connections: {case}");
            face.get(&key(0)).await.unwrap_or_else(|error| panic!("the parent, afterwards: {case}: {error:?}"));
            None
        }
        Side::Child(reporter) => match deed {
            Deed::PollAndDrop => reporter.run_and_exit(|| {
                asking.poll_and_drop();
                face.converse_in_a_thread("child", Mode::Blocking);
                face.converse_in_a_thread("child", Mode::Tokio);
            }),
            Deed::Blocking => reporter.run_and_exit(|| match &face {
                Face::Cache(cache) => Caller::new(Mode::Blocking, cache).converse("child", 20),
                Face::Store(_) => face.converse_in_a_thread("child", Mode::Blocking),
            }),
            Deed::AwaitInIt => {
                let failed = face.get(&key(0)).await;
                for _ in 0..3 {
                    yield_now().await;
                }
                Some((reporter, Some(failed)))
            }
            Deed::ReturnAndDrop | Deed::NewRuntime => Some((reporter, None)),
        },
    }
}

/// In the child. A multi-thread runtime waits for workers that are not there if it is dropped, whatever is in it.
fn after_block_on(runtime: Runtime, face: &Face, deed: Deed, flavour: Flavour, awaited: Option<Answer>) {
    if let Some(awaited) = awaited {
        assert_forked(&awaited);
    }
    if deed == Deed::NewRuntime || flavour == Flavour::MultiThread {
        std::mem::forget(runtime);
    } else {
        drop(runtime);
    }
    face.converse_in_a_thread("child", Mode::Tokio);
    face.converse_in_a_thread("child", Mode::Blocking);
}

/// Requests that are in flight: half of them in tasks of their own.
struct InFlight {
    here: Vec<Asking>,
    begun: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<Answer>>,
}

impl InFlight {
    fn begin(face: &Face) -> InFlight {
        let begun = Arc::new(AtomicUsize::new(0));
        let ask = |number: usize| {
            let (face, begun) = (face.clone(), Arc::clone(&begun));
            Box::pin(async move {
                begun.fetch_add(1, Ordering::SeqCst);
                face.get(&key(number)).await
            })
        };
        let here = (0..IN_FLIGHT).step_by(2).map(|number| ask(number) as Asking).collect();
        let tasks = (1..IN_FLIGHT).step_by(2).map(|number| tokio::spawn(ask(number))).collect();
        InFlight { here, tasks, begun }
    }

    /// Until each has begun and the proxy holds what the server has answered, on each connection: then nothing else is
    /// to come, of which a child that awaits something could deprive its parent.
    async fn until_held(&mut self, proxy: &Proxy) {
        let InFlight { here, begun, .. } = self;
        let held = until_async("the proxy holds replies", || {
            let connections = inodes_connected_to(proxy.port()).len();
            begun.load(Ordering::SeqCst) == IN_FLIGHT && proxy.held() == connections.max(1)
        });
        let mut held = pin!(held);
        poll_fn(|cx| {
            // One of them may be dialling for the others.
            assert!(here.iter_mut().all(|asking| asking.as_mut().poll(cx).is_pending()), "answered without a reply");
            held.as_mut().poll(cx)
        })
        .await;
    }

    async fn assert_answers(self, case: &str) {
        let mut answers = Vec::new();
        // One after the other: they end in whichever order.
        for asking in self.here {
            answers.push(asking.await);
        }
        for task in self.tasks {
            answers.push(task.await.expect("no panic"));
        }
        let numbers = (0..IN_FLIGHT).step_by(2).chain((1..IN_FLIGHT).step_by(2));
        for (number, answer) in numbers.zip(answers) {
            let got = answer.unwrap_or_else(|error| panic!("the parent, {}: {case}: {error:?}", key(number)));
            assert_eq!(got.as_deref(), Some(value(number).as_bytes()), "the parent, {}: {case}", key(number));
        }
    }

    /// In the child. Those in tasks are dropped with the runtime, or never.
    fn poll_and_drop(&mut self) {
        for mut asking in self.here.drain(..) {
            match asking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(answer) => assert_forked(&answer),
                Poll::Pending => panic!("an inherited future waits for what never comes"),
            }
        }
    }
}

fn assert_forked(answer: &Answer) {
    let kind = answer.as_ref().err().map(prefork_cache::Error::kind);
    assert_eq!(kind, Some(ErrorKind::Forked), "in the inherited runtime: {answer:?}");
}

fn key(number: usize) -> String {
    format!("key:{number}")
}

fn value(number: usize) -> String {
    format!("{HELD} {number}")
}
