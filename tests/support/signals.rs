//! Signals that arrive in the middle of something.

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::time::Duration;

use nix::libc;
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

/// The one that the tests use: nothing else does.
const SIGNAL: Signal = Signal::SIGUSR1;

static ACTION: AtomicPtr<Box<dyn Fn() + Sync>> = AtomicPtr::new(std::ptr::null_mut());
static CAUGHT: AtomicUsize = AtomicUsize::new(0);

/// Runs `action` in the handler of [`interrupt`] and [`interrupt_every`], which interrupts system calls (no `SA_RESTART`).
/// What the handler may do depends on what it interrupts: that is the caller's business.
pub fn on_interrupt(action: impl Fn() + Sync + 'static) {
    let action: Box<Box<dyn Fn() + Sync>> = Box::new(Box::new(action));
    // Lives as long as the process: a signal may be under way at any time.
    ACTION.store(Box::into_raw(action), Ordering::Release);
    install(SIGNAL, SigHandler::Handler(handler));
}

extern "C" fn handler(_: libc::c_int) {
    CAUGHT.fetch_add(1, Ordering::SeqCst);
    let action = ACTION.load(Ordering::Acquire);
    // SAFETY: stored by `on_interrupt`, before the handler was installed, and never freed.
    unsafe { (*action)() };
}

/// How often the handler has run.
pub fn caught() -> usize {
    CAUGHT.load(Ordering::SeqCst)
}

/// Interrupts one thread, once.
pub fn interrupt(thread: Pthread) {
    pthread_kill(thread, SIGNAL).expect("a running thread");
}

/// The calling thread, for [`interrupt`].
pub fn this_thread() -> Pthread {
    pthread_self()
}

/// Interrupts the process again and again, until the timer is dropped. Not by `setitimer`, which the watchdog's alarm uses.
pub fn interrupt_every(time: Duration) -> Timer {
    let event = SigEvent::new(SigevNotify::SigevSignal { signal: SIGNAL, si_value: 0 });
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, event).expect("a timer");
    let every = Expiration::Interval(TimeSpec::from_duration(time));
    timer.set(every, TimerSetTimeFlags::empty()).expect("an armed timer");
    timer
}

/// Lets a write to a closed socket or pipe kill the process, as it does outside of Rust.
pub fn restore_sigpipe() {
    install(Signal::SIGPIPE, SigHandler::SigDfl);
}

fn install(signal: Signal, handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler touches atomics, and what its test takes care of.
    unsafe { sigaction(signal, &action) }.expect("a handler can be installed");
}
