//! Fetch in two steps: claim the load of a value, then complete it or let it fail.

use std::borrow::Cow;
use std::ffi::{c_char, c_void};
use std::ptr;
use std::time::Duration;

use bytes::Bytes;
use prefork_cache::{Cache, Claim, Loaded, Resumable};

use crate::call::{call, pfc_call, run_slice};
use crate::entry::{bytes, entry, key, null, out};
use crate::errors::Failure;
use crate::expiry::pfc_expiry;
use crate::handle::{of_handle, pfc_cache};
use crate::status::pfc_status;
use crate::value::pfc_value;

/// The claim to load a value for all callers that wait for it. pfc_fetch_complete() or pfc_fetch_fail(), on any thread,
/// end and free it.
///
/// In a child of the process that has the claim, ending it frees it and does nothing else: the load is the parent's.
pub struct pfc_claim {
    claim: Claim<Bytes>,
}

/// Reads a value, or makes this caller the one that loads it: among the threads of this process and, on a shared
/// server, among all processes. The other callers wait for the value.
///
///     PFC_OK     There is a value.
///     PFC_STALE  There is a stale value, and another caller reloads it.
///     PFC_CLAIM  This caller has to load the value: `claim` is set. If there is an older value, it is in `value`: the
///                other callers get it in the meantime, and this one may use it if it cannot load.
///
/// So load only if PFC_CLAIM is returned. No frame of this library is on the stack then: a loader may throw, longjmp
/// or fork, as long as pfc_fetch_complete() or pfc_fetch_fail() is called in the end. A fetch of the same key by the
/// thread that has the claim does not wait for it.
///
/// Failures of the cache do not make a fetch fail: if the server does not respond, this caller loads, and
/// pfc_take_errors() returns the failure.
///
/// @param load_timeout_ms  How long the load may take before others stop waiting for it, and how long this caller
///                         waits for another one: in milliseconds; 0 for the default of 60 s. At most a year.
/// @param value            Set to a value, to be freed with pfc_value_free(), or cleared.
/// @param claim            Set if PFC_CLAIM is returned; null otherwise.
/// @param call             Null to wait, see pfc_call.
/// @return One of the three, PFC_AGAIN, or an error: PFC_BAD_KEY, PFC_BAD_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_fetch_begin(
    cache: *const pfc_cache,
    key: *const c_char,
    key_length: usize,
    load_timeout_ms: i64,
    value: *mut pfc_value,
    claim: *mut *mut pfc_claim,
    call: *mut *mut pfc_call,
) -> pfc_status {
    entry(|| {
        // SAFETY: the caller passes valid pointers, as the comments require; so for all below.
        let (value, claim) = unsafe { (out("value", value)?, out("pointer to the claim", claim)?) };
        (*value, *claim) = (pfc_value::NONE, ptr::null_mut());
        // SAFETY: as above.
        let (cache, key) = unsafe { (of_handle(cache)?, self::key(key, key_length)?) };
        if key.is_empty() {
            return Err(Failure::new(pfc_status::PFC_BAD_KEY, "the key is empty"));
        }
        let cache = &*with_load_timeout(cache, load_timeout_ms)?;
        let begun = call!(call, "fetch_begin", cache, key => cache.octets().fetch_begin(key));
        let Some(begun) = begun else { return Ok(pfc_status::PFC_AGAIN) };
        match begun {
            Ok((found, is_stale)) => {
                *value = pfc_value::of(found);
                Ok(if is_stale { pfc_status::PFC_STALE } else { pfc_status::PFC_OK })
            }
            Err(claimed) => {
                *value = pfc_value::or_none(claimed.old().cloned());
                *claim = Box::into_raw(Box::new(pfc_claim { claim: claimed }));
                Ok(pfc_status::PFC_CLAIM)
            }
        }
    })
}

/// Returns the cache with a load timeout; for 0, the default, the cache itself.
pub(crate) fn with_load_timeout(cache: &Cache, milliseconds: i64) -> Result<Cow<'_, Cache>, Failure> {
    let time = u64::try_from(milliseconds);
    let time =
        time.map_err(|_| Failure::new(pfc_status::PFC_BAD_ARGUMENT, format!("a load_timeout_ms of {milliseconds}")))?;
    Ok(match time {
        0 => Cow::Borrowed(cache),
        time => Cow::Owned(cache.load_timeout(Duration::from_millis(time))),
    })
}

