//! Reforking: each process forks the next one, and ends. Memory and descriptors must not accumulate over the
//! generations.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::thread;

use nix::errno::Errno;
use nix::libc::{M_ARENA_MAX, mallopt};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, alarm, fork, pipe, setpgid};
use prefork_cache::stores::{AtFork, MemoryStore};
use prefork_cache::{Cache, lifecycle};

use crate::callers::{HOUR, PATIENT, cache_on};
use crate::harness::{Scenario, count, scenario};
use support::descriptors::{connected_to, open};
use support::forks::{self, CHILD_TIME, Side, Way, exit_now};
use support::memory::resident;
use support::servers::{Kind, Server};
use support::wait::until;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario("with_inherited_memory", || memory_stays_level(AtFork::Inherit, 0)),
        scenario("with_memory_that_starts_fresh", || memory_stays_level(AtFork::Fresh, 0)),
        scenario("with_inherited_memory_and_connections", || memory_stays_level(AtFork::Inherit, CONNECTIONS)),
        scenario("with_memory_that_starts_fresh_and_connections", || memory_stays_level(AtFork::Fresh, CONNECTIONS)),
        scenario("a_loader_that_forks_in_a_loader_that_forks", a_loader_in_a_loader),
    ]
}

const BOUND: u64 = 8 << 20;
const CONNECTIONS: usize = 16;

/// The memory and descriptors that a generation uses.
#[derive(Clone, Copy, Debug)]
struct Used {
    /// Resident memory, in bytes.
    memory: usize,
    descriptors: usize,
}

/// Each generation fills a store in memory twice over, and uses that many connections to a server at once.
fn memory_stays_level(at_fork: AtFork, connections: usize) {
    // With several arenas, memory that is freed and used again by other threads is spread over them a little differently
    // in each generation, and the resident memory says less about what stays allocated.
    // SAFETY: a call without pointers, before this process starts a thread.
    assert_eq!(unsafe { mallopt(M_ARENA_MAX, 1) }, 1, "the allocator takes the option");
    let remote = (connections > 0).then(|| {
        let server = Server::start(Kind::Redis);
        let cache = cache_on(&server, PATIENT);
        (server, cache)
    });
    let cache = Cache::register(MemoryStore::builder().max_bytes(BOUND).at_fork(at_fork).build());
    let generations = count(40, 1_000);
    let used = chain(generations, |generation| {
        let _ = lifecycle::after_fork();
        let blocking = cache.blocking();
        for number in 0..2 * BOUND / 10_000 {
            let key = format!("{generation} {number}");
            blocking.set_raw(&key, vec![b'x'; 10_000], HOUR).expect("memory does not fail");
            let found = blocking.get_raw(&key).expect("memory does not fail");
            assert!(found.is_none_or(|found| found.len() == 10_000));
        }
        if let Some((server, cache)) = &remote {
            use_connections(server, cache, connections, generation);
        }
    });
    assert_eq!(used.len(), generations, "the chain has broken");
    // From the sixth generation on, the memory of the last three generations is in use.
    let window = generations / 4;
    let (early, late) = (most(&used[5..5 + window]), most(&used[generations - window..]));
    println!("{generations} generations, {at_fork:?}, {connections} connections: early {early:?}, late {late:?}");
    assert!(late.memory < early.memory + (4 << 20), "memory has grown: {early:?}, then {late:?}");
    assert!(late.descriptors <= early.descriptors, "descriptors have grown: {early:?}, then {late:?}");
}

/// Writes on that many threads at once, each over a connection of its own: the server holds the writes back until then.
fn use_connections(server: &Server, cache: &Cache, connections: usize, generation: usize) {
    let work = &|thread: usize| {
        let key = format!("thread {thread}");
        cache.blocking().set(&key, &(thread, generation), HOUR).expect("the server runs");
        let found: Option<(usize, usize)> = cache.blocking().get(&key).expect("the server runs");
        assert_eq!(found, Some((thread, generation)));
    };
    // A server that is not known to be up is dialled by one caller at a time.
    work(0);
    assert!(server.ask("CLIENT PAUSE 60000 WRITE").starts_with("+OK"));
    thread::scope(|scope| {
        (0..connections).for_each(|thread| _ = scope.spawn(move || work(thread)));
        until("a connection for each thread", || connected_to(server.port()).len() == connections);
        assert!(server.ask("CLIENT UNPAUSE").starts_with("+OK"));
    });
}

