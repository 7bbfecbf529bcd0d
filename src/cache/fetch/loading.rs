//! What a fetch does when the cache alone does not answer it.
//!
//! Two kinds of duty keep others from loading the same key: the [lead](super::flight) of this process, and the
//! [lease](super::lease) among all processes on the store. Who misses takes both, or waits; who has an old value takes both,
//! or is content with that. Under a duty the store is asked once more before anything is loaded: whoever had the duty before
//! may have stored a value after the first look.

use std::mem;
use std::time::{Duration, Instant};

use super::Loaded;
use super::flight::{Landing, Lead, Part};
use super::form::Form;
use super::lease::{Held, Leasing, Patience, Place};
use super::storing::Duty;
use crate::cache::key::check_key;
use crate::cache::times::Age;
use crate::cache::{Cache, settled};
use crate::error::{Error, ErrorKind, Result};
use crate::telemetry::Span;
use bytes::Bytes;

/// A fetch of one key.
pub(super) struct Fetching<'a> {
    pub(super) cache: &'a Cache,
    pub(super) key: &'a str,
    pub(super) terms: Terms,
}

/// What a fetch goes by, whoever carries it out.
#[derive(Clone)]
pub(super) struct Terms {
    /// Until when it waits for others.
    deadline: Instant,
    /// How many loads of this process had ended before the last look.
    landed: u64,
    /// Whether the store is there to keep what is loaded. If not it is left alone, or each fetch would wait for the same
    /// outage several times.
    pub(super) store_answers: bool,
    /// What the store held at the last look, if it has to be loaded anew: what is loaded takes the place of that, and of
    /// nothing else that was stored meanwhile.
    pub(super) held: Option<Bytes>,
    span: Span,
}

/// What a look into the store has found.
pub(super) enum Found<T> {
    /// It serves, and is not to be loaded anew now.
    Settled {
        value: T,
        is_stale: bool,
        encoded: Bytes,
    },
    /// A value that serves, and is to be loaded anew.
    Old {
        value: T,
        is_stale: bool,
        encoded: Bytes,
    },
    Nothing,
}

/// What has become of another process's load.
enum Awaited<V> {
    Value(V, Bytes),
    /// It has failed: somebody is to take over.
    Failure,
    /// It has stored nothing, as the next one would.
    InVain,
    /// It had ended before this fetch came, and stored nothing.
    Mark,
    /// It is not to be waited for.
    TooLate,
}

