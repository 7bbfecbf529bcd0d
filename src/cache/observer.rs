//! Reports of failures that the caller does not see.
//!
//! `on_error` and the subscriber are code of the program, and may use the cache that has failed. Failures of their own
//! calls are counted but not reported, or reports would never end. Their fetches do not wait for other loads, since
//! they may be part of the load that is reported.

use std::cell::Cell;

use super::Observe;
use crate::error::Error;
use crate::execution::outside_inline;
use crate::telemetry;

thread_local! {
    static IS_REPORTING: Cell<bool> = const { Cell::new(false) };
}

pub(super) fn report(cache: &str, verb: &'static str, error: &Error, on_error: Option<&Observe>) {
    struct Reported;
    impl Drop for Reported {
        fn drop(&mut self) {
            IS_REPORTING.set(false);
        }
    }
    if IS_REPORTING.replace(true) {
        return;
    }
    let _reported = Reported;
    telemetry::failed(cache, verb, error);
    if let Some(on_error) = on_error {
        outside_inline(|| on_error(&error.with_origin(cache, verb)));
    }
}

/// Returns whether the running code is part of a report.
pub(super) fn is_reporting() -> bool {
    IS_REPORTING.get()
}
