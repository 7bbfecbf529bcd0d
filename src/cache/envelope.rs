//! The envelope of a typed value.
//!
//! Bytes of another program are not a typed value, but might decode to one: MessagePack reads the string "12" as the
//! number 49. So each value is in an envelope:
//!
//! | bytes | what |
//! | --- | --- |
//! | 3 | the magic number `C1 50 46`; MessagePack never begins with `C1`, Ruby's Marshal begins with `04 08`, Rails with `00 11` |
//! | 1 | the codec of the body (bits 0 to 3: 1 MessagePack, 2 JSON) and flags (bit 4: byte strings stand for arrays of numbers, bit 5: the body is compressed, bit 6: times, bit 7: a version) |
//! | 4 | the key check, the CRC-32 of the full key: an entry that was stored under another key, by any mistake, is not a value there |
//! | 24 | with times: when the value is refreshed ahead, becomes stale and expires, in milliseconds since 1970, 8 bytes each; all ones: never |
//! | 4 + n | with a version: its length and its string |
//! | 4 + n | the length of the body, and the body; nothing follows |
//!
//! A compressed body is the inflated length, in 4 bytes, and a zlib stream. Numbers are little-endian. A reader refuses
//! an unknown codec, so the layout can change by a new codec number.

use std::borrow::Cow;

use bytes::Bytes;

use super::clock::Clock;
use super::codec::Codec;
use super::compression;
use super::freshness::{Freshness, Times};
use super::key::Mark;

const MAGIC: [u8; 3] = [0xC1, b'P', b'F'];
const FLAGS_AT: usize = MAGIC.len();
const MARK_AT: usize = FLAGS_AT + 1;
const TIMES_AT: usize = MARK_AT + size_of::<Mark>();
const TIMES: usize = 24;

const CODEC: u8 = 0x0F;
const PACKS_OCTETS: u8 = 0x10;
const IS_COMPRESSED: u8 = 0x20;
const HAS_TIMES: u8 = 0x40;
const HAS_VERSION: u8 = 0x80;

/// A parsed envelope.
#[derive(Debug)]
pub(super) struct Envelope<'a> {
    pub(super) codec: Codec,
    /// `None` for an entry that never expires.
    pub(super) times: Option<Times>,
    /// Whether byte strings in the body stand for arrays of numbers.
    pub(super) packs_octets: bool,
    version: Option<&'a [u8]>,
    is_compressed: bool,
    body: &'a [u8],
}

/// The part of an envelope that a shared hit checks once its body is decoded.
#[derive(Debug)]
pub(super) struct Label {
    pub(super) mark: Mark,
    pub(super) times: Times,
    version: Option<Box<[u8]>>,
    /// The length that a compressed body inflates to, or 0 if it is not compressed.
    pub(super) inflated: usize,
}

/// Why bytes are not a value under this key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoEnvelope {
    /// Written by another program, or damaged.
    Raw,
    /// Written under another key.
    Foreign,
}

/// The header of an envelope that is being written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header<'a> {
    pub(super) codec: Codec,
    pub(super) mark: Mark,
    pub(super) times: Option<Times>,
    pub(super) version: Option<&'a str>,
    pub(super) packs_octets: bool,
    /// Compresses longer bodies, up to the length that a reader inflates.
    pub(super) compress_above: Option<usize>,
    pub(super) max_inflated: usize,
}

/// The error of a part that is too long for an envelope: more than 4 GiB.
#[derive(Debug)]
pub(super) struct TooLong;

impl Header<'_> {
    /// Returns the envelope with the body that `write` appends.
    pub(super) fn wrap<E: From<TooLong>>(self, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<Bytes, E> {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend(MAGIC);
        bytes.push(self.codec.number());
        bytes.extend(self.mark.to_le_bytes());
        if self.packs_octets {
            bytes[FLAGS_AT] |= PACKS_OCTETS;
        }
        if let Some(times) = self.times {
            bytes[FLAGS_AT] |= HAS_TIMES;
            bytes.extend(times_in_bytes(times));
        }
        if let Some(version) = self.version {
            bytes[FLAGS_AT] |= HAS_VERSION;
            bytes.extend(length(version.len())?);
            bytes.extend(version.as_bytes());
        }
        let length_at = bytes.len();
        bytes.extend([0; 4]);
        let body_at = bytes.len();
        write(&mut bytes)?;
        let inflated = length(bytes.len() - body_at)?;
        if self.compress_above.is_some_and(|limit| bytes.len() - body_at > limit)
            && bytes.len() - body_at <= self.max_inflated
            && let Some(compressed) = compression::deflated(&bytes[body_at..])
        {
            bytes[FLAGS_AT] |= IS_COMPRESSED;
            bytes.truncate(body_at);
            bytes.extend(inflated);
            bytes.extend(compressed);
        }
        let length = length(bytes.len() - body_at)?;
        bytes[length_at..body_at].copy_from_slice(&length);
        Ok(bytes.into())
    }
}

