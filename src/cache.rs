//! The [`Cache`] handle.

use std::any::type_name;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::{ProcessLocal, Registration, Registry};
use crate::store::{CacheStore, Ttl};
use crate::sync::Lock;
use background::Background;

use envelope::Header;
use expiry::Lifetime;
use fetch::Flights;
use fork_guard::fork_guarded;
use freshness::{Freshness, Times};
use key::{KeyBuffer, Prefix};
use stats::Counters;
use value::{Decoded, NoValue};

pub use blocking::Blocking;
pub use builder::Builder;
pub use clock::Clock;
pub use codec::Codec;
pub use expiry::Expiry;
pub use fetch::{Begun, Claim, Loaded, LockGuard};
pub use octets::Octets;
pub use resumable::Resumable;
pub use stats::Stats;

// The public methods, in the order of the documentation. Separate items, or rustfmt would sort them.
mod handle;

mod fetch;

mod entry;

mod update;

mod touch;

mod delete;

mod counter;

mod batch;

mod background;
mod blocking;
mod builder;
mod bytes_as_numbers;
mod clock;
mod codec;
mod compression;
mod envelope;
mod expiry;
mod fork_guard;
mod freshness;
mod key;
mod observer;
mod octets;
mod resumable;
mod round_trip;
mod shared;
mod stats;
mod value;
mod wait_clock;

/// All registered caches, with their names.
static CACHES: Registry<(String, Cache)> = Registry::new();

/// Longer waits would overflow the clock.
const LONGEST_WAIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Typed values in a [store](crate::stores), usable in any process, forked or not.
///
/// A handle is cheap to clone, and all clones use the same store. Values are encoded as MessagePack, unless the
/// [builder](Cache::builder) sets another codec. An envelope around each value distinguishes it from what other
/// programs write. An entry that does not decode to the wanted type is a miss.
///
/// The methods are asynchronous inside a tokio runtime (which needs its I/O and time drivers: `enable_all`). Through
/// [`blocking`](Cache::blocking), and where there is no runtime, they run inline on the calling thread. Every wait for
/// a server is bounded by the store's timeouts.
///
/// - Handles: [`register`](Cache::register), [`builder`](Cache::builder), [`named`](Cache::named),
///   [`unregister`](Cache::unregister), [`name`](Cache::name). Derived handles: [`namespace`](Cache::namespace),
///   [`version`](Cache::version), [`force`](Cache::force), [`soft_timeout`](Cache::soft_timeout),
///   [`blocking`](Cache::blocking).
/// - Read, or load and store: [`fetch`](Cache::fetch), [`fetch_loaded`](Cache::fetch_loaded),
///   [`fetch_raw`](Cache::fetch_raw), [`fetch_shared`](Cache::fetch_shared), [`fetch_detached`](Cache::fetch_detached),
///   [`fetch_many`](Cache::fetch_many), [`fetch_many_loaded`](Cache::fetch_many_loaded). In two steps, without a
///   closure: [`fetch_begin`](Cache::fetch_begin), [`fetch_raw_begin`](Cache::fetch_raw_begin).
/// - One entry: [`get`](Cache::get), [`get_shared`](Cache::get_shared), [`set`](Cache::set), [`add`](Cache::add),
///   [`replace`](Cache::replace), [`update`](Cache::update), [`take`](Cache::take), [`touch`](Cache::touch),
///   [`expire`](Cache::expire), [`expires_in`](Cache::expires_in), [`exists`](Cache::exists),
///   [`delete`](Cache::delete).
/// - Raw bytes, for other programs: [`get_raw`](Cache::get_raw), [`set_raw`](Cache::set_raw),
///   [`add_raw`](Cache::add_raw), [`append`](Cache::append).
/// - Counters: [`increment`](Cache::increment), [`decrement`](Cache::decrement), [`counter`](Cache::counter).
/// - Many entries in one round trip: [`get_many`](Cache::get_many), [`get_many_raw`](Cache::get_many_raw),
///   [`set_many`](Cache::set_many), [`delete_many`](Cache::delete_many). All entries of a namespace:
///   [`clear`](Cache::clear).
/// - Locks among processes: [`lock`](Cache::lock).
/// - Connections: [`reset`](Cache::reset), [`reconnect`](Cache::reconnect), [`stats`](Cache::stats). Memory
///   before a fork: [`freeze`](Cache::freeze). Shutdown: [`close`](Cache::close).
///
/// # Cancel safety
///
/// Any future of this type may be dropped at any time. Its operation has then taken effect or not. Later operations are
/// not affected.
///
/// # Examples
///
/// ```
/// use prefork_cache::{Cache, stores::MemoryStore};
/// use std::time::Duration;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let cache = Cache::builder(MemoryStore::new()).namespace("shop").build();
/// let price: u32 = cache.fetch("price:1", Duration::from_secs(60), async || Ok::<_, std::io::Error>(100)).await?;
/// assert_eq!(price, 100);
/// assert_eq!(cache.get::<u32>("price:1").await?, Some(100));
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct Cache {
    shared: Arc<Shared>,
    prefix: Prefix,
    version: Option<Arc<str>>,
    is_forced: bool,
    #[cfg_attr(not(feature = "tokio"), expect(dead_code, reason = "only a detached fetch waits for so long"))]
    soft_timeout: Duration,
    /// Timeout of each exchange, in place of the store's.
    timeout: Option<Duration>,
    /// Load timeout of this handle, in place of the builder's.
    load_timeout: Option<Duration>,
}

