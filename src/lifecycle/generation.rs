//! The generation of a process, which distinguishes it from its parent.
//!
//! The generation is 1 where this crate was first used, and one more in each child. Siblings share a generation; a
//! child never has its parent's.
//!
//! # How a fork is noticed
//!
//! The generation is stored twice: as a counter in ordinary memory, which a child inherits, and as a copy on a page of
//! its own, which the kernel fills with zeros in a child (`MADV_WIPEONFORK`). Reading the generation is an acquire load
//! of the copy. Zero means "unknown": the first thread that reads it swaps it for [`BUSY`], restores the gate and the
//! ledger, cuts the inherited sockets, and stores counter + 1 with release. Other threads spin until then.
//!
//! | copy on the page | meaning | next |
//! | --- | --- | --- |
//! | 0 | unknown: this is a new process | [`BUSY`], by the first thread that reads it |
//! | [`BUSY`] | a thread is in [`advance`] | the new generation; 0 again in a grandchild, if another fork interrupts |
//! | *n* | generation *n* | 0 in a child, by the kernel |
//!
//! The child handler of `pthread_atfork`, and the first use after a fork that bypassed the handlers (`_Fork`, a raw
//! `clone`), call the same function, [`current`]. So the work is done once, by the first of them, and a fork for which
//! no handler ran is still noticed at the first use.
//!
//! If another fork interrupts the work, the grandchild's page is zero again and the work starts over: each step can be
//! repeated. Signals are blocked during the work, or a handler on this thread could spin forever on its own work.
//!
//! # Without the wiped page
//!
//! If the kernel does not support the advice (before Linux 4.14), or accepts every advice (some emulators; a nonsense
//! value is tried first), the copy stays zero. Every read then takes the slow path, which compares process ids. A child
//! that gets its parent's id in a nested pid namespace is noticed only by the child handler: the forking thread has
//! prepared a fork that was not noticed yet ([`notice_fork`]).
//!
//! | [`KNOWN_PROCESS`] | meaning | next |
//! | --- | --- | --- |
//! | 2 × another process id | unknown: this is a new process | odd, by the first thread that reads it |
//! | 2 × this process id + 1 | a thread is in [`advance`] | even |
//! | 2 × this process id | the counter is this process's generation | unknown in a child, whose id is another |
//!
//! # What may run here
//!
//! Only async-signal-safe calls: the parent may have had threads, so every lock may be held forever. No allocation, no
//! formatting, no lock. The one exception is the set-up, at the first use of the crate.

use std::ptr;
use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU64, Ordering};

use nix::libc;

use super::{FIRST_GENERATION, atfork, gate, ledger, pin, tombstone};

/// The value of the copy while a thread brings the process up to date.
const BUSY: u64 = u64::MAX;

/// The page that a fork wipes.
pub(super) struct Page {
    generation: AtomicU64,
    pub(super) gate: gate::Counters,
}

impl Page {
    const fn new() -> Page {
        Page { generation: AtomicU64::new(0), gate: gate::Counters::new() }
    }
}

/// Null until the first use.
static PAGE: AtomicPtr<Page> = AtomicPtr::new(ptr::null_mut());

/// Used in place of the page where none can be wiped. Process ids are compared then.
static UNWIPED: Page = Page::new();

/// The generation in memory that a child inherits.
static COUNTER: AtomicU64 = AtomicU64::new(FIRST_GENERATION);

/// The process id for which the counter was last brought up to date, doubled; odd while that is in progress.
static KNOWN_PROCESS: AtomicI64 = AtomicI64::new(0);

/// Returns the generation of this process: 1 where this crate was first used, and one more after each fork since.
///
/// Siblings share a generation; a child never has its parent's. The first call in a new process also cuts the inherited
/// sockets of this crate. It takes about a nanosecond and no system call.
///
/// ```
/// use prefork_cache::lifecycle;
///
/// let before = lifecycle::generation();
/// // ... anything at all, in the same process ...
/// assert_eq!(lifecycle::generation(), before);
/// ```
#[inline]
pub fn generation() -> u64 {
    let page = PAGE.load(Ordering::Acquire);
    if !page.is_null() {
        // SAFETY: a published page is initialised and never unmapped.
        let copy = unsafe { &(*page).generation }.load(Ordering::Acquire);
        if copy != 0 && copy != BUSY {
            return copy;
        }
    }
    current()
}

/// Returns the page, set up if necessary.
#[inline]
pub(super) fn page() -> &'static Page {
    let page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        set_up()
    } else {
        // SAFETY: as in `generation`.
        unsafe { &*page }
    }
}

/// Returns the generation on the slow path: sets up, brings the process up to date, or waits for the thread that does.
#[cold]
pub(super) fn current() -> u64 {
    let page = page();
    if is_unwiped(page) {
        return current_by_process_id(page);
    }
    match with_signals_blocked(|| {
        let claim = page.generation.compare_exchange(0, BUSY, Ordering::Acquire, Ordering::Acquire);
        claim.map(|_| {
            let next = advance(page);
            page.generation.store(next, Ordering::Release);
            next
        })
    }) {
        Ok(next) => next,
        Err(BUSY) => loop {
            std::thread::yield_now();
            match page.generation.load(Ordering::Acquire) {
                // A child that a raw `clone` made in the meantime finds its own copy at zero.
                0 => return current(),
                BUSY => {}
                known => return known,
            }
        },
        Err(known) => known,
    }
}

