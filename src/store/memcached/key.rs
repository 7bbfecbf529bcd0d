//! The form of a key on the wire and on the server, as in Dalli.
//!
//! Plain keys (ASCII, no whitespace, no control characters) of up to 250 bytes are sent unchanged. Others are sent as
//! base64, and the server stores the decoded bytes. A key that is too long for either is digested: the longest prefix
//! that fits, `:md5:`, and the MD5 of the whole key.
//!
//! A key that has the form of a digested key is digested itself, so that no key can name another key's entry.

use std::borrow::Cow;
use std::fmt;

use md5::{Digest, Md5};

use crate::error::Result;
use crate::store::{check_key, key_of_lease};

/// The longest key that the server accepts on the wire, in bytes.
pub(super) const LONGEST: usize = 250;
/// The longest key whose base64 form fits into that.
const LONGEST_ENCODED: usize = LONGEST / 4 * 3;
const SEPARATOR: &str = ":md5:";
const DIGEST: usize = SEPARATOR.len() + 32;
/// The length of the prefix of a digested key, if the prefix is plain. Dalli's number, which wastes one byte.
const PLAIN_PREFIX: usize = LONGEST - 1 - DIGEST;
/// The longest prefix of any other digested key. It may be up to 3 bytes shorter, to end between two characters.
const ENCODED_PREFIX: usize = LONGEST_ENCODED - DIGEST;
const SHORTEST_PREFIX: usize = ENCODED_PREFIX - 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key<'a> {
    stored: Cow<'a, [u8]>,
    /// For the key of a lease: the stored form of the key that it is for.
    leased: Option<Cow<'a, [u8]>>,
    base64: Option<Vec<u8>>,
}

impl Key<'_> {
    /// Encodes a key.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidKey`](crate::ErrorKind::InvalidKey) for the empty key.
    pub(super) fn new(key: &str) -> Result<Key<'_>> {
        check_key(key)?;
        let (stored, is_plain) = stored(key);
        let base64 = (!is_plain).then(|| base64(&stored));
        Ok(Key { stored, leased: key_of_lease(key).map(|key| self::stored(key).0), base64 })
    }

    /// Encodes a key that the server has listed. Another program may have written it, so it may be any bytes that a
    /// server accepts.
    pub(super) fn listed(stored: Vec<u8>) -> Key<'static> {
        let breaks_the_line = stored.iter().any(|byte| *byte <= b' ' || *byte == 0x7f);
        let base64 = breaks_the_line.then(|| base64(&stored));
        Key { stored: Cow::Owned(stored), leased: None, base64 }
    }

    /// Returns the key that the server stores.
    #[cfg(test)]
    fn stored(&self) -> &[u8] {
        &self.stored
    }

    /// Returns the bytes that the ring hashes. A lease is on the server of the key that it is for.
    pub(super) fn routed_by(&self) -> &[u8] {
        self.leased.as_ref().unwrap_or(&self.stored)
    }

    /// Returns the key as it is written into a command.
    pub(super) fn wire(&self) -> &[u8] {
        self.base64.as_deref().unwrap_or(&self.stored)
    }

    /// Returns whether the key is sent as base64, which the command has to declare.
    pub(super) fn is_base64(&self) -> bool {
        self.base64.is_some()
    }
}

/// Quoted, for errors.
impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.stored))
    }
}

/// Returns whether a stored key starts with `prefix`. Of a digested key, only the readable part is compared, since the
/// rest is not stored.
pub(super) fn starts_with(stored: &[u8], prefix: &[u8]) -> bool {
    split_digest(stored).unwrap_or(stored).starts_with(prefix)
}

/// Returns the stored form of a key, and whether it is plain.
fn stored(key: &str) -> (Cow<'_, [u8]>, bool) {
    let bytes = key.as_bytes();
    let is_plain = is_plain(bytes);
    let longest = if is_plain { LONGEST } else { LONGEST_ENCODED };
    if bytes.len() > longest || split_digest(bytes).is_some() {
        let digested = digested(key).into_bytes();
        let is_plain = self::is_plain(&digested);
        (Cow::Owned(digested), is_plain)
    } else {
        (Cow::Borrowed(bytes), is_plain)
    }
}

fn is_plain(key: &[u8]) -> bool {
    // Checks all bytes, also behind one that is not plain: to stop there would need a branch for each byte.
    key.iter().fold(true, |is_plain, byte| is_plain & byte.is_ascii_graphic())
}

fn digested(key: &str) -> String {
    let plain = key.get(..PLAIN_PREFIX).filter(|prefix| is_plain(prefix.as_bytes()));
    let prefix = plain.unwrap_or_else(|| {
        let end = (SHORTEST_PREFIX..=ENCODED_PREFIX).rev().find(|end| key.is_char_boundary(*end));
        &key[..end.unwrap_or(0)]
    });
    format!("{prefix}{SEPARATOR}{:x}", Md5::digest(key))
}

