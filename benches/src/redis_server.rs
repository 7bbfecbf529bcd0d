//! Redis, compared with the redis crate's own connections and fred.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use fred::interfaces::{ClientLike, KeysInterface};
use prefork_cache::Cache;
use prefork_cache::stores::RedisStore;
use redis::aio::MultiplexedConnection;
use tokio::runtime::Runtime;

use crate::measure::{Candidate, candidate, compare, timed};
use crate::tasks::{FLAVOURS, Flavour, OPERATIONS, TASKS, spread};
use support::servers::{Kind, Server};

const TTL: Duration = Duration::from_secs(3600);

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
    for (flavour, tasks) in FLAVOURS.into_iter().flat_map(|flavour| TASKS.map(|tasks| (flavour, tasks))) {
        on_tokio(&cache, &client, flavour, tasks);
    }
}

fn blocking(cache: &Cache, client: &redis::Client, names: &[&str]) {
    let mut plain = client.get_connection().expect("redis responds");
    let mut plain_batch = client.get_connection().expect("redis responds");
    compare(
        "redis GET, blocking",
        3_000,
        vec![
            candidate("prefork-cache", || {
                black_box(cache.blocking().get_raw("widget:7").expect("a hit"));
            }),
            candidate("redis::Connection", || {
                black_box(redis::cmd("GET").arg("widget:7").query::<Option<Vec<u8>>>(&mut plain).expect("a hit"));
            }),
        ],
    );
    let store = RedisStore::new(&format!("redis://{}", client.get_connection_info().addr())).expect("a valid URL");
    compare(
        "redis, 100 keys, blocking",
        200,
        vec![
            candidate("prefork-cache", || {
                black_box(crate::batch::blocking(&store, names));
            }),
            candidate("redis::Connection, MGET", || {
                let mut command = redis::cmd("MGET");
                command.arg(names);
                black_box(command.query::<Vec<Option<Vec<u8>>>>(&mut plain_batch).expect("hits"));
            }),
        ],
    );
}

fn on_tokio(cache: &Cache, client: &redis::Client, flavour: Flavour, tasks: u32) {
    let runtime = flavour.runtime();
    let connection = runtime.block_on(client.get_multiplexed_async_connection()).expect("redis responds");
    let fred = runtime.block_on(fred_client(client));
    compare(
        &format!("redis GET, tokio, {}, {tasks} tasks", flavour.name()),
        OPERATIONS,
        vec![
            through_cache("prefork-cache", &runtime, tasks, cache),
            multiplexed(&runtime, tasks, &connection),
            timed("fred", |count| {
                spread(&runtime, tasks, count, || {
                    let fred = fred.clone();
                    move |share| async move {
                        for _ in 0..share {
                            black_box(fred.get::<Option<Bytes>, _>("widget:7").await.expect("a hit"));
                        }
                    }
                })
            }),
        ],
    );
    runtime.block_on(fred.quit()).expect("redis responds");
}

/// Returns a fred client with one connection without Nagle's algorithm, like those of prefork-cache.
async fn fred_client(client: &redis::Client) -> fred::clients::Client {
    let address = client.get_connection_info().addr().to_string();
    let config = fred::types::config::Config::from_url(&format!("redis://{address}")).expect("a valid URL");
    let mut builder = fred::types::Builder::from_config(config);
    builder.with_connection_config(|connection| connection.tcp.nodelay = Some(true));
    let fred = builder.build().expect("a valid configuration");
    fred.init().await.expect("redis responds");
    fred
}

/// Reads the value in `tasks` tasks, over the redis crate's shared connection.
pub(crate) fn multiplexed<'a>(
    runtime: &'a Runtime,
    tasks: u32,
    connection: &'a MultiplexedConnection,
) -> Candidate<'a> {
    timed("MultiplexedConnection", move |count| {
        spread(runtime, tasks, count, || {
            let mut connection = connection.clone();
            move |share| async move {
                for _ in 0..share {
                    let command = redis::cmd("GET").arg("widget:7").to_owned();
                    black_box(command.query_async::<Option<Vec<u8>>>(&mut connection).await.expect("a hit"));
                }
            }
        })
    })
}

/// Reads the raw value in `tasks` tasks, through a cache.
pub(crate) fn through_cache<'a>(
    name: &'static str,
    runtime: &'a Runtime,
    tasks: u32,
    cache: &'a Cache,
) -> Candidate<'a> {
    timed(name, move |count| {
        spread(runtime, tasks, count, || {
            let cache = cache.clone();
            move |share| async move {
                for _ in 0..share {
                    black_box(cache.get_raw("widget:7").await.expect("a hit"));
                }
            }
        })
    })
}
