//! Operations on many entries, with one round trip to each server.

use std::ffi::c_char;
use std::slice;

use prefork_cache::Error;

use crate::call::{call, pfc_call};
use crate::entry::{entry, key, null};
use crate::errors::Failure;
use crate::handle::{of_handle, pfc_cache};
use crate::status::pfc_status;
use crate::value::pfc_value;

/// A key in a list.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pfc_key {
    pub data: *const c_char,
    pub length: usize,
}

/// Reads many values, with one round trip to each server.
///
/// @param keys      `count` keys. If one is empty or not UTF-8, the whole call is PFC_BAD_KEY.
/// @param values    `count` values, each set to its key's value or cleared; each to be freed with pfc_value_free().
/// @param statuses  `count` statuses, each set to PFC_OK, PFC_MISS or an error. May be null.
/// @param call      Null to wait, see pfc_call.
/// @return PFC_OK if every key could be looked up; PFC_AGAIN; or the first error, with which the values of other keys
///         may still be set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_get_many(
    cache: *const pfc_cache,
    keys: *const pfc_key,
    count: usize,
    values: *mut pfc_value,
    statuses: *mut pfc_status,
    call: *mut *mut pfc_call,
) -> pfc_status {
    entry(|| {
        // SAFETY: the caller passes valid pointers, as the comments require; so for all below.
        let cache = unsafe { of_handle(cache) }?;
        if count > 0 && values.is_null() {
            return Err(null("array of values"));
        }
        // SAFETY: as above.
        let copied = unsafe { copied_keys(keys, count) };
        for index in 0..count {
            // SAFETY: as above.
            unsafe { values.add(index).write(pfc_value::NONE) };
        }
        let keys = &*copied?;
        let found = call!(call, "get_many", cache, keys => cache.octets().get_many(keys));
        let Some(found) = found else { return Ok(pfc_status::PFC_AGAIN) };
        let mut outcomes = Outcomes::new(statuses);
        for (index, found) in found.into_iter().enumerate() {
            let status = |found: &Option<_>| pfc_status::done(found.is_some());
            // SAFETY: as above; one element for each key.
            if let Some(found) = unsafe { outcomes.record(index, found, status) } {
                // SAFETY: as above.
                unsafe { values.add(index).write(pfc_value::or_none(found)) };
            }
        }
        outcomes.finish()
    })
}

/// Removes many entries, with one round trip to each server.
///
/// @param keys      `count` keys. If one is empty or not UTF-8, the whole call is PFC_BAD_KEY.
/// @param statuses  `count` statuses, each set to PFC_OK, PFC_MISS or an error. May be null.
/// @param call      Null to wait, see pfc_call.
/// @return PFC_OK if every key was deleted or had no entry; PFC_AGAIN; or the first error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_delete_many(
    cache: *const pfc_cache,
    keys: *const pfc_key,
    count: usize,
    statuses: *mut pfc_status,
    call: *mut *mut pfc_call,
) -> pfc_status {
    entry(|| {
        // SAFETY: as above.
        let cache = unsafe { of_handle(cache) }?;
        // SAFETY: as above.
        let keys = &*unsafe { copied_keys(keys, count) }?;
        let deleted = call!(call, "delete_many", cache, keys => cache.delete_many(keys));
        let Some(deleted) = deleted else { return Ok(pfc_status::PFC_AGAIN) };
        let mut outcomes = Outcomes::new(statuses);
        for (index, deleted) in deleted.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { outcomes.record(index, deleted, |was_there| pfc_status::done(*was_there)) };
        }
        outcomes.finish()
    })
}

/// Copies the keys.
unsafe fn copied_keys(keys: *const pfc_key, count: usize) -> Result<Vec<String>, Failure> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if keys.is_null() {
        return Err(null("array of keys"));
    }
    if count > isize::MAX as usize / size_of::<pfc_key>() {
        return Err(Failure::new(pfc_status::PFC_BAD_ARGUMENT, format!("the number of keys is {count}")));
    }
    // SAFETY: as of the functions above.
    let keys = unsafe { slice::from_raw_parts(keys, count) };
    // SAFETY: as above.
    keys.iter().map(|key| unsafe { self::key(key.data, key.length) }.map(str::to_owned)).collect()
}

/// Writes the status of each key, and keeps the first error.
struct Outcomes {
    statuses: *mut pfc_status,
    first: Option<Failure>,
}

impl Outcomes {
    fn new(statuses: *mut pfc_status) -> Outcomes {
        Outcomes { statuses, first: None }
    }

    unsafe fn record<T>(
        &mut self,
        index: usize,
        outcome: Result<T, Error>,
        status: impl FnOnce(&T) -> pfc_status,
    ) -> Option<T> {
        let (status, outcome) = match outcome {
            Ok(outcome) => (status(&outcome), Some(outcome)),
            Err(error) => {
                let status = pfc_status::of(error.kind());
                self.first.get_or_insert_with(|| error.into());
                (status, None)
            }
        };
        if !self.statuses.is_null() {
            // SAFETY: the array has one element for each key.
            unsafe { self.statuses.add(index).write(status) };
        }
        outcome
    }

    fn finish(self) -> Result<pfc_status, Failure> {
        self.first.map_or(Ok(pfc_status::PFC_OK), Err)
    }
}
