//! Promise 6, for a shortage in this process: an exhausted resource of the process does not count against its servers.
//! None is marked as down, and no key moves to another server.

use std::fs::File;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prefork_cache::{Cache, ErrorKind};

use crate::callers::{Caller, MINUTE};
use crate::harness::{Mode, Scenario, with_each_server_and_mode};
use support::servers::{Kind, Server, url_of_hosts};

const KEYS: usize = 50;

/// A server that is marked as down stays so for the whole test.
const OPTIONS: &str = "timeout=20s&connect_timeout=20s&failures=1&retry_after=60m";

pub(crate) fn scenarios() -> Vec<Scenario> {
    with_each_server_and_mode("without_free_descriptors", |kind, mode| {
        // A name needs descriptors for its resolution as well.
        for host in ["127.0.0.1", "localhost"] {
            match kind {
                Kind::Redis => on_redis(mode, host),
                Kind::Memcached => on_a_ring(mode, host),
            }
        }
    })
}

fn on_redis(mode: Mode, host: &str) {
    let server = Server::start(Kind::Redis);
    let cache = cache(&url_of_hosts(Kind::Redis, &format!("{host}:{}", server.port()), OPTIONS));
    let caller = Caller::new(mode, &cache);
    let taken = take_all_descriptors();
    for _ in 0..20 {
        let error = caller.get("key").expect_err("no descriptor is free");
        assert_eq!(error.kind(), ErrorKind::OutOfResources, "{error:?}");
        assert!(error.is_transient());
    }
    assert!(!cache.stats().servers[0].is_down);
    drop(taken);
    caller.set("key", "value").expect("descriptors are free");
}

/// Every key stays with its server: a write during the shortage fails, and no older value is found later.
fn on_a_ring(mode: Mode, host: &str) {
    let servers = [(); 2].map(|()| Server::start(Kind::Memcached));
    let [first, second] = servers.each_ref().map(Server::port);
    let cache = cache(&url_of_hosts(Kind::Memcached, &format!("{host}:{first},{host}:{second}"), OPTIONS));
    let caller = Caller::new(mode, &cache);
    let keys: Vec<String> = (0..KEYS).map(|number| format!("key {number}")).collect();
    for key in &keys {
        caller.set(key, "old").expect("both servers are running");
    }
    // One of the two servers keeps its connection.
    let connect_to_one = || {
        cache.reset();
        caller.get(&keys[0]).expect("both servers are running");
    };
    connect_to_one();
    let taken = take_all_descriptors();
    let (mut changed, mut failed) = (Vec::new(), 0);
    for key in &keys {
        match caller.set(key, "new") {
            Ok(()) => changed.push(key),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::OutOfResources, "{error:?}");
                failed += 1;
            }
        }
    }
    drop(taken);
    assert!(failed > 0 && !changed.is_empty(), "{failed} failed of {KEYS}");
    for key in &keys {
        let expected = if changed.contains(&key) { "new" } else { "old" };
        assert_eq!(caller.get(key).expect("descriptors are free").as_deref(), Some(expected), "{key}");
    }
    for server in &cache.stats().servers {
        assert!(!server.is_down, "{server:?}");
    }
    cache.blocking().set_raw("key", "value", MINUTE).expect("both servers are running");
}

fn cache(url: &str) -> Cache {
    Cache::register(prefork_cache::stores::from_url(url).expect("a good URL"))
}

/// Opens files until the limit of descriptors is reached.
fn take_all_descriptors() -> Vec<File> {
    const FEW: u64 = 128;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, FEW.min(soft), hard).expect("a lower limit is allowed");
    let mut taken = Vec::new();
    loop {
        match File::open("/dev/null") {
            Ok(file) => taken.push(file),
            Err(error) if error.raw_os_error() == Some(Errno::EMFILE as i32) => return taken,
            Err(error) => panic!("{error}"),
        }
    }
}