/// Runs in the child handler.
pub(super) fn notice_fork() {
    let known = generation();
    let page = page();
    if is_unwiped(page) && gate::is_closed_by_this_thread(known) {
        // The child has its parent's process id.
        let done = i64::from(std::process::id()) * 2;
        with_signals_blocked(|| {
            KNOWN_PROCESS.store(done + 1, Ordering::Relaxed);
            advance(page);
            KNOWN_PROCESS.store(done, Ordering::Release);
        });
    }
}

/// Returns whether this crate was ever used: if not, a fork needs no work.
pub(super) fn is_set_up() -> bool {
    !PAGE.load(Ordering::Relaxed).is_null()
}

fn is_unwiped(page: &Page) -> bool {
    ptr::eq(page, &UNWIPED)
}

fn current_by_process_id(page: &Page) -> u64 {
    let done = i64::from(std::process::id()) * 2;
    loop {
        let known = KNOWN_PROCESS.load(Ordering::Acquire);
        if known == done {
            return COUNTER.load(Ordering::Relaxed);
        }
        if known == done + 1 {
            std::thread::yield_now();
            continue;
        }
        let advanced = with_signals_blocked(|| {
            let claim = KNOWN_PROCESS.compare_exchange(known, done + 1, Ordering::Acquire, Ordering::Relaxed);
            claim.map(|_| {
                let next = advance(page);
                KNOWN_PROCESS.store(done, Ordering::Release);
                next
            })
        });
        if let Ok(next) = advanced {
            return next;
        }
    }
}

/// Brings a new process up to date. Runs on one thread of a process at a time, and can be repeated.
fn advance(page: &Page) -> u64 {
    let next = COUNTER.load(Ordering::Relaxed) + 1;
    gate::reopen(&page.gate, next);
    ledger::cut_inherited(next);
    COUNTER.store(next, Ordering::Relaxed);
    next
}

/// Runs `work` with signals blocked, so that no signal handler can fork in the middle of it.
pub(super) fn with_signals_blocked<R>(work: impl FnOnce() -> R) -> R {
    let mut old = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are valid for the calls, the calls are async-signal-safe, and the old mask is only restored if
    // the first call wrote it.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut all);
        let blocked = libc::pthread_sigmask(libc::SIG_SETMASK, &all, old.as_mut_ptr()) == 0;
        let result = work();
        if blocked {
            libc::pthread_sigmask(libc::SIG_SETMASK, old.as_ptr(), ptr::null_mut());
        }
        result
    }
}

/// Sets everything up that a read or a fork relies on, and then publishes the page. Threads may race here, and a fork
/// may come at any point. Then a handler may be registered twice, which is harmless, or a tombstone opened later.
#[cold]
fn set_up() -> &'static Page {
    let mapped = map_wiped_page();
    match mapped {
        Some(page) => {
            page.gate.reset(FIRST_GENERATION);
            page.generation.store(FIRST_GENERATION, Ordering::Relaxed);
        }
        None => KNOWN_PROCESS.store(i64::from(std::process::id()) * 2, Ordering::Relaxed),
    }
    pin::pin();
    tombstone::prepare();
    atfork::register();
    let ours = mapped.unwrap_or(&UNWIPED);
    let fresh = ptr::from_ref(ours).cast_mut();
    match PAGE.compare_exchange(ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => ours,
        Err(winner) => {
            if mapped.is_some() {
                // SAFETY: mapped above with this length, and never published.
                unsafe { libc::munmap(fresh.cast(), page_length()) };
            }
            // SAFETY: as in `generation`.
            unsafe { &*winner }
        }
    }
}

/// Maps a page that reads as zeros in every child. Returns `None` if the kernel does not support that.
fn map_wiped_page() -> Option<&'static Page> {
    if injected_without_wipe() {
        return None;
    }
    let length = page_length();
    // SAFETY: this is a new anonymous mapping at an address chosen by the kernel; the advice concerns only that
    // mapping, and every kernel that checks the advice refuses the nonsense value.
    unsafe {
        let address = libc::mmap(
            ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if address == libc::MAP_FAILED {
            return None;
        }
        let understood = libc::madvise(address, length, NONSENSE_ADVICE) != 0
            && libc::madvise(address, length, libc::MADV_WIPEONFORK) == 0;
        if !understood {
            libc::munmap(address, length);
            return None;
        }
        // SAFETY: it is large and aligned enough (whole pages), zeroed, and a `Page` of zeros is valid; it is never
        // unmapped once published.
        Some(&*address.cast::<Page>())
    }
}

const NONSENSE_ADVICE: libc::c_int = -1;

/// Returns the length of whole pages that hold a [`Page`].
fn page_length() -> usize {
    // SAFETY: reads a constant of the system.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let size = usize::try_from(size).unwrap_or(4096);
    size_of::<Page>().next_multiple_of(size)
}

#[cfg(feature = "__injection")]
fn injected_without_wipe() -> bool {
    crate::injection::is_without_wipe()
}

#[cfg(not(feature = "__injection"))]
const fn injected_without_wipe() -> bool {
    false
}
