//! What a fetch keeps: a typed value in its envelope, or raw bytes.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::look::Looked;
use crate::cache::times::Age;
use crate::cache::{Cache, Expiry, Sealed};
use crate::error::Result;

/// A value in the form that it is kept in.
pub(super) trait Form: Sized {
    /// What can be seen without asking the store, if there is such a way.
    #[inline]
    fn glance(_cache: &Cache, _key: &str) -> Option<Looked<Self>> {
        None
    }

    fn seal(&self, cache: &Cache, key: &str, expiry: Expiry) -> Result<Sealed>;

    /// In the form in which those who wait in this process get it.
    fn share(&self, cache: &Cache, key: &str) -> Result<Bytes>;

    /// `None` for what is no such value.
    fn decode(cache: &Cache, bytes: &Bytes) -> Option<(Self, Age)>;

    /// The same, for a read that counts.
    fn open(cache: &Cache, bytes: &Bytes) -> Option<(Self, Age)>;
}

pub(super) struct Typed<T>(pub(super) T);

/// Any bytes are a value, and a fresh one.
pub(super) struct Raw(pub(super) Bytes);

impl<T: Serialize + DeserializeOwned> Form for Typed<T> {
    fn seal(&self, cache: &Cache, key: &str, expiry: Expiry) -> Result<Sealed> {
        cache.seal(key, &self.0, expiry)
    }

    fn share(&self, cache: &Cache, key: &str) -> Result<Bytes> {
        cache.encode(key, &self.0, None)
    }

    fn decode(cache: &Cache, bytes: &Bytes) -> Option<(Typed<T>, Age)> {
        cache.decode(bytes).map(|(value, age)| (Typed(value), age))
    }

    fn open(cache: &Cache, bytes: &Bytes) -> Option<(Typed<T>, Age)> {
        cache.open(bytes).map(|(value, age)| (Typed(value), age))
    }
}

impl Form for Raw {
    fn seal(&self, _cache: &Cache, _key: &str, expiry: Expiry) -> Result<Sealed> {
        Ok(Sealed { bytes: self.0.clone(), ttl: expiry.begin()?.bare })
    }

    fn share(&self, _cache: &Cache, _key: &str) -> Result<Bytes> {
        Ok(self.0.clone())
    }

    fn decode(_cache: &Cache, bytes: &Bytes) -> Option<(Raw, Age)> {
        Some((Raw(bytes.clone()), Age::Fresh))
    }

    fn open(cache: &Cache, bytes: &Bytes) -> Option<(Raw, Age)> {
        Raw::decode(cache, bytes)
    }
}
