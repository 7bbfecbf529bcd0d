//! Operations on one entry.

use std::ffi::{c_char, c_void};
use std::ptr;
use std::time::Duration;

use bytes::Bytes;
use prefork_cache::{Ttl, When};

use crate::call::{call, pfc_call};
use crate::entry::{bytes, entry, key, out};
use crate::errors::Failure;
use crate::expiry::{PFC_NEVER, ttl};
use crate::handle::{of_handle, pfc_cache};
use crate::status::pfc_status;
use crate::value::pfc_value;

/// Reads a value.
///
/// @param value  Set to the value, to be freed with pfc_value_free(), if PFC_OK is returned; cleared otherwise.
/// @param call   Null to wait, see pfc_call.
/// @return PFC_OK, PFC_MISS, PFC_AGAIN, or an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_get(
    cache: *const pfc_cache,
    key: *const c_char,
    key_length: usize,
    value: *mut pfc_value,
    call: *mut *mut pfc_call,
) -> pfc_status {
    entry(|| {
        // SAFETY: the caller passes valid pointers, as the comments require; so for all functions here.
        let value = unsafe { out("value", value) }?;
        *value = pfc_value::NONE;
        // SAFETY: as above.
        let found = match unsafe { read(cache, key, key_length, call) }? {
            Ok(found) => found,
            Err(status) => return Ok(status),
        };
        *value = pfc_value::of(found);
        Ok(pfc_status::PFC_OK)
    })
}

/// Reads a value into a buffer.
///
/// @param buffer    Written to if PFC_OK is returned; not changed otherwise.
/// @param capacity  The size of the buffer in bytes.
/// @param length    Set to the length of the value if PFC_OK or PFC_TOO_SMALL is returned; 0 otherwise.
/// @param call      Null to wait, see pfc_call.
/// @return PFC_OK, PFC_MISS, PFC_TOO_SMALL, PFC_AGAIN, or an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_get_into(
    cache: *const pfc_cache,
    key: *const c_char,
    key_length: usize,
    buffer: *mut c_void,
    capacity: usize,
    length: *mut usize,
    call: *mut *mut pfc_call,
) -> pfc_status {
    entry(|| {
        // SAFETY: as above.
        let length = unsafe { out("pointer to the length", length) }?;
        *length = 0;
        if capacity > 0 {
            // SAFETY: as above.
            unsafe { out("buffer", buffer.cast::<u8>()) }?;
        }
        // SAFETY: as above.
        let found = match unsafe { read(cache, key, key_length, call) }? {
            Ok(found) => found,
            Err(status) => return Ok(status),
        };
        *length = found.len();
        if found.len() > capacity {
            return Ok(pfc_status::PFC_TOO_SMALL);
        }
        // SAFETY: the buffer has room for `capacity` bytes, and the value is in memory of its own.
        unsafe { ptr::copy_nonoverlapping(found.as_ptr(), buffer.cast(), found.len()) };
        Ok(pfc_status::PFC_OK)
    })
}

/// Returns the value under a key, or the status of a call without one.
#[inline]
unsafe fn read(
    cache: *const pfc_cache,
    key: *const c_char,
    key_length: usize,
    call: *mut *mut pfc_call,
) -> Result<Result<Bytes, pfc_status>, Failure> {
    // SAFETY: as of the functions above.
    let (cache, key) = unsafe { (of_handle(cache)?, self::key(key, key_length)?) };
    Ok(match call!(call, "read", cache, key => cache.octets().get(key)).transpose()? {
        Some(Some(found)) => Ok(found),
        Some(None) => Err(pfc_status::PFC_MISS),
        None => Err(pfc_status::PFC_AGAIN),
    })
}

/// Stores a value, whether or not there is an entry.
///
/// @param value   Copied; may be null if its length is 0.
/// @param ttl_ms  How long it lives, in milliseconds, or PFC_NEVER. 0 is refused.
/// @param call    Null to wait, see pfc_call.
/// @return PFC_OK, PFC_AGAIN, or an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_set(
    cache: *const pfc_cache,
    key: *const c_char,
    key_length: usize,
    value: *const c_void,
    value_length: usize,
    ttl_ms: i64,
    call: *mut *mut pfc_call,
) -> pfc_status {
    // SAFETY: as above.
    unsafe { store(cache, key, key_length, value, value_length, ttl_ms, When::Always, call) }
}

/// Stores a value if there is no entry. The arguments are those of pfc_set().
///
/// @return PFC_OK, PFC_MISS if there was an entry, PFC_AGAIN, or an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_add(
    cache: *const pfc_cache,
    key: *const c_char,
    key_length: usize,
    value: *const c_void,
    value_length: usize,
    ttl_ms: i64,
    call: *mut *mut pfc_call,
) -> pfc_status {
    // SAFETY: as above.
    unsafe { store(cache, key, key_length, value, value_length, ttl_ms, When::IfAbsent, call) }
}

/// Stores a value if there is an entry. The arguments are those of pfc_set().
///
/// @return PFC_OK, PFC_MISS if there was no entry, PFC_AGAIN, or an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_replace(
    cache: *const pfc_cache,
    key: *const c_char,
    key_length: usize,
    value: *const c_void,
    value_length: usize,
    ttl_ms: i64,
    call: *mut *mut pfc_call,
) -> pfc_status {
    // SAFETY: as above.
    unsafe { store(cache, key, key_length, value, value_length, ttl_ms, When::IfPresent, call) }
}

