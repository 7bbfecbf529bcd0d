//! Reads many keys through a store, as the typed `get_many` does internally.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use prefork_cache::CacheStore;

/// Reads keys inline: outside of a runtime, the future of a store is ready at its first poll.
pub(crate) fn blocking(store: &impl CacheStore, keys: &[&str]) -> Vec<Option<Bytes>> {
    let batch = pin!(store.get_many(keys));
    match batch.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(values) => values.into_iter().map(|value| value.expect("a hit")).collect(),
        Poll::Pending => unreachable!("a store outside of a runtime does not suspend"),
    }
}
