//! Every socket of this crate, so that a child can cut the ones it inherited.
//!
//! A child that merely closed its parent's descriptors would free their numbers: the next socket gets one of them, and the
//! stale owner's drop then closes a stranger. So an inherited socket is *cut*: a tombstone is put in its place with `dup3`.
//! The number stays taken, the child keeps no reference to the connection, and every read, write and send on it fails with
//! `EBADF`, at once, without a signal and without a silently lost write.
//!
//! A tombstone stands for one generation. A child that is forked in turn closes those that its parent has put, so that where
//! each generation forks the next no descriptor is left behind. Nobody can mean such a number any more: threads do not come
//! along, the owner's drop looks at the generation, with signals blocked, and so does every other operation, before its system
//! call ([`Entry::begin_use`]). Between that look and the call a signal handler may fork, and in its child fork again, and
//! then return to the call. A thread that is there is known by [`IN_USE`], and a child that it makes closes no tombstone.
//!
//! # The slots
//!
//! Chunks of slots are appended and never freed, so that a child can walk them without a lock. A slot is claimed *before*
//! its socket is made, and remembers descriptor and inode also *after* the socket was closed, until it is claimed again: a
//! fork between the close and its note, or before the close, finds the socket either way. Making and noting, and forgetting
//! and closing, are sections of the [gate], with signals blocked, so that neither another thread's fork nor one
//! in a signal handler falls between them; only a raw `clone` of another thread's can, and then the child holds a socket that
//! it does not know and never uses.
//!
//! A slot whose socket was cut holds the tombstone's number until that is closed: its owner is the generation that has cut it,
//! and its inode is [`TOMBSTONED`].
//!
//! Before anything is cut the inode is compared: a number that meanwhile belongs to somebody else is not touched. The kernel
//! cannot compare and replace in one step. In the fork handler nobody is there to come between. After a fork that went round
//! the handlers the first look may come late, and then a thread of the child that closes numbers which it did not open, just
//! now, and reuses them, can lose one of them. A child that shares the table of descriptors with its parent
//! (`clone(CLONE_FILES)` without `CLONE_VM`) is not supported: its cuts are the parent's.
//!
//! # Standard streams
//!
//! Where a host has closed some of the numbers 0, 1 and 2 they are the first that the kernel gives out, and what the host
//! prints would be sent to a server. A socket that gets one is moved up in the section that makes it. The duplicate has a slot
//! of its own, so that no moment between the two notes is worse than any other: a child cuts what it finds noted, and closes
//! what has a low number, since a tombstone must not have it either.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering, compiler_fence};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::unistd::{getpid, gettid};

use super::gate;
use super::generation::{generation, with_signals_blocked};
use super::tombstone::{self, FIRST_ABOVE_STANDARD, Tombstone, is_standard, status};

const CHUNK: usize = 64;
const NO_DESCRIPTOR: RawFd = -1;

/// In the place of an inode: none is 0.
const TOMBSTONED: u64 = 0;

struct Slot {
    /// The generation that claimed it, or that has put its tombstone; 0 while it is free.
    owner: AtomicU64,
    descriptor: AtomicI32,
    inode: AtomicU64,
}

struct Chunk {
    slots: [Slot; CHUNK],
    next: AtomicPtr<Chunk>,
}

impl Chunk {
    const fn new() -> Chunk {
        Chunk {
            slots: [const {
                Slot { owner: AtomicU64::new(0), descriptor: AtomicI32::new(NO_DESCRIPTOR), inode: AtomicU64::new(0) }
            }; CHUNK],
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }
}

static FIRST: Chunk = Chunk::new();

/// How many sockets this process has cut.
static CUT: AtomicUsize = AtomicUsize::new(0);

/// A socket's place in the ledger.
#[derive(Debug)]
pub(crate) struct Entry {
    slot: &'static Slot,
    generation: u64,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("descriptor", &self.descriptor).finish_non_exhaustive()
    }
}

thread_local! {
    /// How many system calls on sockets this thread is about to make, or is making: several if a signal handler makes some.
    static IN_USE: Cell<u32> = const { Cell::new(0) };
}

/// While it lasts, the number of a socket stands for that socket or, in a child, for its tombstone.
#[derive(Debug)]
#[must_use]
pub(crate) struct Use {
    stays: PhantomData<*const ()>,
}

impl Use {
    #[inline]
    fn begin() -> Use {
        IN_USE.set(IN_USE.get() + 1);
        // Set before anything is looked at, for a signal handler on this thread.
        compiler_fence(Ordering::SeqCst);
        Use { stays: PhantomData }
    }
}

impl Drop for Use {
    #[inline]
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        IN_USE.set(IN_USE.get() - 1);
    }
}

