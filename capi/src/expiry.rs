//! Expiries: times to live, staleness, refresh-ahead and jitter.

use std::time::Duration;

use prefork_cache::Expiry;

use crate::errors::Failure;
use crate::status::pfc_status;

/// A time to live without end: the entry stays until it is deleted or evicted.
pub const PFC_NEVER: i64 = -1;

/// The longest time to live, a hundred years. A longer one is refused.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 60 * 60);

/// How long a loaded value is fresh, when it is reloaded, and how long it may be returned stale. All times are in
/// milliseconds.
///
/// Every member except the first is off if it is 0. With `stale_ms` or `refresh_ahead_ms`, the times are stored with
/// the value, in an envelope that only this library reads (pfc_get() does).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pfc_expiry {
    /// How long the value is fresh, or PFC_NEVER. 0 is refused.
    pub ttl_ms: i64,
    /// How long after that it is returned stale, while one caller reloads it or while loading fails.
    pub stale_ms: i64,
    /// The last part of the fresh time, in which one caller reloads the value while the others get the current one.
    /// Must be less than `ttl_ms`.
    pub refresh_ahead_ms: i64,
    /// Shortens the fresh time by a random part of up to this fraction, from 0 to 1, so that entries that were stored
    /// together do not expire together.
    pub jitter: f64,
}

/// Returns the expiry of a time to live in milliseconds. The operation that uses it refuses zero.
#[inline]
pub(crate) fn ttl(milliseconds: i64) -> Result<Expiry, Failure> {
    match u64::try_from(milliseconds) {
        Ok(milliseconds) => Ok(Expiry::after(Duration::from_millis(milliseconds))),
        Err(_) if milliseconds == PFC_NEVER => Ok(Expiry::NEVER),
        Err(_) => Err(bad_ttl(format!("a TTL of {milliseconds} ms"))),
    }
}

impl pfc_expiry {
    pub(crate) fn to_rust(self) -> Result<Expiry, Failure> {
        let stale = duration("stale_ms", self.stale_ms)?;
        let ahead = duration("refresh_ahead_ms", self.refresh_ahead_ms)?;
        if self.ttl_ms > 0 && self.refresh_ahead_ms >= self.ttl_ms {
            let refresh_ahead_ms = self.refresh_ahead_ms;
            return Err(bad_ttl(format!("a refresh_ahead_ms of {refresh_ahead_ms}, which is not less than ttl_ms")));
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err(bad_ttl(format!("a jitter of {}, which is not between 0 and 1", self.jitter)));
        }
        if self.ttl_ms == 0 || u64::try_from(self.ttl_ms).is_ok_and(|time| Duration::from_millis(time) > LONGEST) {
            return Err(bad_ttl(format!("a ttl_ms of {}", self.ttl_ms)));
        }
        Ok(ttl(self.ttl_ms)?.stale_for(stale).refresh_ahead(ahead).jitter(self.jitter))
    }
}

fn duration(name: &str, milliseconds: i64) -> Result<Duration, Failure> {
    let time = u64::try_from(milliseconds).ok().map(Duration::from_millis).filter(|time| *time <= LONGEST);
    time.ok_or_else(|| bad_ttl(format!("a {name} of {milliseconds}")))
}

fn bad_ttl(message: String) -> Failure {
    Failure::new(pfc_status::PFC_BAD_TTL, message)
}
