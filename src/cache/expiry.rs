//! [`Expiry`]: how long a value is fresh, and what follows.
//!
//! A store has one TTL, at whose end the entry is gone. The earlier times, at which a value is refreshed ahead or
//! becomes stale, are stored with the value, see [`envelope`](super::envelope).

use std::time::{Duration, SystemTime};

use super::clock::Clock;
use super::freshness::{NEVER, Times};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Ttl;

mod from_str;

/// How long a value is fresh, and what follows. A [`Duration`] converts to an `Expiry`.
///
/// ```text
///  |<-------------- after -------------->|<- stale_for ->|
///  |                  |<- refresh_ahead ->|               |
///  |      fresh       | refresh-ahead     |     stale     |  expired
/// ```
///
/// - *fresh*: [`get`](crate::Cache::get) and [`fetch`](crate::Cache::fetch) return it.
/// - *refresh-ahead*: reads return it, and one fetch reloads it.
/// - *stale*: reads still return it, and one fetch reloads it. If the loader fails, reads go on returning it.
/// - *expired*: it is a miss.
///
/// In a configuration it is a string, such as "60s, refresh_ahead=10s, stale_for=10m, jitter=0.1", parsed by
/// [`FromStr`](std::str::FromStr) and serde.
///
/// [Choosing an expiry](crate::guide::choosing_an_expiry) explains when to use which. Refresh-ahead and stale times are
/// compared with the clock of the reading machine, in milliseconds: processes on several machines agree as well as
/// their clocks do. They apply to typed values. Raw bytes and counters expire when their fresh time ends.
///
/// ```
/// use prefork_cache::{Cache, Expiry, stores::MemoryStore};
/// use std::time::Duration;
///
/// let cache = Cache::builder(MemoryStore::new()).build();
/// let expiry = Expiry::after(Duration::from_secs(60))
///     .refresh_ahead(Duration::from_secs(10))
///     .stale_for(Duration::from_secs(600))
///     .jitter(0.1);
/// let load = || Ok::<_, std::io::Error>("hello".to_owned());
/// assert_eq!(cache.blocking().fetch("motd", expiry, load)?, "hello");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Expiry {
    end: End,
    refresh_ahead: Duration,
    stale_for: Duration,
    jitter: f64,
}

/// When a value is no longer fresh.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Never,
    /// The default expiry of the cache.
    Default,
    After(Duration),
    At(SystemTime),
}

/// An expiry counted from a fixed time: the TTL for the store, and the times stored with the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lifetime {
    pub(super) ttl: Ttl,
    /// TTL of raw bytes, which have no stale time.
    pub(super) raw_ttl: Ttl,
    /// `None` for an entry that never expires.
    pub(super) times: Option<Times>,
}

impl Expiry {
    /// Never expires: the value stays until it is deleted or evicted. It is fresh until it is
    /// [expired](crate::Cache::expire) explicitly. The other settings have no effect on it.
    ///
    /// ```
    /// use prefork_cache::{Cache, Expiry, stores::MemoryStore};
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().set("motd", "hello", Expiry::NEVER)?;
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub const NEVER: Expiry = Expiry::new(End::Never);

    /// The default of the cache, see [`Builder::default_expiry`](crate::Builder::default_expiry). The other settings
    /// have no effect on it. On a cache without a default, an operation that uses it fails with
    /// [`ErrorKind::InvalidTtl`](crate::ErrorKind::InvalidTtl).
    ///
    /// ```
    /// use prefork_cache::{Cache, Expiry, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).default_expiry(Duration::from_secs(60)).build();
    /// cache.blocking().set("motd", "hello", Expiry::DEFAULT)?;
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub const DEFAULT: Expiry = Expiry::new(End::Default);

    /// Returns an expiry that is fresh for this long, counted from when the value is stored.
    ///
    /// An operation that uses a duration of zero, or of more than a hundred years, fails with
    /// [`ErrorKind::InvalidTtl`](crate::ErrorKind::InvalidTtl).
    ///
    /// ```
    /// use prefork_cache::Expiry;
    /// use std::time::Duration;
    ///
    /// assert_eq!(Expiry::after(Duration::from_secs(60)), Duration::from_secs(60).into());
    /// ```
    pub const fn after(duration: Duration) -> Expiry {
        Expiry::new(End::After(duration))
    }

