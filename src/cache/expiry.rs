//! How long a value serves.
//!
//! A store knows one time, at which the entry is gone. The times before it, from which a value is refreshed ahead or counts
//! as stale, go along with the value, see [`envelope`](super::envelope).

use std::time::{Duration, SystemTime};

use super::clock::Clock;
use super::freshness::{NEVER, Times};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Ttl;

mod text;

/// How long a value serves: a [`Duration`] will do wherever one is asked for.
///
/// ```text
///  |<-------------- after -------------->|<- stale_for ->|
///  |                  |<- refresh_ahead ->|               |
///  |      fresh       |       ahead       |     stale     |  gone
/// ```
///
/// - *fresh*: it is what [`get`](crate::Cache::get) and [`fetch`](crate::Cache::fetch) return.
/// - *refreshed ahead*: it is fresh, and one fetch loads it anew.
/// - *stale*: reads still return it, and one fetch loads it anew. If the loader fails, it goes on serving.
/// - *gone*: it is a miss.
///
/// In a configuration it is a text, such as "60s, refresh_ahead=10s, stale_for=10m, jitter=0.1", read by
/// [`FromStr`](std::str::FromStr) and serde.
///
/// [Choosing an expiry](crate::guide::choosing_an_expiry) says which of them to use when. Stale and refreshed-ahead are
/// told by the clocks of the machines, in milliseconds: processes on several machines agree as well as their clocks do. They
/// are properties of typed values: bare bytes and counters are gone when their fresh time ends.
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
    /// That of the cache.
    Default,
    After(Duration),
    At(SystemTime),
}

/// An expiry that has begun: what the store is told, and what goes along with the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lifetime {
    pub(super) ttl: Ttl,
    /// What it is told of bare bytes, which have no stale time.
    pub(super) bare: Ttl,
    /// `None` for an entry that never expires.
    pub(super) times: Option<Times>,
}

impl Expiry {
    /// Until it is deleted or evicted. The value is fresh until it is [expired](crate::Cache::expire): the other settings
    /// mean nothing beside it.
    ///
    /// ```
    /// use prefork_cache::{Cache, Expiry, stores::MemoryStore};
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().set("motd", "hello", Expiry::NEVER)?;
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub const NEVER: Expiry = Expiry::new(End::Never);

    /// The cache's own, see [`Builder::default_expiry`](crate::Builder::default_expiry): the other settings mean nothing
    /// beside it. Where a cache has none, it is refused by the operation that uses it, with
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

    /// Fresh for this long, counted from the moment of storing.
    ///
    /// Zero, or more than a hundred years, is refused by the operation that uses it, with
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

    /// Fresh until this time, by this machine's clock.
    ///
    /// A time that is not in the future is refused by the operation that uses it, with
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

    /// After its fresh time the value goes on serving for this long, while one fetch loads it anew, and for as long as that
    /// fails. Defaults to zero: the value is gone when it is no longer fresh.
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

    /// In the last part of its fresh time, of this length, one fetch loads the value anew, while the others have the current
    /// one. A value that is asked for often enough is then never missed. Defaults to zero: never ahead.
    ///
    /// With [`Expiry::at`], where less than that is left, the whole fresh time is that last part.
    ///
    /// # Panics
    ///
    /// If it is not shorter than the fresh time of [`Expiry::after`], where every fetch would load. In a constant that is
    /// an error of the compiler.
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

    /// Shortens the fresh time by a random part of up to this fraction, drawn anew for each value that is stored, so that
    /// what was stored together does not end together. From 0 to 1; defaults to 0.
    ///
    /// The random numbers are the operating system's: forked workers draw different ones.
    ///
    /// # Panics
    ///
    /// If it is another number.
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

    /// The expiry of a value that is stored now.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidTtl`] for what the setters say they refuse.
    pub(super) fn begin(self, clock: &Clock) -> Result<Lifetime> {
        let Some(asked) = self.checked(clock)? else { return Ok(Lifetime::FOR_EVER) };
        let fresh = self.shortened(asked);
        let ttl = Ttl::After(fresh.saturating_add(self.stale_for));
        let times = self.times(fresh, ttl, clock)?;
        Ok(Lifetime { ttl, bare: Ttl::After(fresh), times: Some(times) })
    }

