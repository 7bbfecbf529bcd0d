//! Fetch with a callback.

use std::ffi::{c_char, c_int, c_void};

use bytes::Bytes;

use crate::claims::with_load_timeout;
use crate::entry::{bytes, entry, key, out};
use crate::errors::Failure;
use crate::expiry::pfc_expiry;
use crate::handle::{of_handle, pfc_cache};
use crate::status::pfc_status;
use crate::value::pfc_value;

/// Takes the value of a loader, by pfc_load_give().
pub struct pfc_load {
    value: Option<Bytes>,
}

/// Loads a value: calls pfc_load_give() and returns 0, or returns any other number if it failed. It must return: no
/// exception and no longjmp may leave it. It may use the cache, and it may fork.
pub type pfc_loader = Option<unsafe extern "C" fn(user_data: *mut c_void, load: *mut pfc_load) -> c_int>;

/// Passes on the value of a loader. Of several calls the last one counts.
///
/// @param load  The loader's argument.
/// @param data  Copied; may be null if its length is 0.
/// @return PFC_OK or PFC_BAD_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_load_give(load: *mut pfc_load, data: *const c_void, length: usize) -> pfc_status {
    entry(|| {
        // SAFETY: the caller passes valid pointers, as the comments require; so for all below.
        let load = unsafe { out("load", load) }?;
        // SAFETY: as above.
        load.value = Some(Bytes::copy_from_slice(unsafe { bytes("value", data, length) }?));
        Ok(pfc_status::PFC_OK)
    })
}

/// Reads a value, or calls `loader` and stores the loaded value. For C; other languages use pfc_fetch_begin(), whose
/// comment explains which caller loads and which ones wait. Returns when it is finished.
///
/// @param expiry           How long a loaded value lives.
/// @param load_timeout_ms  As in pfc_fetch_begin().
/// @param loader           Called on this thread, at most once.
/// @param user_data        Passed to the loader.
/// @param value            Set to the value, to be freed with pfc_value_free(), if PFC_OK or PFC_STALE is returned;
///                         cleared otherwise.
/// @return PFC_OK; PFC_STALE for a stale value, since another caller reloads it or the loader failed; PFC_LOADER if
///         the loader failed and there is no older value; PFC_BAD_KEY, PFC_BAD_TTL or PFC_BAD_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_fetch(
    cache: *const pfc_cache,
    key: *const c_char,
    key_length: usize,
    expiry: *const pfc_expiry,
    load_timeout_ms: i64,
    loader: pfc_loader,
    user_data: *mut c_void,
    value: *mut pfc_value,
) -> pfc_status {
    entry(|| {
        // SAFETY: as above.
        let value = unsafe { out("value", value) }?;
        *value = pfc_value::NONE;
        // SAFETY: as above.
        let (cache, key) = unsafe { (of_handle(cache)?, self::key(key, key_length)?) };
        // SAFETY: as above.
        let expiry = unsafe { out("expiry", expiry.cast_mut()) }?.to_rust()?;
        let loader = loader.ok_or_else(|| crate::entry::null("loader"))?;
        let cache = &*with_load_timeout(cache, load_timeout_ms)?;
        let claim = match cache.blocking().run(cache.octets().fetch_begin(key)) {
            Ok((found, is_stale)) => {
                *value = pfc_value::of(found);
                return Ok(if is_stale { pfc_status::PFC_STALE } else { pfc_status::PFC_OK });
            }
            Err(claim) => claim,
        };
        let mut load = pfc_load { value: None };
        // SAFETY: the caller passes a function of this type, and the user data for it.
        let is_loaded = unsafe { loader(user_data, &raw mut load) } == 0;
        match load.value.filter(|_| is_loaded) {
            Some(loaded) => {
                *value = pfc_value::of(claim.blocking_complete(loaded, expiry));
                Ok(pfc_status::PFC_OK)
            }
            None => {
                let old = claim.blocking_fail();
                let failure = || Failure::new(pfc_status::PFC_LOADER, format!("the loader of {key:?} failed"));
                *value = pfc_value::of(old.ok_or_else(failure)?);
                Ok(pfc_status::PFC_STALE)
            }
        }
    })
}
