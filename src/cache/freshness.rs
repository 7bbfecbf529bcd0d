//! The states of an entry: fresh, to be refreshed ahead, stale, gone.

use std::time::Duration;

use super::clock::Clock;
use crate::store::Ttl;

/// A time that does not come.
pub(super) const NEVER: u64 = u64::MAX;

/// From when on a value is in each of its states, in milliseconds since 1970, by the clock of whoever stored it.
///
/// Where it is never to be refreshed nor stale, its end is the store's to tell, and no clock is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) refresh_from: u64,
    pub(super) stale_from: u64,
    pub(super) expired_from: u64,
}

/// The state of a value that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    Fresh,
    /// Fresh, and due to be loaded anew.
    RefreshAhead,
    Stale,
    /// Stale, and not to be loaded anew yet, since that has just failed.
    RetryDelayed,
    /// Still in the store, which was told a later time, or rounded it up.
    Expired,
}

impl Times {
    /// Those of an entry that never expires.
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

    /// The same end, and stale from now on.
    pub(super) fn expired(self, clock: &Clock) -> Times {
        Times { refresh_from: NEVER, stale_from: clock.milliseconds(), ..self }
    }

    /// The same, and not due for another load before `pause` has passed.
    pub(super) fn put_off(self, pause: Duration, clock: &Clock) -> Times {
        let later = clock.milliseconds().saturating_add(crate::store::milliseconds_rounded_up(pause));
        // Never is no pause.
        Times { refresh_from: later.min(NEVER - 1), ..self }
    }

    /// How long the entry lives from now on, at least a millisecond.
    pub(super) fn ttl(self, clock: &Clock) -> Ttl {
        match self.expired_from {
            NEVER => Ttl::Never,
            expired_from => {
                let left = Duration::from_millis(expired_from.saturating_sub(clock.milliseconds()).max(1));
                // Whoever wrote the entry may have had a clock of its own, or none.
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
    fn an_age_begins_at_its_time() {
        let times = Times { refresh_from: 10, stale_from: 20, expired_from: 30 };
        let ages = [9, 10, 19, 20, 29, 30].map(|now| times.freshness_at(now));
        assert_eq!(
            ages,
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
        assert_eq!(plain.freshness(&clock), Freshness::Expired, "the store cannot know");
    }

    #[test]
    fn what_has_expired_is_stale_and_ends_when_it_did() {
        let clock = &Clock::manual();
        let times = Times { refresh_from: NEVER, stale_from: NEVER, expired_from: clock.milliseconds() + 60_000 };
        assert_eq!(times.expired(clock).freshness(clock), Freshness::Stale);
        assert_eq!(times.expired(clock).expired_from, times.expired_from);
        assert_eq!(Times::ALWAYS_FRESH.expired(clock).ttl(clock), Ttl::Never);
        assert_eq!(times.ttl(clock), Ttl::After(Duration::from_secs(60)));
    }

    #[test]
    fn what_is_put_off_is_fresh_for_a_while() {
        let (clock, minute) = (&Clock::manual(), Duration::from_secs(60));
        let stale = Times { refresh_from: 0, stale_from: 0, expired_from: NEVER };
        assert_eq!(stale.put_off(minute, clock).freshness(clock), Freshness::RetryDelayed);
        assert_eq!(stale.put_off(minute, clock).expired(clock).freshness(clock), Freshness::Stale);
        assert_eq!(Times { expired_from: NEVER - 1, ..stale }.ttl(clock), Ttl::After(Ttl::LONGEST));
        let ageing = Times { refresh_from: 0, stale_from: NEVER, expired_from: NEVER };
        let put_off = ageing.put_off(minute, clock);
        assert_eq!((put_off.freshness(clock), put_off.stale_from), (Freshness::Fresh, NEVER));
        clock.advance(minute);
        assert_eq!(
            (put_off.freshness(clock), stale.put_off(minute, clock).freshness(clock)),
            (Freshness::RefreshAhead, Freshness::RetryDelayed)
        );
    }
}
