//! Memcached, compared with the memcache crate's classic and experimental clients.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use prefork_cache::Cache;
use prefork_cache::stores::{MemcachedStore, RedisStore};

use crate::measure::{candidate, compare};
use crate::redis_server::through_cache;
use crate::tasks::{FLAVOURS, OPERATIONS, TASKS};
use support::servers::{Kind, Server};

const TTL: Duration = Duration::from_secs(3600);

pub(crate) fn run() {
    let server = Server::start(Kind::Memcached);
    let address = format!("127.0.0.1:{}", server.port());
    let store = || MemcachedStore::new(&format!("memcached://{address}")).expect("a valid URL");
    let cache = Cache::builder(store()).build();
    let keys: Vec<String> = (0..100).map(|number| format!("widget:{number}")).collect();
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    for key in &names {
        cache.blocking().set_raw(key, Bytes::from(vec![b'x'; 100]), TTL).expect("memcached stores");
    }
    let classic = memcache::connect(format!("memcache://{address}?protocol=ascii")).expect("memcached responds");
    let experimental = memcache::exp::Memcache::connect([address.as_str()]).expect("memcached responds");
    compare(
        "memcached GET, blocking",
        3_000,
        vec![
            candidate("prefork-cache", || {
                black_box(cache.blocking().get_raw("widget:7").expect("a hit"));
            }),
            candidate("memcache::Client, ascii", || {
                black_box(classic.get::<Vec<u8>>("widget:7").expect("a hit"));
            }),
            candidate("memcache::exp::Memcache", || {
                black_box(experimental.get::<Vec<u8>>("widget:7").expect("a hit"));
            }),
        ],
    );
    let batch = store();
    compare(
        "memcached, 100 keys, blocking",
        300,
        vec![
            candidate("prefork-cache", || {
                black_box(crate::batch::blocking(&batch, &names));
            }),
            candidate("memcache::exp::Memcache", || {
                black_box(experimental.get_many::<Vec<u8>, _>(&names).expect("hits"));
            }),
            candidate("memcache::Client, ascii", || {
                black_box(classic.gets::<Vec<u8>>(&names).expect("hits"));
            }),
        ],
    );
    let redis_server = Server::start(Kind::Redis);
    let redis = Cache::builder(RedisStore::new(&redis_server.url("")).expect("a valid URL")).build();
    redis.blocking().set_raw("widget:7", Bytes::from(vec![b'x'; 100]), TTL).expect("redis stores");
    for (flavour, tasks) in FLAVOURS.into_iter().flat_map(|flavour| TASKS.map(|tasks| (flavour, tasks))) {
        let runtime = flavour.runtime();
        compare(
            &format!("memcached GET, tokio, {}, {tasks} tasks", flavour.name()),
            OPERATIONS,
            vec![
                through_cache("prefork-cache", &runtime, tasks, &cache),
                through_cache("prefork-cache, Redis", &runtime, tasks, &redis),
            ],
        );
    }
}
