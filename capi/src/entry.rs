//! The entry point of every function of the interface: catches panics, stores the error, checks arguments.

use std::any::Any;
use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;

use crate::errors::{self, Failure};
use crate::status::pfc_status;

/// Runs the body of a function of the interface. An error becomes its status, and its message is kept for this thread.
/// So does a panic, which must not unwind into C.
#[inline]
pub(crate) fn entry(work: impl FnOnce() -> Result<pfc_status, Failure>) -> pfc_status {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(status)) => status,
        Ok(Err(failure)) => store_failure(failure),
        Err(panic) => store_failure(panic_failure(&*panic)),
    }
}

#[cold]
fn store_failure(failure: Failure) -> pfc_status {
    let status = failure.status;
    errors::set_last(failure);
    status
}

#[cold]
fn panic_failure(panic: &(dyn Any + Send)) -> Failure {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("a panic without a message");
    Failure::new(pfc_status::PFC_PANIC, format!("a bug in prefork-cache: {text}"))
}

/// Returns the bytes of an argument. A null pointer is allowed for a length of 0.
pub(crate) unsafe fn bytes<'a>(what: &str, data: *const c_void, length: usize) -> Result<&'a [u8], Failure> {
    if data.is_null() && length > 0 {
        return Err(null(what));
    }
    if length > isize::MAX as usize {
        return Err(Failure::new(pfc_status::PFC_BAD_ARGUMENT, format!("the length of the {what} is {length}")));
    }
    // SAFETY: the caller promises `length` bytes there, for the duration of the call.
    Ok(if length == 0 { &[] } else { unsafe { slice::from_raw_parts(data.cast(), length) } })
}

/// Returns the string of an argument.
pub(crate) unsafe fn string<'a>(what: &str, data: *const c_char, length: usize) -> Result<&'a str, Failure> {
    // SAFETY: as of `bytes`.
    let bytes = unsafe { bytes(what, data.cast(), length) }?;
    let not_utf8 = |_| Failure::new(pfc_status::PFC_BAD_ARGUMENT, format!("the {what} is not UTF-8"));
    std::str::from_utf8(bytes).map_err(not_utf8)
}

/// Returns the key of an argument.
#[inline]
pub(crate) unsafe fn key<'a>(data: *const c_char, length: usize) -> Result<&'a str, Failure> {
    // SAFETY: as of `bytes`.
    let bytes = unsafe { bytes("key", data.cast(), length) }?;
    std::str::from_utf8(bytes).map_err(|_| Failure::new(pfc_status::PFC_BAD_KEY, "the key is not UTF-8"))
}

/// Returns a reference to write a result to.
#[inline]
pub(crate) unsafe fn out<'a, T>(what: &str, pointer: *mut T) -> Result<&'a mut T, Failure> {
    // SAFETY: the caller promises that it is null, or valid for writes. The memory need not be initialized: this is
    // used only for types for which any bits are a value.
    unsafe { pointer.as_mut() }.ok_or_else(|| null(what))
}

#[cold]
pub(crate) fn null(what: &str) -> Failure {
    Failure::new(pfc_status::PFC_BAD_ARGUMENT, format!("the {what} is a null pointer"))
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;
    use std::ptr;

    use super::{bytes, entry, pfc_status};
    use crate::errors::pfc_error_message;

    fn message() -> String {
        // SAFETY: a string that is valid until the next error on this thread.
        unsafe { CStr::from_ptr(pfc_error_message()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_panic_becomes_a_status_with_its_message() {
        assert_eq!(entry(|| panic!("as {}", "planned")), pfc_status::PFC_PANIC);
        assert_eq!(message(), "a bug in prefork-cache: as planned");
        assert_eq!(entry(|| std::panic::panic_any(7)), pfc_status::PFC_PANIC);
        assert_eq!(message(), "a bug in prefork-cache: a panic without a message");
    }

    #[test]
    fn a_null_pointer_is_allowed_only_for_a_length_of_zero() {
        // SAFETY: no byte is read.
        assert_eq!(unsafe { bytes("value", ptr::null(), 0) }.unwrap(), b"");
        // SAFETY: as above.
        let refused = unsafe { bytes("value", ptr::null(), 1) }.unwrap_err();
        assert_eq!(refused.status, pfc_status::PFC_BAD_ARGUMENT);
    }
}