/// Returns whether these bytes could be taken for an envelope.
#[inline]
pub(super) fn is_like_envelope(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

impl<'a> Envelope<'a> {
    /// Parses the envelope of a value under the key with this mark.
    #[inline]
    pub(super) fn open(mark: Mark, bytes: &'a [u8]) -> Result<Envelope<'a>, NoEnvelope> {
        let (envelope, own) = Envelope::parse(bytes).ok_or(NoEnvelope::Raw)?;
        if own == mark { Ok(envelope) } else { Err(NoEnvelope::Foreign) }
    }

    /// Parses an envelope. Returns `None` for other or damaged bytes.
    fn parse(bytes: &'a [u8]) -> Option<(Envelope<'a>, Mark)> {
        let (magic, rest) = bytes.split_first_chunk()?;
        let (&flags, rest) = rest.split_first()?;
        if *magic != MAGIC {
            return None;
        }
        let codec = Codec::of_number(flags & CODEC)?;
        let (mark, mut rest) = rest.split_first_chunk()?;
        let times = if flags & HAS_TIMES == 0 { None } else { Some(take_times(&mut rest)?) };
        let version = if flags & HAS_VERSION == 0 { None } else { Some(take_bytes(&mut rest)?) };
        let body = take_bytes(&mut rest).filter(|_| rest.is_empty())?;
        let [packs_octets, is_compressed] = [PACKS_OCTETS, IS_COMPRESSED].map(|flag| flags & flag != 0);
        let envelope = Envelope { codec, times, packs_octets, version, is_compressed, body };
        Some((envelope, Mark::from_le_bytes(*mark)))
    }

    /// Returns whether it contains a value of this version that has not expired.
    pub(super) fn serves(&self, version: Option<&str>, clock: &Clock) -> bool {
        self.is_of(version) && !self.is_expired(clock)
    }

    pub(super) fn is_expired(&self, clock: &Clock) -> bool {
        self.times.is_some_and(|times| times.freshness(clock) == Freshness::Expired)
    }

    pub(super) fn is_of(&self, version: Option<&str>) -> bool {
        self.version == version.map(str::as_bytes)
    }

    /// Returns the label of an envelope that was opened with this mark, and whose body was read.
    pub(super) fn label(&self, mark: Mark) -> Label {
        let announced = self.body.first_chunk().map_or(0, |length| u32::from_le_bytes(*length) as usize);
        Label {
            mark,
            times: self.times.unwrap_or(Times::ALWAYS_FRESH),
            version: self.version.map(Box::from),
            inflated: if self.is_compressed { announced } else { 0 },
        }
    }

    /// Returns the encoded value, or `None` if it is damaged or inflates to more than `max_inflated`.
    pub(super) fn body(&self, max_inflated: usize) -> Option<Cow<'a, [u8]>> {
        if !self.is_compressed {
            return Some(Cow::Borrowed(self.body));
        }
        let (length, stream) = self.body.split_first_chunk()?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > max_inflated { None } else { compression::inflated(stream, length).map(Cow::Owned) }
    }
}

impl Label {
    #[inline]
    pub(super) fn is_of(&self, version: Option<&str>) -> bool {
        self.version.as_deref() == version.map(str::as_bytes)
    }
}

/// Returns the envelope in `bytes` with other times.
pub(super) fn with_times(bytes: &[u8], times: Option<Times>) -> Bytes {
    let flags = bytes[FLAGS_AT];
    let rest_at = if flags & HAS_TIMES == 0 { TIMES_AT } else { TIMES_AT + TIMES };
    let mut changed = Vec::with_capacity(bytes.len() + TIMES);
    changed.extend(&bytes[..TIMES_AT]);
    match times {
        None => changed[FLAGS_AT] &= !HAS_TIMES,
        Some(times) => {
            changed[FLAGS_AT] |= HAS_TIMES;
            changed.extend(times_in_bytes(times));
        }
    }
    changed.extend(&bytes[rest_at..]);
    changed.into()
}

fn times_in_bytes(times: Times) -> impl Iterator<Item = u8> {
    [times.refresh_from, times.stale_from, times.expired_from].into_iter().flat_map(u64::to_le_bytes)
}

fn take_times(bytes: &mut &[u8]) -> Option<Times> {
    let mut take = || {
        let (number, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        Some(u64::from_le_bytes(*number))
    };
    Some(Times { refresh_from: take()?, stale_from: take()?, expired_from: take()? })
}

/// Reads a length, and as many bytes.
fn take_bytes<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *bytes = rest;
    Some(text)
}

fn length(length: usize) -> Result<[u8; 4], TooLong> {
    u32::try_from(length).map(u32::to_le_bytes).map_err(|_| TooLong)
}
