//! The first step of a fetch: reads the keys.

use super::form::{FirstRead, Form, Found};
use super::load_state::{Load, LoadState};
use super::{Answer, Fetching, Wanted};
use crate::error::{Error, ErrorKind};

impl<V: Form, E> Fetching<V, E> {
    /// Reads all keys in one round trip, and answers those that need no load now.
    pub(super) async fn look(&mut self) {
        let keys: Vec<String> = self.wanted.iter().map(|wanted| wanted.key.clone()).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        for (index, read) in self.cache.get_many_raw(&keys).await.into_iter().enumerate() {
            self.record_read(index, FirstRead::of(&self.cache, self.verb, keys[index], read));
        }
    }

    pub(super) fn record_read(&mut self, index: usize, first_read: FirstRead<V>) {
        let wanted = &mut self.wanted[index];
        match first_read.found {
            Found::Current { value, is_stale } => wanted.answer(Answer::Value(value), outcome(is_stale)),
            Found::Old { value, is_stale } => wanted.old = Some((value, is_stale)),
            Found::Nothing => {}
        }
        match first_read.read {
            Ok(held) => wanted.seen = held,
            Err(error) => self.cannot_read(index, &error),
        }
    }

    /// Reports a failed read. After an outage the loaded value is not stored, or each fetch would wait for the same
    /// outage several times.
    pub(super) fn cannot_read(&mut self, index: usize, error: &Error) {
        self.cache.report(self.verb, error);
        let wanted: &mut Wanted<V, E> = &mut self.wanted[index];
        if is_outage(error) {
            wanted.may_store = false;
        }
        if error.kind() == ErrorKind::InvalidKey {
            wanted.may_store = false;
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
