//! Read, or load and store.
//!
//! A fetch goes in four steps, for one key and for many alike:
//!
//! 1. [`look`]: what does the store hold? Most fetches end here.
//! 2. [`claim`]: who loads? In this process the lead of a [`flight`] says so, among processes a [`lease`].
//! 3. [`settle`]: loads what was claimed, stores it unless it was revoked, and hands it to those who wait.
//! 4. [`wait`]: only then waits for what others have claimed; whatever they gave up is claimed in turn.
//!
//! What happens when
//!
//! - *a leader's process is killed*: its lease stays. Who watches it ([`wait`]) takes it over, at once on the same
//!   host, since its [`holder`] is seen to be dead, elsewhere when no beat has come for the patience of the [`lease`].
//! - *the key is deleted in mid-load*: the delete revokes the flight and replaces the lease by a mark. At the end of
//!   the load [`settle`] finds either, and does not store; a caller that comes after the delete begins a flight and a
//!   lease of its own.
//! - *the store does not answer*: at the [`look`] the key is marked as not to be kept: it is loaded once in the
//!   process, and not stored. While a lease is watched the leader stops watching and loads. At the end the failure is
//!   reported.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Cache, Expiry};
use crate::error::Result;
use crate::net::{Drive, drive};
use crate::store::holder;
use crate::telemetry::{self, Span};
use claim::{Keeps, Load, Part};
use flight::Landing;
use form::{Form, Raw, Typed};
use lease::Leases;
use look::{Found, Looked};

pub(super) use flight::{Flight, Flights};
pub(super) use lease::{DELETED, MARK_TTL};
pub use loaded::Loaded;

// The four steps.
mod claim;
mod look;
mod settle;
mod wait;

#[cfg(feature = "tokio")]
mod detached;
mod flight;
mod form;
mod lease;
mod loaded;
mod many;
mod nesting;
mod shared;