/// Returns the readable part of a stored key that has the form of a digested one.
fn split_digest(stored: &[u8]) -> Option<&[u8]> {
    let (prefix, digest) = stored.split_at_checked(stored.len().checked_sub(DIGEST)?)?;
    let hex = digest.strip_prefix(SEPARATOR.as_bytes())?;
    let is_digest = hex.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_cut = prefix.len() == PLAIN_PREFIX || (SHORTEST_PREFIX..=ENCODED_PREFIX).contains(&prefix.len());
    (is_digest && is_cut).then_some(prefix)
}

fn base64(bytes: &[u8]) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index| u32::from(chunk.get(index).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        let digit = |index: usize| ALPHABET[(group >> (18 - 6 * index)) as usize & 63];
        encoded.extend((0..4).map(|index| if index <= chunk.len() { digit(index) } else { b'=' }));
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::{Key, LONGEST, base64, split_digest, starts_with};

    fn stored(key: &str) -> String {
        String::from_utf8(Key::new(key).unwrap().stored().to_vec()).unwrap()
    }

    fn wire(key: &str) -> String {
        String::from_utf8(Key::new(key).unwrap().wire().to_vec()).unwrap()
    }

    #[test]
    fn a_lease_is_routed_by_the_key_that_it_is_for() {
        for key in ["user:42", "a key", &"a".repeat(245), &"a".repeat(300)] {
            let lease = crate::store::lease_key(key);
            assert_eq!(Key::new(&lease).unwrap().routed_by(), Key::new(key).unwrap().routed_by());
        }
    }

    #[test]
    fn base64_pads() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
            ("\u{ff}?~", "w78/fg=="),
        ];
        for (text, expected) in vectors {
            assert_eq!(String::from_utf8(base64(text.as_bytes())).unwrap(), expected);
        }
    }

    #[test]
    fn a_plain_key_is_sent_unchanged() {
        for key in ["a", "user:42", &"a".repeat(250)] {
            assert_eq!((wire(key).as_str(), Key::new(key).unwrap().is_base64()), (key, false));
        }
    }

    #[test]
    fn any_other_key_is_sent_as_base64_and_stored_unchanged() {
        assert_eq!(wire("a key"), "YSBrZXk=");
        for key in ["a key", "a\r\nflush_all", "\0", "\x7f", "clé", &" ".repeat(186)] {
            assert_eq!((stored(key).as_str(), Key::new(key).unwrap().is_base64()), (key, true));
        }
    }

    #[test]
    fn a_long_key_is_digested_as_dalli_does() {
        let expected = format!("{}:md5:4e5475d125a33c6190718e75adc1b704", "a".repeat(212));
        assert_eq!(stored(&"a".repeat(300)), expected);
        assert_eq!(expected.len(), 249);
    }

    #[test]
    fn every_key_is_sent_in_a_form_that_the_server_accepts() {
        let parts = ["a".repeat(400), " ".repeat(400), "é".repeat(200), "日".repeat(200), "a😀".repeat(100)];
        for head in 0..400 {
            for part in &parts {
                let key: String = "k".repeat(head) + part;
                let key = Key::new(&key).unwrap();
                assert!(key.wire().len() <= LONGEST && key.wire().iter().all(u8::is_ascii_graphic), "{key}");
                assert!(std::str::from_utf8(key.stored()).is_ok());
                assert!(split_digest(key.stored()).is_some());
            }
        }
    }

    #[test]
    fn no_key_names_the_entry_of_a_digested_key() {
        for long in ["a".repeat(300), " ".repeat(300), format!("{}é{}", "a".repeat(147), "b".repeat(200))] {
            let digested = stored(&long);
            let digested_twice = stored(&digested);
            assert_ne!(digested_twice, digested);
            assert_ne!(stored(&digested_twice), digested_twice);
        }
    }

    #[test]
    fn a_prefix_is_compared_with_the_readable_part_of_a_digested_key() {
        let long = stored(&"a".repeat(300));
        assert!(starts_with(long.as_bytes(), "a".repeat(212).as_bytes()));
        assert!(!starts_with(long.as_bytes(), "a".repeat(213).as_bytes()));
        assert!(!starts_with(long.as_bytes(), &long.as_bytes()[..215]));
        assert!(starts_with(b"file:md5:1", b"file:md5:"));
        assert!(starts_with(b"anything", b""));
    }

    #[test]
    fn a_listed_key_is_sent_back_unchanged_or_as_base64() {
        assert_eq!(Key::listed(b"\xff".repeat(240)).wire(), b"\xff".repeat(240));
        assert_eq!(Key::listed(b"a key".to_vec()).wire(), b"YSBrZXk=");
    }
}
