//! Operations of a batch that have overtaken an earlier one, which was redirected.

use std::collections::HashMap;

use super::item::{Item, Work};
use super::operations::{Answer, Nodes};
use super::redirection::Target;
use crate::store::scatter_gather::{LastAnswer, Round};
use crate::store::{Op, When};

/// The operations of a round that are sent in another one, by the node that was asked.
pub(super) struct SentOn<'o> {
    keys: HashMap<(Target, &'o str), Target>,
    /// The slots in which a set is sent on that may revoke a lease.
    marks: HashMap<(Target, u16), Target>,
    /// The last operation on a key that was executed and is not executed again, by its number in the round.
    done: HashMap<(Target, &'o str), usize>,
}

impl<'o> SentOn<'o> {
    pub(super) fn new(sent: &Round<'_, Nodes<'o>>, answers: &[LastAnswer<Nodes<'o>>]) -> SentOn<'o> {
        let is_done = |place: usize, item: &Item<'o>| match &answers[place] {
            Some((_, Ok(Answer::Outcome(outcome)))) => outcome.is_done() && !item.may_be_repeated(),
            _ => false,
        };
        let done = sent.items().enumerate().filter(|(_, (_, place, item))| is_done(*place, item));
        let done = done.map(|(number, (target, _, item))| ((target, item.key()), number)).collect();
        SentOn { keys: HashMap::new(), marks: HashMap::new(), done }
    }

    pub(super) fn add(&mut self, by: Target, item: &Item<'o>, next: Target) {
        self.keys.insert((by, item.key()), next);
        match item.work {
            Work::Operation(Op::Settle(settle)) => _ = self.keys.insert((by, settle.lease), next),
            Work::Operation(Op::Set { when: When::IfPresent, .. }) => _ = self.marks.insert((by, item.slot), next),
            _ => {}
        }
    }

    /// Returns where an operation is executed again that `by` has executed before one that was meant to come first.
    /// `number` is its number in the round.
    pub(super) fn after_overtaken(&self, by: Target, item: &Item<'o>, number: usize) -> Option<Target> {
        let key = (by, item.key());
        if !item.may_be_repeated() || self.done.get(&key).is_some_and(|done| *done > number) {
            return None;
        }
        let of_key = self.keys.get(&key);
        match item.work {
            Work::Operation(Op::Delete { .. }) => of_key.or_else(|| self.marks.get(&(by, item.slot))).copied(),
            _ => of_key.copied(),
        }
    }
}

/// Returns whether the operation at `place` may be executed again after all others.
pub(super) fn may_be_repeated_at(items: &[Item<'_>], place: usize) -> bool {
    let key = items[place].key();
    items[place..].iter().all(|item| item.key() != key || item.may_be_repeated())
}
