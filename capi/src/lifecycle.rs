//! Which process this is.

use prefork_cache::lifecycle::{after_fork, generation};

use crate::entry::{Failure, entry};
use crate::status::pfc_status;
use crate::value::pfc_value;

/// The version of the interface. It goes up with each addition; what is there stays.
pub const PFC_ABI_VERSION: u32 = 1;

/// The version of the interface of the library that was loaded, to be compared with PFC_ABI_VERSION of the header: it
/// is at least that, or the program uses what the library does not have.
#[unsafe(no_mangle)]
pub extern "C" fn pfc_abi_version() -> u32 {
    PFC_ABI_VERSION
}

/// Brings this process up to date after a fork, now rather than at first use: for the hook that a host offers, and
/// never needed. It cuts the connections that the process has inherited; it makes none. Called late, often, in a
/// process that was not forked, or not at all, everything works alike.
///
/// @param report  Set to one line of text for a log, also where an error is returned; to be freed with
///                pfc_value_free(). May be null.
/// @return PFC_OK, or the error of a store that could not be brought up to date: it is tried again at its first use.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_after_fork(report: *mut pfc_value) -> pfc_status {
    entry(|| {
        let done = after_fork();
        // SAFETY: null or a structure to write to, as the comment says.
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
    // SAFETY: null is for no report.
    unsafe { pfc_after_fork(std::ptr::null_mut()) };
}

/// A number that is another one in each process that was forked since the library was first used: 1 in the first. (The
/// children of one process have the same.) Costs a nanosecond.
#[unsafe(no_mangle)]
pub extern "C" fn pfc_generation() -> u64 {
    generation()
}
