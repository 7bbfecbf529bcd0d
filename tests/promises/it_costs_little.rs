//! The costs that every operation has, counted in system calls: one to send and one to receive; none in memory, and
//! none to check the process. A value that the caller keeps takes memory for itself only, not for the buffer that it
//! arrived in.

use std::future::Future;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::thread;

use bytes::Bytes;
use prefork_cache::stores::{self, MemoryStore};
use prefork_cache::{Cache, CacheStore, Ttl, lifecycle};

use crate::callers::{MINUTE, PATIENT, cache_at, cache_on, current_thread_runtime};
use crate::harness::{Scenario, scenario, skip, with_each_server};
use support::forks::fork;
use support::memory::{peak, resident};
use support::servers::{Kind, Server};
use support::trace::system_calls;

const OPERATIONS: usize = 100;
const MIB: usize = 1 << 20;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = with_each_server("a_blocking_get_is_two_system_calls", a_blocking_get_is_two_system_calls);
    all.extend(with_each_server("kept_values_hold_no_read_buffer", kept_values_hold_no_read_buffer));
    all.extend(with_each_server("an_announced_length_is_not_allocated", an_announced_length_is_not_allocated));
    all.push(scenario("a_hit_in_memory_is_no_system_call", a_hit_in_memory_is_no_system_call));
    all.push(scenario("the_generation_is_no_system_call", the_generation_is_no_system_call));
    all
}

/// The system calls of [`OPERATIONS`] operations, in a child and after a first operation.
fn system_calls_of(operation: impl Fn()) -> Vec<u64> {
    let calls = system_calls(&operation, || (0..OPERATIONS).for_each(|_| operation()));
    calls.unwrap_or_else(|error| skip(&format!("tracing is not permitted: {error}")))
}

fn a_blocking_get_is_two_system_calls(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    cache.blocking().set_raw("key", "value", MINUTE).expect("the server is running");
    let get =
        || assert_eq!(cache.blocking().get_raw("key").expect("the server is running").as_deref(), Some(&b"value"[..]));
    let [send, receive] = [nix::libc::SYS_sendto, nix::libc::SYS_recvfrom].map(i64::cast_unsigned);
    let calls = system_calls_of(get);
    // Under a tracer on a busy machine some operations find their connection idle for a while, and check it before they
    // send.
    let count = |wanted: u64| calls.iter().filter(|call| **call == wanted).count();
    let checks = count(receive).saturating_sub(OPERATIONS);
    assert!(checks <= OPERATIONS / 10, "{checks} of {OPERATIONS} operations checked their connection first");
    assert_eq!((count(send), calls.len()), (OPERATIONS, 2 * OPERATIONS + checks), "{calls:?}");
}

fn a_hit_in_memory_is_no_system_call() {
    let cache = Cache::builder(MemoryStore::new()).build();
    cache.blocking().set_raw("key", "value", MINUTE).expect("memory does not fail");
    let get = || assert!(cache.blocking().get_raw("key").expect("memory does not fail").is_some());
    assert_eq!(system_calls_of(get), Vec::<u64>::new());
}

fn the_generation_is_no_system_call() {
    assert_eq!(lifecycle::generation(), 1);
    let generation = || assert_eq!(lifecycle::generation(), 2);
    assert_eq!(system_calls_of(generation), Vec::<u64>::new());
}

/// In tokio, where the replies to many tasks are read into one buffer.
fn kept_values_hold_no_read_buffer(kind: Kind) {
    const VALUES: usize = 20_000;
    const LENGTH: usize = 108;
    const TASKS: usize = 64;
    const MOST: usize = 4 * VALUES * LENGTH + (8 << 20);
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    // In a child, so that the memory for writing them is not counted.
    fork(|| {
        let keys: Vec<String> = (0..VALUES).map(|number| format!("key:{number}")).collect();
        let value = Bytes::from(vec![b'x'; LENGTH]);
        let entries: Vec<_> = keys.iter().map(|key| (key.as_str(), value.clone())).collect();
        let store = stores::from_url(&server.url(PATIENT)).expect("a good URL");
        let mut setting = pin!(store.set_many(&entries, Ttl::Never));
        let Poll::Ready(set) = setting.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("a store that suspends outside of a runtime");
        };
        assert!(set.iter().all(Result::is_ok), "the server is running");
    })
    .join();
    current_thread_runtime().block_on(async {
        let read_first = async |count: usize| {
            let read = |task: usize| {
                let cache = cache.clone();
                tokio::spawn(async move {
                    let mut kept = Vec::with_capacity(count / TASKS + 1);
                    for number in (task..count).step_by(TASKS) {
                        let value = cache.get_raw(&format!("key:{number}")).await.expect("the server is running");
                        kept.push(value.expect("a hit"));
                    }
                    kept
                })
            };
            let tasks: Vec<_> = (0..TASKS).map(read).collect();
            let mut kept = Vec::with_capacity(TASKS);
            for task in tasks {
                kept.push(task.await.expect("no panic"));
            }
            kept
        };
        // After a few reads, everything but the values is allocated.
        drop(read_first(10 * TASKS).await);
        let before = resident();
        let kept = read_first(VALUES).await;
        let grown = resident().saturating_sub(before);
        println!("{kind:?}: {VALUES} values of {LENGTH} bytes take {} KiB", grown / 1024);
        assert!(kept.iter().flatten().all(|value| value.len() == LENGTH));
        assert!(grown <= MOST, "{kind:?}: {grown} bytes for {VALUES} values of {LENGTH}, of at most {MOST}");
    });
}

/// The server announces two gigabytes and sends until the client disconnects.
fn an_announced_length_is_not_allocated(kind: Kind) {
    for in_greeting in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        thread::spawn(move || {
            for stream in listener.incoming() {
                thread::spawn(move || flood(stream.expect("a client"), kind, in_greeting));
            }
        });
        let cache = cache_at(kind, port, "max_value=1000000&timeout=2s&failures=1000000&retry_after=1ms");
        let before = resident();
        cache.blocking().get_raw("k").expect_err("the value is too large");
        current_thread_runtime().block_on(cache.get_raw("k")).expect_err("the value is too large");
        // The peak, not the current memory: a value that was received and dropped has been freed.
        let grown = peak().saturating_sub(before);
        assert!(grown < 64 * MIB, "in the greeting: {in_greeting}: {grown} bytes more than before");
    }
}

/// Answers the greeting, unless the flood begins there. In reply to the next command, announces two gigabytes and sends
/// them.
fn flood(mut stream: TcpStream, kind: Kind, in_greeting: bool) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let last = request.trim_end().rsplit("\r\n").next().unwrap_or_default();
        let greeting = match kind {
            Kind::Redis if request.contains("HELLO") => Some("%0\r\n".to_owned()),
            Kind::Redis if !request.contains("GET") => Some(format!("${}\r\n{last}\r\n", last.len())),
            Kind::Memcached => last.split_once("prefork-cache O").map(|(_, token)| format!("HD O{token}\r\n")),
            Kind::Redis => None,
        };
        if let Some(greeting) = greeting.filter(|_| !in_greeting) {
            stream.write_all(greeting.as_bytes()).expect("a client");
            continue;
        }
        let header = if kind == Kind::Redis { "$2000000000\r\n" } else { "VA 2000000000 O1\r\n" };
        let piece = vec![b'x'; MIB];
        let is_written = stream.write_all(header.as_bytes()).is_ok();
        while is_written && stream.write_all(&piece).is_ok() {}
        return;
    }
}
