//! The stored forms of a fetched value: typed, byte string or raw.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cache::freshness::Freshness;
use crate::cache::{Cache, Expiry, Sealed};
use crate::error::Result;

/// The stored form of a value.
pub(super) trait Form: Sized {
    type Value;

    fn of(value: Self::Value) -> Self;

    fn value(&self) -> &Self::Value;

    fn into_value(self) -> Self::Value;

    /// Reads a value that the store keeps in memory, without asking the store; `None` if there is no such way.
    #[inline]
    fn read_in_memory(_cache: &Cache, _verb: &'static str, _key: &str) -> Option<FirstRead<Self>> {
        None
    }

    fn seal(&self, cache: &Cache, key: &str, expiry: Expiry) -> Result<Sealed>;

    /// Encodes the value for waiting callers in this process.
    fn share(&self, cache: &Cache, key: &str) -> Result<Bytes>;

    /// Decodes a value, or returns `None` if the bytes are not one.
    fn decode(cache: &Cache, key: &str, bytes: &Bytes) -> Option<(Self, Freshness)>;

    /// [`decode`](Form::decode) for a read that is counted in the statistics.
    fn open(cache: &Cache, verb: &'static str, key: &str, bytes: &Bytes) -> Option<(Self, Freshness)>;
}

/// The value of an entry, and whether to load it.
pub(super) enum Found<V> {
    /// Can be returned, and is not to be loaded now.
    Current { value: V, is_stale: bool },
    /// Can be returned, and is to be reloaded.
    Old { value: V, is_stale: bool },
    /// There is no value.
    Nothing,
}

/// The first read of a key: the bytes, and the value in them.
pub(super) struct FirstRead<V> {
    pub(super) read: Result<Option<Bytes>>,
    pub(super) found: Found<V>,
}

impl<V: Form> FirstRead<V> {
    #[inline]
    pub(super) fn of(cache: &Cache, verb: &'static str, key: &str, read: Result<Option<Bytes>>) -> FirstRead<V> {
        let opened = if let Ok(Some(held)) = &read { V::open(cache, verb, key, held) } else { None };
        FirstRead { read, found: Found::of(opened) }
    }
}

impl<V> Found<V> {
    #[inline]
    pub(super) fn of(opened: Option<(V, Freshness)>) -> Found<V> {
        match opened {
            Some((value, freshness @ (Freshness::Fresh | Freshness::RetryDelayed))) => {
                Found::Current { value, is_stale: freshness == Freshness::RetryDelayed }
            }
            Some((value, freshness @ (Freshness::RefreshAhead | Freshness::Stale))) => {
                Found::Old { value, is_stale: freshness == Freshness::Stale }
            }
            Some((_, Freshness::Expired)) | None => Found::Nothing,
        }
    }

    pub(super) fn into_value(self) -> Option<V> {
        match self {
            Found::Current { value, .. } | Found::Old { value, .. } => Some(value),
            Found::Nothing => None,
        }
    }
}

pub(super) struct Typed<T>(pub(super) T);

/// A byte string, with its times if it has any.
pub(super) struct ByteString(pub(super) Bytes);

/// Raw bytes: any bytes are a value, and always fresh.
pub(super) struct Raw(pub(super) Bytes);

impl<T: Serialize + DeserializeOwned> Form for Typed<T> {
    type Value = T;

    fn of(value: T) -> Typed<T> {
        Typed(value)
    }

    fn value(&self) -> &T {
        &self.0
    }

    fn into_value(self) -> T {
        self.0
    }

    fn seal(&self, cache: &Cache, key: &str, expiry: Expiry) -> Result<Sealed> {
        cache.seal_readable(key, &self.0, expiry)
    }

    fn share(&self, cache: &Cache, key: &str) -> Result<Bytes> {
        cache.encode_readable(key, &self.0, None)
    }

    fn decode(cache: &Cache, key: &str, bytes: &Bytes) -> Option<(Typed<T>, Freshness)> {
        cache.decode(key, bytes).ok().map(|(value, freshness)| (Typed(value), freshness))
    }

    fn open(cache: &Cache, verb: &'static str, key: &str, bytes: &Bytes) -> Option<(Typed<T>, Freshness)> {
        cache.open(verb, key, bytes).map(|(value, freshness)| (Typed(value), freshness))
    }
}

impl Form for ByteString {
    type Value = Bytes;

    fn of(value: Bytes) -> ByteString {
        ByteString(value)
    }

    fn value(&self) -> &Bytes {
        &self.0
    }

    fn into_value(self) -> Bytes {
        self.0
    }

    fn seal(&self, cache: &Cache, key: &str, expiry: Expiry) -> Result<Sealed> {
        cache.seal_octets(key, &self.0, expiry)
    }

    fn share(&self, cache: &Cache, key: &str) -> Result<Bytes> {
        cache.share_octets(key, &self.0)
    }

    fn decode(cache: &Cache, key: &str, bytes: &Bytes) -> Option<(ByteString, Freshness)> {
        cache.decode_octets(key, bytes).map(|(value, freshness)| (ByteString(value), freshness))
    }

    fn open(cache: &Cache, _verb: &'static str, key: &str, bytes: &Bytes) -> Option<(ByteString, Freshness)> {
        cache.open_octets(key, bytes).map(|(value, freshness)| (ByteString(value), freshness))
    }
}

impl Form for Raw {
    type Value = Bytes;

    fn of(value: Bytes) -> Raw {
        Raw(value)
    }

    fn value(&self) -> &Bytes {
        &self.0
    }

    fn into_value(self) -> Bytes {
        self.0
    }

    fn seal(&self, cache: &Cache, _key: &str, expiry: Expiry) -> Result<Sealed> {
        Ok(Sealed { bytes: self.0.clone(), ttl: cache.begin(expiry)?.raw_ttl })
    }

    fn share(&self, _cache: &Cache, _key: &str) -> Result<Bytes> {
        Ok(self.0.clone())
    }

    fn decode(_cache: &Cache, _key: &str, bytes: &Bytes) -> Option<(Raw, Freshness)> {
        Some((Raw(bytes.clone()), Freshness::Fresh))
    }

    fn open(cache: &Cache, _verb: &'static str, key: &str, bytes: &Bytes) -> Option<(Raw, Freshness)> {
        Raw::decode(cache, key, bytes)
    }
}