fn most(used: &[Used]) -> Used {
    let most = |what: fn(&Used) -> usize| used.iter().map(what).max().expect("a generation");
    Used { memory: most(|used| used.memory), descriptors: most(|used| used.descriptors) }
}

/// Runs `work` in each of a chain of forked processes. Each reports its usage to this process, and forks the next.
fn chain(generations: usize, work: impl Fn(usize)) -> Vec<Used> {
    set_child_subreaper(true).expect("a process may be a subreaper");
    let (reader, writer) = pipe().expect("a pipe");
    // SAFETY: this process has a single thread.
    let first = match unsafe { fork() }.expect("a child") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop(reader);
            setpgid(Pid::this(), Pid::this()).expect("a group of the chain's own");
            live_on(generations, writer, work)
        }
    };
    drop(writer);
    let report = std::io::read_to_string(std::fs::File::from(reader)).expect("the reports");
    loop {
        match waitpid(Pid::from_raw(-first.as_raw()), None) {
            Err(Errno::ECHILD) => break,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => panic!("waitpid: {error}"),
        }
    }
    let used = |line: &str| {
        let (memory, descriptors) = line.split_once(' ')?;
        Some(Used { memory: memory.parse().ok()?, descriptors: descriptors.parse().ok()? })
    };
    report.lines().map(|line| used(line).expect("two numbers")).collect()
}

fn live_on(generations: usize, writer: OwnedFd, work: impl Fn(usize)) -> ! {
    let mut reports = std::fs::File::from(writer);
    for generation in 0..generations {
        alarm::set(u32::try_from(CHILD_TIME.as_secs()).expect("a short time"));
        work(generation);
        let (memory, descriptors) = (resident(), open().len());
        reports.write_all(format!("{memory} {descriptors}\n").as_bytes()).expect("the first process reads");
        // SAFETY: this process has a single thread.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {}
            _ => exit_now(0),
        }
    }
    exit_now(0)
}

/// The innermost process returns through the stack frames of its parent and grandparent, which refer to the memory of
/// each of them.
fn a_loader_in_a_loader() {
    for at_fork in [AtFork::Inherit, AtFork::Fresh] {
        let cache = Cache::builder(MemoryStore::builder().max_bytes(BOUND).at_fork(at_fork).build()).build();
        fill(&cache, "master");
        let mut reporter = None;
        let mut children = Vec::new();
        let loaded = cache.blocking().fetch("outer", HOUR, || {
            fill(&cache, "outer loader");
            match forks::split::<String>(Way::Fork, CHILD_TIME).expect("a child") {
                Side::Parent(child) => children.push(child),
                Side::Child(first) => reporter = Some(first),
            }
            fill(&cache, "after the outer fork");
            let inner = cache.blocking().fetch("inner", HOUR, || {
                match forks::split::<String>(Way::Fork, CHILD_TIME).expect("a child") {
                    Side::Parent(child) => children.push(child),
                    Side::Child(second) => (reporter, children) = (Some(second), Vec::new()),
                }
                fill(&cache, "after the inner fork");
                Ok::<_, std::io::Error>(String::from("inner"))
            });
            inner.map(|inner| format!("outer around {inner}"))
        });
        assert_eq!(loaded.expect("a loaded value"), "outer around inner");
        fill(&cache, "afterwards");
        let joined: Vec<String> = children.into_iter().map(|child| child.join()).collect();
        match reporter {
            Some(reporter) => reporter.run_and_exit(|| format!("generation {}", lifecycle::generation())),
            // The child of the outer loader, and this process's child of the inner loader.
            None => assert_eq!(joined, ["generation 2", "generation 2"]),
        }
    }
}

/// Writes 2,000 values and reads each back.
fn fill(cache: &Cache, when: &str) {
    for number in 0..2_000 {
        let key = format!("{when} {number}");
        cache.blocking().set_raw(&key, vec![b'x'; 5_000], HOUR).expect("memory does not fail");
        let found = cache.blocking().get_raw(&key).expect("memory does not fail");
        assert!(found.is_none_or(|found| found == vec![b'x'; 5_000]), "{key}");
    }
}
