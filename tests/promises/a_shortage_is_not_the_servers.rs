//! Promise 6, the other way round: what this process has run out of says nothing of its servers. None counts as down, and
//! no key goes to another one.

use std::fs::File;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prefork_cache::{Cache, ErrorKind};

use crate::callers::{Caller, MINUTE};
use crate::harness::{Mode, Scenario, with_each_server_and_mode};
use support::servers::{Kind, Server, url_of_hosts};

const KEYS: usize = 50;

/// An outage would last for the test.
const OPTIONS: &str = "timeout=20s&connect_timeout=20s&failures=1&retry_after=60m";

pub(crate) fn scenarios() -> Vec<Scenario> {
    with_each_server_and_mode("no_descriptors", |kind, mode| {
        // A name has to be looked up, for which descriptors are needed as well.
        for host in ["127.0.0.1", "localhost"] {
            match kind {
                Kind::Redis => of_redis(mode, host),
                Kind::Memcached => of_a_ring(mode, host),
            }
        }
    })
}

fn of_redis(mode: Mode, host: &str) {
    let server = Server::start(Kind::Redis);
    let cache = cache(&url_of_hosts(Kind::Redis, &format!("{host}:{}", server.port()), OPTIONS));
    let caller = Caller::new(mode, &cache);
    let taken = no_descriptors();
    for _ in 0..20 {
        let error = caller.get("key").expect_err("there is no descriptor");
        assert_eq!(error.kind(), ErrorKind::OutOfResources, "{error:?}");
        assert!(error.is_transient());
    }
    assert!(!cache.stats().servers[0].is_down);
    drop(taken);
    caller.set("key", "value").expect("there are descriptors");
}

/// Every key stays with its owner: what is written meanwhile fails, and no older value is found later.
fn of_a_ring(mode: Mode, host: &str) {
    let servers = [(); 2].map(|()| Server::start(Kind::Memcached));
    let [first, second] = servers.each_ref().map(Server::port);
    let cache = cache(&url_of_hosts(Kind::Memcached, &format!("{host}:{first},{host}:{second}"), OPTIONS));
    let caller = Caller::new(mode, &cache);
    let keys: Vec<String> = (0..KEYS).map(|number| format!("key {number}")).collect();
    for key in &keys {
        caller.set(key, "old").expect("both are there");
    }
    // One of the two ways still has its connection.
    let one_is_connected = || {
        cache.reset();
        caller.get(&keys[0]).expect("both are there");
    };
    one_is_connected();
    let taken = no_descriptors();
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
        assert_eq!(caller.get(key).expect("there are descriptors").as_deref(), Some(expected), "{key}");
    }
    for server in &cache.stats().servers {
        assert!(!server.is_down, "{server:?}");
    }
    cache.blocking().set_raw("key", "value", MINUTE).expect("both are there");
}

fn cache(url: &str) -> Cache {
    Cache::register(prefork_cache::stores::from_url(url).expect("a good URL"))
}

/// Takes every descriptor that this process may have.
fn no_descriptors() -> Vec<File> {
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
