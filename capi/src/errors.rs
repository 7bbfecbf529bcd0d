//! The failure of a call: its status, and the message and transience that are kept for the calling thread.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};

use prefork_cache::Error;

use crate::status::pfc_status;

/// The failure of a call.
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

thread_local! {
    static LAST: RefCell<LastError> = const { RefCell::new(LastError { message: None, is_transient: false }) };
}

struct LastError {
    message: Option<CString>,
    is_transient: bool,
}

/// Stores the message and transience of the error that a call on this thread is about to return.
pub(crate) fn set_last(failure: Failure) {
    let Failure { message, is_transient, .. } = failure;
    // A key may contain a NUL, and is part of messages.
    let message = CString::new(message.replace('\0', "\\0")).ok();
    // While a thread exits, its thread-locals are gone: the message is lost.
    let _ = LAST.try_with(|last| *last.borrow_mut() = LastError { message, is_transient });
}

/// Returns the message of the last error that a call on this thread returned: the operation, the server, and the cause.
/// UTF-8, without secrets; "" if there was no error.
///
/// The string belongs to the thread. It stays valid until the next call on this thread that returns an error,
/// independently of other threads. A forked child has the message of the thread that forked.
#[unsafe(no_mangle)]
pub extern "C" fn pfc_error_message() -> *const c_char {
    let message = |last: &RefCell<LastError>| last.borrow().message.as_ref().map(|message| message.as_ptr());
    LAST.try_with(message).ok().flatten().unwrap_or(c"".as_ptr())
}

/// Returns whether the call that caused the last error on this thread may succeed if it is made again later (1) or not
/// (0). 1 means that the server was not reached, did not respond in time, lost the connection, or refused temporarily.
/// The write of such a call may still have taken effect.
#[unsafe(no_mangle)]
pub extern "C" fn pfc_error_is_transient() -> c_int {
    LAST.try_with(|last| c_int::from(last.borrow().is_transient)).unwrap_or(0)
}
