//! The third step of a fetch: loads the claimed keys, stores the values unless they were revoked, and passes them to
//! waiting callers.
//!
//! All values are stored, and their leases ended, in one write. A value that a delete has revoked is not stored. Where
//! the store cannot check that in the same operation, the value is removed again afterwards. An older value is never
//! restored.

use bytes::Bytes;

use super::form::Form;
use super::lease::{Lease, MARK_TTL, NOTHING_STORED};
use super::load_state::{Load, LoadState, StoreWhen};
use super::single_flight::{Landing, Lead};
use super::{Answer, Fetching, Loaded, nesting};
use crate::cache::Sealed;
use crate::cache::envelope::Envelope;
use crate::error::Result;
use crate::store::{Op, Outcome, Replacement, Settle, Ttl, When};

/// A load that has ended and is being stored.
struct Settling {
    index: usize,
    full_key: String,
    lead: Option<Lead>,
    store_when: StoreWhen,
    lease: Option<Lease>,
    landing: Landing,
    /// The entry at the last read.
    seen: Option<Bytes>,
    store: Option<Sealed>,
    /// Whether to leave a mark that tells waiting processes that nothing was stored.
    is_marked: bool,
}

impl<V: Form, E> Fetching<V, E> {
    pub(super) async fn load_and_settle(
        &mut self,
        indices: Vec<usize>,
        load: impl Future<Output = Vec<Result<Loaded<V>, E>>>,
    ) {
        let flights = self.begin_loads(&indices);
        let loaded = nesting::loading(flights, load).await;
        self.settle_loads(indices, loaded).await;
    }

    /// Starts the heartbeat of the leases, and returns the numbers of the flights.
    pub(super) fn begin_loads(&mut self, indices: &[usize]) -> Vec<u64> {
        self.cache.local().counters.loaded(indices.len());
        self.leases.beat();
        indices.iter().filter_map(|index| self.wanted[*index].state.flight()).collect()
    }

    /// Stores and answers loaded keys.
    pub(super) async fn settle_loads(&mut self, indices: Vec<usize>, loaded: Vec<Result<Loaded<V>, E>>) {
        let loads = indices.into_iter().zip(loaded);
        let settling: Vec<Settling> = loads.map(|(index, loaded)| self.record_loaded(index, loaded)).collect();
        self.settle(settling).await;
    }

    /// Answers a key. Encodes its value before the first await, so that values need not be `Sync`.
    fn record_loaded(&mut self, index: usize, loaded: Result<Loaded<V>, E>) -> Settling {
        let wanted = &mut self.wanted[index];
        let LoadState::Load(Load { lead, store_when }) = std::mem::replace(&mut wanted.state, LoadState::Open) else {
            unreachable!("only loads are loaded")
        };
        let mut settling = Settling {
            index,
            full_key: wanted.full_key.clone(),
            lead,
            store_when,
            lease: self.leases.of(index).cloned(),
            landing: Landing::Failed,
            seen: wanted.seen.clone(),
            store: None,
            is_marked: false,
        };
        match loaded {
            Ok(Loaded { value, expiry }) => {
                let sealed = expiry.map(|expiry| self.cache.counted(value.seal(&self.cache, &wanted.key, expiry)));
                settling.landing = match &sealed {
                    Some(Ok(sealed)) => Landing::Loaded(sealed.bytes.clone()),
                    _ => value.share(&self.cache, &wanted.key).map_or(Landing::NotShareable, Landing::Loaded),
                };
                if let Some(Err(error)) = &sealed {
                    self.cache.report(self.verb, error);
                }
                settling.store = sealed.and_then(Result::ok);
                settling.is_marked = settling.store.is_none();
                wanted.answer(Answer::Value(value), "loaded");
            }
            Err(error) => {
                self.cache.local().counters.load_failed();
                if wanted.old.is_some() {
                    settling.store =
                        settling.seen.as_ref().and_then(|seen| self.cache.delay_retry(self.verb, &wanted.key, seen));
                    wanted.answer_old();
                } else {
                    wanted.answer(Answer::Error(error), "failed");
                }
            }
        }
        let is_revoked = settling.lead.as_ref().is_some_and(|lead| !lead.begin_settling());
        if is_revoked || store_when == StoreWhen::Never || !wanted.may_store {
            settling.is_marked |= settling.store.take().is_some();
        }
        settling
    }