    /// Returns an expiry that is fresh until this time, by this machine's clock.
    ///
    /// An operation that uses a time that is not in the future fails with
    /// [`ErrorKind::InvalidTtl`](crate::ErrorKind::InvalidTtl).
    ///
    /// ```
    /// use prefork_cache::{Cache, ErrorKind, Expiry, stores::MemoryStore};
    /// use std::time::{Duration, SystemTime};
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let in_an_hour = SystemTime::now() + Duration::from_secs(3_600);
    /// cache.blocking().set("motd", "hello", Expiry::at(in_an_hour))?;
    /// let refused = cache.blocking().set("motd", "hello", Expiry::at(SystemTime::UNIX_EPOCH)).unwrap_err();
    /// assert_eq!(refused.kind(), ErrorKind::InvalidTtl);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub const fn at(time: SystemTime) -> Expiry {
        Expiry::new(End::At(time))
    }

    /// Keeps the value for this long after its fresh time. Reads return it while one fetch reloads it, and while
    /// reloading fails. Defaults to zero: the value expires when it is no longer fresh.
    ///
    /// # Panics
    ///
    /// If it is more than a hundred years.
    ///
    /// ```
    /// use prefork_cache::{Cache, Expiry, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let cache = cache.blocking();
    /// let expiry = Expiry::after(Duration::from_secs(60)).stale_for(Duration::from_secs(3_600));
    /// cache.set("motd", "yesterday's", expiry)?;
    /// cache.expire("motd")?;
    /// let motd: String = cache.fetch("motd", expiry, || Err("the database is down"))?;
    /// assert_eq!(motd, "yesterday's");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn stale_for(self, duration: Duration) -> Expiry {
        assert!(duration.as_secs() <= Ttl::LONGEST.as_secs(), "a stale_for of more than a hundred years");
        Expiry { stale_for: duration, ..self }
    }

    /// Sets the length of the last part of the fresh time, in which one fetch reloads the value while the others get
    /// the current one. A value that is read often enough is then never a miss. Defaults to zero: the value is not
    /// reloaded ahead.
    ///
    /// With [`Expiry::at`], if less time than this is left, that part is the whole fresh time.
    ///
    /// # Panics
    ///
    /// If it is not shorter than the fresh time of [`Expiry::after`], where every fetch would load. In a constant this
    /// is a compile error.
    ///
    /// ```
    /// use prefork_cache::Expiry;
    /// use std::time::Duration;
    ///
    /// const EXPIRY: Expiry = Expiry::after(Duration::from_secs(60)).refresh_ahead(Duration::from_secs(6));
    /// ```
    #[must_use]
    pub const fn refresh_ahead(self, duration: Duration) -> Expiry {
        if let End::After(fresh) = self.end {
            assert!(
                fresh.is_zero() || duration.as_nanos() < fresh.as_nanos(),
                "a refresh_ahead that is not shorter than the time that the value is fresh"
            );
        }
        Expiry { refresh_ahead: duration, ..self }
    }

    /// Shortens the fresh time by a random part of up to this fraction, so that values stored together do not expire
    /// together. A new part is drawn for each stored value. From 0 to 1; defaults to 0.
    ///
    /// The random numbers come from the operating system, so forked workers draw different ones.
    ///
    /// # Panics
    ///
    /// If it is not between 0 and 1.
    ///
    /// ```
    /// use prefork_cache::Expiry;
    /// use std::time::Duration;
    ///
    /// // Fresh for 54 to 60 seconds.
    /// let expiry = Expiry::after(Duration::from_secs(60)).jitter(0.1);
    /// ```
    #[must_use]
    pub const fn jitter(self, fraction: f64) -> Expiry {
        assert!(fraction >= 0.0 && fraction <= 1.0, "a jitter that is not between 0 and 1");
        Expiry { jitter: fraction, ..self }
    }

    const fn new(end: End) -> Expiry {
        Expiry { end, refresh_ahead: Duration::ZERO, stale_for: Duration::ZERO, jitter: 0.0 }
    }

    /// Returns the lifetime of a value that is stored now.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidTtl`] for a duration or time that the constructors document as refused.
    pub(super) fn begin(self, clock: &Clock) -> Result<Lifetime> {
        let Some(requested) = self.checked(clock)? else { return Ok(Lifetime::UNLIMITED) };
        let fresh = self.shortened(requested);
        let ttl = Ttl::After(fresh.saturating_add(self.stale_for));
        let times = self.times(fresh, ttl, clock)?;
        Ok(Lifetime { ttl, raw_ttl: Ttl::After(fresh), times: Some(times) })
    }

    /// [`begin`](Expiry::begin) for one of several values stored with one TTL, the longest. With jitter, each value
    /// ends by its own times.
    pub(super) fn begin_in_batch(self, clock: &Clock) -> Result<Lifetime> {
        let Some(requested) = self.checked(clock)? else { return Ok(Lifetime::UNLIMITED) };
        let fresh = self.shortened(requested);
        let mut times = self.times(fresh, Ttl::After(fresh.saturating_add(self.stale_for)), clock)?;
        if self.jitter > 0.0 {
            times.stale_from = times.stale_from.min(times.expired_from);
        }
        let ttl = Ttl::After(requested.saturating_add(self.stale_for));
        Ok(Lifetime { ttl, raw_ttl: Ttl::After(requested), times: Some(times) })
    }

    /// Returns how long the value is fresh, before jitter; `None` if it never expires.
    fn checked(self, clock: &Clock) -> Result<Option<Duration>> {
        let requested = match self.end {
            End::Never => return Ok(None),
            End::Default => return Err(refused("Expiry::DEFAULT of a cache without a default_expiry".to_owned())),
            End::After(duration) => duration,
            End::At(time) => time.duration_since(clock.now()).map_err(|past| in_the_past(past.duration()))?,
        };
        Ttl::After(requested).duration()?;
        Ok(Some(requested))
    }

    fn shortened(self, fresh: Duration) -> Duration {
        if self.jitter == 0.0 {
            return fresh;
        }
        fresh.mul_f64(1.0 - self.jitter * random_fraction()).max(Duration::from_millis(1))
    }

    fn times(self, fresh: Duration, ttl: Ttl, clock: &Clock) -> Result<Times> {
        let now = clock.milliseconds();
        let from = |duration| now.saturating_add(crate::store::milliseconds_rounded_up(duration));
        Ok(Times {
            refresh_from: match self.refresh_ahead {
                Duration::ZERO => NEVER,
                ahead => from(fresh.saturating_sub(ahead)),
            },
            stale_from: if self.stale_for.is_zero() { NEVER } else { from(fresh) },
            expired_from: ttl.duration()?.map_or(NEVER, from),
        })
    }
}