/// Ends a claim with the loaded value: stores it, and passes it to the callers that wait. If the key was deleted in the
/// meantime, by pfc_delete(), the value is not stored.
///
/// @param claim   Freed by the first call, whatever it returns, unless that is PFC_BAD_TTL or PFC_BAD_ARGUMENT.
/// @param value   Copied; may be null if its length is 0.
/// @param expiry  How long the value lives. Null: it is passed to the waiting callers of this process, and not stored.
/// @param call    Null to wait, see pfc_call.
/// @return PFC_OK, PFC_AGAIN, PFC_BAD_TTL or PFC_BAD_ARGUMENT. If the value could not be stored, pfc_take_errors()
///         returns the failure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_fetch_complete(
    claim: *mut pfc_claim,
    value: *const c_void,
    value_length: usize,
    expiry: *const pfc_expiry,
    call: *mut *mut pfc_call,
) -> pfc_status {
    entry(|| {
        let complete = || {
            // SAFETY: as above.
            let value = Bytes::copy_from_slice(unsafe { bytes("value", value, value_length) }?);
            // SAFETY: as above.
            let loaded = match unsafe { expiry.as_ref() } {
                None => Loaded::uncached(value),
                Some(expiry) => Loaded::new(value, expiry.to_rust()?),
            };
            // SAFETY: as above.
            Ok((unsafe { take(claim) }?, Some(loaded)))
        };
        // SAFETY: as above.
        let ended = unsafe { end("fetch_complete", call, complete) }?;
        Ok(pfc_status::of_call(ended.map(|value| value.is_some())))
    })
}

/// Ends a claim without a value: the load failed, and the next caller that waits loads.
///
/// @param claim  Freed by the first call, whatever it returns.
/// @param old    Set to the older value, to be freed with pfc_value_free(), or cleared. May be null.
/// @param call   Null to wait, see pfc_call.
/// @return PFC_OK if there is no older value; PFC_STALE if there is one: fetches return it, and the load is tried again
///         after 5 s; PFC_AGAIN; or PFC_BAD_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_fetch_fail(
    claim: *mut pfc_claim,
    old: *mut pfc_value,
    call: *mut *mut pfc_call,
) -> pfc_status {
    entry(|| {
        // SAFETY: as above.
        let mut old = unsafe { old.as_mut() };
        if let Some(old) = &mut old {
            **old = pfc_value::NONE;
        }
        // SAFETY: as above.
        let fail = || Ok((unsafe { take(claim) }?, None));
        // SAFETY: as above.
        Ok(match unsafe { end("fetch_fail", call, fail) }? {
            None => pfc_status::PFC_AGAIN,
            Some(None) => pfc_status::PFC_OK,
            Some(Some(stale)) => {
                if let Some(old) = old {
                    *old = pfc_value::of(stale);
                }
                pfc_status::PFC_STALE
            }
        })
    })
}

unsafe fn take(claim: *mut pfc_claim) -> Result<Claim<Bytes>, Failure> {
    if claim.is_null() {
        return Err(null("claim"));
    }
    // SAFETY: `pfc_fetch_begin` allocated it, and the caller ends it once.
    Ok(unsafe { Box::from_raw(claim) }.claim)
}

/// Ends a claim with or without a loaded value, waiting or in slices. `None` if that is not finished.
unsafe fn end(
    verb: &'static str,
    call: *mut *mut pfc_call,
    begin: impl FnOnce() -> Result<(Claim<Bytes>, Option<Loaded<Bytes>>), Failure>,
) -> Result<Option<Option<Bytes>>, Failure> {
    // SAFETY: as of the functions above.
    match unsafe { call.as_mut() } {
        None => Ok(Some(match begin()? {
            (claim, Some(loaded)) => Some(claim.blocking_complete_loaded(loaded)),
            (claim, None) => claim.blocking_fail(),
        })),
        Some(call) => {
            let begin = || {
                let (claim, loaded) = begin()?;
                Ok(Resumable::new(async move {
                    match loaded {
                        Some(loaded) => Some(claim.complete_loaded(loaded).await),
                        None => claim.fail().await,
                    }
                }))
            };
            // SAFETY: as above.
            unsafe { run_slice(call, verb, begin) }
        }
    }
}
