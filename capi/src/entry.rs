//! The way in: what every function of the interface does first and last.

use std::any::Any;
use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;

use prefork_cache::Error;

use crate::errors;
use crate::status::pfc_status;

/// A call that has failed: its status, and what is said of it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: pfc_status,
    pub(crate) message: String,
    pub(crate) is_transient: bool,
}

impl Failure {
    pub(crate) fn new(status: pfc_status, message: impl Into<String>) -> Failure {
        Failure { status, message: message.into(), is_transient: false }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let message = format!("{error:#}");
        Failure { status: pfc_status::of(error.kind()), message, is_transient: error.is_transient() }
    }
}

/// Runs a function of the interface: an error becomes its status, and what is said of it is kept for this thread. So
/// does a panic, which must not reach C.
#[inline]
pub(crate) fn entry(work: impl FnOnce() -> Result<pfc_status, Failure>) -> pfc_status {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(status)) => status,
        Ok(Err(failure)) => failed(failure),
        Err(panic) => failed(of_panic(&*panic)),
    }
}

#[cold]
fn failed(failure: Failure) -> pfc_status {
    let status = failure.status;
    errors::keep(failure);
    status
}

#[cold]
fn of_panic(panic: &(dyn Any + Send)) -> Failure {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("a panic without a text");
    Failure::new(pfc_status::PFC_PANIC, format!("a mistake in prefork-cache: {text}"))
}

/// The bytes of an argument. None may be at a null pointer.
pub(crate) unsafe fn bytes<'a>(what: &str, data: *const c_void, length: usize) -> Result<&'a [u8], Failure> {
    if data.is_null() && length > 0 {
        return Err(null(what));
    }
    if length > isize::MAX as usize {
        return Err(Failure::new(pfc_status::PFC_BAD_ARGUMENT, format!("the length of the {what} is {length}")));
    }
    // SAFETY: the caller promises so many bytes there, for as long as the call takes.
    Ok(if length == 0 { &[] } else { unsafe { slice::from_raw_parts(data.cast(), length) } })
}

/// The text of an argument.
pub(crate) unsafe fn text<'a>(what: &str, data: *const c_char, length: usize) -> Result<&'a str, Failure> {
    // SAFETY: as there.
    let bytes = unsafe { bytes(what, data.cast(), length) }?;
    let not_utf8 = |_| Failure::new(pfc_status::PFC_BAD_ARGUMENT, format!("the {what} is not UTF-8"));
    std::str::from_utf8(bytes).map_err(not_utf8)
}

#[inline]
pub(crate) unsafe fn key<'a>(data: *const c_char, length: usize) -> Result<&'a str, Failure> {
    // SAFETY: as of `bytes`.
    let bytes = unsafe { bytes("key", data.cast(), length) }?;
    std::str::from_utf8(bytes).map_err(|_| Failure::new(pfc_status::PFC_BAD_KEY, "the key is not UTF-8"))
}

/// Where a result goes.
#[inline]
pub(crate) unsafe fn out<'a, T>(what: &str, pointer: *mut T) -> Result<&'a mut T, Failure> {
    // SAFETY: the caller promises that it is null or its own to write to. What is there need not have been set: only
    // types for which any bits are a value are written to through this.
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
        // SAFETY: a string that stays until the next call.
        unsafe { CStr::from_ptr(pfc_error_message()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_panic_is_a_status_with_its_text() {
        assert_eq!(entry(|| panic!("as {}", "planned")), pfc_status::PFC_PANIC);
        assert_eq!(message(), "a mistake in prefork-cache: as planned");
        assert_eq!(entry(|| std::panic::panic_any(7)), pfc_status::PFC_PANIC);
        assert_eq!(message(), "a mistake in prefork-cache: a panic without a text");
    }

    #[test]
    fn nothing_may_be_at_a_null_pointer() {
        // SAFETY: no byte is read.
        assert_eq!(unsafe { bytes("value", ptr::null(), 0) }.unwrap(), b"");
        // SAFETY: as above.
        let refused = unsafe { bytes("value", ptr::null(), 1) }.unwrap_err();
        assert_eq!(refused.status, pfc_status::PFC_BAD_ARGUMENT);
    }
}
