//! A cluster of three masters, compared with one server and with the redis crate's cluster client.
//!
//! A server takes longer for a command in cluster mode. So a GET is also compared with one that is sent to the same
//! node, but under the URL of a single server: the rest is what this crate adds.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use prefork_cache::Cache;
use prefork_cache::stores::RedisStore;
use redis::cluster::{ClusterClient, ClusterConnection, cluster_pipe};

use crate::measure::{candidate, compare};
use crate::redis_server::through_cache;
use crate::server_share::{self, Node};
use crate::tasks::{FLAVOURS, OPERATIONS, TASKS};
use support::cluster::Cluster;
use support::servers::{Kind, Server};

const TTL: Duration = Duration::from_secs(3600);
const KEYS: usize = 10_000;

/// The number of commands in one pipeline of the peer, if it does not send all at once.
const PIPELINE: usize = 1_000;

pub(crate) fn run() {
    let (server, cluster) = (Server::start(Kind::Redis), Cluster::without_replicas());
    let open = |url: &str| RedisStore::new(url).expect("a valid URL");
    let (on_server, on_cluster) =
        (Cache::builder(open(&server.url(""))).build(), Cache::builder(open(&cluster.url(""))).build());
    let owner = cluster.owners(&["widget:7"])[0];
    let on_node = Cache::builder(open(&format!("redis://127.0.0.1:{}", cluster.nodes()[owner].port()))).build();
    for cache in [&on_server, &on_cluster] {
        cache.blocking().set_raw("widget:7", Bytes::from(vec![b'x'; 100]), TTL).expect("redis stores");
    }
    compare(
        "GET on a cluster, blocking",
        3_000,
        vec![
            candidate("a cluster", || {
                black_box(on_cluster.blocking().get_raw("widget:7").expect("a hit"));
            }),
            candidate("one server", || {
                black_box(on_server.blocking().get_raw("widget:7").expect("a hit"));
            }),
            candidate("its node as one server", || {
                black_box(on_node.blocking().get_raw("widget:7").expect("a hit"));
            }),
        ],
    );
    for (flavour, tasks) in FLAVOURS.into_iter().flat_map(|flavour| TASKS.map(|tasks| (flavour, tasks))) {
        let runtime = flavour.runtime();
        compare(
            &format!("GET on a cluster, tokio, {}, {tasks} tasks", flavour.name()),
            OPERATIONS,
            vec![
                through_cache("a cluster", &runtime, tasks, &on_cluster),
                through_cache("one server", &runtime, tasks, &on_server),
                through_cache("its node as one server", &runtime, tasks, &on_node),
            ],
        );
    }
    many_keys(&cluster, &open(&cluster.url("timeout=20s")));
}

fn many_keys(cluster: &Cluster, store: &RedisStore) {
    let keys: Vec<String> = (0..KEYS).map(|number| format!("widget:{number}")).collect();
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    let cache = Cache::builder(RedisStore::new(&cluster.url("timeout=20s")).expect("a valid URL")).build();
    for key in &names {
        cache.blocking().set_raw(key, Bytes::from(vec![b'x'; 100]), TTL).expect("redis stores");
    }
    let seed = format!("redis://127.0.0.1:{}", cluster.nodes()[0].port());
    let client = ClusterClient::new(vec![seed]).expect("a valid URL");
    let [mut at_once, mut in_parts] = [(); 2].map(|()| client.get_connection().expect("redis responds"));
    let owners = cluster.owners(&names);
    let of_node =
        |node: usize| names.iter().zip(&owners).filter(move |(_, owner)| **owner == node).map(|(key, _)| *key);
    let mut nodes: Vec<Node> = (0..)
        .zip(cluster.nodes())
        .map(|(number, node)| Node::new(node.port(), &of_node(number).collect::<Vec<_>>()))
        .collect();
    let mut buffer = vec![0; 64 << 10];
    compare(
        "10,000 keys on a cluster, blocking",
        5,
        vec![
            candidate("prefork-cache, get_many", || {
                black_box(crate::batch::blocking(store, &names));
            }),
            candidate("the same bytes, replies not parsed", || server_share::ask(&mut nodes, &mut buffer)),
            candidate("ClusterClient, one pipeline", || {
                black_box(read(&mut at_once, &names));
            }),
            candidate("ClusterClient, pipelines of 1,000", || {
                for part in names.chunks(PIPELINE) {
                    black_box(read(&mut in_parts, part));
                }
            }),
        ],
    );
}

fn read(connection: &mut ClusterConnection, keys: &[&str]) -> Vec<Option<Vec<u8>>> {
    let mut pipe = cluster_pipe();
    for key in keys {
        pipe.cmd("GET").arg(key);
    }
    pipe.query(connection).expect("hits")
}