impl<'a> Fetching<'a> {
    /// # Errors
    ///
    /// For a key that is refused.
    pub(super) fn new(cache: &'a Cache, key: &'a str, span: &Span) -> Result<Fetching<'a>> {
        cache.counted(check_key(key))?;
        let deadline = Instant::now() + cache.shared.settings.fetch_wait;
        let landed = cache.local().flights.landed();
        Ok(Terms { deadline, landed, store_answers: true, held: None, span: span.clone() }.by(cache, key))
    }

    pub(super) fn into_terms(self) -> Terms {
        self.terms
    }

    /// The first look.
    pub(super) async fn look<V: Form>(&mut self) -> Found<V> {
        match self.cache.get_raw(self.key).await {
            Ok(found) => self.found(found, V::open),
            Err(error) => self.nothing_but(&error),
        }
    }

    /// The key as the store sees it.
    fn full_key(&self) -> String {
        self.cache.prefix.full_key(self.key)
    }

    /// A look at what others have stored since.
    async fn look_again<V: Form>(&mut self) -> Found<V> {
        match self.latest().await {
            Ok(found) => self.found(found, V::decode),
            Err(error) => self.nothing_but(&error),
        }
    }

    async fn latest(&self) -> Result<Option<Bytes>> {
        let store = self.cache.store()?;
        self.cache.answered(settled(store.get_latest(&self.full_key())).await)
    }

    fn found<V>(&mut self, found: Option<Bytes>, open: impl FnOnce(&Cache, &Bytes) -> Option<(V, Age)>) -> Found<V> {
        let opened = found.as_ref().and_then(|encoded| open(self.cache, encoded));
        match (opened, found) {
            (Some((value, age @ (Age::Fresh | Age::Resting))), Some(encoded)) => {
                Found::Settled { value, is_stale: age == Age::Resting, encoded }
            }
            (Some((value, age @ (Age::Ageing | Age::Stale))), Some(encoded)) => {
                self.terms.held = Some(encoded.clone());
                Found::Old { value, is_stale: age == Age::Stale, encoded }
            }
            (_, found) => {
                self.terms.held = found;
                Found::Nothing
            }
        }
    }

    fn nothing_but<V>(&mut self, error: &Error) -> Found<V> {
        self.cache.report(error);
        if is_outage(error) {
            self.terms.store_answers = false;
        }
        Found::Nothing
    }

    /// Loads what is missing, or has it from somebody who does.
    pub(super) async fn load_missing<V: Form, E>(
        mut self,
        load: impl AsyncFnOnce() -> Result<Loaded<V>, E>,
    ) -> Result<V, E> {
        loop {
            // Anew after each wait: the process may have forked meanwhile, and this may be the child.
            let flights = &self.cache.local().flights;
            let landed_before = flights.landed();
            match flights.join(self.full_key(), self.cache.lapse()) {
                Part::Lead(lead) => return self.load_for_others(lead, load).await,
                Part::Wait(flight) if flight.is_led_by_this_thread() => return self.load_alone(load).await,
                Part::Wait(flight) => {
                    self.terms.landed = landed_before;
                    let until = flight.awaited_until(self.terms.deadline, self.cache.lapse());
                    match flight.landing(until).await {
                        Some(Landing::Failed) => {}
                        Some(Landing::Loaded(encoded)) => match V::decode(self.cache, &encoded) {
                            Some((value, _)) => return Ok(self.coalesced(value)),
                            None => return self.load_alone(load).await,
                        },
                        Some(Landing::NotShareable) => return self.load_alone(load).await,
                        None if Instant::now() < self.terms.deadline => {}
                        // Stored, or everybody would wait as long until that leader ends.
                        None => return self.load_and_store(Duty::default(), load).await,
                    }
                }
            }
        }
    }

    /// Loads a missing key as this process's leader, if no other process does.
    async fn load_for_others<V: Form, E>(
        mut self,
        lead: Lead,
        load: impl AsyncFnOnce() -> Result<Loaded<V>, E>,
    ) -> Result<V, E> {
        let mut patience = Patience::until(self.terms.deadline);
        let mut lease = None;
        let mut place = Place::Empty;
        let mut has_tried_again = false;
        while self.terms.store_answers {
            match self.cache.lease(&self.full_key(), place).await {
                Leasing::Won(won) => lease = Some(won),
                Leasing::Unneeded if self.terms.landed == self.cache.local().flights.landed() => break,
                Leasing::Unneeded => {}
                Leasing::NoAnswer(error, uncertain) => {
                    self.cache.report(&error);
                    lease = uncertain;
                    break;
                }
                Leasing::Lost => match self.await_another(&mut patience).await {
                    Awaited::Value(value, encoded) => {
                        lead.land(Landing::Loaded(encoded));
                        return Ok(self.coalesced(value));
                    }
                    ended @ (Awaited::Failure | Awaited::Mark) => {
                        place = if matches!(ended, Awaited::Mark) { Place::Marked } else { Place::Empty };
                        // Others may be quicker each time, or the store may not mean what it says.
                        if mem::replace(&mut has_tried_again, true) && !patience.wait().await.unwrap_or(false) {
                            break;
                        }
                        continue;
                    }
                    Awaited::InVain => {
                        drop(lead);
                        return self.load_alone(load).await;
                    }
                    Awaited::TooLate => break,
                },
            }
            if let Some((value, encoded)) = self.look_again().await.into_value() {
                Duty { lead: Some(lead), lease }.fulfil(Landing::Loaded(encoded)).await;
                return Ok(self.coalesced(value));
            }
            break;
        }
        self.load_and_store(Duty { lead: Some(lead), lease }, load).await
    }

    /// Waits for another process's load.
    async fn await_another<V: Form>(&mut self, patience: &mut Patience) -> Awaited<V> {
        let mut has_waited = false;
        while self.terms.store_answers {
            // The lease first: it ends after the value was stored.
            let held = self.cache.look_at_lease(&self.full_key()).await;
            if let Some((value, encoded)) = self.look_again().await.into_value() {
                return Awaited::Value(value, encoded);
            }
            match held {
                Ok(Held::NoLonger) => return Awaited::Failure,
                Ok(Held::InVain) => return if has_waited { Awaited::InVain } else { Awaited::Mark },
                Ok(Held::Still) => has_waited = true,
                Err(error) => {
                    self.cache.report(&error);
                    return Awaited::TooLate;
                }
            }
            if !patience.wait().await.unwrap_or(false) {
                return Awaited::TooLate;
            }
        }
        Awaited::TooLate
    }

    /// Loads anew what is there, unless somebody else does. `None` where the old value is to go on serving.
    pub(super) async fn refresh<V: Form, E>(
        &mut self,
        lead: Lead,
        load: impl AsyncFnOnce() -> Result<Loaded<V>, E>,
    ) -> Option<V> {
        let lease = match self.cache.lease(&self.full_key(), Place::Empty).await {
            Leasing::Won(lease) => Some(lease),
            Leasing::Unneeded => None,
            Leasing::Lost => {
                self.cache.local().flights.is_elsewhere(self.full_key());
                return None;
            }
            Leasing::NoAnswer(error, uncertain) => {
                self.cache.report(&error);
                Duty { lease: uncertain, lead: Some(lead) }.give_up().await;
                return None;
            }
        };
        if lease.is_some() || self.terms.landed != self.cache.local().flights.landed() {
            match self.look_again().await {
                Found::Settled { value, encoded, .. } => {
                    Duty { lead: Some(lead), lease }.fulfil(Landing::Loaded(encoded)).await;
                    return Some(self.coalesced(value));
                }
                Found::Old { .. } | Found::Nothing => {}
            }
        }
        let duty = Duty { lead: Some(lead), lease };
        match self.cache.run(load).await {
            Ok(loaded) => Some(self.store(duty, loaded).await),
            Err(_) => {
                if let Some(held) = &self.terms.held {
                    self.cache.put_off(self.key, held).await;
                }
                duty.give_up().await;
                None
            }
        }
    }

    /// Loads for nobody else, whatever is there.
    pub(super) async fn load_anyway<V: Form, E>(
        self,
        load: impl AsyncFnOnce() -> Result<Loaded<V>, E>,
    ) -> Result<V, E> {
        self.load_and_store(Duty::default(), load).await
    }

    async fn load_and_store<V: Form, E>(
        &self,
        duty: Duty,
        load: impl AsyncFnOnce() -> Result<Loaded<V>, E>,
    ) -> Result<V, E> {
        match self.cache.run(load).await {
            Ok(loaded) => Ok(self.store(duty, loaded).await),
            Err(error) => {
                self.ends_as("failed");
                duty.give_up().await;
                Err(error)
            }
        }
    }

    /// Loads for its caller, and stores nothing.
    async fn load_alone<V, E>(&self, load: impl AsyncFnOnce() -> Result<Loaded<V>, E>) -> Result<V, E> {
        let loaded = self.cache.load(load).await;
        self.ends_as(if loaded.is_ok() { "loaded" } else { "failed" });
        loaded
    }

    fn coalesced<V>(&self, value: V) -> V {
        self.cache.local().counters.coalesced();
        self.ends_as("coalesced");
        value
    }

    /// Answers with what was found.
    pub(super) fn served<V>(&self, value: V, is_stale: bool) -> V {
        self.ends_as(if is_stale { "stale" } else { "hit" });
        value
    }

    /// Tells how the fetch has ended.
    pub(super) fn ends_as(&self, outcome: &'static str) {
        self.terms.span.outcome(outcome);
    }

    /// The lead of this process for an old value; `None` if somebody is loading it.
    pub(super) fn try_lead(&self) -> Option<Lead> {
        self.cache.local().flights.try_lead(self.full_key(), self.cache.lapse())
    }
}