impl Cache {
    /// The value under a key, or else what `load` returns, which is then stored.
    ///
    /// - *There is a fresh value*: it is returned.
    /// - *There is an old value*, [stale or to be refreshed ahead](Expiry): one caller, among all processes on the same
    ///   server, runs its loader and waits for it. Every other caller gets the old value at once. If the loader fails,
    ///   its caller gets the old value too, [`Builder::on_error`](crate::Builder::on_error) is called (without the
    ///   loader's error, which is the loader's to log), and the next try comes after
    ///   [`Builder::retry_after`](crate::Builder::retry_after).
    /// - *There is none*: one caller, among all processes on the same server (on
    ///   [`MemoryStore`](crate::stores::MemoryStore), in the process), runs its loader. The others wait for its value
    ///   as long as its process lives, at most for [`Builder::load_timeout`](crate::Builder::load_timeout); then one
    ///   caller of each process loads and the others wait for that one, once more as long; then each loads for itself.
    ///   If the caller that loads fails, panics or is cancelled, another one takes over: at once in the same process,
    ///   within about 0.1 s in another one. If its process is killed, one on the same host takes over within about 0.1
    ///   s, and one on another host after [`Builder::lease`](crate::Builder::lease) without a sign of life.
    ///
    /// A loaded value takes the place of what was there when the load began. A value that is set meanwhile stays, and
    /// after a [`delete`](Cache::delete) nothing is stored.
    ///
    /// The cache's own failures are not the caller's: a store that cannot be reached, a key that is refused or a value
    /// that cannot be encoded are counted and reported to [`Builder::on_error`](crate::Builder::on_error), and the
    /// loader's value is returned. A store that did not answer the read is not asked to keep the value.
    ///
    /// A loader may fetch other keys; it then waits for another loader for at most
    /// [`Builder::fetch_wait`](crate::Builder::fetch_wait), since that one may be waiting for this. If it fetches the
    /// very key that it loads, the inner loader runs at once, and its value is not stored.
    ///
    /// Through the [blocking](Cache::blocking) API on a thread of a tokio runtime, a load of one of that runtime's
    /// tasks is not waited for, since it may need this very thread: the caller loads for itself. An asynchronous loader
    /// that blocks the only thread of its runtime for longer than [`Builder::lease`](crate::Builder::lease) is taken
    /// for dead.
    ///
    /// # Errors
    ///
    /// The loader's, to its own caller, if there is no old value; it is not stored.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the loader's, and hands the load on to a caller that waits.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let load = || Ok::<_, std::io::Error>("loaded".to_owned());
    /// let motd: String = cache.blocking().fetch("motd", Duration::from_secs(60), load)?;
    /// assert_eq!(motd, "loaded");
    /// assert!(cache.blocking().exists("motd")?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn fetch<T, E>(
        &self,
        key: &str,
        expiry: impl Into<Expiry>,
        load: impl AsyncFnOnce() -> Result<T, E>,
    ) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
    {
        let expiry = expiry.into();
        self.fetch_loaded(key, async move || load().await.map(|value| Loaded::new(value, expiry))).await
    }

    /// [`fetch`](Cache::fetch) with a loader that chooses the expiry, or declines to have the value stored.
    ///
    /// # Errors
    ///
    /// As [`fetch`](Cache::fetch).
    ///
    /// ```
    /// use prefork_cache::{Cache, Expiry, Loaded, stores::MemoryStore};
    /// use std::time::{Duration, SystemTime};
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let token = || {
    ///     let expires = SystemTime::now() + Duration::from_secs(3_600);
    ///     Ok::<_, std::io::Error>(Loaded::new("token".to_owned(), Expiry::at(expires)))
    /// };
    /// assert_eq!(cache.blocking().fetch_loaded("token", token)?, "token");
    ///
    /// // What Rails calls `skip_nil`: nothing is stored for a user who does not exist.
    /// let user = || Ok::<_, std::io::Error>(Loaded::uncached(None));
    /// assert_eq!(cache.blocking().fetch_loaded::<Option<String>, _>("user:7", user)?, None);
    /// assert!(!cache.blocking().exists("user:7").unwrap());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub async fn fetch_loaded<T, E>(&self, key: &str, load: impl AsyncFnOnce() -> Result<Loaded<T>, E>) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
    {
        let fetched = self.fetch_as(key, async move || load().await.map(|loaded| loaded.map(Typed))).await;
        fetched.map(|Typed(value)| value)
    }

    /// [`fetch`](Cache::fetch) for bytes as they are, for other programs to read. Raw bytes carry no times: they are
    /// fresh until `after` has passed, and then gone. `stale_for` and `refresh_ahead` mean nothing for them.
    ///
    /// # Errors
    ///
    /// The loader's, to its own caller; it is not stored.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let render = || Ok::<_, std::io::Error>("<h1>hello</h1>");
    /// let page = cache.blocking().fetch_raw("page", Duration::from_secs(60), render)?;
    /// assert_eq!(page, "<h1>hello</h1>");
    /// assert_eq!(cache.blocking().get_raw("page").unwrap(), Some(page));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub async fn fetch_raw<V: Into<Bytes>, E>(
        &self,
        key: &str,
        expiry: impl Into<Expiry>,
        load: impl AsyncFnOnce() -> Result<V, E>,
    ) -> Result<Bytes, E> {
        let expiry = expiry.into();
        let load = async move || load().await.map(|value| Loaded::new(Raw(value.into()), expiry));
        self.fetch_as(key, load).await.map(|Raw(bytes)| bytes)
    }

    async fn fetch_as<V: Form, E>(&self, key: &str, load: impl AsyncFnOnce() -> Result<Loaded<V>, E>) -> Result<V, E> {
        let span = Span::fetch(self.shared.registration.name());
        telemetry::instrumented(&span, self.fetch_within(&span, key, load)).await
    }

    async fn fetch_within<V: Form, E>(
        &self,
        span: &Span,
        key: &str,
        load: impl AsyncFnOnce() -> Result<Loaded<V>, E>,
    ) -> Result<V, E> {
        let landed = self.local().flights.landed();
        let looked = if self.is_forced {
            None
        } else if let Some(glanced) = V::glance(self, key) {
            Some(glanced)
        } else {
            Some(Looked::of(self, self.get_raw(key).await))
        };
        // By the shortest way: this is where most fetches end.
        if let Some(Looked { found: Found::Settled { value, is_stale }, .. }) = looked {
            span.outcome(look::outcome(is_stale));
            return Ok(value);
        }
        let mut fetching = Fetching::new(self, &[key], landed);
        if let Some(looked) = looked {
            fetching.take_in(0, looked);
        }
        let (answer, outcome) = Box::pin(fetching.one(load)).await;
        span.outcome(outcome);
        answer
    }

    /// How long others leave a lease alone without a beat. Where nothing can beat: as long as a load may take.
    fn patience(&self) -> Duration {
        let settings = &self.shared.settings;
        match drive() {
            Ok(Drive::Inline) | Err(_) => settings.lease.max(settings.load_timeout),
            #[cfg(feature = "tokio")]
            Ok(Drive::Tokio(_)) => settings.lease,
        }
    }
}

