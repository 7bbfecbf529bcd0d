//! Byte strings that the caller has encoded.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Serialize, Serializer};

use super::codec::Codec;
use super::envelope::{self, Envelope, Header, NoEnvelope};
use super::expiry::Lifetime;
use super::freshness::{Freshness, NEVER, Times};
use super::value;
use super::{Cache, Claim, Expiry, Sealed};
use crate::error::Result;
use crate::store::When;

impl Cache {
    /// Returns the operations for byte strings that the caller has encoded, for bindings to other languages.
    ///
    /// ```
    /// use prefork_cache::{Cache, Expiry, When, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let minute = Duration::from_secs(60);
    /// cache.octets().set("page", "<h1>hello</h1>", Expiry::after(minute).stale_for(minute), When::Always).await?;
    /// assert_eq!(cache.octets().get("page").await?.as_deref(), Some(&b"<h1>hello</h1>"[..]));
    /// # Ok::<(), prefork_cache::Error>(()) }).unwrap();
    /// ```
    pub fn octets(&self) -> Octets<'_> {
        Octets { cache: self }
    }
}

/// The operations of a [`Cache`] on byte strings; see [`Cache::octets`].
///
/// A byte string is stored raw, for any program to read, unless its [expiry](Expiry) has a stale or refresh-ahead time.
/// Then the times are stored with it, in the envelope of typed values, and Rust reads it as `serde_bytes::ByteBuf`. A
/// byte string that could be taken for an envelope gets one too.
///
/// Reads return both forms, and a `String` or a `serde_bytes::ByteBuf` that Rust has stored as MessagePack. Any other
/// typed value is a miss.
#[derive(Clone, Copy, Debug)]
pub struct Octets<'a> {
    cache: &'a Cache,
}

impl Octets<'_> {
    /// Returns the byte string under a key, a [stale](Expiry) one too.
    ///
    /// # Errors
    ///
    /// The store's; see [`ErrorKind`](crate::ErrorKind).
    pub async fn get(self, key: &str) -> Result<Option<Bytes>> {
        let found = self.cache.get_raw(key).await?;
        Ok(found.and_then(|bytes| self.cache.octets_that_serve(key, bytes)))
    }

    /// Returns the byte strings under many keys, in the order of the keys, with one round trip to each server.
    ///
    /// # Errors
    ///
    /// As [`get`](Octets::get), for each key.
    pub async fn get_many(self, keys: &[impl AsRef<str> + Sync]) -> Vec<Result<Option<Bytes>>> {
        let found = self.cache.get_many_raw(keys).await;
        let values = found.into_iter().zip(keys).map(|(found, key)| {
            let found = found?;
            Ok(found.and_then(|bytes| self.cache.octets_that_serve(key.as_ref(), bytes)))
        });
        values.collect()
    }

    /// Stores a byte string. Returns whether it was stored.
    ///
    /// # Errors
    ///
    /// The store's; see [`ErrorKind`](crate::ErrorKind).
    pub async fn set(self, key: &str, value: impl Into<Bytes>, expiry: impl Into<Expiry>, when: When) -> Result<bool> {
        let sealed = self.cache.seal_octets(key, &value.into(), expiry.into());
        self.cache.put(key, sealed, when, |stored| stored).await
    }

    /// [`Cache::fetch_begin`] for a byte string. Returns the value, and whether it is stale while another caller loads
    /// it.
    ///
    /// # Errors
    ///
    /// The claim to load the value, if there is none.
    ///
    /// # Cancel safety
    ///
    /// As of [`Cache::fetch_begin`].
    pub async fn fetch_begin(self, key: &str) -> Result<(Bytes, bool), Claim<Bytes>> {
        self.cache.begin_octets(key).await
    }
}

impl Cache {
    pub(super) fn seal_octets(&self, key: &str, value: &Bytes, expiry: Expiry) -> Result<Sealed> {
        let Lifetime { ttl, raw_ttl, times } = self.begin(expiry)?;
        let has_states = times.is_some_and(|times| (times.refresh_from, times.stale_from) != (NEVER, NEVER));
        if has_states || envelope::is_like_envelope(value) {
            return Ok(Sealed { bytes: self.envelop_octets(key, value, times)?, ttl });
        }
        Ok(Sealed { bytes: value.clone(), ttl: raw_ttl })
    }

