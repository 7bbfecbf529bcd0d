//! Bytes that are handed out.

use std::ffi::c_void;
use std::ptr;

use bytes::Bytes;

/// Bytes that were handed out. They stay, in this process and in the children that it forks, until pfc_value_free().
#[repr(C)]
#[derive(Debug)]
pub struct pfc_value {
    /// The bytes; no zero follows them. Null where there is no value, not null for one of no bytes.
    pub data: *const c_void,
    pub length: usize,
    /// For pfc_value_free().
    pub owner: *mut c_void,
}

impl pfc_value {
    pub(crate) const NONE: pfc_value = pfc_value { data: ptr::null(), length: 0, owner: ptr::null_mut() };

    pub(crate) fn of(bytes: impl Into<Bytes>) -> pfc_value {
        let bytes = Box::new(bytes.into());
        pfc_value { data: bytes.as_ptr().cast(), length: bytes.len(), owner: Box::into_raw(bytes).cast() }
    }

    pub(crate) fn or_none(bytes: Option<Bytes>) -> pfc_value {
        bytes.map_or(pfc_value::NONE, pfc_value::of)
    }
}

/// Frees what was handed out, and clears the structure: another time does nothing. On any thread, also in a child of
/// the process that it was handed out to. Takes a null pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_value_free(value: *mut pfc_value) {
    // SAFETY: null, or a structure that one of the functions here has set.
    let Some(value) = (unsafe { value.as_mut() }) else { return };
    let owner = std::mem::replace(value, pfc_value::NONE).owner;
    if !owner.is_null() {
        // SAFETY: made by `of`, and cleared above.
        drop(unsafe { Box::from_raw(owner.cast::<Bytes>()) });
    }
}
