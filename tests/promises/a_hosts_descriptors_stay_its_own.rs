//! Promise 1, the other side of it: cutting the inherited sockets changes no descriptor that belongs to somebody else.
//!
//! While threads open and close cache connections and descriptors that have nothing to do with them, so that numbers go back
//! and forth between the two, the process forks. A table says which number stands for what.

use std::fs::File;
use std::io::PipeReader;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use prefork_cache::{Cache, lifecycle};

use crate::callers::{MINUTE, PATIENT, cache_on};
use crate::harness::{Scenario, count, with_each_server};
use support::descriptors::inode;
use support::forks::{End, Side, Way, exit_now, fork, split};
use support::servers::{Kind, Server};
use support::wait::{SetOnDrop, until};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = with_each_server("while_connections_come_and_go", while_connections_come_and_go);
    all.extend(with_each_server("after_forks_that_nobody_was_told_of", after_forks_that_nobody_was_told_of));
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
        let stable = version != 0 && version % 2 == 0 && self.version.load(Ordering::SeqCst) == version;
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
            scope.spawn(move || {
                let key = format!("of thread {number}");
                while !done.load(Ordering::Relaxed) {
                    cache.blocking().set(&key, &key, MINUTE).expect("the server is there");
                    cache.reset();
                    dials.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _done = SetOnDrop(done);
        until("the threads are busy", || dials.load(Ordering::Relaxed) > 20);
        work(&table)
    })
}
