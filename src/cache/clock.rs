//! The clock by which values grow old.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// The clock by which the values of a cache are fresh, stale or gone, and are tried again after a load has failed; see
/// [`Builder::clock`](crate::Builder::clock). For tests: another one than the system's can be moved.
///
/// It is that of typed values. Raw bytes and counters end when their store has them end, and waits (for a load, for a
/// server) are in real time, or that of a tokio runtime whose clock is paused.
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
        /// In nanoseconds.
        moved: Arc<AtomicU64>,
    },
    #[cfg(feature = "tokio")]
    Tokio { start: SystemTime, begun: tokio::time::Instant },
}

impl Clock {
    /// The system's. The default.
    ///
    /// ```
    /// use prefork_cache::{Cache, Clock, stores::MemoryStore};
    ///
    /// let cache = Cache::builder(MemoryStore::new()).clock(Clock::system()).build();
    /// ```
    pub const fn system() -> Clock {
        Clock(Source::System)
    }

    /// One that begins now, and stands still unless it is [moved](Clock::advance). Its clones go with it; a forked child
    /// has its own.
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

    /// That of the tokio runtime in which a cache is used, made inside of it: with `start_paused`, or after
    /// `tokio::time::pause()`, `tokio::time::advance` and sleeping tasks move it.
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

    /// Moves a [manual](Clock::manual) clock, and its clones, forward.
    ///
    /// # Panics
    ///
    /// If it is not a manual one.
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

    /// What time it is.
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

    /// The same, in milliseconds since 1970.
    pub(super) fn milliseconds(&self) -> u64 {
        let since_1970 = self.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether it is the one by which a store has its entries end.
    #[inline]
    pub(super) fn is_the_stores(&self) -> bool {
        matches!(self.0, Source::System)
    }
}
