//! Redis, beside the redis crate's own connections.

use std::future::Future;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prefork_cache::Cache;
use prefork_cache::stores::RedisStore;
use tokio::runtime::Runtime;

use crate::measure::{compare, timed, way};
use support::servers::{Kind, Server};

const TTL: Duration = Duration::from_secs(3600);
const TASKS: [u32; 3] = [1, 16, 64];

pub(crate) fn run() {
    let server = Server::start(Kind::Redis);
    let url = server.url("");
    let cache = Cache::builder(RedisStore::new(&url).expect("a valid URL")).build();
    let client = redis::Client::open(url).expect("a valid URL");
    let keys: Vec<String> = (0..100).map(|number| format!("widget:{number}")).collect();
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    for key in &names {
        cache.blocking().set_raw(key, Bytes::from(vec![b'x'; 100]), TTL).expect("redis stores");
    }
    blocking(&cache, &client, &names);
    for tasks in TASKS {
        on_tokio(&cache, &client, tasks);
    }
}

fn blocking(cache: &Cache, client: &redis::Client, names: &[&str]) {
    let mut plain = client.get_connection().expect("redis answers");
    let mut plain_batch = client.get_connection().expect("redis answers");
    compare(
        "redis GET, blocking",
        3_000,
        vec![
            way("prefork-cache", || {
                black_box(cache.blocking().get_raw("widget:7").expect("a hit"));
            }),
            way("redis::Connection", || {
                black_box(redis::cmd("GET").arg("widget:7").query::<Option<Vec<u8>>>(&mut plain).expect("a hit"));
            }),
        ],
    );
    let store = RedisStore::new(&format!("redis://{}", client.get_connection_info().addr())).expect("a valid URL");
    compare(
        "redis, 100 keys, blocking",
        200,
        vec![
            way("prefork-cache", || {
                black_box(crate::batch::blocking(&store, names));
            }),
            way("redis::Connection, MGET", || {
                let mut command = redis::cmd("MGET");
                command.arg(names);
                black_box(command.query::<Vec<Option<Vec<u8>>>>(&mut plain_batch).expect("hits"));
            }),
        ],
    );
}

fn on_tokio(cache: &Cache, client: &redis::Client, tasks: u32) {
    let runtime = runtime();
    let connection = runtime.block_on(client.get_multiplexed_async_connection()).expect("redis answers");
    compare(
        &format!("redis GET, tokio, {tasks} tasks"),
        6_400,
        vec![
            timed("prefork-cache", |count| {
                spread(&runtime, tasks, count, || {
                    let cache = cache.clone();
                    move |share| async move {
                        for _ in 0..share {
                            black_box(cache.get_raw("widget:7").await.expect("a hit"));
                        }
                    }
                })
            }),
            timed("MultiplexedConnection", |count| {
                spread(&runtime, tasks, count, || {
                    let mut connection = connection.clone();
                    move |share| async move {
                        for _ in 0..share {
                            let command = redis::cmd("GET").arg("widget:7").to_owned();
                            black_box(command.query_async::<Option<Vec<u8>>>(&mut connection).await.expect("a hit"));
                        }
                    }
                })
            }),
        ],
    );
}

/// Has `tasks` tasks share `count` operations, and says how long they took.
pub(crate) fn spread<W, F>(runtime: &Runtime, tasks: u32, count: u32, mut worker: impl FnMut() -> W) -> Duration
where
    W: FnOnce(u32) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    runtime.block_on(async {
        let started = Instant::now();
        let workers: Vec<_> = (0..tasks).map(|_| tokio::spawn(worker()(count / tasks))).collect();
        for worker in workers {
            worker.await.expect("a task");
        }
        started.elapsed()
    })
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}
