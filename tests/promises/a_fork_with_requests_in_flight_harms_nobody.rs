//! Promises 1 to 4 for a fork in a task, with many requests in flight on the runtime's connections.
//!
//! The child returns from `block_on` and drops the runtime, or polls and drops the inherited futures, or awaits an
//! operation in the inherited runtime, or uses the cache in a supported way. It neither hangs nor crashes. The parent's
//! replies arrive on the same connections, as if the fork had not happened. The same holds for a store without a
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
    all.extend(with_each_server("a_cache_in_a_current_thread_runtime", |kind| {
        for_each_child_action(kind, Api::cache, Flavour::CurrentThread);
    }));
    all.extend(with_each_server("a_cache_in_a_multi_thread_runtime", |kind| {
        for_each_child_action(kind, Api::cache, Flavour::MultiThread);
    }));
    all.extend(with_each_server("a_cache_on_a_worker_thread", |kind| {
        for_each_child_action(kind, Api::cache, Flavour::Worker);
    }));
    all.extend(with_each_server("a_store_in_a_current_thread_runtime", |kind| {
        for_each_child_action(kind, Api::store, Flavour::CurrentThread);
    }));
    all.extend(with_each_server("a_store_in_a_multi_thread_runtime", |kind| {
        for_each_child_action(kind, Api::store, Flavour::MultiThread);
    }));
    all.extend(with_each_server("a_store_on_a_worker_thread", |kind| {
        for_each_child_action(kind, Api::store, Flavour::Worker);
    }));
    all
}

const IN_FLIGHT: usize = 64;
/// Part of every reply that the proxy holds.
const HELD: &str = "held back";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flavour {
    CurrentThread,
    /// On the thread that calls `block_on`.
    MultiThread,
    /// In a task on a worker of a multi-thread runtime: the child cannot return from `block_on`.
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

/// An action of the child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// Returns from `block_on`, drops the runtime and ends. A multi-thread runtime cannot be dropped in a child and is
    /// forgotten.
    ReturnAndDrop,
    /// Polls the futures, which fail, and drops them.
    PollAndDrop,
    /// Awaits an operation in the inherited runtime, which fails; yields to other tasks; and returns from `block_on`.
    AwaitInherited,
    /// Uses the cache inline, inside the inherited runtime.
    Blocking,
    /// Returns from `block_on`, keeps the inherited runtime, and uses the cache in a new runtime.
    NewRuntime,
}

const ACTIONS: [Action; 5] =
    [Action::ReturnAndDrop, Action::PollAndDrop, Action::AwaitInherited, Action::Blocking, Action::NewRuntime];

impl Action {
    /// Whether the child returns from `block_on`.
    fn returns(self) -> bool {
        !matches!(self, Action::PollAndDrop | Action::Blocking)
    }
}

/// The API under test.
#[derive(Clone, Debug)]
enum Api {
    Cache(Cache),
    Store(Arc<dyn CacheStore>),
}

impl Api {
    fn cache(url: &str) -> Api {
        Api::Cache(Cache::register(stores::from_url(url).expect("a good URL")))
    }

    fn store(url: &str) -> Api {
        Api::Store(stores::from_url(url).expect("a good URL"))
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        match self {
            Api::Cache(cache) => cache.get_raw(key).await,
            Api::Store(store) => store.get(key).await,
        }
    }

    async fn set(&self, key: &str, value: String) -> Result<()> {
        match self {
            Api::Cache(cache) => cache.set_raw(key, value, HOUR).await,
            Api::Store(store) => store.set(key, value.into(), Ttl::Never, When::Always).await.map(|_| ()),
        }
    }

    /// Sets and gets a few entries, on a thread that is in no runtime.
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
                None => ready_now(exchange),
            };
            let got = got.unwrap_or_else(|error| panic!("{side}, {mode:?}: {error:?}"));
            assert_eq!(got.as_deref(), Some(value.as_bytes()), "{side}, {mode:?}, asked for {key}");
        }
    }

    fn converse_in_a_thread(&self, side: &str, mode: Mode) {
        thread::scope(|scope| scope.spawn(|| self.converse(side, mode)).join()).expect("no panic");
    }
}

/// Returns the output of a future that is ready at its first poll, as every future is outside a runtime.
fn ready_now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a future that suspends outside of a runtime"),
    }
}

type Answer = Result<Option<Bytes>>;
type RequestFuture = Pin<Box<dyn Future<Output = Answer> + Send>>;

fn for_each_child_action(kind: Kind, open: fn(&str) -> Api, flavour: Flavour) {
    restore_sigpipe();
    let server = Server::start(kind);
    // The tasks need a `'static` proxy.
    let proxy: &Proxy = Box::leak(Box::new(Proxy::before(server.port())));
    let api = open(&url_of(kind, proxy.port(), PATIENT));
    // Without the proxy: `until_held` counts connections through the proxy, and an idle one never has a reply to hold.
    let seeding = cache_on(&server, PATIENT);
    for number in 0..IN_FLIGHT {
        seeding.blocking().set_raw(&key(number), value(number), HOUR).expect("the server is running");
    }
    for (action, way) in ACTIONS.into_iter().flat_map(|action| Way::COMMON.map(|way| (action, way))) {
        println!("{action:?}, {way:?}");
        let runtime = flavour.runtime();
        let forked = fork_in_a_task(proxy, api.clone(), action, way);
        match flavour {
            Flavour::Worker if action.returns() => {}
            Flavour::Worker => drop(runtime.block_on(runtime.spawn(forked)).expect("no panic")),
            Flavour::CurrentThread | Flavour::MultiThread => {
                if let Some((reporter, awaited)) = runtime.block_on(forked) {
                    reporter.run_and_exit(|| after_block_on(runtime, &api, action, flavour, awaited));
                }
            }
        }
    }
}

