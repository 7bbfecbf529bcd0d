//! Promise 1, for the host's descriptors: cutting the inherited sockets changes no descriptor that this crate did not
//! open.
//!
//! Threads open and close cache connections and unrelated descriptors, so that numbers pass from one to the other.
//! Meanwhile the process forks. A table records what each number stands for.

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

use crate::callers::{Caller, MINUTE, PATIENT, cache_on, dial_until_done};
use crate::harness::{Mode, Scenario, count, with_each_server};
use support::descriptors::{connected_to, inode, is_path, open};
use support::forks::{End, Side, Way, exit_now, fork, fork_by, split};
use support::servers::{Kind, Server};
use support::wait::{SetOnDrop, until};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = with_each_server("while_connections_come_and_go", while_connections_come_and_go);
    all.extend(with_each_server("after_forks_without_a_hook", after_forks_without_a_hook));
    all.extend(with_each_server("in_a_daemon_that_closes_everything", in_a_daemon_that_closes_everything));
    all.extend(with_each_server("a_started_program_inherits_nothing", a_started_program_inherits_nothing));
    all
}

const CHURNERS: usize = 2;
const SLOTS: usize = 32;

/// The exit status of a child that found a changed descriptor.
const CHANGED: i32 = 40;

/// A descriptor and the inode that it refers to. The version is odd while they change.
#[derive(Default)]
struct Slot {
    version: AtomicU64,
    descriptor: AtomicI32,
    inode: AtomicU64,
}

/// The content of a slot before a fork.
struct Snapshot<'a> {
    slot: &'a Slot,
    version: u64,
    descriptor: RawFd,
    inode: u64,
}

impl Slot {
    /// Closes the previous descriptor and opens another.
    fn change(&self, held: &mut Option<OwnedFd>, number: usize) {
        self.version.fetch_add(1, Ordering::SeqCst);
        *held = None;
        let opened = open_descriptor(number);
        self.descriptor.store(opened.as_raw_fd(), Ordering::SeqCst);
        self.inode.store(inode(opened.as_raw_fd()).expect("just opened"), Ordering::SeqCst);
        *held = Some(opened);
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    fn snapshot(&self) -> Option<Snapshot<'_>> {
        let version = self.version.load(Ordering::SeqCst);
        let (descriptor, inode) = (self.descriptor.load(Ordering::SeqCst), self.inode.load(Ordering::SeqCst));
        let stable = version != 0 && version.is_multiple_of(2) && self.version.load(Ordering::SeqCst) == version;
        stable.then_some(Snapshot { slot: self, version, descriptor, inode })
    }
}

impl Snapshot<'_> {
    /// Called in the child. Returns whether the slot did not change between the snapshot and the fork.
    fn is_stable(&self) -> bool {
        self.slot.version.load(Ordering::SeqCst) == self.version
    }

    fn is_unchanged(&self) -> bool {
        inode(self.descriptor) == Some(self.inode)
    }
}

/// Opens a file, an end of a pipe, a listener or a connected socket.
fn open_descriptor(number: usize) -> OwnedFd {
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
    let checked = while_busy(&cache, |table| {
        let mut checked = 0;
        for _ in 0..forks {
            let snapshots: Vec<Snapshot<'_>> = table.iter().filter_map(Slot::snapshot).collect();
            let child = fork(|| {
                let stable: Vec<&Snapshot<'_>> = snapshots.iter().filter(|snapshot| snapshot.is_stable()).collect();
                let check = |when: &str| {
                    for snapshot in &stable {
                        assert!(snapshot.is_unchanged(), "descriptor {} was changed {when}", snapshot.descriptor);
                    }
                };
                check("by the fork");
                let report = lifecycle::after_fork();
                cache.blocking().set("key", &"value", MINUTE).expect("the server is running");
                cache.reset();
                check("by the use of the cache");
                (stable.len(), report.sockets_cut())
            });
            let (stable, sockets_cut) = child.join();
            checked += stable;
            cut += sockets_cut;
        }
        checked
    });
    println!("{forks} forks: {checked} descriptors checked, {cut} sockets cut, nothing changed");
    assert!(checked > forks, "too few descriptors were stable: {checked}");
    assert!(cut > 0, "no child inherited a connection");
}

