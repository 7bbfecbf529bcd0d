//! The states of an entry: fresh, refresh-ahead, stale, expired.

use std::time::Duration;

use super::clock::Clock;
use crate::store::Ttl;

/// A time that is never reached.
pub(super) const NEVER: u64 = u64::MAX;

/// The times at which a value changes its state, in milliseconds since 1970, by the clock of the process that stored
/// it.
///
/// If a value is never refreshed ahead nor stale, the store expires it, and no clock is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) refresh_from: u64,
    pub(super) stale_from: u64,
    pub(super) expired_from: u64,
}

/// The state of an existing value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    Fresh,
    /// Fresh, and due for a reload.
    RefreshAhead,
    Stale,
    /// Stale, and not to be reloaded yet, since the last attempt has failed.
    RetryDelayed,
    /// Expired, but still in the store, whose TTL was longer or was rounded up.
    Expired,
}

impl Times {
    /// The times of an entry that never expires.
    pub(super) const ALWAYS_FRESH: Times = Times { refresh_from: NEVER, stale_from: NEVER, expired_from: NEVER };

    #[inline]
    pub(super) fn freshness(self, clock: &Clock) -> Freshness {
        if self.refresh_from == NEVER && self.stale_from == NEVER && clock.is_the_stores() {
            Freshness::Fresh
        } else {
            self.freshness_at(clock.milliseconds())
        }
    }

    fn freshness_at(self, now: u64) -> Freshness {
        if now >= self.expired_from {
            Freshness::Expired
        } else if now >= self.stale_from {
            if self.refresh_from != NEVER && now < self.refresh_from {
                Freshness::RetryDelayed
            } else {
                Freshness::Stale
            }
        } else if now >= self.refresh_from {
            Freshness::RefreshAhead
        } else {
            Freshness::Fresh
        }
    }

    /// Returns the times of a value that is stale from now on, with the same end.
    pub(super) fn expired(self, clock: &Clock) -> Times {
        Times { refresh_from: NEVER, stale_from: clock.milliseconds(), ..self }
    }

    /// Returns the times of a value that is not reloaded before `pause` has passed, with the same end.
    pub(super) fn with_retry_delay(self, pause: Duration, clock: &Clock) -> Times {
        let later = clock.milliseconds().saturating_add(crate::store::milliseconds_rounded_up(pause));
        // `NEVER` would mean that no reload was delayed.
        Times { refresh_from: later.min(NEVER - 1), ..self }
    }

    /// Returns how long the entry lives from now on, at least a millisecond.
    pub(super) fn ttl(self, clock: &Clock) -> Ttl {
        match self.expired_from {
            NEVER => Ttl::Never,
            expired_from => {
                let left = Duration::from_millis(expired_from.saturating_sub(clock.milliseconds()).max(1));
                // Another clock than this one may have set the time.
                Ttl::After(left.min(Ttl::LONGEST))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Clock, Freshness, NEVER, Times};
    use crate::store::Ttl;

    #[test]
    fn a_state_begins_at_its_time() {
        let times = Times { refresh_from: 10, stale_from: 20, expired_from: 30 };
        let states = [9, 10, 19, 20, 29, 30].map(|now| times.freshness_at(now));
        assert_eq!(
            states,
            [
                Freshness::Fresh,
                Freshness::RefreshAhead,
                Freshness::RefreshAhead,
                Freshness::Stale,
                Freshness::Stale,
                Freshness::Expired
            ]
        );
        assert_eq!(Times::ALWAYS_FRESH.freshness(&Clock::system()), Freshness::Fresh);
        let clock = Clock::manual();
        let plain = Times { expired_from: clock.milliseconds() + 1, ..Times::ALWAYS_FRESH };
        assert_eq!(plain.freshness(&clock), Freshness::Fresh);
        clock.advance(Duration::from_millis(1));
        assert_eq!(plain.freshness(&clock), Freshness::Expired, "the store has another clock");
    }

    #[test]
    fn an_expired_value_is_stale_and_keeps_its_end() {
        let clock = &Clock::manual();
        let times = Times { refresh_from: NEVER, stale_from: NEVER, expired_from: clock.milliseconds() + 60_000 };
        assert_eq!(times.expired(clock).freshness(clock), Freshness::Stale);
        assert_eq!(times.expired(clock).expired_from, times.expired_from);
        assert_eq!(Times::ALWAYS_FRESH.expired(clock).ttl(clock), Ttl::Never);
        assert_eq!(times.ttl(clock), Ttl::After(Duration::from_secs(60)));
    }

    #[test]
    fn a_value_with_a_retry_delay_is_not_reloaded() {
        let (clock, minute) = (&Clock::manual(), Duration::from_secs(60));
        let stale = Times { refresh_from: 0, stale_from: 0, expired_from: NEVER };
        assert_eq!(stale.with_retry_delay(minute, clock).freshness(clock), Freshness::RetryDelayed);
        assert_eq!(stale.with_retry_delay(minute, clock).expired(clock).freshness(clock), Freshness::Stale);
        assert_eq!(Times { expired_from: NEVER - 1, ..stale }.ttl(clock), Ttl::After(Ttl::LONGEST));
        let refreshable = Times { refresh_from: 0, stale_from: NEVER, expired_from: NEVER };
        let delayed = refreshable.with_retry_delay(minute, clock);
        assert_eq!((delayed.freshness(clock), delayed.stale_from), (Freshness::Fresh, NEVER));
        clock.advance(minute);
        assert_eq!(
            (delayed.freshness(clock), stale.with_retry_delay(minute, clock).freshness(clock)),
            (Freshness::RefreshAhead, Freshness::RetryDelayed)
        );
    }
}