    /// The same for one of several values that are stored with one TTL, the longest: with jitter, each ends by its own times.
    pub(super) fn begin_among_others(self, clock: &Clock) -> Result<Lifetime> {
        let Some(asked) = self.checked(clock)? else { return Ok(Lifetime::FOR_EVER) };
        let fresh = self.shortened(asked);
        let mut times = self.times(fresh, Ttl::After(fresh.saturating_add(self.stale_for)), clock)?;
        if self.jitter > 0.0 {
            times.stale_from = times.stale_from.min(times.expired_from);
        }
        let ttl = Ttl::After(asked.saturating_add(self.stale_for));
        Ok(Lifetime { ttl, bare: Ttl::After(asked), times: Some(times) })
    }

    /// How long the value is to be fresh, before any jitter; `None` for ever.
    fn checked(self, clock: &Clock) -> Result<Option<Duration>> {
        let asked = match self.end {
            End::Never => return Ok(None),
            End::Default => return Err(refused("Expiry::DEFAULT of a cache without a default_expiry".to_owned())),
            End::After(duration) => duration,
            End::At(time) => time.duration_since(clock.now()).map_err(|past| in_the_past(past.duration()))?,
        };
        Ttl::After(asked).duration()?;
        Ok(Some(asked))
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
    /// What is given, or the default for what is given as such.
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
    const FOR_EVER: Lifetime = Lifetime { ttl: Ttl::Never, bare: Ttl::Never, times: None };
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

/// From 0 to 1. Asked of the system each time: a generator of this process's own would come through a fork, and every
/// sibling would draw the same.
fn random_fraction() -> f64 {
    // A system without a source of random numbers is no reason to refuse a value.
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
    fn the_store_is_told_when_the_stale_time_ends() {
        assert_eq!(Expiry::NEVER.begin(&Clock::system()).unwrap(), Lifetime::FOR_EVER);
        assert_eq!(Expiry::after(MINUTE).begin(&Clock::system()).unwrap().ttl, Ttl::After(MINUTE));
        let stale = Expiry::after(MINUTE).stale_for(MINUTE).begin(&Clock::system()).unwrap();
        assert_eq!((stale.ttl, stale.bare), (Ttl::After(2 * MINUTE), Ttl::After(MINUTE)));
        let at =
            Expiry::at(SystemTime::now() + MINUTE).begin(&Clock::system()).unwrap().ttl.duration().unwrap().unwrap();
        assert!(at <= MINUTE, "{at:?}");
    }

    #[test]
    fn the_times_follow_each_other() {
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
        assert_eq!((plain.refresh_from, plain.stale_from), (NEVER, NEVER), "no clock is asked when it is read");
    }

    #[test]
    fn jitter_shortens_the_fresh_time_alone() {
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
    fn several_values_with_one_ttl_end_each_at_its_own_time() {
        let expiry = Expiry::after(MINUTE).jitter(0.5);
        let lifetimes: Vec<Lifetime> = (0..100).map(|_| expiry.begin_among_others(&Clock::system()).unwrap()).collect();
        assert!(lifetimes.iter().all(|lifetime| lifetime.ttl == Ttl::After(MINUTE)));
        let mut ends: Vec<u64> = lifetimes.iter().map(|lifetime| lifetime.times.unwrap().stale_from).collect();
        assert!(lifetimes.iter().all(|lifetime| lifetime.times.unwrap().expired_from <= ends[0] + 60_000));
        ends.sort_unstable();
        ends.dedup();
        assert!(ends.len() > 50, "{} of 100 differ", ends.len());
        let plain = Expiry::after(MINUTE).begin_among_others(&Clock::system()).unwrap().times.unwrap();
        assert_eq!(plain.stale_from, NEVER);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
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
