//! The handlers that the C library calls around `fork()`.
//!
//! They are cheap, because they also run for every `system()` and backtick of a scripting host, and they are not relied on:
//! `_Fork` and a raw `clone` go round them, see [`generation`](mod@super::generation). What only they can do is to hold the gate
//! closed while the process is being copied, and to cut the inherited sockets before any code of the child's runs.

use nix::libc;

use super::{gate, generation};

/// Registers the handlers. Threads that race for the first use may register them twice: pairs of them nest.
pub(super) fn register() {
    // SAFETY: the three functions live as long as the program: a shared object that holds them has been pinned, and where
    // that has failed the C library forgets them when it is unloaded. A failure (out of memory) leaves the process with the wiped page alone, which misses nothing.
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
