//! The first step: what the store holds for the keys.

use super::form::{Form, Found, Looked};
use super::load_state::{Load, LoadState};
use super::{Answer, Fetching, Wanted};
use crate::error::{Error, ErrorKind};

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
            Found::Current { value, is_stale } => wanted.answer(Answer::Value(value), outcome(is_stale)),
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
            wanted.state = LoadState::Load(Load::ALONE);
        }
    }
}

pub(super) fn outcome(is_stale: bool) -> &'static str {
    if is_stale { "stale" } else { "hit" }
}

fn is_outage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Connect | ErrorKind::Unavailable | ErrorKind::Timeout)
}
