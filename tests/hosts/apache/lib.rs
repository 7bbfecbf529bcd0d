//! Two functions for a host that loads and unloads its modules: a cache without tokio in a shared object.

#![expect(unsafe_code, reason = "functions that C calls by name")]

use std::ffi::{CStr, c_char};
use std::time::Duration;

use prefork_cache::{Cache, stores};

const NAME: &str = "counters";
const KEPT_FOR: Duration = Duration::from_secs(60);

/// Registers a cache on the store that `url` names, unless there is one: a host runs its configuration more than once in a
/// process. Answers whether there is one now.
///
/// # Safety
///
/// `url` must be a string that ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prefork_cache_register(url: *const c_char) -> bool {
    // SAFETY: as the caller has promised.
    let url = unsafe { CStr::from_ptr(url) };
    if Cache::named(NAME).is_none() {
        let Ok(store) = stores::from_url(&url.to_string_lossy()) else { return false };
        Cache::builder(store).name(NAME).register();
    }
    true
}

/// Counts one more under `key` and answers the count; -1 if it failed.
///
/// # Safety
///
/// `key` must be a string that ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prefork_cache_count(key: *const c_char) -> i64 {
    // SAFETY: as the caller has promised.
    let key = unsafe { CStr::from_ptr(key) };
    let counted = Cache::named(NAME).map(|cache| cache.blocking().increment(&key.to_string_lossy(), 1, KEPT_FOR));
    counted.and_then(Result::ok).unwrap_or(-1)
}
