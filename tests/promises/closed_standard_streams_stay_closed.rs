//! Promise 1, where a host has closed its standard streams: the kernel gives out their numbers first, and the host's
//! output would go to a server. No descriptor of this crate stays at one of these numbers.

use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::unistd::{chroot, close};
use prefork_cache::{Cache, injection, lifecycle};

use crate::callers::{Caller, MINUTE, PATIENT, cache_on, dial_until_done};
use crate::harness::{Mode, Scenario, count, skip, with_each_server, with_each_server_and_mode};
use support::descriptors::{connected_to, inode, is_path, open};
use support::forks::{Way, fork, fork_by};
use support::servers::{Kind, Server};
use support::wait::{SetOnDrop, until};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = with_each_server_and_mode("in_a_caller_and_its_children", in_a_caller_and_its_children);
    all.extend(with_each_server("without_the_tombstone", without_the_tombstone));
    all.extend(with_each_server("in_a_chroot_without_dev_null", in_a_chroot));
    all.extend(with_each_server("in_children_forked_while_other_threads_dial", forked_while_other_threads_dial));
    all.extend(with_each_server("in_a_child_forked_before_a_socket_is_moved", forked_before_a_socket_is_moved));
    all
}

const STANDARD: RangeInclusive<RawFd> = 0..=2;

/// Closes these standard streams of this process.
fn close_standard(which: RangeInclusive<RawFd>) {
    which.for_each(|number| close(number).expect("the descriptor is open"));
}

fn assert_still_closed(which: RangeInclusive<RawFd>, when: &str) {
    for number in which {
        assert_eq!(inode(number), None, "descriptor {number} was opened {when}");
    }
}

/// A blocking caller closes them before its first use of the crate. A tokio caller closes them later: a runtime has
/// descriptors of its own and is built first.
fn in_a_caller_and_its_children(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    for (closed, way) in
        [0..=2, 1..=1, 2..=2].into_iter().flat_map(|closed| Way::COMMON.map(|way| (closed.clone(), way)))
    {
        let first = fork(|| {
            if mode == Mode::Blocking {
                close_standard(closed.clone());
            }
            let cache = cache_on(&server, PATIENT);
            let caller = Caller::new(mode, &cache);
            if mode == Mode::Tokio {
                close_standard(closed.clone());
            }
            caller.converse("first", 20);
            assert!(!connected_to(server.port()).is_empty(), "the process is connected");
            assert_still_closed(closed.clone(), "by the first process's use");
            let child = fork_by(way, || {
                lifecycle::generation();
                assert_still_closed(closed.clone(), "by the fork");
                Caller::new(Mode::Blocking, &cache).converse("child", 20);
                assert_still_closed(closed.clone(), "by the child's use");
                let grandchild = fork_by(way, || {
                    Caller::new(Mode::Blocking, &cache).converse("grandchild", 20);
                    assert_still_closed(closed.clone(), "by the grandchild's use");
                });
                grandchild.join();
            });
            child.join();
            cache.reset();
            caller.converse("first again", 20);
            assert_still_closed(closed.clone(), "by new connections");
        });
        first.join();
    }
}

/// The host has closed everything, the tombstone included: the child has to open another tombstone.
fn without_the_tombstone(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    for way in Way::COMMON {
        fork(|| {
            open()
                .into_iter()
                .filter(|&number| is_path(number))
                .for_each(|number| close(number).expect("the descriptor is open"));
            close_standard(STANDARD);
            let caller = Caller::new(Mode::Blocking, &cache);
            caller.converse("parent", 20);
            fork_by(way, || assert_cut_without_standard(&cache, &server)).join();
        })
        .join();
    }
}

/// Without /dev/null the tombstone is an epoll instance.
fn in_a_chroot(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    let root = std::env::temp_dir().join("chroot");
    std::fs::create_dir(&root).expect("a directory of the scenario's own");
    if !nix::unistd::Uid::effective().is_root() {
        skip("only root may change its root directory");
    }
    for way in Way::COMMON {
        fork(|| {
            Caller::new(Mode::Blocking, &cache).converse("parent", 20);
            open()
                .into_iter()
                .filter(|&number| is_path(number))
                .for_each(|number| close(number).expect("the descriptor is open"));
            chroot(&root).expect("root may change its root directory");
            close_standard(STANDARD);
            fork_by(way, || {
                lifecycle::generation();
                assert_still_closed(STANDARD, "by the cut");
                Caller::new(Mode::Blocking, &cache).converse("child", 20);
                assert_still_closed(STANDARD, "by the use");
            })
            .join();
        })
        .join();
    }
}

fn assert_cut_without_standard(cache: &Cache, server: &Server) {
    lifecycle::generation();
    assert!(connected_to(server.port()).is_empty(), "the inherited connections are cut");
    assert_still_closed(STANDARD, "by the cut");
    Caller::new(Mode::Blocking, cache).converse("child", 20);
    assert_still_closed(STANDARD, "by the use");
}

/// A socket has a low number between its creation and its move to a higher number.
fn forked_while_other_threads_dial(kind: Kind) {
    let server = Server::start(kind);
    let forks = count(300, 10_000);
    let dials = fork(|| {
        let cache = cache_on(&server, PATIENT);
        close_standard(STANDARD);
        let (done, dials) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            for number in 0..2 {
                let (cache, done, dials) = (&cache, &done, &dials);
                scope.spawn(move || dial_until_done(cache, number, done, dials));
            }
            let _done = SetOnDrop(&done);
            until("the threads are busy", || dials.load(Ordering::Relaxed) > 20);
            for number in 0..forks {
                fork(|| assert_still_closed(STANDARD, &format!("in the child of fork {number}"))).join();
            }
        });
        dials.into_inner()
    });
    println!("{forks} forks, {} dials: no descriptor left open", dials.join());
}

/// Whether a thread has stopped while its socket has a low number, and whether it may continue.
static STOPPED: AtomicBool = AtomicBool::new(false);
static RELEASED: AtomicBool = AtomicBool::new(false);

/// The child has no such socket even if the fork does not wait for the move, or stops waiting for it.
fn forked_before_a_socket_is_moved(kind: Kind) {
    let server = Server::start(kind);
    for way in Way::COMMON {
        fork(|| {
            let cache = cache_on(&server, PATIENT);
            close_standard(STANDARD);
            injection::on_reach(|name| {
                if name == "standard stream" && !STOPPED.swap(true, Ordering::SeqCst) {
                    until("the process has forked", || RELEASED.load(Ordering::SeqCst));
                }
            });
            thread::scope(|scope| {
                scope.spawn(|| cache.blocking().set("key", &"value", MINUTE).expect("the server is running"));
                until("the socket exists", || STOPPED.load(Ordering::SeqCst));
                assert!(STANDARD.clone().any(|number| inode(number).is_some()), "the socket has a low number");
                let child = fork_by(way, || {
                    lifecycle::generation();
                    assert_still_closed(STANDARD, "in the child");
                    Caller::new(Mode::Blocking, &cache).converse("child", 20);
                });
                RELEASED.store(true, Ordering::SeqCst);
                child.join();
            });
            assert_still_closed(STANDARD, "in the parent");
        })
        .join();
    }
}
