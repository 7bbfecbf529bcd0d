//! Signals that interrupt running code.

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::time::Duration;

use nix::libc;
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

/// The signal of the tests: nothing else uses it.
const SIGNAL: Signal = Signal::SIGUSR1;

static ACTION: AtomicPtr<Box<dyn Fn() + Sync>> = AtomicPtr::new(std::ptr::null_mut());
static CAUGHT: AtomicUsize = AtomicUsize::new(0);

/// Runs `action` in the handler for [`interrupt`] and [`interrupt_every`]. The handler has no `SA_RESTART`, so it
/// interrupts system calls. The caller is responsible that `action` may run where it interrupts.
pub fn on_interrupt(action: impl Fn() + Sync + 'static) {
    let action: Box<Box<dyn Fn() + Sync>> = Box::new(Box::new(action));
    // Never freed: a signal may be pending at any time.
    ACTION.store(Box::into_raw(action), Ordering::Release);
    install(SIGNAL, SigHandler::Handler(handler));
}

extern "C" fn handler(_: libc::c_int) {
    CAUGHT.fetch_add(1, Ordering::SeqCst);
    let action = ACTION.load(Ordering::Acquire);
    // SAFETY: stored by `on_interrupt`, before the handler was installed, and never freed.
    unsafe { (*action)() };
}

/// The number of times the handler has run.
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

/// Interrupts the process periodically, until the timer is dropped. `setitimer` is not used because it shares the
/// watchdog's alarm.
pub fn interrupt_every(time: Duration) -> Timer {
    let event = SigEvent::new(SigevNotify::SigevSignal { signal: SIGNAL, si_value: 0 });
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, event).expect("a timer");
    let every = Expiration::Interval(TimeSpec::from_duration(time));
    timer.set(every, TimerSetTimeFlags::empty()).expect("an armed timer");
    timer
}

/// Restores the default for SIGPIPE: a write to a closed socket or pipe kills the process, as in programs outside Rust.
pub fn restore_sigpipe() {
    install(Signal::SIGPIPE, SigHandler::SigDfl);
}

fn install(signal: Signal, handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler uses atomics, and runs the action that the caller has vouched for.
    unsafe { sigaction(signal, &action) }.expect("a handler can be installed");
}
