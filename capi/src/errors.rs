//! What is said of errors: of the last one of a thread, and of those that no call returns.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{CString, c_char, c_int};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prefork_cache::Error;
use prefork_cache::lifecycle::ProcessLocal;
use serde_json::{Value, json};

use crate::entry::{Failure, entry, out};
use crate::status::{self, pfc_status};
use crate::value::pfc_value;

/// How many reports are kept.
const MOST: usize = 64;

thread_local! {
    static LAST: RefCell<Last> = const { RefCell::new(Last { message: None, is_transient: false }) };
}

struct Last {
    message: Option<CString>,
    is_transient: bool,
}

/// Keeps what is said of the error that a call of this thread is about to return.
pub(crate) fn keep(failure: Failure) {
    let Failure { message, is_transient, .. } = failure;
    // A key, say, may have one.
    let message = CString::new(message.replace('\0', "\\0")).ok();
    // In a thread that is ending there is no place for it.
    let _ = LAST.try_with(|last| *last.borrow_mut() = Last { message, is_transient });
}

/// What is to be said of the last error that a call on this thread has returned: what was being done, to which server,
/// and why it failed. UTF-8, without secrets; "" if there was none.
///
/// The string is the thread's: it stays until the next call on it that returns an error, whatever other threads do. A
/// forked child has that of the thread that forked.
#[unsafe(no_mangle)]
pub extern "C" fn pfc_error_message() -> *const c_char {
    let message = |last: &RefCell<Last>| last.borrow().message.as_ref().map(|message| message.as_ptr());
    LAST.try_with(message).ok().flatten().unwrap_or(c"".as_ptr())
}

/// Whether the same call may well succeed later (1) or not (0), after the last error on this thread: the server was not
/// reached, did not answer in time, lost the connection, or refused for the moment. It does not say that a write had no
/// effect.
#[unsafe(no_mangle)]
pub extern "C" fn pfc_error_is_transient() -> c_int {
    LAST.try_with(|last| c_int::from(last.borrow().is_transient)).unwrap_or(0)
}

static REPORTS: ProcessLocal<Mutex<Reports>> = ProcessLocal::new();

#[derive(Default)]
struct Reports {
    kept: VecDeque<Value>,
    dropped: u64,
}

fn reports() -> MutexGuard<'static, Reports> {
    REPORTS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes in an error that no call returns.
pub(crate) fn report(error: &Error) {
    let status = pfc_status::of(error.kind()) as i32;
    let report = json!({
        "cache": error.cache(),
        "verb": error.verb(),
        "status": status,
        "name": status::name(status).to_str().unwrap_or_default(),
        "is_transient": error.is_transient(),
        "message": format!("{error:#}"),
    });
    let mut reports = reports();
    if reports.kept.len() == MOST {
        reports.kept.pop_front();
        reports.dropped += 1;
    }
    reports.kept.push_back(report);
}

/// Hands out the errors that no call has returned, and forgets them: a fetch that could not store what was loaded, for
/// example. As JSON:
///
///     {"dropped": 0, "errors": [{"cache": "default", "verb": "fetch_begin", "status": -12, "name": "PFC_CONNECT",
///                                "is_transient": true, "message": "..."}]}
///
/// The last 64 of this process are kept, of all caches; `dropped` is how many there were before. A forked child begins
/// without any.
///
/// @param json  Set where PFC_OK is returned; to be freed with pfc_value_free().
/// @return PFC_OK, or PFC_MISS if there are none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_take_errors(json: *mut pfc_value) -> pfc_status {
    entry(|| {
        // SAFETY: as the comment says.
        let json = unsafe { out("value", json) }?;
        let Reports { kept, dropped } = std::mem::take(&mut *reports());
        if kept.is_empty() {
            *json = pfc_value::NONE;
            return Ok(pfc_status::PFC_MISS);
        }
        *json = pfc_value::of(json!({ "dropped": dropped, "errors": kept }).to_string());
        Ok(pfc_status::PFC_OK)
    })
}
