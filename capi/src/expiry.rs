//! How long an entry lives.

use std::time::Duration;

use prefork_cache::Expiry;

use crate::entry::Failure;
use crate::status::pfc_status;

/// In the place of a time to live: the entry stays until it is deleted or evicted.
pub const PFC_NEVER: i64 = -1;

/// The longest time to live, a hundred years: more is refused.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 60 * 60);

/// How long a value that was loaded is fresh, and what happens then. All times are in milliseconds.
///
/// Members that are 0 mean nothing, but for the first. Where `stale_ms` or `refresh_ahead_ms` is set, the times are
/// stored with the value, in an envelope that only this library reads (pfc_get() does).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pfc_expiry {
    /// How long it is fresh, or PFC_NEVER. 0 is refused.
    pub ttl_ms: i64,
    /// After that, how long it goes on serving, while one caller loads it again, and as long as that fails.
    pub stale_ms: i64,
    /// In the last part of its fresh time, of this length, one caller loads it again while the others have the current
    /// one. Must be less than `ttl_ms`.
    pub refresh_ahead_ms: i64,
    /// Shortens the fresh time by a random part of up to this fraction, from 0 to 1, so that what was stored together
    /// does not end together.
    pub jitter: f64,
}

/// A time to live in milliseconds. Zero is refused by the operation that uses it.
#[inline]
pub(crate) fn ttl(milliseconds: i64) -> Result<Expiry, Failure> {
    match u64::try_from(milliseconds) {
        Ok(milliseconds) => Ok(Expiry::after(Duration::from_millis(milliseconds))),
        Err(_) if milliseconds == PFC_NEVER => Ok(Expiry::NEVER),
        Err(_) => Err(refused(format!("a TTL of {milliseconds} ms"))),
    }
}

impl pfc_expiry {
    pub(crate) fn to_rust(self) -> Result<Expiry, Failure> {
        let stale = part("stale_ms", self.stale_ms)?;
        let ahead = part("refresh_ahead_ms", self.refresh_ahead_ms)?;
        if self.ttl_ms > 0 && self.refresh_ahead_ms >= self.ttl_ms {
            let refresh_ahead_ms = self.refresh_ahead_ms;
            return Err(refused(format!("a refresh_ahead_ms of {refresh_ahead_ms}, which is not less than ttl_ms")));
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err(refused(format!("a jitter of {}, which is not between 0 and 1", self.jitter)));
        }
        if self.ttl_ms == 0 || u64::try_from(self.ttl_ms).is_ok_and(|time| Duration::from_millis(time) > LONGEST) {
            return Err(refused(format!("a ttl_ms of {}", self.ttl_ms)));
        }
        Ok(ttl(self.ttl_ms)?.stale_for(stale).refresh_ahead(ahead).jitter(self.jitter))
    }
}

fn part(name: &str, milliseconds: i64) -> Result<Duration, Failure> {
    let time = u64::try_from(milliseconds).ok().map(Duration::from_millis).filter(|time| *time <= LONGEST);
    time.ok_or_else(|| refused(format!("a {name} of {milliseconds}")))
}

fn refused(what: String) -> Failure {
    Failure::new(pfc_status::PFC_BAD_TTL, what)
}
