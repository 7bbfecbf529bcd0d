//! Forks: the refresh of this process, and its generation.

use prefork_cache::lifecycle::{after_fork, generation};

use crate::entry::entry;
use crate::errors::Failure;
use crate::status::pfc_status;
use crate::value::pfc_value;

/// The version of the interface. Each addition increases it; nothing is removed.
pub const PFC_ABI_VERSION: u32 = 1;

/// Returns the version of the interface of the loaded library. Compare it with PFC_ABI_VERSION of the header: if it is
/// less, the library may lack functions that the program uses.
#[unsafe(no_mangle)]
pub extern "C" fn pfc_abi_version() -> u32 {
    PFC_ABI_VERSION
}

/// Refreshes the stores of this process after a fork, now instead of at their first use: for the hook of a host. It
/// is optional. It cuts the inherited connections, and makes none. It may be called late, repeatedly, in a process
/// that was not forked, or not at all.
///
/// @param report  Set to one line of text for a log, also if an error is returned; to be freed with pfc_value_free().
///                May be null.
/// @return PFC_OK, or the error of a store that could not be refreshed: the refresh is tried again at its first use.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_after_fork(report: *mut pfc_value) -> pfc_status {
    entry(|| {
        let done = after_fork();
        // SAFETY: null, or valid for writes, as the comment requires.
        if let Some(report) = unsafe { report.as_mut() } {
            *report = pfc_value::of(done.to_string());
        }
        let failed = done.stores().iter().find_map(|store| store.outcome().err().cloned());
        failed.map_or(Ok(pfc_status::PFC_OK), |error| Err(Failure::from(error)))
    })
}

/// pfc_after_fork() for hooks that name a function without arguments, such as uWSGI's
/// `hook-post-fork = call:prefork_cache_after_fork`.
#[unsafe(no_mangle)]
pub extern "C" fn prefork_cache_after_fork() {
    // SAFETY: null is allowed, for no report.
    unsafe { pfc_after_fork(std::ptr::null_mut()) };
}

/// Returns the generation of this process: 1 in the process that first used the library, one more than its parent's in
/// each forked child. (The children of one process have the same.) Takes a nanosecond.
#[unsafe(no_mangle)]
pub extern "C" fn pfc_generation() -> u64 {
    generation()
}
