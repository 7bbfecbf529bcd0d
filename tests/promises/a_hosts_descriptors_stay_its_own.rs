//! Promise 1, the other side of it: cutting the inherited sockets changes no descriptor that belongs to somebody else.
//!
//! While threads open and close cache connections and descriptors that have nothing to do with them, so that numbers go back
//! and forth between the two, the process forks. A table says which number stands for what.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::PipeReader;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use prefork_cache::{Cache, lifecycle};

use crate::callers::{dial_on, Caller, MINUTE, PATIENT, cache_on};
use crate::harness::{Mode, Scenario, count, with_each_server};
use support::descriptors::{connected_to, inode, is_path, open};
use support::forks::{End, Side, Way, exit_now, fork, fork_by, split};
use support::servers::{Kind, Server};
use support::wait::{SetOnDrop, until};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = with_each_server("while_connections_come_and_go", while_connections_come_and_go);
    all.extend(with_each_server("after_forks_that_nobody_was_told_of", after_forks_that_nobody_was_told_of));
    all.extend(with_each_server("in_a_daemon_that_closes_everything", a_host_that_closes_everything));
    all.extend(with_each_server("in_a_program_that_is_started", a_program_that_is_started_inherits_nothing));
    all
}

const CHURNERS: usize = 2;
const SLOTS: usize = 32;

/// How a child says that a descriptor was changed.
const CHANGED: i32 = 40;

/// What stands behind a number. The version is odd while that changes.
#[derive(Default)]
struct Slot {
    version: AtomicU64,
    descriptor: AtomicI32,
    inode: AtomicU64,
}

/// A slot as it was before a fork.
struct Noted<'a> {
    slot: &'a Slot,
    version: u64,
    descriptor: RawFd,
    inode: u64,
}

impl Slot {
    /// Closes what was there and opens something else.
    fn change(&self, held: &mut Option<OwnedFd>, number: usize) {
        self.version.fetch_add(1, Ordering::SeqCst);
        *held = None;
        let opened = something(number);
        self.descriptor.store(opened.as_raw_fd(), Ordering::SeqCst);
        self.inode.store(inode(opened.as_raw_fd()).expect("just opened"), Ordering::SeqCst);
        *held = Some(opened);
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    fn note(&self) -> Option<Noted<'_>> {
        let version = self.version.load(Ordering::SeqCst);
        let (descriptor, inode) = (self.descriptor.load(Ordering::SeqCst), self.inode.load(Ordering::SeqCst));
        let stable = version != 0 && version.is_multiple_of(2) && self.version.load(Ordering::SeqCst) == version;
        stable.then_some(Noted { slot: self, version, descriptor, inode })
    }
}

impl Noted<'_> {
    /// In the child: whether the table says that this did not change during the fork either.
    fn is_stable(&self) -> bool {
        self.slot.version.load(Ordering::SeqCst) == self.version
    }

    fn is_unchanged(&self) -> bool {
        inode(self.descriptor) == Some(self.inode)
    }
}

/// A file, a pipe's end, a listener or a connected socket.
fn something(number: usize) -> OwnedFd {
    match number % 4 {
        0 => File::open("/proc/self/stat").expect("/proc is mounted").into(),
        1 => std::io::pipe().map(|(read, _): (PipeReader, _)| read.into()).expect("a pipe"),
        2 => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port").into(),
        _ => UnixStream::pair().map(|(one, _)| one.into()).expect("a pair of sockets"),
    }
}

fn while_connections_come_and_go(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    let forks = count(500, 10_000);
    let mut cut = 0;
    let looked_at = while_busy(&cache, |table| {
        let mut looked_at = 0;
        for _ in 0..forks {
            let noted: Vec<Noted<'_>> = table.iter().filter_map(Slot::note).collect();
            let child = fork(|| {
                let stable: Vec<&Noted<'_>> = noted.iter().filter(|noted| noted.is_stable()).collect();
                let check = |when: &str| {
                    for noted in &stable {
                        assert!(noted.is_unchanged(), "descriptor {} was changed {when}", noted.descriptor);
                    }
                };
                check("by the fork");
                let report = lifecycle::after_fork();
                cache.blocking().set("key", &"value", MINUTE).expect("the server is there");
                cache.reset();
                check("by the use of the cache");
                (stable.len(), report.sockets_cut())
            });
            let (stable, sockets_cut) = child.join();
            looked_at += stable;
            cut += sockets_cut;
        }
        looked_at
    });
    println!("{forks} forks: {looked_at} descriptors looked at, {cut} sockets cut, nothing changed");
    assert!(looked_at > forks, "hardly any descriptor was stable: {looked_at}");
    assert!(cut > 0, "no child inherited a connection");
}

