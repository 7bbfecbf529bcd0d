//! Keys as the store sees them: the caller's key with the handle's namespace in front.

use std::borrow::Cow;
use std::sync::Arc;

use arrayvec::ArrayString;

use crate::error::{Error, ErrorKind, Result};
use crate::store::reserved_for;

/// Keys up to this length are joined on the stack.
const SHORT: usize = 120;

/// The namespace of a handle, with a colon after each part. Colons within a part are escaped, so that no two lists of
/// parts give the same prefix. `Some("")` if a part is invalid.
#[derive(Clone, Debug)]
pub(super) struct Prefix {
    text: Option<Arc<str>>,
    /// That of the text alone, from which that of a key goes on.
    mark: Mark,
}

/// The key check of a value: the CRC-32 of its full key.
pub(super) type Mark = u32;

/// A buffer for a full key.
#[derive(Default)]
pub(super) struct KeyBuffer {
    short: ArrayString<SHORT>,
    long: String,
}

impl Prefix {
    pub(super) const fn none() -> Prefix {
        Prefix { text: None, mark: 0 }
    }

    pub(super) fn join(&self, part: &str) -> Prefix {
        if part.is_empty() || self.is_refused() {
            return Prefix { text: Some("".into()), mark: 0 };
        }
        let part = part.replace('%', "%25").replace(':', "%3A");
        let text = [self.as_str(), &part, ":"].concat();
        Prefix { mark: crc32fast::hash(text.as_bytes()), text: Some(text.into()) }
    }

    fn is_refused(&self) -> bool {
        self.text.as_ref().is_some_and(|prefix| prefix.is_empty())
    }

    pub(super) fn as_str(&self) -> &str {
        self.text.as_deref().unwrap_or_default()
    }

    /// Returns the common prefix of all keys.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidKey`] if a part is empty.
    pub(super) fn checked(&self) -> Result<&str> {
        if self.is_refused() { Err(empty_part()) } else { Ok(self.as_str()) }
    }

    #[inline]
    pub(super) fn mark(&self, key: &str) -> Mark {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.mark);
        hasher.update(key.as_bytes());
        hasher.finalize()
    }

    /// Returns the full key. Without a namespace it is the caller's.
    ///
    /// # Errors
    ///
    /// As [`check_key`].
    #[inline]
    pub(super) fn key<'a>(&self, key: &'a str, buffer: &'a mut KeyBuffer) -> Result<&'a str> {
        check_key(key)?;
        match &self.text {
            None => Ok(key),
            Some(prefix) if prefix.is_empty() => Err(empty_part()),
            Some(prefix) => Ok(buffer.join(prefix, key)),
        }
    }

    /// [`key`](Prefix::key) without a buffer: a new string if there is a namespace.
    #[inline]
    pub(super) fn checked_full_key<'a>(&self, key: &'a str) -> Result<Cow<'a, str>> {
        check_key(key)?;
        self.checked()?;
        Ok(if self.text.is_none() { Cow::Borrowed(key) } else { Cow::Owned(self.full_key(key)) })
    }

    /// Returns the full key of a key that was checked before.
    pub(super) fn full_key(&self, key: &str) -> String {
        [self.as_str(), key].concat()
    }
}

/// Refuses an empty key, which a namespace would hide from the store, and a key reserved for leases and locks: writing
/// to it would stop all callers from loading.
#[inline]
pub(super) fn check_key(key: &str) -> Result<()> {
    crate::store::check_key(key)?;
    // A namespace ends with a colon, so checking the caller's part is enough.
    reserved_for(key).map_or(Ok(()), |what| Err(reserved(key, what)))
}

#[cold]
fn empty_part() -> Error {
    Error::new(ErrorKind::InvalidKey, "a part of the namespace is empty")
}

#[cold]
fn reserved(key: &str, what: &str) -> Error {
    Error::new(ErrorKind::InvalidKey, format!("the key {key:?} is reserved for a {what}"))
}

impl KeyBuffer {
    fn join(&mut self, prefix: &str, key: &str) -> &str {
        if prefix.len() + key.len() <= SHORT {
            self.short.push_str(prefix);
            self.short.push_str(key);
            &self.short
        } else {
            self.long = format!("{prefix}{key}");
            &self.long
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{KeyBuffer, Prefix, SHORT};

    #[test]
    fn parts_are_joined_with_colons() {
        let prefix = Prefix::none().join("a").join("b");
        assert_eq!(prefix.key("c", &mut KeyBuffer::default()).unwrap(), "a:b:c");
        assert_eq!(Prefix::none().key("c", &mut KeyBuffer::default()).unwrap(), "c");
    }

    #[test]
    fn different_parts_give_different_prefixes() {
        let prefix = Prefix::none().join("a:b").join("50%");
        assert_eq!(prefix.as_str(), "a%3Ab:50%25:");
        assert_ne!(Prefix::none().join("a%3Ab").join("50%").as_str(), prefix.as_str());
        for refused in [Prefix::none().join(""), prefix.join(""), prefix.join("").join("c")] {
            let error = refused.checked_full_key("k").unwrap_err();
            assert_eq!(error.to_string(), "a part of the namespace is empty");
            assert!(refused.key("k", &mut KeyBuffer::default()).is_err() && refused.checked().is_err());
        }
    }

    #[test]
    fn the_mark_is_the_crc_of_the_full_key() {
        assert_eq!(Prefix::none().mark("123456789"), 0xCBF4_3926, "the standard CRC-32");
        assert_eq!(Prefix::none().join("123").join("5").mark("789"), Prefix::none().mark("123:5:789"));
    }

    #[test]
    fn short_and_long_keys_are_joined_alike() {
        let prefix = Prefix::none().join("a");
        for length in 1..2 * SHORT {
            let key = "k".repeat(length);
            assert_eq!(prefix.key(&key, &mut KeyBuffer::default()).unwrap(), format!("a:{key}"));
            assert_eq!(prefix.checked_full_key(&key).unwrap(), format!("a:{key}"));
        }
    }

    #[test]
    fn a_reserved_key_is_refused() {
        let error = Prefix::none().checked_full_key("user:bob:prefork-lease").unwrap_err();
        assert_eq!(error.to_string(), "the key \"user:bob:prefork-lease\" is reserved for a lease");
        assert!(Prefix::none().key("user:bob:prefork-lease", &mut KeyBuffer::default()).is_err());
        assert!(Prefix::none().join("user").join("bob").checked_full_key("prefork-lease").is_err());
        for refused in ["user:bob:prefork-lease:ACEGI", "prefork-lease:ACEGI"] {
            assert!(Prefix::none().checked_full_key(refused).is_err(), "{refused}");
        }
        assert!(Prefix::none().checked_full_key("no-prefork-lease").is_ok());
        let error = Prefix::none().checked_full_key("report:prefork-lock").unwrap_err();
        assert_eq!(error.to_string(), "the key \"report:prefork-lock\" is reserved for a lock");
    }

    #[test]
    fn an_empty_key_is_refused_in_a_namespace_too() {
        let prefix = Prefix::none().join("a");
        let error = prefix.key("", &mut KeyBuffer::default()).unwrap_err();
        assert_eq!(error.to_string(), "the key is empty");
        assert!(prefix.checked_full_key("").is_err());
    }
}
