//! The handlers that the C library calls around `fork()`.
//!
//! They are cheap, because they also run for every `system()` and backtick of a scripting host, and they are not relied
//! on: `_Fork` and a raw `clone` bypass them, see [`generation`](mod@super::generation). Only they can keep the gate
//! closed while the process is being copied, and cut the inherited sockets before any code of the child runs.

use nix::libc;

use super::{gate, generation};

/// Registers the handlers. Threads that race for the first use may register them twice, which is harmless: pairs nest.
pub(super) fn register() {
    // SAFETY: the three functions live as long as the program. A shared object that contains them has been pinned, and
    // if that failed, the C library removes the handlers when the object is unloaded. If the registration fails (out of
    // memory), the process still has the wiped page, which misses no fork.
    unsafe { libc::pthread_atfork(Some(prepare), Some(in_parent), Some(in_child)) };
}

extern "C" fn prepare() {
    if !generation::is_set_up() {
        return;
    }
    #[cfg(feature = "tokio")]
    super::runtime::stamp_current();
    gate::close();
}

extern "C" fn in_parent() {
    if generation::is_set_up() {
        gate::open();
    }
}

extern "C" fn in_child() {
    if generation::is_set_up() {
        generation::notice_fork();
    }
}
