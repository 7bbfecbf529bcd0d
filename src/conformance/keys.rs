//! Keys of a check's own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::store::Ttl;

/// For entries that a check leaves behind.
pub(super) const LONG: Ttl = Ttl::After(Duration::from_secs(600));

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A key that no other run of any check uses, on whatever server.
pub(super) fn fresh(name: &str) -> String {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_nanos());
    format!("conformance:{}:{now}:{number}:{name}", std::process::id())
}
