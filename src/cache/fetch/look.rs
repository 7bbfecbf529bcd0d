//! The first step: what the store holds for the keys.

use bytes::Bytes;

use super::claim::{Load, Part};
use super::form::Form;
use super::{Answer, Fetching, Wanted};
use crate::cache::Cache;
use crate::cache::times::Age;
use crate::error::{Error, ErrorKind, Result};

/// What the store holds for a key.
pub(super) enum Found<V> {
    /// It serves, and is not to be loaded now.
    Settled { value: V, is_stale: bool },
    /// It serves, and is to be loaded again.
    Old { value: V, is_stale: bool },
    /// No value.
    Nothing,
}

/// A first look: what was read, and what it is.
pub(super) struct Looked<V> {
    pub(super) read: Result<Option<Bytes>>,
    pub(super) found: Found<V>,
}

impl<V: Form> Looked<V> {
    #[inline]
    pub(super) fn of(cache: &Cache, verb: &'static str, key: &str, read: Result<Option<Bytes>>) -> Looked<V> {
        let opened = if let Ok(Some(held)) = &read { V::open(cache, verb, key, held) } else { None };
        Looked { read, found: Found::of(opened) }
    }
}

impl<V> Found<V> {
    #[inline]
    pub(super) fn of(opened: Option<(V, Age)>) -> Found<V> {
        match opened {
            Some((value, age @ (Age::Fresh | Age::Resting))) => Found::Settled { value, is_stale: age == Age::Resting },
            Some((value, age @ (Age::Ageing | Age::Stale))) => Found::Old { value, is_stale: age == Age::Stale },
            Some((_, Age::Gone)) | None => Found::Nothing,
        }
    }

    pub(super) fn into_value(self) -> Option<V> {
        match self {
            Found::Settled { value, .. } | Found::Old { value, .. } => Some(value),
            Found::Nothing => None,
        }
    }
}

impl<V: Form, E> Fetching<V, E> {
    /// Reads all keys in one round trip, and answers for those that nobody is to load now.
    pub(super) async fn look(&mut self) {
        let keys: Vec<String> = self.wanted.iter().map(|wanted| wanted.key.clone()).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        for (place, read) in self.cache.get_many_raw(&keys).await.into_iter().enumerate() {
            self.take_in(place, Looked::of(&self.cache, self.verb, keys[place], read));
        }
    }

    pub(super) fn take_in(&mut self, place: usize, looked: Looked<V>) {
        let wanted = &mut self.wanted[place];
        match looked.found {
            Found::Settled { value, is_stale } => wanted.answer(Answer::Value(value), outcome(is_stale)),
            Found::Old { value, is_stale } => wanted.old = Some((value, is_stale)),
            Found::Nothing => {}
        }
        match looked.read {
            Ok(held) => wanted.held = held,
            Err(error) => self.cannot_read(place, &error),
        }
    }

    /// A store that does not answer is left alone, or each fetch would wait for the same outage several times.
    pub(super) fn cannot_read(&mut self, place: usize, error: &Error) {
        self.cache.report(self.verb, error);
        let wanted: &mut Wanted<V, E> = &mut self.wanted[place];
        if is_outage(error) {
            wanted.is_kept = false;
        }
        if error.kind() == ErrorKind::InvalidKey {
            wanted.is_kept = false;
            wanted.part = Part::Load(Load::ALONE);
        }
    }
}

pub(super) fn outcome(is_stale: bool) -> &'static str {
    if is_stale { "stale" } else { "hit" }
}

fn is_outage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Connect | ErrorKind::Unavailable | ErrorKind::Timeout)
}
