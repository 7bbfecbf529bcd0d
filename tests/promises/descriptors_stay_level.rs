//! Promise 1, in the long run: where each generation forks the next, what is cut in one of them is closed in a later one, and
//! no process that comes late has more open than one that came early.

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
    all.extend(with_each_server("over_forks_in_forks_in_a_loader", forks_in_forks_in_a_loader));
    all.push(scenario("a_socket_that_is_in_use_keeps_its_number", a_socket_that_is_in_use_keeps_its_number));
    all
}

const CONNECTIONS: usize = 16;

/// What a process may have open beside its connections: as many tombstones, the kept one, and what is not ours.
const ROOM: usize = 2 * CONNECTIONS + 1;

/// Each generation uses its connections, forks the next and ends.
fn over_generations(kind: Kind, mode: Mode, generations: usize) {
    let server = Server::start(kind);
    let caches: Vec<Cache> = (0..CONNECTIONS).map(|_| cache_on(&server, PATIENT)).collect();
    set_child_subreaper(true).expect("what is orphaned comes here");
    let reached = Tally::new();
    let chain = fork(|| {
        setpgid(Pid::this(), Pid::this()).expect("a group of the chain's own");
        let mut inherited_runtime = None;
        for generation in 0..generations {
            let runtime = (mode == Mode::Tokio).then(current_thread_runtime);
            use_each(&caches, runtime.as_ref(), generation);
            let connected = connected_to(server.port()).len();
            assert_eq!(connected, CONNECTIONS, "connections of generation {generation}");
            let ours = connected + open().into_iter().filter(|&number| is_path(number)).count();
            assert!(ours <= ROOM, "{ours} descriptors in generation {generation}");
            // The connections live as long as their runtime, and its child is not to drop it.
            std::mem::forget(std::mem::replace(&mut inherited_runtime, runtime));
            reached.raise(1);
            if generation + 1 < generations {
                let way = Way::COMMON[generation % Way::COMMON.len()];
                if let Side::Parent(_) = split::<()>(way, CHILD_TIME).expect("a child") {
                    // Reaped by the scenario, which adopts it.
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
        set.expect("the server is there");
    }
}

/// A loader forks, and in the child forks again. Every process comes back from the loader with what was loaded there, closes
/// nobody's descriptor, and keeps tombstones of one generation only.
fn forks_in_forks_in_a_loader(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    Caller::new(Mode::Blocking, &cache).converse("parent", 20);
    for way in Way::COMMON {
        let key = format!("loaded across {way:?}");
        let (mut own, mut child, mut depth) = (None, None, 0);
        let mut strangers = Vec::new();
        let fetched = cache.blocking().fetch(&key, MINUTE, || {
            for _ in 0..3 {
                Caller::new(Mode::Blocking, &cache).converse("in the loader", 4);
                match split::<Vec<usize>>(way, CHILD_TIME).expect("a child") {
                    Side::Parent(forked) => {
                        child = Some(forked);
                        break;
                    }
                    Side::Child(reporter) => own = Some(reporter),
                }
                depth += 1;
            }
            // They take the numbers that are free, should one be free that is still to be closed.
            strangers.extend((0..32).map(|_| stranger()));
            Ok::<_, Infallible>(depth)
        });
        assert_eq!(fetched.expect("never fails"), depth, "each process has a value of its own");
        let finish = || {
            Caller::new(Mode::Blocking, &cache).converse("after the loader", 20);
            cache.reset();
            strangers.iter().for_each(assert_untouched);
            let cut = lifecycle::after_fork().sockets_cut();
            let tombstones = open().into_iter().filter(|&number| is_path(number)).count();
            assert!(tombstones <= cut + 1, "depth {depth}: {tombstones} tombstones, {cut} cut after {way:?}");
            let mut depths = child.map(Child::join).unwrap_or_default();
            depths.push(depth);
            depths
        };
        match own {
            Some(reporter) => reporter.run_and_exit(finish),
            None => assert_eq!(finish(), [3, 2, 1, 0], "after {way:?}"),
        }
    }
}

/// Two sockets that are connected to each other, with a byte under way in both directions.
fn stranger() -> [UnixStream; 2] {
    let (mut one, mut other) = UnixStream::pair().expect("a pair of sockets");
    for end in [&mut one, &mut other] {
        end.set_nonblocking(true).expect("a socket can be");
        end.write_all(b"x").expect("room for a byte");
    }
    [one, other]
}

fn assert_untouched(stranger: &[UnixStream; 2]) {
    for mut end in stranger {
        let mut received = [0; 64];
        let length = end.read(&mut received).expect("its byte has come");
        assert_eq!(&received[..length], b"x", "what has come on {end:?}");
    }
}

thread_local! {
    /// At how many more system calls on a socket this thread forks.
    static FORKS_IN: Cell<usize> = const { Cell::new(0) };
    static SIDE: RefCell<Option<Side<bool>>> = const { RefCell::new(None) };
    static STRANGERS: RefCell<Vec<[UnixStream; 2]>> = const { RefCell::new(Vec::new()) };
}

/// As a signal handler may: it forks twice between the look at the generation and the system call, and comes back in the
/// grandchild, which then makes the call. The number must not have become a stranger's.
fn a_socket_that_is_in_use_keeps_its_number() {
    let server = Server::start(Kind::Redis);
    let cache = cache_on(&server, PATIENT);
    let ask = || cache.blocking().get_raw("key");
    ask().expect("the server is there");
    injection::on_reach(fork_twice_if_it_is_time);
    for call in 1.. {
        FORKS_IN.set(call);
        let asked = ask();
        match SIDE.take() {
            None => {
                assert!(call > 2, "a request is at least sent and received");
                break;
            }
            Some(Side::Parent(child)) => {
                assert_eq!(asked.expect("the server is there"), None);
                assert!(child.join(), "the grandchild came back, from call {call}");
            }
            Some(Side::Child(grandchild)) => grandchild.run_and_exit(|| {
                FORKS_IN.set(0);
                STRANGERS.take().iter().for_each(assert_untouched);
                assert_eq!(ask().expect("the server is there"), None);
                true
            }),
        }
    }
}

fn fork_twice_if_it_is_time(name: &'static str) {
    if name != "socket" || FORKS_IN.get() == 0 {
        return;
    }
    FORKS_IN.set(FORKS_IN.get() - 1);
    if FORKS_IN.get() > 0 {
        return;
    }
    let side = match split(Way::Fork, CHILD_TIME).expect("a child") {
        Side::Parent(child) => Side::Parent(child),
        Side::Child(reporter) => match split(Way::Fork, CHILD_TIME).expect("a grandchild") {
            Side::Parent(grandchild) => reporter.run_and_exit(|| grandchild.join()),
            Side::Child(reporter) => {
                STRANGERS.set((0..32).map(|_| stranger()).collect());
                Side::Child(reporter)
            }
        },
    };
    SIDE.set(Some(side));
}
