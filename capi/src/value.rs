//! Values that are returned to C.

use std::ffi::c_void;
use std::ptr;

use bytes::Bytes;

/// Bytes that the library returned. They are valid in this process, and in the children that it forks, until
/// pfc_value_free().
#[repr(C)]
#[derive(Debug)]
pub struct pfc_value {
    /// The bytes, without a terminating zero. Null if there is no value; not null for an empty value.
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

/// Frees a value, and clears the structure: a second call does nothing. On any thread, also in a child of the process
/// that got the value. A null pointer is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_value_free(value: *mut pfc_value) {
    // SAFETY: null, or a structure that a function of this library has set.
    let Some(value) = (unsafe { value.as_mut() }) else { return };
    let owner = std::mem::replace(value, pfc_value::NONE).owner;
    if !owner.is_null() {
        // SAFETY: `of` allocated it, and it is cleared above.
        drop(unsafe { Box::from_raw(owner.cast::<Bytes>()) });
    }
}
