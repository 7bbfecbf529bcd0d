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
        let is_final = self.done.get(&(by, item.key())).is_some_and(|done| *done > number);
        if item.may_be_repeated() && !is_final { self.after_earlier(by, item) } else { None }
    }

    /// Returns where an operation is sent that has to come after one that is sent on.
    pub(super) fn after_earlier(&self, by: Target, item: &Item<'o>) -> Option<Target> {
        let of_key = self.keys.get(&(by, item.key()));
        let earlier = match item.work {
            Work::Operation(Op::Delete { .. }) => of_key.or_else(|| self.marks.get(&(by, item.slot))),
            Work::Operation(Op::Settle(settle)) => of_key.or_else(|| self.keys.get(&(by, settle.lease))),
            _ => of_key,
        };
        earlier.copied()
    }
}

/// Returns whether the operation at `place` may be executed again after all others.
pub(super) fn may_be_repeated_at(items: &[Item<'_>], place: usize) -> bool {
    let key = items[place].key();
    items[place..].iter().all(|item| item.key() != key || item.may_be_repeated())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::redirection::Mode;
    use super::{Answer, Item, LastAnswer, Nodes, Op, Round, SentOn, Target, When, Work};
    use crate::store::{Outcome, Settle, Ttl};

    const OLD: Target = Target { index: 0, mode: Mode::Owner };
    const NEW: Target = Target { index: 1, mode: Mode::Asking };

    fn set(key: &str, when: When) -> Op<'_> {
        Op::Set { key, value: Bytes::new(), ttl: Ttl::Never, when }
    }

    fn item<'o>(operation: &'o Op<'o>) -> Item<'o> {
        Item::new(Work::Operation(operation))
    }

    fn nothing_done<'o>() -> SentOn<'o> {
        SentOn::new(&Round::new(0), &[])
    }

    #[test]
    fn operations_come_after_earlier_ones_that_are_sent_on() {
        let settle = Op::Settle(Settle { key: "{t}", lease: "{t}:lease", token: b"", store: None, mark: None });
        let mark = set("{t}:lease", When::IfPresent);
        let (of_key, of_lease, other) =
            (Op::Delete { key: "{t}" }, Op::Get { key: "{t}:lease" }, Op::Delete { key: "elsewhere" });
        let mut after_settle = nothing_done();
        after_settle.add(OLD, &item(&settle), NEW);
        let mut after_mark = nothing_done();
        after_mark.add(OLD, &item(&mark), NEW);
        for (sent_on, operation, expected) in [
            (&after_settle, &of_key, Some(NEW)),
            (&after_settle, &of_lease, Some(NEW)),
            (&after_settle, &settle, Some(NEW)),
            (&after_settle, &other, None),
            (&after_mark, &of_key, Some(NEW)),
            (&after_mark, &of_lease, Some(NEW)),
            (&after_mark, &settle, Some(NEW)),
            (&after_mark, &other, None),
        ] {
            assert_eq!(sent_on.after_earlier(OLD, &item(operation)), expected, "{operation:?}");
            assert_eq!(sent_on.after_earlier(NEW, &item(operation)), None, "{operation:?}, by another node");
        }
    }

    #[test]
    fn an_operation_is_not_repeated_past_one_that_must_not_be() {
        let delete = Op::Delete { key: "k" };
        let add = set("k", When::IfAbsent);
        let items = [item(&delete), item(&add)];
        let mut sent = Round::<Nodes<'_>>::new(items.len());
        items.iter().enumerate().for_each(|(place, item)| sent.add(OLD, place, item));
        let done = || -> LastAnswer<Nodes<'_>> { Some((OLD, Ok(Answer::Outcome(Outcome::Done(true))))) };
        let mut sent_on = SentOn::new(&sent, &[done(), done()]);
        let earlier = set("k", When::Always);
        sent_on.add(OLD, &item(&earlier), NEW);
        assert_eq!(sent_on.after_overtaken(OLD, &items[0], 0), None, "the add behind it would be undone");
        assert_eq!(sent_on.after_overtaken(OLD, &items[1], 1), None, "an add cannot be repeated");
        assert_eq!(sent_on.after_overtaken(OLD, &items[0], 2), Some(NEW), "nothing behind it was executed");
    }
}
