//! Telling of failures that no caller hears of.
//!
//! Whoever is told is somebody else's code, which may use the very cache that has failed. What fails for it meanwhile is
//! counted and not told, or there would be no end to it; and its fetches wait for nobody, since they may be part of the
//! load that is told of.

use std::cell::Cell;

use super::Observe;
use crate::error::Error;
use crate::net::lifted;
use crate::telemetry;

thread_local! {
    static IS_TELLING: Cell<bool> = const { Cell::new(false) };
}

pub(super) fn tell(cache: &str, verb: &'static str, error: &Error, on_error: Option<&Observe>) {
    struct Told;
    impl Drop for Told {
        fn drop(&mut self) {
            IS_TELLING.set(false);
        }
    }
    if IS_TELLING.replace(true) {
        return;
    }
    let _told = Told;
    telemetry::failed(cache, verb, error);
    if let Some(on_error) = on_error {
        lifted(|| on_error(&error.with_origin(cache, verb)));
    }
}

/// Whether this is the code of somebody who is told.
pub(super) fn is_telling() -> bool {
    IS_TELLING.get()
}
