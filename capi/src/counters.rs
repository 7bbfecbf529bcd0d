//! Counters, stored as decimal text, as Redis and Memcached do.

use std::ffi::c_char;

use crate::call::{call, pfc_call};
use crate::entry::{entry, key, out};
use crate::expiry::ttl;
use crate::handle::{of_handle, pfc_cache};
use crate::status::pfc_status;

/// Adds to a counter. A missing counter starts at 0 and lives for `ttl_ms`; an existing one keeps its remaining time to
/// live. From 0 to INT64_MAX all servers behave alike; a counter on Memcached does not go below 0.
///
/// @param by      May be negative.
/// @param ttl_ms  In milliseconds, or PFC_NEVER. 0 is refused.
/// @param result  Set to the new value if PFC_OK is returned. May be null.
/// @param call    Null to wait, see pfc_call.
/// @return PFC_OK, PFC_AGAIN, or an error: PFC_NOT_A_NUMBER if the entry is not a counter.
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
        // SAFETY: the caller passes valid pointers, as the comments require; so for all below.
        let (cache, key) = unsafe { (of_handle(cache)?, self::key(key, key_length)?) };
        let expiry = ttl(ttl_ms)?;
        let sum = call!(call, "increment", cache, key => cache.increment(key, by, expiry));
        let Some(sum) = sum.transpose()? else { return Ok(pfc_status::PFC_AGAIN) };
        // SAFETY: as above.
        if let Some(result) = unsafe { result.as_mut() } {
            *result = sum;
        }
        Ok(pfc_status::PFC_OK)
    })
}

/// Reads a counter.
///
/// @param result  Set if PFC_OK is returned.
/// @param call    Null to wait, see pfc_call.
/// @return PFC_OK, PFC_MISS, PFC_AGAIN, or an error: PFC_NOT_A_NUMBER if the entry is not a counter.
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