impl Terms {
    /// The same in a span of its own: the load of a fetch that has ended.
    #[cfg(feature = "tokio")]
    pub(super) fn within(self, span: Span) -> Terms {
        Terms { span, ..self }
    }

    pub(super) fn by<'a>(self, cache: &'a Cache, key: &'a str) -> Fetching<'a> {
        Fetching { cache, key, terms: self }
    }
}

impl<T> Found<T> {
    fn into_value(self) -> Option<(T, Bytes)> {
        match self {
            Found::Settled { value, encoded, .. } | Found::Old { value, encoded, .. } => Some((value, encoded)),
            Found::Nothing => None,
        }
    }
}

impl Cache {
    /// How long those of this process leave a load to its leader: as long as other processes do.
    pub(super) fn lapse(&self) -> Duration {
        match self.shared.settings.lease {
            Duration::ZERO => Duration::MAX,
            lease => lease,
        }
    }

    /// Runs a loader.
    pub(super) async fn run<T, E>(&self, load: impl AsyncFnOnce() -> Result<T, E>) -> Result<T, E> {
        self.local().counters.loaded(1);
        let loaded = load().await;
        if loaded.is_err() {
            self.local().counters.load_failed();
        }
        loaded
    }

    /// Runs a loader for its caller alone.
    pub(super) async fn load<T, E>(&self, load: impl AsyncFnOnce() -> Result<Loaded<T>, E>) -> Result<T, E> {
        self.run(load).await.map(|loaded| loaded.value)
    }

    /// Tells of a failure that the caller does not hear of.
    pub(in crate::cache) fn report(&self, error: &Error) {
        if let Some(on_error) = &self.shared.on_error {
            on_error(error);
        }
    }
}

pub(super) fn is_outage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Connect | ErrorKind::Unavailable | ErrorKind::Timeout)
}
