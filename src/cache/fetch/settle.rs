//! The third step: loads what was claimed, stores it unless it was revoked, and hands it to those who wait.
//!
//! All that is to be stored, and all leases that end with it, go in one write. What a delete has revoked is not stored.
//! Where the store cannot decide that in the same breath, the value is removed again; nothing older is ever put back.

use bytes::Bytes;

use super::form::Form;
use super::lease::{Lease, MARK_TTL, NOTHING_STORED};
use super::load_state::{Keeps, Load, LoadState};
use super::single_flight::{Landing, Lead};
use super::{Answer, Fetching, Loaded, nesting};
use crate::cache::Sealed;
use crate::cache::envelope::Envelope;
use crate::error::Result;
use crate::store::{Op, Outcome, Replacement, Settle, Ttl, When};

/// The end of one load.
struct Settling {
    place: usize,
    full_key: String,
    lead: Option<Lead>,
    keeps: Keeps,
    lease: Option<Lease>,
    landing: Landing,
    /// What the entry held at the last look.
    seen: Option<Bytes>,
    store: Option<Sealed>,
    /// Whether those who wait in other processes are told that nothing was stored.
    is_marked: bool,
}

impl<V: Form, E> Fetching<V, E> {
    pub(super) async fn load_and_settle(
        &mut self,
        places: Vec<usize>,
        load: impl Future<Output = Vec<Result<Loaded<V>, E>>>,
    ) {
        let flights = self.begin_loads(&places);
        let loaded = nesting::loading(flights, load).await;
        self.settle_loads(places, loaded).await;
    }

    /// From now on others see that the loads go on. Returns the numbers of their flights.
    pub(super) fn begin_loads(&mut self, places: &[usize]) -> Vec<u64> {
        self.cache.local().counters.loaded(places.len());
        self.leases.beat();
        places.iter().filter_map(|place| self.wanted[*place].state.flight()).collect()
    }

    /// Answers for keys that were loaded.
    pub(super) async fn settle_loads(&mut self, places: Vec<usize>, loaded: Vec<Result<Loaded<V>, E>>) {
        let loads = places.into_iter().zip(loaded);
        let settling: Vec<Settling> = loads.map(|(place, loaded)| self.take_in_loaded(place, loaded)).collect();
        self.settle(settling).await;
    }

    /// Answers for a key. Encodes its value before anything is awaited, so that values need not be `Sync`.
    fn take_in_loaded(&mut self, place: usize, loaded: Result<Loaded<V>, E>) -> Settling {
        let wanted = &mut self.wanted[place];
        let LoadState::Load(Load { lead, keeps }) = std::mem::replace(&mut wanted.state, LoadState::Open) else {
            unreachable!("only loads are loaded")
        };
        let mut settling = Settling {
            place,
            full_key: wanted.full_key.clone(),
            lead,
            keeps,
            lease: self.leases.of(place).cloned(),
            landing: Landing::Failed,
            seen: wanted.held.clone(),
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
                        settling.seen.as_ref().and_then(|seen| self.cache.put_off(self.verb, &wanted.key, seen));
                    wanted.answer_old();
                } else {
                    wanted.answer(Answer::Error(error), "failed");
                }
            }
        }
        let is_revoked = settling.lead.as_ref().is_some_and(|lead| !lead.begin_settling());
        if is_revoked || keeps == Keeps::Nothing || !wanted.is_kept {
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
                    ended.push(settling.place);
                    again.extend(settling.once_more(&outcome, |seen| self.has_ended(settling.place, seen)));
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

    /// Whether what was seen under a key would be gone by now, whatever happened to it.
    fn has_ended(&self, place: usize, seen: &[u8]) -> bool {
        let mark = self.cache.prefix.mark(&self.wanted[place].key);
        Envelope::open(mark, seen).is_ok_and(|envelope| envelope.is_expired(self.cache.clock()))
    }
}

impl Settling {
    /// Stores where nothing is: what was to be replaced has come to its end in between.
    fn once_more(&self, outcome: &Outcome, has_ended: impl FnOnce(&[u8]) -> bool) -> Option<Op<'_>> {
        let (Outcome::Done(false), None, Some(seen)) = (outcome, &self.lease, &self.seen) else { return None };
        let Sealed { bytes, ttl } = self.store.clone()?;
        has_ended(seen).then_some(Op::Set { key: &self.full_key, value: bytes, ttl, when: When::IfAbsent })
    }

    /// What it asks of the store. Without scripts, `is_conditional` is not to be had.
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
        Some(match (self.keeps, &self.seen) {
            (Keeps::Always, _) => set(When::Always),
            (_, None) => set(When::IfAbsent),
            (_, Some(_)) if !is_conditional => set(When::IfPresent),
            (_, Some(seen)) => Op::CompareAndSet { key, expected: Some(seen), new: Some(bytes), ttl },
        })
    }

    /// Takes a value away that was revoked while it was stored, where no lease has decided that.
    fn removal(&self) -> Option<Op<'_>> {
        let stored = self.store.as_ref().filter(|_| self.lease.is_none())?;
        self.lead.as_ref().filter(|lead| lead.is_revoked())?;
        Some(Op::CompareAndSet { key: &self.full_key, expected: Some(&stored.bytes), new: None, ttl: Ttl::Never })
    }
}
