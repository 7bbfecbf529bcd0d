//! Hooks that stop the crate at a chosen point, for its own fork tests. Not a public interface.

use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

static ON_REACH: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());
static WITHOUT_WIPE: AtomicBool = AtomicBool::new(false);

/// Calls `observe` with a name whenever a thread reaches a point at which a fork must do no harm: with the name of a
/// lock while it holds the lock, with "gate" inside the gate, with "socket" before a system call on a socket, and so
/// on.
pub fn on_reach(observe: fn(&'static str)) {
    ON_REACH.store(observe as *mut (), Ordering::Release);
}

/// Makes this process run without the wiped page. Must be called before the first use of the crate.
pub fn without_wipe() {
    WITHOUT_WIPE.store(true, Ordering::Release);
}

pub(crate) fn is_without_wipe() -> bool {
    WITHOUT_WIPE.load(Ordering::Acquire)
}

pub(crate) fn reach(name: &'static str) {
    let observe = ON_REACH.load(Ordering::Acquire);
    if !observe.is_null() {
        // SAFETY: only `on_reach` stores here, and it stores a function of this type.
        let observe = unsafe { std::mem::transmute::<*mut (), fn(&'static str)>(observe) };
        observe(name);
    }
}
