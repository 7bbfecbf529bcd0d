//! Fetch in two steps: who is to load a value, and what was loaded.

use std::borrow::Cow;
use std::ffi::{c_char, c_void};
use std::ptr;
use std::time::Duration;

use bytes::Bytes;
use prefork_cache::{Cache, Claim, Loaded, Resumable};

use crate::call::{call, in_slices, pfc_call};
use crate::entry::{Failure, bytes, entry, key, null, out};
use crate::expiry::pfc_expiry;
use crate::handle::{of_handle, pfc_cache};
use crate::status::pfc_status;
use crate::value::pfc_value;

/// The duty to load a value, for all who wait for it: to be ended by pfc_fetch_complete() or pfc_fetch_fail(), by any
/// thread, which free it.
///
/// In a child of the process that has claimed, ending it frees it and does nothing else: the load is the parent's.
pub struct pfc_claim {
    claim: Claim<Bytes>,
}

/// Reads a value, or else makes this caller the one that loads it: among the threads of this process and, on a shared
/// server, among all processes. The others wait for it.
///
///     PFC_OK     There is a value.
///     PFC_STALE  There is a stale value, and another caller loads it again.
///     PFC_CLAIM  This caller is to load: `claim` is set. If there is an older value, it is in `value`: it serves the
///                other callers meanwhile, and this one if it cannot load.
///
/// So load only where PFC_CLAIM is returned, and with nothing of this library on the stack: a loader may throw, longjmp
/// or fork as it likes, as long as pfc_fetch_complete() or pfc_fetch_fail() is called in the end. A fetch of the same
/// key by the thread that has the claim does not wait for it.
///
/// The cache's own failures are no reason not to have a value: where the server does not answer, this caller loads, and
/// the failure is among those of pfc_take_errors().
///
/// @param load_timeout_ms  How long the load may take before others no longer wait for it, and how long this caller
///                         waits for another one: in milliseconds; 0 for the default of 60 s. At most a year.
/// @param value            Set to a value, to be freed with pfc_value_free(), or cleared.
/// @param claim            Set where PFC_CLAIM is returned; null otherwise.
/// @param call             Null to wait, see pfc_call.
/// @return One of these, PFC_AGAIN, or an error: PFC_BAD_KEY, PFC_BAD_ARGUMENT.
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
        // SAFETY: as the comments say; so for all that follow.
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

/// The handle itself for the default.
pub(crate) fn with_load_timeout(cache: &Cache, milliseconds: i64) -> Result<Cow<'_, Cache>, Failure> {
    let time = u64::try_from(milliseconds);
    let time =
        time.map_err(|_| Failure::new(pfc_status::PFC_BAD_ARGUMENT, format!("a load_timeout_ms of {milliseconds}")))?;
    Ok(match time {
        0 => Cow::Borrowed(cache),
        time => Cow::Owned(cache.load_timeout(Duration::from_millis(time))),
    })
}

/// Ends a claim with what was loaded: stores it, and hands it to those who wait. After a pfc_delete() of the key
/// meanwhile it is not stored.
///
/// @param claim   Freed by the first call, whatever it returns, unless that is PFC_BAD_TTL or PFC_BAD_ARGUMENT.
/// @param value   Copied; may be null if its length is 0.
/// @param expiry  How long it lives. Null: it is for those who wait in this process, and is not stored.
/// @param call    Null to wait, see pfc_call.
/// @return PFC_OK, PFC_AGAIN, PFC_BAD_TTL or PFC_BAD_ARGUMENT. That it could not be stored is among the errors of
///         pfc_take_errors().
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

/// Ends a claim without a value: the load has failed, and the next of those who wait loads.
///
/// @param claim  Freed by the first call, whatever it returns.
/// @param old    Set to the older value, to be freed with pfc_value_free(), or cleared. May be null.
/// @param call   Null to wait, see pfc_call.
/// @return PFC_OK if there is no older value; PFC_STALE if there is one: it goes on serving, and the next try comes
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
            Some(Some(served)) => {
                if let Some(old) = old {
                    *old = pfc_value::of(served);
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
    // SAFETY: handed out by `pfc_fetch_begin`, and ended once.
    Ok(unsafe { Box::from_raw(claim) }.claim)
}

/// Ends a claim with what was loaded, or without, at once or in slices. `None` if that is not done.
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
            unsafe { in_slices(call, verb, begin) }
        }
    }
}