/// There nothing holds the threads still. The child does only what a signal handler may: libc's locks may be held.
fn after_forks_that_nobody_was_told_of(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    let forks = count(500, 10_000);
    while_busy(&cache, |table| {
        for number in 0..forks {
            let noted: Vec<Noted<'_>> = table.iter().filter_map(Slot::note).collect();
            let way = if number % 2 == 0 { Way::RawClone } else { Way::UnderscoreFork };
            match split::<()>(way, Duration::from_secs(30)).expect("a child") {
                Side::Parent(child) => assert_eq!(child.end(), End::Exited(0), "{way:?}, fork {number}"),
                Side::Child(_) => {
                    lifecycle::generation();
                    let changed = noted.iter().any(|noted| noted.is_stable() && !noted.is_unchanged());
                    exit_now(if changed { CHANGED } else { 0 })
                }
            }
        }
    });
    println!("{forks} forks that nobody was told of: nothing changed");
}

/// Does `work` while connections and other descriptors are opened and closed.
fn while_busy<R>(cache: &Cache, work: impl FnOnce(&[Slot]) -> R) -> R {
    let table: Vec<Slot> = (0..SLOTS * CHURNERS).map(|_| Slot::default()).collect();
    let done = &AtomicBool::new(false);
    let dials = &AtomicUsize::new(0);
    thread::scope(|scope| {
        for own in table.chunks(SLOTS) {
            scope.spawn(move || {
                let mut held: Vec<Option<OwnedFd>> = own.iter().map(|_| None).collect();
                for number in 0.. {
                    let place = number % SLOTS;
                    own[place].change(&mut held[place], number / SLOTS + place);
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        for number in 0..CHURNERS {
            scope.spawn(move || dial_on(cache, number, done, dials));
        }
        let _done = SetOnDrop(done);
        until("the threads are busy", || dials.load(Ordering::Relaxed) > 20);
        work(&table)
    })
}

/// The classic daemon closes everything and opens its own files, which then have the numbers that connections (and the
/// tombstone, which is put in their place) had. Then it works, and forks.
fn a_host_that_closes_everything(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    let caller = Caller::new(Mode::Blocking, &cache);
    caller.converse("parent", 20);
    for way in Way::COMMON {
        let child = fork_by(way, || {
            let ours: Vec<RawFd> = open().into_iter().filter(|&number| is_to_be_closed(number, &server)).collect();
            for &number in &ours {
                nix::unistd::close(number).expect("it is open");
            }
            let files: Vec<File> = ours.iter().map(|_| File::open("/proc/self/stat").expect("a free number")).collect();
            let noted: Vec<(RawFd, Option<u64>)> =
                files.iter().map(|file| (file.as_raw_fd(), inode(file.as_raw_fd()))).collect();
            let assert_unchanged = |when: &str| {
                for &(descriptor, known) in &noted {
                    assert_eq!(inode(descriptor), known, "descriptor {descriptor} was changed {when}");
                }
            };
            let numbers: BTreeSet<RawFd> = noted.iter().map(|&(descriptor, _)| descriptor).collect();
            assert!(ours.iter().all(|number| numbers.contains(number)), "the files have the numbers that were closed");
            Caller::new(Mode::Blocking, &cache).converse("child", 20);
            assert_unchanged("by the use of the cache");
            fork_by(way, || {
                Caller::new(Mode::Blocking, &cache).converse("grandchild", 20);
                assert_unchanged("in a grandchild");
                cache.reset();
                assert_unchanged("by a reset in a grandchild");
            })
            .join();
            cache.reset();
            assert_unchanged("by a reset");
            ours.len()
        });
        assert!(child.join() >= 2, "a connection and a tombstone are closed, after {way:?}");
    }
    caller.converse("parent", 20);
}

/// Cut or not: connections to the server, and tombstones.
fn is_to_be_closed(number: RawFd, server: &Server) -> bool {
    is_path(number) || connected_to(server.port()).iter().any(|connected| connected.descriptor == number)
}

/// Neither connections nor what stands in their place: a program that is started, by the parent or by a child, has the
/// descriptors that it would have without this crate.
fn a_program_that_is_started_inherits_nothing(kind: Kind) {
    let server = Server::start(kind);
    let without = inherited_by_a_program();
    let cache = cache_on(&server, PATIENT);
    let caller = Caller::new(Mode::Blocking, &cache);
    caller.converse("parent", 20);
    assert_eq!(inherited_by_a_program(), without, "a program that the parent starts");
    for way in Way::COMMON {
        let by_child = fork_by(way, || {
            lifecycle::generation();
            let before_use = inherited_by_a_program();
            Caller::new(Mode::Blocking, &cache).converse("child", 20);
            [before_use, inherited_by_a_program()]
        });
        assert_eq!(by_child.join(), [without.clone(), without.clone()], "programs that a child by {way:?} starts");
    }
}

/// What a program finds open.
fn inherited_by_a_program() -> String {
    let listed = Command::new("ls").arg("/proc/self/fd").output().expect("ls is there");
    String::from_utf8(listed.stdout).expect("numbers")
}
