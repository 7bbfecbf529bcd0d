//! Promise 1, in the long run: where each generation forks the next, a later generation closes the descriptors that an
//! earlier one cut. The number of open descriptors does not grow from generation to generation.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use nix::sys::prctl::set_child_subreaper;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, setpgid};
use prefork_cache::{Cache, injection, lifecycle};
use tokio::runtime::Runtime;

use crate::callers::{Caller, MINUTE, PATIENT, cache_on, current_thread_runtime};
use crate::harness::{Mode, Scenario, count, scenario, with_each_server};
use support::descriptors::{connected_to, is_path, open};
use support::forks::{CHILD_TIME, Child, Side, Way, exit_now, fork, split};
use support::servers::{Kind, Server};
use support::tally::Tally;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = with_each_server("over_generations", |kind| {
        over_generations(kind, Mode::Blocking, count(150, 1_000));
    });
    all.extend(with_each_server("over_generations_in_tokio", |kind| {
        over_generations(kind, Mode::Tokio, count(100, 200));
    }));
    all.extend(with_each_server("over_nested_forks_in_a_loader", nested_forks_in_a_loader));
    all.push(scenario("a_socket_in_use_keeps_its_number", a_socket_in_use_keeps_its_number));
    all
}

const CONNECTIONS: usize = 16;

/// The most descriptors of this crate that a process may have open: its connections, as many tombstones, and the
/// kept tombstone.
const MOST: usize = 2 * CONNECTIONS + 1;

/// Each generation uses its connections, forks the next and ends.
fn over_generations(kind: Kind, mode: Mode, generations: usize) {
    let server = Server::start(kind);
    let caches: Vec<Cache> = (0..CONNECTIONS).map(|_| cache_on(&server, PATIENT)).collect();
    set_child_subreaper(true).expect("orphans become children of this process");
    let reached = Tally::new();
    let chain = fork(|| {
        setpgid(Pid::this(), Pid::this()).expect("a new process group");
        let mut inherited_runtime = None;
        for generation in 0..generations {
            let runtime = (mode == Mode::Tokio).then(current_thread_runtime);
            use_each(&caches, runtime.as_ref(), generation);
            let connected = connected_to(server.port()).len();
            assert_eq!(connected, CONNECTIONS, "connections of generation {generation}");
            let open_here = connected + open().into_iter().filter(|&number| is_path(number)).count();
            assert!(open_here <= MOST, "{open_here} descriptors in generation {generation}");
            // The connections live as long as their runtime, which a child must not drop.
            std::mem::forget(std::mem::replace(&mut inherited_runtime, runtime));
            reached.raise(1);
            if generation + 1 < generations {
                let way = Way::COMMON[generation % Way::COMMON.len()];
                if let Side::Parent(_) = split::<()>(way, CHILD_TIME).expect("a child") {
                    // The scenario adopts and reaps it.
                    exit_now(0);
                }
            }
        }
    });
    let group = Pid::from_raw(-chain.process().as_raw());
    let first = chain.end();
    while waitpid(group, None).is_ok() {}
    assert_eq!(reached.count(), generations, "the chain ended early; its first process: {first:?}");
}

fn use_each(caches: &[Cache], runtime: Option<&Runtime>, generation: usize) {
    let value = format!("of generation {generation}");
    for cache in caches {
        let set = match runtime {
            None => cache.blocking().set("key", &value, MINUTE),
            Some(runtime) => runtime.block_on(cache.set("key", &value, MINUTE)),
        };
        set.expect("the server is running");
    }
}

