//! The clock that decides about the freshness of values.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// The clock by which the values of a cache are fresh, stale or expired, and by which a failed load is retried; see
/// [`Builder::clock`](crate::Builder::clock). Tests can use a clock other than the system's, and move it.
///
/// It applies to typed values. Raw bytes and counters expire by the store's clock, and waits (for a load, for a server)
/// use real time, or the time of a tokio runtime whose clock is paused.
///
/// ```
/// use prefork_cache::{Cache, Clock, stores::MemoryStore};
/// use std::time::Duration;
///
/// let clock = Clock::manual();
/// let cache = Cache::builder(MemoryStore::new()).clock(clock.clone()).build();
/// cache.blocking().set("motd", "hello", Duration::from_secs(60))?;
/// clock.advance(Duration::from_secs(59));
/// assert!(cache.blocking().exists("motd")?);
/// clock.advance(Duration::from_secs(1));
/// assert!(!cache.blocking().exists("motd")?);
/// # Ok::<(), prefork_cache::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Clock(Source);

#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    System,
    Manual {
        start: SystemTime,
        /// Nanoseconds by which it was advanced.
        moved: Arc<AtomicU64>,
    },
    #[cfg(feature = "tokio")]
    Tokio { start: SystemTime, begun: tokio::time::Instant },
}

impl Clock {
    /// Returns the system's clock, the default.
    ///
    /// ```
    /// use prefork_cache::{Cache, Clock, stores::MemoryStore};
    ///
    /// let cache = Cache::builder(MemoryStore::new()).clock(Clock::system()).build();
    /// ```
    pub const fn system() -> Clock {
        Clock(Source::System)
    }

    /// Returns a clock that starts at the current time, and stands still until it is [advanced](Clock::advance). Its
    /// clones share the time; a forked child has its own.
    ///
    /// ```
    /// use prefork_cache::Clock;
    /// use std::time::Duration;
    ///
    /// let clock = Clock::manual();
    /// let before = clock.now();
    /// clock.advance(Duration::from_secs(60));
    /// assert_eq!(clock.now(), before + Duration::from_secs(60));
    /// ```
    pub fn manual() -> Clock {
        Clock(Source::Manual { start: SystemTime::now(), moved: Arc::default() })
    }

    /// Returns the clock of the current tokio runtime. Create it inside the runtime in which the cache is used. With
    /// `start_paused`, or after `tokio::time::pause()`, `tokio::time::advance` and sleeping tasks move it.
    ///
    /// ```
    /// use prefork_cache::{Cache, Clock, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
    /// let cache = Cache::builder(MemoryStore::new()).clock(Clock::tokio()).build();
    /// cache.set("motd", "hello", Duration::from_secs(60)).await?;
    /// tokio::time::sleep(Duration::from_secs(60)).await;
    /// assert_eq!(cache.get::<String>("motd").await?, None);
    /// # Ok::<(), prefork_cache::Error>(()) }).unwrap();
    /// ```
    #[cfg(feature = "tokio")]
    pub fn tokio() -> Clock {
        Clock(Source::Tokio { start: SystemTime::now(), begun: tokio::time::Instant::now() })
    }

    /// Advances a [manual](Clock::manual) clock, and its clones.
    ///
    /// # Panics
    ///
    /// If it is not a manual clock.
    ///
    /// ```
    /// use prefork_cache::Clock;
    /// use std::time::Duration;
    ///
    /// Clock::manual().advance(Duration::from_secs(60));
    /// ```
    pub fn advance(&self, by: Duration) {
        let Source::Manual { moved, .. } = &self.0 else { panic!("only a manual clock can be moved") };
        moved.fetch_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Returns the current time of the clock.
    ///
    /// ```
    /// use prefork_cache::Clock;
    ///
    /// assert!(Clock::system().now() >= std::time::SystemTime::UNIX_EPOCH);
    /// ```
    pub fn now(&self) -> SystemTime {
        match &self.0 {
            Source::System => SystemTime::now(),
            Source::Manual { start, moved } => *start + Duration::from_nanos(moved.load(Ordering::SeqCst)),
            #[cfg(feature = "tokio")]
            Source::Tokio { start, begun } => *start + begun.elapsed(),
        }
    }

    /// Returns the current time in milliseconds since 1970.
    pub(super) fn milliseconds(&self) -> u64 {
        let since_1970 = self.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns whether stores expire their entries by this clock.
    #[inline]
    pub(super) fn is_the_stores(&self) -> bool {
        matches!(self.0, Source::System)
    }
}