/// For a child that returns from `block_on`: its reporter, and the result of the awaited operation.
type Returning = Option<(Reporter<()>, Option<Answer>)>;

async fn fork_in_a_task(proxy: &Proxy, api: Api, action: Action, way: Way) -> Returning {
    let case = format!("{action:?} after {way:?}");
    let mut requests = InFlight::begin(&api);
    proxy.hold_replies_with(HELD);
    requests.until_held(proxy).await;
    let before = inodes_connected_to(proxy.port());
    match split::<()>(way, CHILD_TIME).expect("a child") {
        Side::Parent(child) => {
            child.join();
            proxy.release();
            requests.assert_answers(&case).await;
            let after = inodes_connected_to(proxy.port());
            assert!(before.iter().all(|inode| after.contains(inode)), "the parent keeps its connections: {case}");
            api.get(&key(0)).await.unwrap_or_else(|error| panic!("the parent, afterwards: {case}: {error:?}"));
            None
        }
        Side::Child(reporter) => match action {
            Action::PollAndDrop => reporter.run_and_exit(|| {
                requests.poll_and_drop();
                api.converse_in_a_thread("child", Mode::Blocking);
                api.converse_in_a_thread("child", Mode::Tokio);
            }),
            Action::Blocking => reporter.run_and_exit(|| match &api {
                Api::Cache(cache) => Caller::new(Mode::Blocking, cache).converse("child", 20),
                Api::Store(_) => api.converse_in_a_thread("child", Mode::Blocking),
            }),
            Action::AwaitInherited => {
                let failed = api.get(&key(0)).await;
                for _ in 0..3 {
                    yield_now().await;
                }
                Some((reporter, Some(failed)))
            }
            Action::ReturnAndDrop | Action::NewRuntime => Some((reporter, None)),
        },
    }
}

/// Runs in the child. Dropping a multi-thread runtime waits for its workers, which do not exist there.
fn after_block_on(runtime: Runtime, api: &Api, action: Action, flavour: Flavour, awaited: Option<Answer>) {
    if let Some(awaited) = awaited {
        assert_forked(&awaited);
    }
    if action == Action::NewRuntime || flavour == Flavour::MultiThread {
        std::mem::forget(runtime);
    } else {
        drop(runtime);
    }
    api.converse_in_a_thread("child", Mode::Tokio);
    api.converse_in_a_thread("child", Mode::Blocking);
}

/// Requests in flight, half of them in tasks.
struct InFlight {
    here: Vec<RequestFuture>,
    begun: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<Answer>>,
}

impl InFlight {
    fn begin(api: &Api) -> InFlight {
        let begun = Arc::new(AtomicUsize::new(0));
        let ask = |number: usize| {
            let (api, begun) = (api.clone(), Arc::clone(&begun));
            Box::pin(async move {
                begun.fetch_add(1, Ordering::SeqCst);
                api.get(&key(number)).await
            })
        };
        let here = (0..IN_FLIGHT).step_by(2).map(|number| ask(number) as RequestFuture).collect();
        let tasks = (1..IN_FLIGHT).step_by(2).map(|number| tokio::spawn(ask(number))).collect();
        InFlight { here, tasks, begun }
    }

    /// Waits until every request has begun and the proxy holds a reply on each connection. Then no connection has
    /// another reply to come, so a child that awaits an operation cannot take a reply from its parent.
    async fn until_held(&mut self, proxy: &Proxy) {
        let InFlight { here, begun, .. } = self;
        let held = until_async("the proxy holds replies", || {
            let connections = inodes_connected_to(proxy.port()).len();
            begun.load(Ordering::SeqCst) == IN_FLIGHT && proxy.held() == connections.max(1)
        });
        let mut held = pin!(held);
        poll_fn(|cx| {
            // One of these futures may be the one that dials.
            assert!(
                here.iter_mut().all(|request| request.as_mut().poll(cx).is_pending()),
                "a request completed without a reply"
            );
            held.as_mut().poll(cx)
        })
        .await;
    }

    async fn assert_answers(self, case: &str) {
        let mut answers = Vec::new();
        // In the order of the requests: they complete in any order.
        for request in self.here {
            answers.push(request.await);
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

    /// Runs in the child. Futures in tasks are dropped with the runtime, or never.
    fn poll_and_drop(&mut self) {
        for mut request in self.here.drain(..) {
            match request.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(answer) => assert_forked(&answer),
                Poll::Pending => panic!("an inherited future is still pending"),
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
