//! Operations that give the thread back at intervals. They wait for a stopped server, another caller or a connection.
//! Each pauses at the end of a slice and continues in the next one.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use prefork_cache::stores::{MemoryStore, from_url};
use prefork_cache::{Begun, Cache, ErrorKind, Result, Resumable};

use crate::staleness::HOUR;
use support::certificates::Authority;
use support::servers::{Encryption, Kind, Server};

const SLICE: Duration = Duration::from_millis(20);
const PATIENT: &str = "timeout=60s&connect_timeout=60s";

fn cache(server: &Server, options: &str) -> Cache {
    Cache::builder(from_url(&server.url(options)).unwrap()).build()
}

fn finish<T>(operation: &mut Resumable<'_, T>) -> T {
    loop {
        if let Some(done) = operation.run_for(SLICE) {
            return done.unwrap();
        }
    }
}

fn is_unfinished<T>(operation: &mut Resumable<'_, T>) -> bool {
    (0..3).all(|_| operation.run_for(SLICE).is_none())
}

/// A server of each kind, also over TLS.
fn on_each_server(work: impl Fn(&Server)) {
    let authority = Authority::new();
    for kind in [Kind::Redis, Kind::Memcached] {
        work(&Server::start(kind));
        work(&Server::encrypted(kind, &Encryption::by(&authority), &[]));
    }
}

#[test]
fn an_exchange_continues_and_is_not_sent_twice() {
    on_each_server(|server| {
        let cache = cache(server, PATIENT);
        cache.blocking().set_raw("k", vec![b'x'; 100_000], HOUR).unwrap();
        server.pause();
        let mut increment = Resumable::new(cache.increment("n", 1, HOUR));
        let mut get = Resumable::new(cache.get_raw("k"));
        assert!(is_unfinished(&mut increment) && is_unfinished(&mut get));
        server.resume();
        assert_eq!(finish(&mut increment).unwrap(), 1);
        assert_eq!(finish(&mut get).unwrap(), Some(Bytes::from(vec![b'x'; 100_000])));
        assert_eq!(cache.blocking().counter("n").unwrap(), Some(1));
        assert_eq!(cache.stats().servers[0].dials, 2, "no connection was opened again");
    });
}

#[test]
fn a_dial_and_a_greeting_continue() {
    on_each_server(|server| {
        server.pause();
        let cache = cache(server, PATIENT);
        let mut set = Resumable::new(cache.set_raw("k", "v", HOUR));
        let mut waiting = Resumable::new(cache.get_raw("k"));
        assert!(is_unfinished(&mut set) && is_unfinished(&mut waiting), "the second waits for the first one's dial");
        server.resume();
        finish(&mut set).unwrap();
        assert_eq!(finish(&mut waiting).unwrap().as_deref(), Some(&b"v"[..]));
    });
}