impl Expiry {
    /// Returns `default` in place of [`Expiry::DEFAULT`], and else `self`.
    pub(super) fn or_default(self, default: Option<Expiry>) -> Expiry {
        if self.end == End::Default { default.unwrap_or(self) } else { self }
    }
}

impl Default for Expiry {
    fn default() -> Expiry {
        Expiry::DEFAULT
    }
}

impl Lifetime {
    const UNLIMITED: Lifetime = Lifetime { ttl: Ttl::Never, raw_ttl: Ttl::Never, times: None };
}

impl From<Duration> for Expiry {
    fn from(duration: Duration) -> Expiry {
        Expiry::after(duration)
    }
}

impl From<Ttl> for Expiry {
    fn from(ttl: Ttl) -> Expiry {
        match ttl {
            Ttl::Never => Expiry::NEVER,
            Ttl::After(duration) => Expiry::after(duration),
        }
    }
}

/// Returns a random number from 0 to 1. It comes from the operating system each time: a forked child would inherit the
/// state of a generator in this process, and all siblings would draw the same numbers.
fn random_fraction() -> f64 {
    // Where the system has no random numbers, the value is stored without jitter.
    let bits = getrandom::u32().unwrap_or(0);
    f64::from(bits) / f64::from(u32::MAX)
}

