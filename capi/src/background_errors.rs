//! Errors that no call returns, such as a loaded value that could not be stored: kept for [`pfc_take_errors`].

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use prefork_cache::Error;
use prefork_cache::lifecycle::ProcessLocal;
use serde_json::{Value, json};

use crate::entry::{entry, out};
use crate::status::{self, pfc_status};
use crate::value::pfc_value;

/// The number of reports that are kept.
const CAPACITY: usize = 64;

static REPORTS: ProcessLocal<Mutex<Reports>> = ProcessLocal::new();

#[derive(Default)]
struct Reports {
    kept: VecDeque<Value>,
    dropped: u64,
}

fn reports() -> MutexGuard<'static, Reports> {
    REPORTS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Records an error that no call returns.
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
    if reports.kept.len() == CAPACITY {
        reports.kept.pop_front();
        reports.dropped += 1;
    }
    reports.kept.push_back(report);
}

/// Returns the errors that no call has returned, and clears the list. An example is a fetch that could not store the
/// loaded value. As JSON:
///
///     {"dropped": 0, "errors": [{"cache": "default", "verb": "fetch_begin", "status": -12, "name": "PFC_CONNECT",
///                                "is_transient": true, "message": "..."}]}
///
/// The last 64 errors of this process are kept, for all caches together; `dropped` counts older ones. A forked child
/// starts with an empty list.
///
/// @param json  Set if PFC_OK is returned; to be freed with pfc_value_free().
/// @return PFC_OK, or PFC_MISS if there are none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pfc_take_errors(json: *mut pfc_value) -> pfc_status {
    entry(|| {
        // SAFETY: the caller passes a valid pointer, as the comment requires.
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
