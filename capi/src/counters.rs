//! Counters: decimal text, as Redis and Memcached keep it.

use std::ffi::c_char;

use crate::call::{call, pfc_call};
use crate::entry::{entry, key, out};
use crate::expiry::ttl;
use crate::handle::{of_handle, pfc_cache};
use crate::status::pfc_status;

/// Adds to a counter. One that is not there begins at 0, and then lives for `ttl_ms`; one that is there keeps the time
/// that it has left. From 0 to INT64_MAX all servers do the same; below 0 Memcached stays at 0.
///
/// @param by      May be negative.
/// @param ttl_ms  In milliseconds, or PFC_NEVER. 0 is refused.
/// @param result  Set to what it has come to where PFC_OK is returned. May be null.
/// @param call    Null to wait, see pfc_call.
/// @return PFC_OK, PFC_AGAIN, or an error: PFC_NOT_A_NUMBER for what is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_increment(
    cache: *const pfc_cache,
    key: *const c_char,
    key_length: usize,
    by: i64,
    ttl_ms: i64,
    result: *mut i64,
    call: *mut *mut pfc_call,
) -> pfc_status {
    entry(|| {
        // SAFETY: as the comments say; so for what follows.
        let (cache, key) = unsafe { (of_handle(cache)?, self::key(key, key_length)?) };
        let expiry = ttl(ttl_ms)?;
        let come_to = call!(call, "increment", cache, key => cache.increment(key, by, expiry));
        let Some(come_to) = come_to.transpose()? else { return Ok(pfc_status::PFC_AGAIN) };
        // SAFETY: as above.
        if let Some(result) = unsafe { result.as_mut() } {
            *result = come_to;
        }
        Ok(pfc_status::PFC_OK)
    })
}

/// Reads a counter.
///
/// @param result  Set where PFC_OK is returned.
/// @param call    Null to wait, see pfc_call.
/// @return PFC_OK, PFC_MISS, PFC_AGAIN, or an error: PFC_NOT_A_NUMBER for what is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_counter(
    cache: *const pfc_cache,
    key: *const c_char,
    key_length: usize,
    result: *mut i64,
    call: *mut *mut pfc_call,
) -> pfc_status {
    entry(|| {
        // SAFETY: as above.
        let (cache, key) = unsafe { (of_handle(cache)?, self::key(key, key_length)?) };
        // SAFETY: as above.
        let result = unsafe { out("pointer to the result", result) }?;
        Ok(match call!(call, "counter", cache, key => cache.counter(key)).transpose()? {
            Some(Some(counter)) => {
                *result = counter;
                pfc_status::PFC_OK
            }
            Some(None) => pfc_status::PFC_MISS,
            None => pfc_status::PFC_AGAIN,
        })
    })
}