#[cold]
fn in_the_past(by: Duration) -> Error {
    refused(format!("an expiry at a time that passed {by:?} ago"))
}

#[cold]
fn refused(context: String) -> Error {
    Error::new(ErrorKind::InvalidTtl, context)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::super::freshness::NEVER;
    use super::{Clock, Expiry, Lifetime};
    use crate::error::ErrorKind;
    use crate::store::Ttl;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn the_ttl_of_the_store_includes_the_stale_time() {
        assert_eq!(Expiry::NEVER.begin(&Clock::system()).unwrap(), Lifetime::UNLIMITED);
        assert_eq!(Expiry::after(MINUTE).begin(&Clock::system()).unwrap().ttl, Ttl::After(MINUTE));
        let stale = Expiry::after(MINUTE).stale_for(MINUTE).begin(&Clock::system()).unwrap();
        assert_eq!((stale.ttl, stale.raw_ttl), (Ttl::After(2 * MINUTE), Ttl::After(MINUTE)));
        let at =
            Expiry::at(SystemTime::now() + MINUTE).begin(&Clock::system()).unwrap().ttl.duration().unwrap().unwrap();
        assert!(at <= MINUTE, "{at:?}");
    }

    #[test]
    fn refresh_stale_and_expired_times_are_in_order() {
        let times = Expiry::after(6 * MINUTE)
            .refresh_ahead(MINUTE)
            .stale_for(4 * MINUTE)
            .begin(&Clock::system())
            .unwrap()
            .times
            .unwrap();
        assert_eq!(times.stale_from - times.refresh_from, 60_000);
        assert_eq!(times.expired_from - times.stale_from, 240_000);
        let plain = Expiry::after(MINUTE).begin(&Clock::system()).unwrap().times.unwrap();
        assert_eq!((plain.refresh_from, plain.stale_from), (NEVER, NEVER), "a read needs no clock");
    }

    #[test]
    fn jitter_shortens_only_the_fresh_time() {
        let mut seen = Vec::new();
        for _ in 0..100 {
            let Lifetime { ttl, times, .. } =
                Expiry::after(MINUTE).stale_for(MINUTE).jitter(0.5).begin(&Clock::system()).unwrap();
            let lives = ttl.duration().unwrap().unwrap();
            assert!((90 * Duration::from_secs(1)..=2 * MINUTE).contains(&lives), "{lives:?}");
            let times = times.unwrap();
            assert!((59_999..=60_001).contains(&(times.expired_from - times.stale_from)), "{times:?}");
            seen.push(lives);
        }
        seen.sort();
        seen.dedup();
        assert!(seen.len() > 50, "{} of 100 differ", seen.len());
    }

    #[test]
    fn values_with_one_ttl_and_jitter_end_at_different_times() {
        let expiry = Expiry::after(MINUTE).jitter(0.5);
        let lifetimes: Vec<Lifetime> = (0..100).map(|_| expiry.begin_in_batch(&Clock::system()).unwrap()).collect();
        assert!(lifetimes.iter().all(|lifetime| lifetime.ttl == Ttl::After(MINUTE)));
        let mut ends: Vec<u64> = lifetimes.iter().map(|lifetime| lifetime.times.unwrap().stale_from).collect();
        assert!(lifetimes.iter().all(|lifetime| lifetime.times.unwrap().expired_from <= ends[0] + 60_000));
        ends.sort_unstable();
        ends.dedup();
        assert!(ends.len() > 50, "{} of 100 differ", ends.len());
        let plain = Expiry::after(MINUTE).begin_in_batch(&Clock::system()).unwrap().times.unwrap();
        assert_eq!(plain.stale_from, NEVER);
    }

    #[test]
    fn an_invalid_expiry_is_refused() {
        let text = |expiry: Expiry| {
            let error = expiry.begin(&Clock::system()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidTtl);
            error.to_string()
        };
        assert!(text(Expiry::after(Duration::ZERO)).starts_with("a TTL of zero"));
        assert!(text(Expiry::after(Duration::MAX)).contains("hundred years"));
        assert!(text(Expiry::at(SystemTime::UNIX_EPOCH)).starts_with("an expiry at a time that passed"));
    }
}