    async fn settle(&mut self, settling: Vec<Settling>) {
        let is_conditional = !self.cache.local().has_no_leases();
        let operations: Vec<Op<'_>> =
            settling.iter().filter_map(|settling| settling.operation(is_conditional)).collect();
        let mut outcomes = self.cache.batch(&operations).await.into_iter();
        let mut ended = Vec::with_capacity(settling.len());
        let mut again = Vec::new();
        for settling in &settling {
            if settling.operation(is_conditional).is_none() {
                continue;
            }
            match outcomes.next() {
                Some(Ok(outcome)) => {
                    ended.push(settling.index);
                    again.extend(settling.retry_if_absent(&outcome, |seen| self.has_ended(settling.index, seen)));
                }
                Some(Err(error)) => self.cache.report(self.verb, &error),
                None => {}
            }
        }
        self.leases.settled(&ended);
        for error in self.cache.batch(&again).await.into_iter().filter_map(Result::err) {
            self.cache.report(self.verb, &error);
        }
        drop(again);
        let lost: Vec<Op<'_>> = settling.iter().filter_map(Settling::removal).collect();
        for error in self.cache.batch(&lost).await.into_iter().filter_map(Result::err) {
            self.cache.report(self.verb, &error);
        }
        drop(lost);
        for Settling { lead, landing, .. } in settling {
            if let Some(lead) = lead {
                lead.land(landing);
            }
        }
    }

    /// Returns whether the entry that was seen under a key has expired by now.
    fn has_ended(&self, index: usize, seen: &[u8]) -> bool {
        let mark = self.cache.prefix.mark(&self.wanted[index].key);
        Envelope::open(mark, seen).is_ok_and(|envelope| envelope.is_expired(self.cache.clock()))
    }
}

impl Settling {
    /// Returns a second write if the first failed only because the entry to replace has expired since it was read.
    fn retry_if_absent(&self, outcome: &Outcome, has_ended: impl FnOnce(&[u8]) -> bool) -> Option<Op<'_>> {
        let (Outcome::Done(false), None, Some(seen)) = (outcome, &self.lease, &self.seen) else { return None };
        let Sealed { bytes, ttl } = self.store.clone()?;
        has_ended(seen).then_some(Op::Set { key: &self.full_key, value: bytes, ttl, when: When::IfAbsent })
    }

    /// Returns the operation that stores the value and ends the lease. Without scripts, `is_conditional` is not
    /// available.
    fn operation(&self, is_conditional: bool) -> Option<Op<'_>> {
        let key = &*self.full_key;
        if let Some(lease) = &self.lease {
            let store = self.store.as_ref();
            let store =
                store.map(|Sealed { bytes, ttl }| Replacement { seen: self.seen.as_deref(), value: bytes, ttl: *ttl });
            let mark = self.is_marked.then_some((NOTHING_STORED, MARK_TTL));
            return Some(Op::Settle(Settle { key, lease: lease.key(), token: lease.token(), store, mark }));
        }
        let Sealed { bytes, ttl } = self.store.clone()?;
        let set = |when| Op::Set { key, value: bytes.clone(), ttl, when };
        Some(match (self.store_when, &self.seen) {
            (StoreWhen::Always, _) => set(When::Always),
            (_, None) => set(When::IfAbsent),
            (_, Some(_)) if !is_conditional => set(When::IfPresent),
            (_, Some(seen)) => Op::CompareAndSet { key, expected: Some(seen), new: Some(bytes), ttl },
        })
    }

    /// Returns the operation that removes a value revoked while it was being stored, if no lease has decided that.
    fn removal(&self) -> Option<Op<'_>> {
        let stored = self.store.as_ref().filter(|_| self.lease.is_none())?;
        self.lead.as_ref().filter(|lead| lead.is_revoked())?;
        Some(Op::CompareAndSet { key: &self.full_key, expected: Some(&stored.bytes), new: None, ttl: Ttl::Never })
    }
}