impl Entry {
    /// Makes a socket and enters it. `make` must only make it, never connect it.
    pub(crate) fn open(make: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<(OwnedFd, Entry)> {
        with_signals_blocked(|| {
            let _pass = gate::enter();
            let (socket, entry) = Entry::enter(make)?;
            if !is_standard(socket.as_raw_fd()) {
                return Ok((socket, entry));
            }
            #[cfg(feature = "__injection")]
            crate::injection::reach("standard stream");
            let moved = Entry::enter(|| duplicate_above_standard(&socket));
            entry.leave(socket);
            moved
        })
    }

    /// Inside the gate, and with signals blocked.
    fn enter(make: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<(OwnedFd, Entry)> {
        let generation = generation();
        let slot = claim(generation);
        let made = make().and_then(|socket| Ok((socket_inode(socket.as_raw_fd())?, socket)));
        match made {
            Ok((inode, socket)) => {
                slot.inode.store(inode, Ordering::Relaxed);
                slot.descriptor.store(socket.as_raw_fd(), Ordering::Release);
                Ok((socket, Entry { slot, generation }))
            }
            Err(error) => {
                slot.owner.store(0, Ordering::Release);
                Err(error)
            }
        }
    }

    /// Inside the gate, with signals blocked, and in the process that has entered it.
    fn leave(&self, socket: OwnedFd) {
        drop(socket);
        self.slot.owner.store(0, Ordering::Release);
    }

    /// Whether the socket belongs to this process.
    #[inline]
    pub(crate) fn is_current(&self) -> bool {
        self.generation == generation()
    }

    /// To be held through a system call on the socket; `None` if it is another process's.
    #[inline]
    pub(crate) fn begin_use(&self) -> Option<Use> {
        let begun = Use::begin();
        let begun = self.is_current().then_some(begun);
        #[cfg(feature = "__injection")]
        crate::injection::reach("socket");
        begun
    }

    /// Leaves the ledger and closes the socket; in a process that inherited it, neither.
    pub(crate) fn close(&self, socket: OwnedFd) {
        with_signals_blocked(|| {
            let _pass = gate::enter();
            if self.is_current() {
                self.leave(socket);
            } else {
                std::mem::forget(socket);
            }
        });
    }
}

/// How many inherited sockets were cut when this process was brought up to date.
pub(crate) fn cut_count() -> usize {
    CUT.load(Ordering::Relaxed)
}

fn claim(generation: u64) -> &'static Slot {
    let mut chunk = &FIRST;
    loop {
        for slot in &chunk.slots {
            let free = slot.owner.load(Ordering::Relaxed) == 0;
            if free && slot.owner.compare_exchange(0, generation, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                slot.descriptor.store(NO_DESCRIPTOR, Ordering::Relaxed);
                return slot;
            }
        }
        chunk = next_or_appended(chunk);
    }
}

fn next_or_appended(chunk: &'static Chunk) -> &'static Chunk {
    let mut next = chunk.next.load(Ordering::Acquire);
    if next.is_null() {
        let fresh = Box::into_raw(Box::new(Chunk::new()));
        match chunk.next.compare_exchange(ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => next = fresh,
            Err(winner) => {
                // SAFETY: made above and never published.
                drop(unsafe { Box::from_raw(fresh) });
                next = winner;
            }
        }
    }
    // SAFETY: appended chunks are never freed.
    unsafe { &*next }
}

/// Puts a tombstone over every socket that a slot remembers and that is still that socket, closes those that earlier
/// generations have put, and frees all other slots. Async-signal-safe; can be repeated.
pub(super) fn cut_inherited(generation: u64) {
    let mut cutter = Cutter { generation, tombstone: None, cut: 0, closes: is_nothing_in_use() };
    let mut chunk = &raw const FIRST;
    // SAFETY: the first chunk is static, the others are never freed.
    while let Some(current) = unsafe { chunk.as_ref() } {
        for slot in &current.slots {
            if !cutter.leaves_tombstone(slot) {
                slot.descriptor.store(NO_DESCRIPTOR, Ordering::Relaxed);
                slot.owner.store(0, Ordering::Release);
            }
        }
        chunk = current.next.load(Ordering::Acquire);
    }
    CUT.store(cutter.cut, Ordering::Relaxed);
    if let Some(tombstone) = cutter.tombstone {
        tombstone.lower();
    }
}

/// Whether no thread of this process is between the look at a generation and the system call. Only the forking thread can be,
/// which is the first of the new process; where another one takes notice of the fork, that is not known.
fn is_nothing_in_use() -> bool {
    gettid() == getpid() && IN_USE.get() == 0
}

struct Cutter {
    generation: u64,
    tombstone: Option<Tombstone>,
    cut: usize,
    /// Whether tombstones of earlier generations are closed.
    closes: bool,
}

impl Cutter {
    /// Answers whether a tombstone is left under the slot's number.
    fn leaves_tombstone(&mut self, slot: &Slot) -> bool {
        let descriptor = slot.descriptor.load(Ordering::Acquire);
        if descriptor < 0 {
            return false;
        }
        let inode = slot.inode.load(Ordering::Relaxed);
        if inode == TOMBSTONED {
            let put_now = slot.owner.load(Ordering::Relaxed) == self.generation;
            let stays = put_now || !self.closes;
            if !stays {
                tombstone::remove(descriptor);
            }
            return stays;
        }
        // Raised before the look, so that nothing comes between the look and the cut.
        let tombstone = self.tombstone.get_or_insert_with(Tombstone::raise);
        if !socket_inode(descriptor).is_ok_and(|found| found == inode) {
            return false;
        }
        self.cut += 1;
        let left = tombstone.put_over(descriptor);
        if left {
            slot.inode.store(TOMBSTONED, Ordering::Relaxed);
            slot.owner.store(self.generation, Ordering::Release);
        }
        left
    }
}

fn duplicate_above_standard(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let duplicate = fcntl(socket, FcntlArg::F_DUPFD_CLOEXEC(FIRST_ABOVE_STANDARD))?;
    // SAFETY: made by the call, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate) })
}

/// The inode behind a descriptor that is a socket: the numbers of sockets and of files are given out apart.
fn socket_inode(descriptor: RawFd) -> io::Result<u64> {
    let status = status(descriptor)?;
    let is_socket = status.st_mode & libc::S_IFMT == libc::S_IFSOCK;
    if is_socket { Ok(status.st_ino) } else { Err(io::Error::from_raw_os_error(libc::ENOTSOCK)) }
}
