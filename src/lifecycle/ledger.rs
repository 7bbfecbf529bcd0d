//! The ledger of every socket of this crate, so that a child can cut the inherited ones.
//!
//! A child that just closed its parent's descriptors would free their numbers. The next socket would get one of them,
//! and the drop of the old owner would then close that socket. So an inherited socket is *cut*: `dup3` replaces it by a
//! tombstone. The number stays in use, the child keeps no reference to the connection, and every read, write and send
//! on it fails with `EBADF` at once, without a signal and without a silently lost write.
//!
//! A tombstone lasts for one generation. A child that is forked in turn closes those that its parent has put, so that
//! descriptors do not pile up where each generation forks the next. Nothing can use such a number any more. Threads do
//! not exist in the child. The owner's drop compares the generation, with signals blocked, and so does every other
//! operation before its system call ([`Entry::begin_use`]). Between the comparison and the call a signal handler may
//! fork, in its child fork again, and then return to the call. A thread at that point is recorded in [`IN_USE`], and a
//! child that it makes closes no tombstone.
//!
//! # The slots
//!
//! Chunks of slots are appended and never freed, so that a child can walk them without a lock. A slot is claimed
//! *before* its socket is opened, and keeps descriptor and inode *after* the socket is closed, until it is claimed
//! again. A fork between the close and the release of the slot, or before the close, finds the socket either way.
//!
//! | state of a slot | owner | descriptor | inode | next |
//! | --- | --- | --- | --- | --- |
//! | free | 0 | none, or that of the last socket | that of the last socket | *claimed*; in a child, cut like *open* if the last socket is still there |
//! | claimed | generation | none | not valid | *open* when the socket is recorded; *free* if opening it failed, and in a child |
//! | open | generation | socket | socket | *free* after the close; in a child, *tombstone*, or *free* if the number is no longer the socket or no tombstone could be put |
//! | tombstone | generation that cut it | tombstone | [`TOMBSTONED`] | *free* in the next generation, which closes the tombstone; stays if a thread may be in a system call |
//!
//! Opening and recording, and closing and releasing, are sections of the [gate], with signals blocked. So neither
//! another thread's fork nor one in a signal handler comes between them. Only a raw `clone` of another thread can; the
//! child then has a socket that it does not know and never uses.
//!
//! Before a socket is cut its inode is compared: a number that now belongs to something else is not touched. The kernel
//! cannot compare and replace in one step. In the fork handler no other thread exists that could come between. After a
//! fork that bypassed the handlers, the first use may come late. If a thread of the child then closes numbers that it
//! did not open, and they are reused at just that moment, a descriptor can be lost. A child that shares the descriptor
//! table with its parent (`clone(CLONE_FILES)` without `CLONE_VM`) is not supported: its cuts affect the parent.
//!
//! # Standard streams
//!
//! If a host has closed any of the numbers 0, 1 and 2, the kernel assigns them first, and output of the host would be
//! sent to a server. A socket that gets such a number is moved up, in the section that opens it. The duplicate has a
//! slot of its own, so a fork at any point between the two records is safe. A child cuts what it finds recorded, and
//! closes a socket with a low number, since a tombstone must not have one either.

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

/// Marks a tombstone in place of an inode. No inode is 0.
const TOMBSTONED: u64 = 0;

struct Slot {
    /// The generation that claimed it, or that put its tombstone; 0 while it is free.
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

/// The number of sockets that this process has cut.
static CUT: AtomicUsize = AtomicUsize::new(0);

/// The entry of a socket in the ledger.
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
    /// How many system calls on sockets this thread is about to make, or is making; more than one if a signal handler
    /// makes some.
    static IN_USE: Cell<u32> = const { Cell::new(0) };
}

/// A guard: while it lasts, the number of a socket refers to that socket or, in a child, to its tombstone.
#[derive(Debug)]
#[must_use]
pub(crate) struct Use {
    not_send: PhantomData<*const ()>,
}

impl Use {
    #[inline]
    fn begin() -> Use {
        IN_USE.set(IN_USE.get() + 1);
        // Set before anything is read, for a signal handler on this thread.
        compiler_fence(Ordering::SeqCst);
        Use { not_send: PhantomData }
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
    /// Opens and records a socket. `make` must only open it, and not connect it.
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

    /// Must be called inside the gate, and with signals blocked.
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

    /// Must be called inside the gate, with signals blocked, in the process that entered it.
    fn leave(&self, socket: OwnedFd) {
        drop(socket);
        self.slot.owner.store(0, Ordering::Release);
    }

    /// Returns whether the socket belongs to this process.
    #[inline]
    pub(crate) fn is_current(&self) -> bool {
        self.generation == generation()
    }

    /// Returns a guard to hold during a system call on the socket, or `None` if it belongs to another process.
    #[inline]
    pub(crate) fn begin_use(&self) -> Option<Use> {
        let begun = Use::begin();
        let begun = self.is_current().then_some(begun);
        #[cfg(feature = "__injection")]
        crate::injection::reach("socket");
        begun
    }

    /// Closes the socket and releases its slot. In a process that inherited it, does neither.
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

/// Returns how many inherited sockets this process has cut.
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
                // SAFETY: allocated above and never published.
                drop(unsafe { Box::from_raw(fresh) });
                next = winner;
            }
        }
    }
    // SAFETY: appended chunks are never freed.
    unsafe { &*next }
}

/// Puts a tombstone over every recorded socket that is still that socket, closes tombstones of earlier generations, and
/// frees all other slots. Async-signal-safe; can be repeated.
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
        tombstone.release();
    }
}

/// Returns whether no thread of this process is between the check of the generation and the system call. Only the
/// forking thread can be, which is the main thread of the new process. If another thread notices the fork, the answer
/// is not known, and this returns `false`.
fn is_nothing_in_use() -> bool {
    gettid() == getpid() && IN_USE.get() == 0
}

struct Cutter {
    generation: u64,
    tombstone: Option<Tombstone>,
    cut: usize,
    /// Whether to close tombstones of earlier generations.
    closes: bool,
}

impl Cutter {
    /// Returns whether there is a tombstone under the slot's number afterwards.
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
        // Opened before the inode is compared, so that nothing comes between the comparison and the cut.
        let tombstone = self.tombstone.get_or_insert_with(Tombstone::open);
        if !socket_inode(descriptor).is_ok_and(|found| found == inode) {
            return false;
        }
        self.cut += 1;
        let replaced = tombstone.replace(descriptor);
        if replaced {
            slot.inode.store(TOMBSTONED, Ordering::Relaxed);
            slot.owner.store(self.generation, Ordering::Release);
        }
        replaced
    }
}

fn duplicate_above_standard(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let duplicate = fcntl(socket, FcntlArg::F_DUPFD_CLOEXEC(FIRST_ABOVE_STANDARD))?;
    // SAFETY: the call made it, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate) })
}

/// Returns the inode of a socket. Fails for other descriptors, since files may have the same inode numbers.
fn socket_inode(descriptor: RawFd) -> io::Result<u64> {
    let status = status(descriptor)?;
    let is_socket = status.st_mode & libc::S_IFMT == libc::S_IFSOCK;
    if is_socket { Ok(status.st_ino) } else { Err(io::Error::from_raw_os_error(libc::ENOTSOCK)) }
}
