//! Read, or load and store.

use std::future::Future;
use std::time::Instant;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::flight::{Landing, Lead, Part};
use super::{Cache, Expiry};
use crate::error::{Error, ErrorKind, Result};
use crate::store::When;

impl Cache {
    /// The value under a key, or else what `load` returns, which is then stored.
    ///
    /// Of all that miss a key at the same time in this process, one runs its loader; the others wait for its value, each at
    /// most as long as [`Builder::fetch_wait`](crate::Builder::fetch_wait) says, and then run their own and store what it
    /// returns. Where the one fails or is cancelled, another one takes over.
    ///
    /// The cache's own failures are not the caller's: a store that cannot be reached, a key that is refused or a value that
    /// cannot be encoded are counted, and told to [`Builder::on_error`](crate::Builder::on_error), and the loader's value is
    /// returned. A store that did not answer the read is not asked to keep the value.
    ///
    /// # Errors
    ///
    /// The loader's, to its own caller; it is not stored.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the loader's, and hands the loading on to somebody who waits.
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
        let deadline = Instant::now() + self.shared.fetch_wait;
        let full_key = match self.counted(self.prefix.owned_key(key)) {
            Ok(full_key) => full_key,
            Err(error) => {
                self.report(&error);
                return self.load(load).await;
            }
        };
        let mut landed = self.local().flights.landed();
        let keep = match self.look(key).await {
            Found::Value(value, _) => return Ok(value),
            Found::Nothing => Some(expiry),
            Found::NoAnswer => None,
        };
        loop {
            // Anew after each wait: the process may have forked meanwhile, and this may be the child.
            let flights = &self.local().flights;
            let landed_before = flights.landed();
            match flights.join(&full_key) {
                Part::Lead(lead) => {
                    if flights.landed() != landed
                        && let Found::Value(value, encoded) = self.look(key).await
                    {
                        lead.land(Landing::Loaded(encoded));
                        return Ok(value);
                    }
                    return self.load_and_store(key, keep, Some(lead), load).await;
                }
                Part::Wait(flight) if flight.is_led_by_this_thread() => return self.load(load).await,
                Part::Wait(flight) => {
                    landed = landed_before;
                    match flight.landing(deadline).await {
                        Some(Landing::Failed) => {}
                        Some(Landing::Loaded(encoded)) => match self.decode(&encoded) {
                            Some(value) => return Ok(value),
                            None => return self.load(load).await,
                        },
                        Some(Landing::NotShareable) => return self.load(load).await,
                        // Stored, or everybody would wait as long until that leader ends.
                        None => return self.load_and_store(key, keep, None, load).await,
                    }
                }
            }
        }
    }

    async fn load_and_store<T: Serialize, E>(
        &self,
        key: &str,
        keep: Option<Expiry>,
        lead: Option<Lead<'_>>,
        load: impl AsyncFnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let value = self.load(load).await?;
        let encoded = self.encode(key, &value);
        let landing = encoded.as_ref().map_or(Landing::NotShareable, |encoded| Landing::Loaded(encoded.clone()));
        let stored = match keep {
            Some(expiry) => self.put(key, encoded, expiry, When::Always, |_| ()).await,
            None => encoded.map(drop),
        };
        if let Err(error) = stored {
            self.report(&error);
        }
        if let Some(lead) = lead {
            lead.land(landing);
        }
        Ok(value)
    }

    fn load<T, E>(&self, load: impl AsyncFnOnce() -> Result<T, E>) -> impl Future<Output = Result<T, E>> {
        self.local().counters.loaded();
        load()
    }

    /// A read whose failure is told, and is no hit.
    async fn look<T: DeserializeOwned>(&self, key: &str) -> Found<T> {
        match self.get_raw(key).await {
            Ok(found) => found.map_or(Found::Nothing, |encoded| match self.decode(&encoded) {
                Some(value) => Found::Value(value, encoded),
                None => Found::Nothing,
            }),
            Err(error) => {
                self.report(&error);
                if is_outage(&error) { Found::NoAnswer } else { Found::Nothing }
            }
        }
    }

    /// Tells of a failure that the caller does not hear of.
    fn report(&self, error: &Error) {
        if let Some(on_error) = &self.shared.on_error {
            on_error(error);
        }
    }
}

/// What a read has found.
enum Found<T> {
    Value(T, Bytes),
    Nothing,
    /// The store was not there: it is not asked to keep what is loaded, which would be a second wait for the same outage.
    NoAnswer,
}

fn is_outage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Connect | ErrorKind::Unavailable | ErrorKind::Timeout)
}