/// A loader forks, and in the child forks again. Every process returns from the loader with the value that it loaded,
/// closes no descriptor of the host, and keeps the tombstones of one generation only.
fn nested_forks_in_a_loader(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    Caller::new(Mode::Blocking, &cache).converse("parent", 20);
    for way in Way::COMMON {
        let key = format!("loaded across {way:?}");
        let (mut reporter, mut child, mut depth) = (None, None, 0);
        let mut host_sockets = Vec::new();
        let fetched = cache.blocking().fetch(&key, MINUTE, || {
            for _ in 0..3 {
                Caller::new(Mode::Blocking, &cache).converse("in the loader", 4);
                match split::<Vec<usize>>(way, CHILD_TIME).expect("a child") {
                    Side::Parent(forked) => {
                        child = Some(forked);
                        break;
                    }
                    Side::Child(child) => reporter = Some(child),
                }
                depth += 1;
            }
            // These sockets take the free numbers, among them any number that is still to be closed.
            host_sockets.extend((0..32).map(|_| host_socket_pair()));
            Ok::<_, Infallible>(depth)
        });
        assert_eq!(fetched.expect("never fails"), depth, "each process has a value of its own");
        let finish = || {
            Caller::new(Mode::Blocking, &cache).converse("after the loader", 20);
            cache.reset();
            host_sockets.iter().for_each(assert_untouched);
            let cut = lifecycle::after_fork().sockets_cut();
            let tombstones = open().into_iter().filter(|&number| is_path(number)).count();
            assert!(tombstones <= cut + 1, "depth {depth}: {tombstones} tombstones, {cut} cut after {way:?}");
            let mut depths = child.map(Child::join).unwrap_or_default();
            depths.push(depth);
            depths
        };
        match reporter {
            Some(reporter) => reporter.run_and_exit(finish),
            None => assert_eq!(finish(), [3, 2, 1, 0], "after {way:?}"),
        }
    }
}

/// Two connected sockets of the host, with a byte in flight in each direction.
fn host_socket_pair() -> [UnixStream; 2] {
    let (mut one, mut other) = UnixStream::pair().expect("a pair of sockets");
    for end in [&mut one, &mut other] {
        end.set_nonblocking(true).expect("a socket can be");
        end.write_all(b"x").expect("room for a byte");
    }
    [one, other]
}

fn assert_untouched(host_socket_pair: &[UnixStream; 2]) {
    for mut end in host_socket_pair {
        let mut received = [0; 64];
        let length = end.read(&mut received).expect("a byte has arrived");
        assert_eq!(&received[..length], b"x", "the bytes received on {end:?}");
    }
}

thread_local! {
    /// This thread forks at its nth next system call on a socket; 0 for never.
    static CALLS_UNTIL_FORK: Cell<usize> = const { Cell::new(0) };
    static SIDE: RefCell<Option<Side<bool>>> = const { RefCell::new(None) };
    static HOST_SOCKETS: RefCell<Vec<[UnixStream; 2]>> = const { RefCell::new(Vec::new()) };
}

/// Forks twice between the check of the generation and the system call, as a signal handler may. The grandchild returns
/// and makes the call. The socket's number must not have become that of a host's descriptor.
fn a_socket_in_use_keeps_its_number() {
    let server = Server::start(Kind::Redis);
    let cache = cache_on(&server, PATIENT);
    let get = || cache.blocking().get_raw("key");
    get().expect("the server is running");
    injection::on_reach(fork_twice_when_due);
    for call in 1.. {
        CALLS_UNTIL_FORK.set(call);
        let asked = get();
        match SIDE.take() {
            None => {
                assert!(call > 2, "a request is at least sent and received");
                break;
            }
            Some(Side::Parent(child)) => {
                assert_eq!(asked.expect("the server is running"), None);
                assert!(child.join(), "the grandchild returned from call {call}");
            }
            Some(Side::Child(grandchild)) => grandchild.run_and_exit(|| {
                CALLS_UNTIL_FORK.set(0);
                HOST_SOCKETS.take().iter().for_each(assert_untouched);
                assert_eq!(get().expect("the server is running"), None);
                true
            }),
        }
    }
}

fn fork_twice_when_due(name: &'static str) {
    if name != "socket" || CALLS_UNTIL_FORK.get() == 0 {
        return;
    }
    CALLS_UNTIL_FORK.set(CALLS_UNTIL_FORK.get() - 1);
    if CALLS_UNTIL_FORK.get() > 0 {
        return;
    }
    let side = match split(Way::Fork, CHILD_TIME).expect("a child") {
        Side::Parent(child) => Side::Parent(child),
        Side::Child(reporter) => match split(Way::Fork, CHILD_TIME).expect("a grandchild") {
            Side::Parent(grandchild) => reporter.run_and_exit(|| grandchild.join()),
            Side::Child(reporter) => {
                HOST_SOCKETS.set((0..32).map(|_| host_socket_pair()).collect());
                Side::Child(reporter)
            }
        },
    };
    SIDE.set(Some(side));
}