/// State that all clones of a cache share.
struct Shared {
    store: Arc<dyn CacheStore>,
    registration: Registration,
    settings: Settings,
    clock: Clock,
    on_error: Option<Observe>,
    local: ProcessLocal<Local>,
}

/// Settings of the builder.
#[derive(Clone, Copy, Debug)]
struct Settings {
    codec: Codec,
    default_expiry: Option<Expiry>,
    compress_above: Option<usize>,
    max_inflated: usize,
    fetch_wait: Duration,
    load_timeout: Duration,
    lease: Duration,
    load_retry_delay: Duration,
}

/// Called with failures that the caller does not see.
type Observe = Box<dyn Fn(&Error) + Send + Sync>;

/// State of one process.
struct Local {
    counters: Counters,
    flights: Arc<Flights>,
    /// Whether the store has refused a lease.
    has_no_leases: AtomicBool,
    /// Types that a read failed to decode, each reported once.
    unread: Lock<HashSet<(&'static str, NoValue)>>,
    background: Arc<Background>,
}

impl Local {
    fn new(store: &dyn CacheStore) -> Local {
        Local {
            counters: Counters::default(),
            flights: Flights::of(store),
            has_no_leases: AtomicBool::new(false),
            unread: Lock::new("unread types", HashSet::new()),
            background: Background::new(),
        }
    }

    fn has_no_leases(&self) -> bool {
        self.has_no_leases.load(Ordering::Relaxed)
    }

    /// Turns leases off for this process. Returns whether they were on.
    fn turn_leases_off(&self) -> bool {
        !self.has_no_leases.swap(true, Ordering::Relaxed)
    }
}

impl Cache {
    /// Returns the store, refreshed in this process if it was forked.
    #[inline]
    fn store(&self) -> Result<&dyn CacheStore> {
        self.shared.registration.ensure_current()?;
        Ok(&*self.shared.store)
    }

    /// Returns the key with its prefix, as the store sees it.
    #[inline]
    fn key<'a>(&self, key: &'a str, buffer: &'a mut KeyBuffer) -> Result<&'a str> {
        self.counted(self.prefix.key(key, buffer))
    }

    #[inline]
    fn local(&self) -> &Local {
        self.shared.local.get_or_init(|| Local::new(&*self.shared.store))
    }

    fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    fn resolved(&self, expiry: Expiry) -> Expiry {
        expiry.or_default(self.shared.settings.default_expiry)
    }

    /// Returns the lifetime of a value that is stored now.
    fn begin(&self, expiry: Expiry) -> Result<Lifetime> {
        self.resolved(expiry).begin(self.clock())
    }

    /// Encodes a value whose lifetime begins now.
    fn seal<T: Serialize + ?Sized>(&self, key: &str, value: &T, expiry: Expiry) -> Result<Sealed> {
        let Lifetime { ttl, times, .. } = self.begin(expiry)?;
        Ok(Sealed { bytes: self.encode(key, value, times)?, ttl })
    }

    fn encode<T: Serialize + ?Sized>(&self, key: &str, value: &T, times: Option<Times>) -> Result<Bytes> {
        value::encode(self.header(key, times), key, value)
    }

