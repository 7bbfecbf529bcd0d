//! A key as the store sees it: the handle's namespace in front of the caller's key.

use std::ops::Deref;
use std::sync::Arc;

use arrayvec::ArrayString;

use crate::error::Result;
use crate::store::check_key;

/// Keys up to this length are put together on the stack.
const SHORT: usize = 120;

/// The namespace of a handle, with a colon after each part.
#[derive(Clone, Debug)]
pub(super) struct Prefix(Option<Arc<str>>);

pub(super) enum Key<'a> {
    Plain(&'a str),
    Short(ArrayString<SHORT>),
    Long(String),
}

impl Prefix {
    pub(super) const fn none() -> Prefix {
        Prefix(None)
    }

    pub(super) fn join(&self, part: &str) -> Prefix {
        Prefix(Some(format!("{}{part}:", self.as_str()).into()))
    }

    pub(super) fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }

    /// The full key.
    ///
    /// # Errors
    ///
    /// For an empty key, which a namespace would hide from the store.
    #[inline]
    pub(super) fn key<'a>(&self, key: &'a str) -> Result<Key<'a>> {
        check_key(key)?;
        let Some(prefix) = &self.0 else { return Ok(Key::Plain(key)) };
        let mut short = ArrayString::new();
        if short.try_push_str(prefix).is_ok() && short.try_push_str(key).is_ok() {
            return Ok(Key::Short(short));
        }
        Ok(Key::Long(format!("{prefix}{key}")))
    }
}

impl Deref for Key<'_> {
    type Target = str;

    #[inline]
    fn deref(&self) -> &str {
        match self {
            Key::Plain(key) => key,
            Key::Short(key) => key,
            Key::Long(key) => key,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Prefix;

    #[test]
    fn parts_are_joined_with_colons() {
        let prefix = Prefix::none().join("a").join("b");
        assert_eq!(&*prefix.key("c").unwrap(), "a:b:c");
        assert_eq!(&*Prefix::none().key("c").unwrap(), "c");
    }

    #[test]
    fn long_keys_are_joined_alike() {
        let key = "k".repeat(super::SHORT);
        assert_eq!(&*Prefix::none().join("a").key(&key).unwrap(), format!("a:{key}"));
    }

    #[test]
    fn an_empty_key_is_refused_in_a_namespace_too() {
        let error = Prefix::none().join("a").key("").err().unwrap();
        assert_eq!(error.to_string(), "the key is empty");
    }
}
