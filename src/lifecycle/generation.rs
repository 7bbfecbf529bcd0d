//! Which process is this?
//!
//! A process is known by its *generation*: 1 where this crate was first used, and one more after each fork on the way down.
//! Siblings share a generation; what matters is that a child never has its parent's.
//!
//! # How a fork is noticed
//!
//! The generation lives twice: a counter in ordinary memory, which a child inherits, and a copy on a page of its own, which
//! the kernel hands to a child as zeros (`MADV_WIPEONFORK`). Reading the generation is an acquire load of the copy. Zero
//! means "unknown": whoever sees it swaps it for [`BUSY`], puts the gate and the ledger in order, cuts the inherited sockets
//! and releases counter + 1. Everybody else spins until then.
//!
//! The child handler of `pthread_atfork` and the first look after a fork that went round the handlers (`_Fork`, a raw
//! `clone`) call this same function, [`current`], so the work is done once, whichever comes first, and a fork that nobody
//! was told of is seen at the first look all the same.
//!
//! If another fork interrupts the work, the grandchild's page is zero again and it starts over: each step can be repeated.
//! Signals are blocked meanwhile, so that no handler on this thread spins for ever on its own work.
//!
//! # Without the advice
//!
//! Where the kernel does not know it (before Linux 4.14), or claims to know every advice (some emulators: a nonsense value
//! is tried first), the copy stays zero for ever, so that every look takes the slow way, which compares process ids. A child
//! that got its parent's own id in a nested pid namespace is noticed by the child handler alone: the forking thread has
//! prepared a fork that nobody has taken notice of ([`notice_fork`]).
//!
//! # What may run here
//!
//! Only async-signal-safe calls: the process may be a child of a process with threads, in which every lock may be held for
//! ever. No allocation, no formatting, no lock. The one exception is the set-up, at the first call of anything here.

use std::ptr;
use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU64, Ordering};

use nix::libc;

use super::{FIRST_GENERATION, atfork, gate, ledger, pin, tombstone};

/// The copy's value while one thread is bringing the process up to date.
const BUSY: u64 = u64::MAX;

/// What a fork wipes.
pub(super) struct Page {
    generation: AtomicU64,
    pub(super) gate: gate::Counters,
}

impl Page {
    const fn new() -> Page {
        Page { generation: AtomicU64::new(0), gate: gate::Counters::new() }
    }
}

/// Null until the first look.
static PAGE: AtomicPtr<Page> = AtomicPtr::new(ptr::null_mut());

/// Takes the page's place where there is none that is wiped. Process ids are compared then.
static UNWIPED: Page = Page::new();

/// The generation as a child inherits it.
static COUNTER: AtomicU64 = AtomicU64::new(FIRST_GENERATION);

/// The process id that the counter was last brought up to date for, doubled; odd while that is going on.
static KNOWN_PROCESS: AtomicI64 = AtomicI64::new(0);

/// The generation of this process: 1 where this crate was first used, and one more after each fork since.
///
/// Siblings share a generation; a child never has its parent's. The first call in a new process also cuts the cache sockets
/// that it inherited. Costs about a nanosecond and no system call.
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

/// The page, set up if need be.
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

/// The generation, the slow way: sets up, advances or waits for whoever does.
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
                // A child of a raw `clone` made meanwhile finds its own copy at zero.
                0 => return current(),
                BUSY => {}
                known => return known,
            }
        },
        Err(known) => known,
    }
}

/// In the child handler.
pub(super) fn notice_fork() {
    let known = generation();
    let page = page();
    if is_unwiped(page) && gate::is_closed_by_this_thread(known) {
        // The process id was no news.
        let done = i64::from(std::process::id()) * 2;
        with_signals_blocked(|| {
            KNOWN_PROCESS.store(done + 1, Ordering::Relaxed);
            advance(page);
            KNOWN_PROCESS.store(done, Ordering::Release);
        });
    }
}

/// Whether anything here was ever used: if not, a fork needs no care.
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

/// Brings a new process up to date. One caller per process at a time; safe to start over.
fn advance(page: &Page) -> u64 {
    let next = COUNTER.load(Ordering::Relaxed) + 1;
    gate::reopen(&page.gate, next);
    ledger::cut_inherited(next);
    COUNTER.store(next, Ordering::Relaxed);
    next
}

/// Runs `work` where no signal handler can fork in the middle of it.
pub(super) fn with_signals_blocked<R>(work: impl FnOnce() -> R) -> R {
    let mut old = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are valid for the calls, the calls are async-signal-safe, and the old mask is only restored where
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

/// Publishes a page last, once everything that a look or a fork relies on is in place. Threads may race here, and a fork may
/// come at any point: then a handler is registered twice, which it takes well, or a tombstone is opened later.
#[cold]
fn set_up() -> &'static Page {
    let mapped = map_wiped_page();
    match mapped {
        Some(page) => {
            page.gate.start_over(FIRST_GENERATION);
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

/// A page that reads as zeros in every child, or `None` where the kernel cannot do that.
fn map_wiped_page() -> Option<&'static Page> {
    if injected_without_wipe() {
        return None;
    }
    let length = page_length();
    // SAFETY: an anonymous mapping of our own at an address of the kernel's choice; the advice concerns that mapping only,
    // and the nonsense advice is refused by every kernel that looks at it.
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
        // SAFETY: large and aligned enough (whole pages), zeroed, and a `Page` of zeros is a valid one; never unmapped once
        // published.
        Some(&*address.cast::<Page>())
    }
}

const NONSENSE_ADVICE: libc::c_int = -1;

/// Whole pages, enough for a [`Page`].
fn page_length() -> usize {
    // SAFETY: reads a constant of the system's.
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