    /// [`seal`](Cache::seal) that also checks that the value can be read back.
    fn seal_readable<T: Serialize + DeserializeOwned>(&self, key: &str, value: &T, expiry: Expiry) -> Result<Sealed> {
        let Lifetime { ttl, times, .. } = self.begin(expiry)?;
        Ok(Sealed { bytes: self.encode_readable(key, value, times)?, ttl })
    }

    fn encode_readable<T: Serialize + DeserializeOwned>(
        &self,
        key: &str,
        value: &T,
        times: Option<Times>,
    ) -> Result<Bytes> {
        value::encode_readable(self.header(key, times), key, value)
    }

    fn header(&self, key: &str, times: Option<Times>) -> Header<'_> {
        let Settings { codec, compress_above, max_inflated, .. } = self.shared.settings;
        let (mark, version) = (self.prefix.mark(key), self.version.as_deref());
        Header { codec, mark, times, version, packs_octets: false, compress_above, max_inflated }
    }

    /// Decodes a stored value, and returns it with its freshness.
    #[inline]
    fn decode<T: DeserializeOwned>(&self, key: &str, bytes: &[u8]) -> Result<(T, Freshness), NoValue> {
        let mark = self.prefix.mark(key);
        let decoded = value::decode(mark, self.version.as_deref(), self.shared.settings.max_inflated, bytes);
        decoded.map(|Decoded { value, times }| (value, times.freshness(self.clock())))
    }

    /// [`decode`](Cache::decode) for a read that is counted in the statistics.
    #[inline]
    fn open<T: DeserializeOwned>(&self, verb: &'static str, key: &str, bytes: &[u8]) -> Option<(T, Freshness)> {
        match self.decode(key, bytes) {
            Ok((value, freshness)) => {
                if matches!(freshness, Freshness::Stale | Freshness::RetryDelayed) {
                    self.local().counters.stale();
                }
                Some((value, freshness))
            }
            Err(no_value) => {
                self.report_undecodable::<T>(verb, key, no_value);
                None
            }
        }
    }

    /// Returns the value unless it has expired; a stale one too.
    #[inline]
    fn value<T: DeserializeOwned>(&self, verb: &'static str, key: &str, bytes: &[u8]) -> Option<T> {
        match self.open(verb, key, bytes) {
            Some((_, Freshness::Expired)) | None => None,
            Some((value, _)) => Some(value),
        }
    }

    /// Counts an entry that does not decode, and reports it once per type, since it may be a mistake.
    #[cold]
    fn report_undecodable<T>(&self, verb: &'static str, key: &str, why: NoValue) {
        let local = self.local();
        local.counters.undecodable();
        let what = match why {
            NoValue::Other => return,
            NoValue::Foreign => "was written under another key",
            NoValue::Unreadable => "does not decode to one",
        };
        let wanted = type_name::<T>();
        let is_first = local.unread.lock().insert((wanted, why));
        if is_first {
            let context = format!("reading {key:?} as a {wanted}: the entry {what}, so it is a miss");
            self.report(verb, &Error::new(ErrorKind::Decode, context));
        }
    }

    /// Flattens the result of a guarded store call, and counts a failure.
    #[inline]
    fn answered<T>(&self, settled: Result<Result<T>>) -> Result<T> {
        self.counted(settled.and_then(|answer| answer))
    }

    /// Counts the operation as failed if the outcome is an error.
    #[inline]
    fn counted<T>(&self, outcome: Result<T>) -> Result<T> {
        if outcome.is_err() {
            self.count_failure();
        }
        outcome
    }

    /// Returns how long a load may take before other callers stop waiting for it.
    fn effective_load_timeout(&self) -> Duration {
        self.load_timeout.unwrap_or(self.shared.settings.load_timeout)
    }

    /// Returns whether loads are coordinated among processes by leases.
    fn takes_leases(&self) -> bool {
        !self.shared.settings.lease.is_zero() && self.shared.store.is_shared()
    }

    /// Reports a failure that the caller does not see.
    #[cold]
    fn report(&self, verb: &'static str, error: &Error) {
        observer::report(self.shared.registration.name(), verb, error, self.shared.on_error.as_ref());
    }

    #[cold]
    fn count_failure(&self) {
        self.local().counters.failed();
    }
}

/// An encoded value, ready to be stored.
#[derive(Clone, Debug)]
struct Sealed {
    bytes: Bytes,
    ttl: Ttl,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("store", &self.shared.store)
            .field("namespace", &self.prefix.as_str())
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}
