//! Read, or load and store: many keys.

use std::collections::HashMap;
use std::time::Instant;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::flight::{Landing, Lead, Part};
use super::loading::is_outage;
use crate::cache::renewal::as_it_was;
use crate::cache::times::Age;
use crate::cache::{Cache, Expiry, Lifetime, Sealed};
use crate::error::{ErrorKind, Result};

impl Cache {
    /// [`fetch`](Cache::fetch) for many keys: one read, one call of the loader with the keys that are missing or stale (each
    /// once, in the order of their first occurrence), one write. The loader answers for each of them, in that order; where
    /// nothing is missing it is not called.
    ///
    /// The results stand in the order of `keys`, each key with its own. A stale value is answered where its load fails.
    ///
    /// A key that somebody else in this process is loading is waited for, as `fetch` does. Among processes there is no
    /// lease: each loads what it misses. Nothing is refreshed ahead. The write is unconditional: a value that was set while the
    /// loader ran is overwritten, which `fetch` leaves alone.
    ///
    /// # Errors
    ///
    /// The loader's, for each key. Where one failure is that of all, answer with as many clones of it; an error that is not
    /// `Clone` can be put into an [`Arc`](std::sync::Arc).
    ///
    /// # Panics
    ///
    /// If the loader answers for another number of keys than it was asked for.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().set("one", &1, Duration::from_secs(60))?;
    /// let lengths = cache.blocking().fetch_many(&["one", "three", "seven", "three"], Duration::from_secs(60), |missing| {
    ///     assert_eq!(missing, ["three", "seven"]);
    ///     missing.iter().map(|key| Ok::<usize, String>(key.len())).collect()
    /// });
    /// assert_eq!(lengths, [Ok(1), Ok(5), Ok(5), Ok(5)]);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn fetch_many<T, E>(
        &self,
        keys: &[&str],
        expiry: impl Into<Expiry>,
        load: impl AsyncFnOnce(&[&str]) -> Vec<Result<T, E>>,
    ) -> Vec<Result<T, E>>
    where
        T: Serialize + DeserializeOwned + Clone,
        E: Clone,
    {
        let expiry = expiry.into();
        let mut places = HashMap::new();
        let mut wanted: Vec<Wanted<'_, T, E>> = Vec::new();
        for &key in keys {
            places.entry(key).or_insert_with(|| {
                wanted.push(Wanted::new(key));
                wanted.len() - 1
            });
        }
        if !self.is_forced {
            let landed = self.local().flights.landed();
            self.look_for_each(&mut wanted).await;
            self.wait_for_others(&mut wanted).await;
            wanted.iter_mut().for_each(|wanted| self.take_lead(wanted));
            if self.local().flights.landed() != landed {
                self.look_again_for_each(&mut wanted).await;
            }
        }
        let mut missing: Vec<&mut Wanted<'_, T, E>> = unanswered(&mut wanted).collect();
        if !missing.is_empty() {
            let asked: Vec<&str> = missing.iter().map(|wanted| wanted.key).collect();
            self.local().counters.loaded(asked.len());
            let loaded = load(&asked).await;
            let answered = loaded.len();
            assert!(
                answered == asked.len(),
                "the loader was asked for {} keys, and has answered for {answered}",
                asked.len()
            );
            let sealed =
                missing.iter_mut().zip(loaded).filter_map(|(wanted, loaded)| self.answer(wanted, loaded, expiry));
            let sealed: Vec<Result<(String, Sealed)>> = sealed.collect();
            let failed = self.put_many(sealed).await.into_iter().filter_map(Result::err);
            failed.for_each(|error| self.report(&error));
            self.take_back_what_was_revoked(&wanted).await;
            self.put_off_what_failed(&wanted).await;
        }
        for wanted in &mut wanted {
            if let Some((lead, landing)) = wanted.lead.take().zip(wanted.landing.take()) {
                lead.land(landing);
            }
        }
        keys.iter().map(|key| wanted[places[key]].answer.clone().expect("every key was answered for")).collect()
    }

    /// One read.
    async fn look_for_each<T: DeserializeOwned, E>(&self, wanted: &mut [Wanted<'_, T, E>]) {
        let keys: Vec<&str> = wanted.iter().map(|wanted| wanted.key).collect();
        for (wanted, found) in wanted.iter_mut().zip(self.get_many_raw(&keys).await) {
            match found {
                Ok(Some(encoded)) => wanted.take_in(self.open(&encoded), &encoded),
                Ok(None) => {}
                Err(error) => {
                    self.report(&error);
                    wanted.is_kept = !is_outage(&error) && error.kind() != ErrorKind::InvalidKey;
                }
            }
        }
    }

    /// Before anything is led: two who lead and wait for each other would wait for ever.
    async fn wait_for_others<T: DeserializeOwned, E>(&self, wanted: &mut [Wanted<'_, T, E>]) {
        let deadline = Instant::now() + self.shared.settings.fetch_wait;
        let missing = unanswered(wanted).filter(|wanted| wanted.old.is_none());
        let under_way = |key: &str| self.local().flights.under_way(&self.prefix.owned_key(key).ok()?, self.lapse());
        let led: Vec<_> = missing.filter_map(|wanted| under_way(wanted.key).map(|flight| (wanted, flight))).collect();
        for (wanted, flight) in led.into_iter().filter(|(_, flight)| !flight.is_led_by_this_thread()) {
            let until = flight.awaited_until(deadline, self.lapse());
            if let Some(Landing::Loaded(encoded)) = flight.landing(until).await
                && let Some((value, _)) = self.decode(&encoded)
            {
                self.local().counters.coalesced();
                wanted.answer = Some(Ok(value));
            }
        }
    }

    /// Takes the lead of what has no answer yet. A stale value that somebody else is loading anew is answered.
    fn take_lead<T, E>(&self, wanted: &mut Wanted<'_, T, E>) {
        let Ok(full_key) = self.prefix.owned_key(wanted.key) else { return };
        if wanted.answer.is_some() {
            return;
        }
        match self.local().flights.join(full_key, self.lapse()) {
            Part::Lead(lead) => wanted.lead = Some(lead),
            Part::Wait(_) => wanted.answer = wanted.old.take().map(|(value, _)| Ok(value)),
        }
    }

    async fn put_off_what_failed<T, E>(&self, wanted: &[Wanted<'_, T, E>]) {
        let failed = wanted.iter().filter(|wanted| wanted.is_put_off);
        let held: Vec<(&str, Bytes)> =
            failed.filter_map(|wanted| Some((wanted.key, wanted.old.as_ref()?.1.clone()))).collect();
        for (key, held) in held {
            self.put_off(key, &held).await;
        }
    }

    /// What was deleted while it was loaded.
    async fn take_back_what_was_revoked<T, E>(&self, wanted: &[Wanted<'_, T, E>]) {
        let revoked = wanted.iter().filter(|wanted| wanted.lead.as_ref().is_some_and(Lead::is_revoked));
        let stored: Vec<(&str, Bytes, Option<Sealed>)> = revoked
            .filter_map(|wanted| {
                let former = wanted.old.as_ref().and_then(|(_, held)| as_it_was(held));
                Some((wanted.key, wanted.stored()?, former))
            })
            .collect();
        for (key, stored, former) in stored {
            if let Err(error) = self.swap(key, Some(&stored), former).await {
                self.report(&error);
            }
        }
    }

    /// Somebody in this process has loaded since the first read, perhaps one of these.
    async fn look_again_for_each<T: DeserializeOwned, E>(&self, wanted: &mut [Wanted<'_, T, E>]) {
        let missing: Vec<_> = unanswered(wanted).filter(|wanted| wanted.lead.is_some()).collect();
        let keys: Vec<&str> = missing.iter().map(|wanted| wanted.key).collect();
        for (wanted, found) in missing.into_iter().zip(self.read_many(&keys).await) {
            if let Ok(Some(encoded)) = found {
                wanted.take_in(self.decode(&encoded), &encoded);
                wanted.landing = wanted.answer.is_some().then(|| Landing::Loaded(encoded));
            }
        }
    }

    /// Answers for a key with what was loaded. What is to be stored, with its full key.
    fn answer<T: Serialize + Clone, E>(
        &self,
        wanted: &mut Wanted<'_, T, E>,
        loaded: Result<T, E>,
        expiry: Expiry,
    ) -> Option<Result<(String, Sealed)>> {
        let value = match loaded {
            Ok(value) => value,
            Err(error) => {
                self.local().counters.load_failed();
                wanted.is_put_off = wanted.old.is_some();
                wanted.answer = Some(wanted.old.as_ref().map(|(value, _)| value.clone()).ok_or(error));
                return None;
            }
        };
        let sealed = self.prefix.owned_key(wanted.key).and_then(|full_key| {
            let Lifetime { ttl, times, .. } = expiry.begin_among_others()?;
            Ok((full_key, Sealed { bytes: self.encode(wanted.key, &value, times)?, ttl }))
        });
        wanted.landing = Some(match &sealed {
            Ok((_, Sealed { bytes, .. })) => Landing::Loaded(bytes.clone()),
            Err(_) => Landing::NotShareable,
        });
        wanted.answer = Some(Ok(value));
        wanted.is_kept.then_some(sealed)
    }
}

/// One of the keys.
struct Wanted<'a, T, E> {
    key: &'a str,
    answer: Option<Result<T, E>>,
    /// A stale value, and as it is in the store.
    old: Option<(T, Bytes)>,
    /// Whether the stale value is the answer, since its load has failed.
    is_put_off: bool,
    lead: Option<Lead>,
    landing: Option<Landing>,
    /// Whether the store is there to keep what is loaded.
    is_kept: bool,
}

impl<T, E> Wanted<'_, T, E> {
    fn new(key: &str) -> Wanted<'_, T, E> {
        Wanted { key, answer: None, old: None, lead: None, landing: None, is_put_off: false, is_kept: true }
    }

    /// The bytes that were loaded and stored.
    fn stored(&self) -> Option<Bytes> {
        match &self.landing {
            Some(Landing::Loaded(encoded)) => Some(encoded.clone()),
            _ => None,
        }
    }

    fn take_in(&mut self, opened: Option<(T, Age)>, encoded: &Bytes) {
        match opened {
            Some((value, Age::Fresh | Age::Ageing | Age::Resting)) => self.answer = Some(Ok(value)),
            Some((value, Age::Stale)) => self.old = Some((value, encoded.clone())),
            Some((_, Age::Gone)) | None => {}
        }
    }
}

fn unanswered<'w, 'k, T, E>(wanted: &'w mut [Wanted<'k, T, E>]) -> impl Iterator<Item = &'w mut Wanted<'k, T, E>> {
    wanted.iter_mut().filter(|wanted| wanted.answer.is_none())
}
