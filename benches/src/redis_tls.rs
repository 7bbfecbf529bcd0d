//! Redis over TLS, compared with the redis crate's own connections over rustls.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use prefork_cache::Cache;
use prefork_cache::stores::RedisStore;
use redis::TlsCertificates;

use crate::measure::{candidate, compare};
use crate::redis_server::{multiplexed, through_cache};
use crate::tasks::{FLAVOURS, Flavour, OPERATIONS};
use support::certificates::Authority;
use support::servers::{Encryption, Kind, Server};

const TTL: Duration = Duration::from_secs(3600);

pub(crate) fn run() {
    // The redis crate uses the process's default provider. An error means that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let authority = Authority::new();
    let server = Server::encrypted(Kind::Redis, &Encryption::by(&authority), &[]);
    let cache = Cache::builder(RedisStore::new(&server.url("")).expect("a valid URL")).build();
    let root_cert = Some(std::fs::read(authority.ca()).expect("a file that was just written"));
    let url = format!("rediss://127.0.0.1:{}", server.port());
    let certificates = TlsCertificates { client_tls: None, root_cert };
    let client = redis::Client::build_with_tls(url, certificates).expect("a valid URL");
    cache.blocking().set_raw("widget:7", Bytes::from(vec![b'x'; 100]), TTL).expect("redis stores");
    blocking(&cache, &client);
    for (flavour, tasks) in FLAVOURS.into_iter().flat_map(|flavour| [1, 64].map(|tasks| (flavour, tasks))) {
        on_tokio(&cache, &client, flavour, tasks);
    }
}

fn blocking(cache: &Cache, client: &redis::Client) {
    let mut plain = client.get_connection().expect("redis responds");
    compare(
        "redis GET over TLS, blocking",
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
}

fn on_tokio(cache: &Cache, client: &redis::Client, flavour: Flavour, tasks: u32) {
    let runtime = flavour.runtime();
    let connection = runtime.block_on(client.get_multiplexed_async_connection()).expect("redis responds");
    compare(
        &format!("redis GET over TLS, tokio, {}, {tasks} tasks", flavour.name()),
        OPERATIONS,
        vec![through_cache("prefork-cache", &runtime, tasks, cache), multiplexed(&runtime, tasks, &connection)],
    );
}
