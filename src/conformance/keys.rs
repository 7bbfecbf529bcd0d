//! Keys for checks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::store::Ttl;

/// The TTL of entries that must not expire during a check.
pub(super) const LONG: Ttl = Ttl::After(Duration::from_secs(600));

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Returns a key that no other run of any check uses, on any server.
pub(super) fn fresh(name: &str) -> String {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_nanos());
    format!("conformance:{}:{now}:{number}:{name}", std::process::id())
}