    /// Returns the form that [`open_octets`](Cache::open_octets) reads, without times.
    pub(super) fn share_octets(&self, key: &str, value: &Bytes) -> Result<Bytes> {
        if envelope::is_like_envelope(value) { self.envelop_octets(key, value, None) } else { Ok(value.clone()) }
    }

    fn envelop_octets(&self, key: &str, value: &Bytes, times: Option<Times>) -> Result<Bytes> {
        value::encode(Header { codec: Codec::MessagePack, ..self.header(key, times) }, key, &ByteString(value))
    }

    /// Returns the byte string in an entry and its freshness, or `None` if the entry holds something else.
    #[inline]
    pub(super) fn decode_octets(&self, key: &str, bytes: &Bytes) -> Option<(Bytes, Freshness)> {
        if envelope::is_like_envelope(bytes) {
            self.unwrap_octets(key, bytes)
        } else {
            Some((bytes.clone(), Freshness::Fresh))
        }
    }

    #[cold]
    fn unwrap_octets(&self, key: &str, bytes: &Bytes) -> Option<(Bytes, Freshness)> {
        let envelope = match Envelope::open(self.prefix.mark(key), bytes) {
            Ok(envelope) if envelope.codec == Codec::MessagePack && envelope.is_of(self.version.as_deref()) => envelope,
            Err(NoEnvelope::Raw) => return Some((bytes.clone(), Freshness::Fresh)),
            Ok(_) | Err(NoEnvelope::Foreign) => return None,
        };
        let value = match envelope.body(self.shared.settings.max_inflated)? {
            Cow::Borrowed(body) => bytes.slice_ref(byte_string(body)?),
            Cow::Owned(body) => Bytes::copy_from_slice(byte_string(&body)?),
        };
        Some((value, envelope.times.unwrap_or(Times::ALWAYS_FRESH).freshness(self.clock())))
    }

    /// [`decode_octets`](Cache::decode_octets) for a read that is counted in the statistics.
    #[inline]
    pub(super) fn open_octets(&self, key: &str, bytes: &Bytes) -> Option<(Bytes, Freshness)> {
        let opened = self.decode_octets(key, bytes);
        match &opened {
            Some((_, Freshness::Stale | Freshness::RetryDelayed)) => self.local().counters.stale(),
            None => self.local().counters.undecodable(),
            Some(_) => {}
        }
        opened
    }

    #[inline]
    fn octets_that_serve(&self, key: &str, bytes: Bytes) -> Option<Bytes> {
        let (value, freshness) = self.open_octets(key, &bytes)?;
        (freshness != Freshness::Expired).then_some(value)
    }
}

/// Serializes as bytes. By default serde serializes a slice as a list of numbers.
struct ByteString<'a>(&'a [u8]);

impl Serialize for ByteString<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// Returns the contents of a MessagePack byte string or string, if `body` consists of nothing else.
fn byte_string(body: &[u8]) -> Option<&[u8]> {
    let (&marker, rest) = body.split_first()?;
    let width = match marker {
        0xA0..=0xBF => 0,
        0xC4 | 0xD9 => 1,
        0xC5 | 0xDA => 2,
        0xC6 | 0xDB => 4,
        _ => return None,
    };
    let (length, bytes) = rest.split_at_checked(width)?;
    let length = match width {
        0 => usize::from(marker & 0x1F),
        _ => length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)),
    };
    (bytes.len() == length).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::byte_string;

    #[test]
    fn a_byte_string_must_fill_the_whole_body() {
        for length in [0, 1, 31, 32, 255, 256, 65_535, 65_536] {
            let text = "x".repeat(length);
            let packed = rmp_serde::to_vec(&text).unwrap();
            assert_eq!(byte_string(&packed), Some(text.as_bytes()), "{length}");
            assert_eq!(byte_string(&[&packed[..], b"x"].concat()), None);
            assert_eq!(byte_string(&packed[..packed.len() - 1]), None);
        }
        assert_eq!(byte_string(&rmp_serde::to_vec(&[1, 2]).unwrap()), None);
    }
}