#[expect(clippy::too_many_arguments, reason = "the arguments of the C function, and the condition")]
unsafe fn store(
    cache: *const pfc_cache,
    key: *const c_char,
    key_length: usize,
    value: *const c_void,
    value_length: usize,
    ttl_ms: i64,
    when: When,
    call: *mut *mut pfc_call,
) -> pfc_status {
    entry(|| {
        // SAFETY: as of the functions above.
        let (cache, key) = unsafe { (of_handle(cache)?, self::key(key, key_length)?) };
        let expiry = ttl(ttl_ms)?;
        // SAFETY: as above.
        let value = || unsafe { bytes("value", value, value_length) }.map(Bytes::copy_from_slice);
        let value = if is_begun(call) { Bytes::new() } else { value()? };
        Ok(pfc_status::of_call(
            call!(call, "store", cache, key => cache.octets().set(key, value, expiry, when)).transpose()?,
        ))
    })
}

/// Returns whether an earlier call has copied the arguments.
fn is_begun(call: *mut *mut pfc_call) -> bool {
    // SAFETY: null, or the caller's pointer to a `pfc_call *`.
    unsafe { call.as_ref() }.is_some_and(|call| !call.is_null())
}

/// Removes an entry, and revokes the loads of its key that are under way: they do not store their value.
///
/// @param call  Null to wait, see pfc_call.
/// @return PFC_OK, PFC_MISS if there was no entry, PFC_AGAIN, or an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_delete(
    cache: *const pfc_cache,
    key: *const c_char,
    key_length: usize,
    call: *mut *mut pfc_call,
) -> pfc_status {
    entry(|| {
        // SAFETY: as above.
        let (cache, key) = unsafe { (of_handle(cache)?, self::key(key, key_length)?) };
        Ok(pfc_status::of_call(call!(call, "delete", cache, key => cache.delete(key)).transpose()?))
    })
}

/// Returns whether there is an entry.
///
/// @param call  Null to wait, see pfc_call.
/// @return PFC_OK, PFC_MISS, PFC_AGAIN, or an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_exists(
    cache: *const pfc_cache,
    key: *const c_char,
    key_length: usize,
    call: *mut *mut pfc_call,
) -> pfc_status {
    entry(|| {
        // SAFETY: as above.
        let (cache, key) = unsafe { (of_handle(cache)?, self::key(key, key_length)?) };
        Ok(pfc_status::of_call(call!(call, "exists", cache, key => cache.exists(key)).transpose()?))
    })
}

/// Sets the time to live of an entry, from now on.
///
/// @param ttl_ms  In milliseconds, or PFC_NEVER. 0 is refused.
/// @param call    Null to wait, see pfc_call.
/// @return PFC_OK, PFC_MISS if there is no entry, PFC_AGAIN, or an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_touch(
    cache: *const pfc_cache,
    key: *const c_char,
    key_length: usize,
    ttl_ms: i64,
    call: *mut *mut pfc_call,
) -> pfc_status {
    entry(|| {
        // SAFETY: as above.
        let (cache, key) = unsafe { (of_handle(cache)?, self::key(key, key_length)?) };
        let expiry = ttl(ttl_ms)?;
        Ok(pfc_status::of_call(call!(call, "touch", cache, key => cache.touch(key, expiry)).transpose()?))
    })
}

/// Returns the remaining time to live of an entry.
///
/// @param ttl_ms  Set if PFC_OK is returned: in milliseconds, or PFC_NEVER.
/// @param call    Null to wait, see pfc_call.
/// @return PFC_OK, PFC_MISS if there is no entry, PFC_AGAIN, or an error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_expires_in(
    cache: *const pfc_cache,
    key: *const c_char,
    key_length: usize,
    ttl_ms: *mut i64,
    call: *mut *mut pfc_call,
) -> pfc_status {
    entry(|| {
        // SAFETY: as above.
        let (cache, key) = unsafe { (of_handle(cache)?, self::key(key, key_length)?) };
        // SAFETY: as above.
        let ttl_ms = unsafe { out("pointer to the TTL", ttl_ms) }?;
        let left = call!(call, "expires_in", cache, key => cache.expires_in(key));
        *ttl_ms = match left.transpose()? {
            Some(Some(Ttl::After(left))) => milliseconds(left),
            Some(Some(Ttl::Never)) => PFC_NEVER,
            Some(None) => return Ok(pfc_status::PFC_MISS),
            None => return Ok(pfc_status::PFC_AGAIN),
        };
        Ok(pfc_status::PFC_OK)
    })
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Removes all entries of the handle's namespace. For a handle without a namespace these are all entries of the store,
/// including those of other programs.
///
/// @param call  Null to wait, see pfc_call.
/// @return PFC_OK, PFC_AGAIN, or an error: PFC_UNSUPPORTED if Memcached's LRU crawler is off.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_clear(cache: *const pfc_cache, call: *mut *mut pfc_call) -> pfc_status {
    entry(|| {
        // SAFETY: as above.
        let (cache, all) = (unsafe { of_handle(cache) }?, "");
        let cleared = call!(call, "clear", cache, all => async { cache.clear().await.map(|()| all.is_empty()) });
        Ok(pfc_status::of_call(cleared.transpose()?))
    })
}