/// A fetch that the first look has not ended.
struct Fetching<V, E> {
    /// Dropped first, before those who wait in this process are woken.
    leases: Leases,
    wanted: Vec<Wanted<V, E>>,
    cache: Cache,
    /// How long it waits for others before it claims in turn.
    bound: Duration,
    /// How many loads of this process had ended before the last look.
    landed: u64,
}

/// One of its keys.
struct Wanted<V, E> {
    key: String,
    /// As the store sees it.
    full_key: String,
    /// What the store held at the last look: a loaded value takes the place of that and of nothing else.
    held: Option<Bytes>,
    /// A value that serves while another is loaded, and whether it is stale.
    old: Option<(V, bool)>,
    /// Whether the store is there to keep what is loaded.
    is_kept: bool,
    part: Part,
    /// How often this caller has waited for as long as the bound.
    turn: u8,
    until: Instant,
    /// The flight that it has waited for long enough.
    overdue: Option<Arc<Flight>>,
    answer: Option<Answer<V, E>>,
    outcome: &'static str,
}

enum Answer<V, E> {
    Value(V),
    /// The old value.
    Old,
    Error(E),
}

impl<V: Form, E> Fetching<V, E> {
    fn new(cache: &Cache, keys: &[&str], landed: u64) -> Fetching<V, E> {
        let settings = &cache.shared.settings;
        let bound = if nesting::is_in_loader() { settings.fetch_wait } else { settings.load_timeout };
        let now = super::clock::now();
        let wanted = |key: &&str| Wanted {
            key: (*key).to_owned(),
            full_key: cache.prefix.full_key(key),
            held: None,
            old: None,
            is_kept: true,
            part: if cache.is_forced { Part::Load(Load { lead: None, keeps: Keeps::Always }) } else { Part::Open },
            turn: 0,
            until: now + bound,
            overdue: None,
            answer: None,
            outcome: "",
        };
        let wanted = keys.iter().map(wanted).collect();
        Fetching { leases: Leases::none(cache), wanted, cache: cache.clone(), bound, landed }
    }

    /// The steps after the look, for one key.
    async fn one(mut self, load: impl AsyncFnOnce() -> Result<Loaded<V>, E>) -> (Result<V, E>, &'static str) {
        let mut load = Some(load);
        while let Some(asked) = self.next_loads().await {
            let load = load.take().expect("a key is loaded once");
            self.load_and_settle(asked, async move { vec![load().await] }).await;
        }
        self.into_answers().next().expect("an answer for the key")
    }

    /// The places of the keys that this caller is to load now; `None` when all are answered.
    async fn next_loads(&mut self) -> Option<Vec<usize>> {
        loop {
            self.lead();
            self.lease().await;
            let is_load = |place: &usize| matches!(self.wanted[*place].part, Part::Load(_));
            let loads: Vec<usize> = (0..self.wanted.len()).filter(is_load).collect();
            if !loads.is_empty() {
                return Some(loads);
            }
            if self.wanted.iter().all(|wanted| wanted.answer.is_some()) {
                return None;
            }
            self.wait().await;
        }
    }

    /// The answers, in the order of the keys, and how each came about.
    fn into_answers(self) -> impl Iterator<Item = (Result<V, E>, &'static str)> {
        self.wanted.into_iter().map(|wanted| {
            let answer = match wanted.answer.expect("every key is answered") {
                Answer::Value(value) => Ok(value),
                Answer::Old => Ok(wanted.old.expect("an old value").0),
                Answer::Error(error) => Err(error),
            };
            (answer, wanted.outcome)
        })
    }
}

impl<V, E> Wanted<V, E> {
    fn answer(&mut self, answer: Answer<V, E>, outcome: &'static str) {
        (self.answer, self.outcome) = (Some(answer), outcome);
    }

    fn answer_old(&mut self) {
        let is_stale = self.old.as_ref().is_some_and(|(_, is_stale)| *is_stale);
        self.answer(Answer::Old, look::outcome(is_stale));
    }

    /// Ends the flight that is led.
    fn land(&mut self, landing: Landing) {
        if let Some(lead) = self.part.take_lead() {
            lead.land(landing);
        }
    }
}