#[test]
fn a_dial_to_a_full_queue_continues() {
    let path = std::env::temp_dir().join(format!("prefork-cache-full-queue-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let address = UnixAddr::new(&path).unwrap();
    let queued: Vec<OwnedFd> = std::iter::from_fn(|| {
        let client = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
        connect(client.as_raw_fd(), &address).is_ok().then_some(client)
    })
    .collect();
    let cache = Cache::builder(from_url(&format!("redis+unix://{}?{PATIENT}", path.display())).unwrap()).build();
    let mut get = Resumable::new(cache.get_raw("k"));
    assert!(is_unfinished(&mut get), "behind {} other clients", queued.len());
    drop(listener);
    std::fs::remove_file(&path).unwrap();
    let refused = finish(&mut get).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Connect, "{refused:#}");
}

#[test]
fn a_wait_for_a_connection_continues() {
    let server = Server::start(Kind::Redis);
    let cache = cache(&server, &format!("{PATIENT}&pool_size=1"));
    server.pause();
    let mut holder = Resumable::new(cache.get_raw("k"));
    let mut last_to_finish = Resumable::new(cache.get_raw("k"));
    let mut waiting = Resumable::new(cache.get_raw("k"));
    assert!(is_unfinished(&mut holder) && is_unfinished(&mut last_to_finish) && is_unfinished(&mut waiting));
    server.resume();
    finish(&mut holder).unwrap();
    finish(&mut waiting).unwrap();
    finish(&mut last_to_finish).unwrap();
}

#[test]
fn several_servers_work_at_the_same_time() {
    let servers = [Server::start(Kind::Memcached), Server::start(Kind::Memcached)];
    let hosts = servers.each_ref().map(|server| format!("127.0.0.1:{}", server.port())).join(",");
    let url = support::servers::url_of_hosts(Kind::Memcached, &hosts, PATIENT);
    let cache = Cache::builder(from_url(&url).unwrap()).build();
    let keys: Vec<String> = (0..20).map(|number| format!("k{number}")).collect();
    for key in &keys {
        cache.blocking().set_raw(key, key.clone(), HOUR).unwrap();
    }
    servers[0].pause();
    let mut get_many = Resumable::new(cache.get_many_raw(&keys));
    assert!(is_unfinished(&mut get_many));
    servers[0].resume();
    let values: Result<Vec<_>> = finish(&mut get_many).into_iter().collect();
    let expected: Vec<_> = keys.iter().map(|key| Some(Bytes::from(key.clone()))).collect();
    assert_eq!(values.unwrap(), expected);
}

/// Two stores on one server stand for two processes.
#[test]
fn a_wait_for_another_load_continues() {
    for kind in [Kind::Redis, Kind::Memcached] {
        let server = Server::start(kind);
        let cache = cache(&server, PATIENT);
        let elsewhere = self::cache(&server, PATIENT);
        let Begun::Claim(claim) = cache.blocking().fetch_raw_begin("k") else { panic!("no value is stored") };
        // A claim belongs to its thread: a fetch on that thread would not wait for it.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut here = Resumable::new(cache.fetch_raw_begin("k"));
                let mut there = Resumable::new(elsewhere.fetch_raw_begin("k"));
                assert!(is_unfinished(&mut here) && is_unfinished(&mut there));
                assert_eq!(claim.blocking_complete("v".into(), HOUR), "v");
                for waiting in [&mut here, &mut there] {
                    assert!(matches!(finish(waiting), Begun::Hit(value) if value == "v"), "{kind:?}");
                }
            });
        });
        assert_eq!((cache.stats().coalesced, elsewhere.stats().coalesced), (1, 1));
    }
}

#[test]
fn an_abandoned_operation_does_not_affect_later_ones() {
    on_each_server(|server| {
        let cache = cache(server, PATIENT);
        cache.blocking().set_raw("k", "v", HOUR).unwrap();
        server.pause();
        let mut get = Resumable::new(cache.get_raw("another"));
        assert!(is_unfinished(&mut get));
        drop(get);
        server.resume();
        assert_eq!(cache.blocking().get_raw("k").unwrap().as_deref(), Some(&b"v"[..]));
    });
}

#[test]
fn timeouts_apply_in_slices_too() {
    on_each_server(|server| {
        let cache = cache(server, "timeout=150ms&connect_timeout=60s");
        cache.blocking().set_raw("k", "v", HOUR).unwrap();
        server.pause();
        let mut get = Resumable::new(cache.get_raw("k"));
        assert!(get.run_for(SLICE).is_none());
        assert_eq!(finish(&mut get).unwrap_err().kind(), ErrorKind::Timeout);
        server.resume();
    });
}

/// The operation waits for something outside this crate: a loader, or another crate's store.
#[test]
fn a_loader_that_suspends_is_waited_for_until_the_slice_ends() {
    let cache = Cache::builder(MemoryStore::new()).build();
    let (loaded, load) = tokio::sync::oneshot::channel();
    let mut fetch = Resumable::new(cache.fetch("k", HOUR, move || load));
    assert!(is_unfinished(&mut fetch));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || fetch.run_for(Duration::from_secs(60)).expect("the fetch was woken"));
        loaded.send("v".to_owned()).unwrap();
        assert_eq!(waiting.join().unwrap().unwrap().unwrap(), "v");
    });
}