/// No gate holds the threads back here. The child does only what a signal handler may: libc's locks may be held.
fn after_forks_without_a_hook(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    let forks = count(500, 10_000);
    while_busy(&cache, |table| {
        for number in 0..forks {
            let snapshots: Vec<Snapshot<'_>> = table.iter().filter_map(Slot::snapshot).collect();
            let way = if number % 2 == 0 { Way::RawClone } else { Way::UnderscoreFork };
            match split::<()>(way, Duration::from_secs(30)).expect("a child") {
                Side::Parent(child) => assert_eq!(child.end(), End::Exited(0), "{way:?}, fork {number}"),
                Side::Child(_) => {
                    lifecycle::generation();
                    let changed = snapshots.iter().any(|snapshot| snapshot.is_stable() && !snapshot.is_unchanged());
                    exit_now(if changed { CHANGED } else { 0 })
                }
            }
        }
    });
    println!("{forks} forks without a hook: nothing changed");
}

/// Runs `work` while other threads open and close connections and other descriptors.
fn while_busy<R>(cache: &Cache, work: impl FnOnce(&[Slot]) -> R) -> R {
    let table: Vec<Slot> = (0..SLOTS * CHURNERS).map(|_| Slot::default()).collect();
    let done = &AtomicBool::new(false);
    let dials = &AtomicUsize::new(0);
    thread::scope(|scope| {
        for own in table.chunks(SLOTS) {
            scope.spawn(move || {
                let mut held: Vec<Option<OwnedFd>> = own.iter().map(|_| None).collect();
                for number in 0.. {
                    let index = number % SLOTS;
                    own[index].change(&mut held[index], number / SLOTS + index);
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        for number in 0..CHURNERS {
            scope.spawn(move || dial_until_done(cache, number, done, dials));
        }
        let _done = SetOnDrop(done);
        until("the threads are busy", || dials.load(Ordering::Relaxed) > 20);
        work(&table)
    })
}

/// A classic daemon closes everything and opens its own files. They get the numbers of the closed connections and of
/// the tombstone. Then the daemon uses the cache and forks.
fn in_a_daemon_that_closes_everything(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    let caller = Caller::new(Mode::Blocking, &cache);
    caller.converse("parent", 20);
    for way in Way::COMMON {
        let child = fork_by(way, || {
            let closed: Vec<RawFd> =
                open().into_iter().filter(|&number| is_cache_descriptor(number, &server)).collect();
            for &number in &closed {
                nix::unistd::close(number).expect("the descriptor is open");
            }
            let files: Vec<File> =
                closed.iter().map(|_| File::open("/proc/self/stat").expect("a free number")).collect();
            let inodes: Vec<(RawFd, Option<u64>)> =
                files.iter().map(|file| (file.as_raw_fd(), inode(file.as_raw_fd()))).collect();
            let assert_unchanged = |when: &str| {
                for &(descriptor, known) in &inodes {
                    assert_eq!(inode(descriptor), known, "descriptor {descriptor} was changed {when}");
                }
            };
            let numbers: BTreeSet<RawFd> = inodes.iter().map(|&(descriptor, _)| descriptor).collect();
            assert!(
                closed.iter().all(|number| numbers.contains(number)),
                "the files have the numbers that were closed"
            );
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
            closed.len()
        });
        assert!(child.join() >= 2, "a connection and a tombstone are closed, after {way:?}");
    }
    caller.converse("parent", 20);
}

/// Returns whether a descriptor is a connection to the server, cut or not, or a tombstone.
fn is_cache_descriptor(number: RawFd, server: &Server) -> bool {
    is_path(number) || connected_to(server.port()).iter().any(|connected| connected.descriptor == number)
}

/// It inherits neither connections nor tombstones: a program that the parent or a child starts has the descriptors that
/// it would have without this crate.
fn a_started_program_inherits_nothing(kind: Kind) {
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

/// The descriptors that a started program finds open.
fn inherited_by_a_program() -> String {
    let listed = Command::new("ls").arg("/proc/self/fd").output().expect("ls is installed");
    String::from_utf8(listed.stdout).expect("numbers")
}
