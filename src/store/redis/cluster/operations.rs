//! Batches of operations on a cluster: one write to each node at a time, to all nodes at once.
//!
//! While a slot is being moved, some of its keys are on the old node and some on the new one. If an operation is
//! redirected and a later one is not, the later one is executed first. It is executed again after the redirected one if
//! both are on the same key, or if it is a delete and the other one is a set that may revoke the key's lease. This
//! keeps a delete final: it revokes the lease first. Only a get, a delete or an unconditional set may be executed
//! twice, and only if no other operation on its key has been executed after it.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use bytes::Bytes;
use redis::Value;

use super::item::{Item, Work};
use super::overtaken::{SentOn, may_be_repeated_at};
use super::redirection::{Mode, Progress, Redirection, Target, redirection_error, too_many_redirections};
use super::table::{Node, uncovered};
use super::{Cluster, Gets};
use crate::error::{Error, Result};
use crate::net::{ExchangeGroup, Link};
use crate::store::hash_slot::slot;
use crate::store::operation::{self, carry_out_settle};
use crate::store::redis::batch::{self, Commands, Scripts};
use crate::store::redis::commands::{self, Request};
use crate::store::redis::exchange::exchange;
use crate::store::redis::protocol::Resp;
use crate::store::redis::reply::{self, Reply};
use crate::store::scatter_gather::{Fleet, LastAnswer, Part, Round, carry_out, in_parts};
use crate::store::{CacheStore, Op, Outcome};

/// The maximum size of one write to a node.
const PART: Part = Part { items: 4_096, bytes: 1 << 20 };

/// The nodes of a cluster, as a fleet that executes a batch.
pub(super) struct Nodes<'o> {
    cluster: &'o Cluster,
    scripts: &'o Scripts,
}

pub(super) enum Answer {
    Outcome(Outcome),
    /// With the error that the node has returned.
    Redirected(Redirection, Error),
}

/// The progress of a batch.
pub(super) struct Batch {
    progress: Progress,
    /// The positions of operations that have changed an entry and are executed again.
    removed: HashSet<usize>,
}

impl Cluster {
    /// Executes a batch. Returns an outcome for each operation, in their order. `store` executes a settle whose keys
    /// are in two slots or on two nodes.
    pub(in crate::store::redis) async fn batch<S: CacheStore>(
        &self,
        store: &S,
        scripts: &Scripts,
        operations: &[&Op<'_>],
    ) -> Vec<Result<Outcome>> {
        let mut outcomes = Vec::with_capacity(operations.len());
        for part in operations.chunk_by(|one, other| !is_on_two_slots(one) && !is_on_two_slots(other)) {
            match part {
                [Op::Settle(settle)] if is_on_two_slots(part[0]) => {
                    outcomes.push(carry_out_settle(store, settle).await);
                }
                part => {
                    let items = part.iter().map(|operation| Item::new(Work::Operation(operation))).collect();
                    outcomes.extend(self.carry_out(store, scripts, items, Gets::FromMasters).await);
                }
            }
        }
        outcomes
    }

    /// Reads keys, from replicas if they are preferred. Returns a value for each, in their order.
    pub(in crate::store::redis) async fn get_many<S: CacheStore>(
        &self,
        store: &S,
        scripts: &Scripts,
        keys: &[&str],
    ) -> Vec<Result<Option<Bytes>>> {
        let items = keys.iter().map(|key| Item::new(Work::Get(key))).collect();
        operation::values(self.carry_out(store, scripts, items, Gets::FromReplicas).await)
    }

    async fn carry_out<S: CacheStore>(
        &self,
        store: &S,
        scripts: &Scripts,
        items: Vec<Item<'_>>,
        gets: Gets,
    ) -> Vec<Result<Outcome>> {
        let deadline = self.deadline();
        if let Err(error) = self.ensure_owners(items.iter().map(|item| item.slot), deadline).await {
            return items.iter().map(|_| Err(error.clone())).collect();
        }
        let parts = items.len() / PART.items + items.iter().map(Item::size).sum::<usize>() / PART.bytes;
        let more = self.timeouts.exchange * u32::try_from(parts).unwrap_or(u32::MAX);
        let mut batch = Batch { progress: Progress::new(deadline + more), removed: HashSet::new() };
        let mut round = Round::new(items.len());
        // The operations on a key have to go to one node, even if another caller changes the table meanwhile.
        let mut targets = HashMap::new();
        for (place, item) in items.iter().enumerate() {
            let target = match item.work {
                Work::Get(_) => self.target_of(item, gets),
                Work::Operation(_) => *targets.entry(item.slot).or_insert_with(|| self.target_of(item, gets)),
            };
            if let Some(target) = target {
                round.add(target, place, item);
            }
        }
        let answers = carry_out(&Nodes { cluster: self, scripts }, items.len(), round, &mut batch).await;
        let mut outcomes = Vec::with_capacity(answers.len());
        // The keys of settles that are executed here, after the other operations of the batch.
        let mut settled = HashSet::new();
        for ((place, item), answer) in items.iter().enumerate().zip(answers) {
            outcomes.push(match answer {
                Some((_, Ok(Answer::Outcome(before))))
                    if settled.contains(item.key()) && may_be_repeated_at(&items, place) =>
                {
                    let again = item.carry_out(store).await;
                    let has_changed = before.is_done() || batch.removed.contains(&place);
                    again.map(|again| if has_changed { Outcome::Done(true) } else { again })
                }
                Some((_, Ok(Answer::Outcome(Outcome::Done(false))))) if batch.removed.contains(&place) => {
                    Ok(Outcome::Done(true))
                }
                Some((_, Ok(Answer::Outcome(outcome)))) => Ok(outcome),
                Some((_, Ok(Answer::Redirected(redirection, error)))) => match (&redirection, item.work) {
                    // The slot is being moved, and one of the two keys is on the new node already.
                    (Redirection::Ask(_) | Redirection::Split, Work::Operation(Op::Settle(settle))) => {
                        settled.insert(settle.key);
                        carry_out_settle(store, settle).await
                    }
                    _ => Err(too_many_redirections(item.slot, &redirection, error)),
                },
                Some((_, Err(error))) => Err(error),
                None => Err(uncovered(item.slot)),
            });
        }
        outcomes
    }

    /// Returns `None` if no node has the slot.
    fn target_of(&self, item: &Item<'_>, gets: Gets) -> Option<Target> {
        if gets == Gets::FromReplicas
            && let Some((index, _)) = self.table.reader(item.slot)
        {
            return Some(Target { index, mode: Mode::Replica });
        }
        self.owner(item.slot)
    }
}

/// Returns whether an operation is a settle whose lease is not in the slot of its key. Leases that this crate names
/// are.
fn is_on_two_slots(operation: &Op<'_>) -> bool {
    matches!(operation, Op::Settle(settle) if slot(settle.lease) != slot(settle.key))
}

impl<'o> Fleet for Nodes<'o> {
    type Item = Item<'o>;
    type Answer = Answer;
    type Member = Target;
    type Course = Batch;

    fn deadline(&self, batch: &Batch) -> Instant {
        batch.progress.deadline
    }

    /// Sends a node its items in parts. After a failure the rest is not sent.
    async fn ask(
        &self,
        target: Target,
        items: &[&Item<'o>],
        batch: &Batch,
        group: Option<&ExchangeGroup>,
    ) -> Vec<Result<Answer>> {
        let exchange = |part| self.exchange(target, part, &batch.progress, group);
        in_parts(items, PART, Item::size, exchange, |item, error| self.failed(target, item, error)).await
    }

    async fn send_on<'i>(
        &self,
        batch: &mut Batch,
        sent: &Round<'i, Self>,
        answers: &[LastAnswer<Self>],
    ) -> Round<'i, Self> {
        let redirection_of = |(_, place, item): (Target, usize, &Item<'o>)| match &answers[place] {
            Some((_, Ok(Answer::Redirected(redirection, _)))) => Some((item.slot, redirection.clone())),
            _ => None,
        };
        let redirections: Vec<(u16, Redirection)> = sent.items().filter_map(redirection_of).collect();
        let mut next_round = Round::new(redirections.len());
        if redirections.is_empty() {
            return next_round;
        }
        let Ok(targets) = self.cluster.prepare(&mut batch.progress, &redirections).await else { return next_round };
        let mut targets = targets.into_iter();
        let mut sent_on = SentOn::new(sent, answers);
        for (number, (target, place, item)) in sent.items().enumerate() {
            let next = match &answers[place] {
                // Two operations on a key may be redirected to two nodes. They stay together, to stay in order.
                Some((_, Ok(Answer::Redirected(..)))) => {
                    targets.next().flatten().map(|next| sent_on.after_earlier(target, item).unwrap_or(next))
                }
                Some((_, Ok(Answer::Outcome(outcome)))) => {
                    let next = sent_on.after_overtaken(target, item, number);
                    if next.is_some() && outcome.is_done() {
                        batch.removed.insert(place);
                    }
                    next
                }
                Some((_, Err(_))) | None => None,
            };
            if let Some(next) = next {
                sent_on.add(target, item, next);
                next_round.add(next, place, item);
            }
        }
        next_round
    }
}

impl Nodes<'_> {
    async fn exchange(
        &self,
        target: Target,
        items: &[&Item<'_>],
        progress: &Progress,
        group: Option<&ExchangeGroup>,
    ) -> Result<Vec<Result<Answer>>> {
        let node = self.cluster.node(target.index)?;
        let link = self.link(target, node);
        let mut commands = Commands::new(self.scripts);
        for item in items {
            if target.mode == Mode::Asking {
                commands.commands.push(commands::asking());
            }
            match item.work {
                Work::Get(key) => commands.push_get(key),
                Work::Operation(operation) => commands.push(operation)?,
            }
        }
        let loads = commands.loads();
        let count = loads.len();
        let request = Request::several(loads.into_iter().chain(commands.commands));
        let retry = batch::retry(items.iter().map(|item| item.is_read()));
        let exchange = exchange(link, &request, retry, group);
        let mut replies = self.cluster.in_time(progress.deadline, exchange).await?;
        // An account that may not load scripts uses those that the node knows.
        replies.drain(..count);
        if target.mode == Mode::Asking {
            // Every other reply is that to ASKING.
            replies = replies.into_iter().skip(1).step_by(2).collect();
        }
        Ok(items.iter().zip(replies).map(|(item, value)| self.answer(target, node, item, value)).collect())
    }

    fn link<'n>(&self, target: Target, node: &'n Node) -> &'n Link<Resp> {
        match target.mode {
            Mode::Replica => node.reader(),
            Mode::Owner | Mode::Asking => &node.link,
        }
    }

    #[inline]
    fn answer(&self, target: Target, node: &Node, item: &Item<'_>, value: Value) -> Result<Answer> {
        match (item.work, value) {
            (Work::Get(_), Value::BulkString(bytes)) => Ok(Answer::Outcome(Outcome::Value(Some(bytes.into())))),
            (_, value) => self.examine(target, node, item, value),
        }
    }

    fn examine(&self, target: Target, node: &Node, item: &Item<'_>, value: Value) -> Result<Answer> {
        let redirection = match &value {
            Value::ServerError(error) if reply::is_unknown_script(&value) => Some((Redirection::UnknownScript, error)),
            Value::ServerError(error) => {
                self.cluster.redirection_in(&value, node).map(|redirection| (redirection, error))
            }
            _ => None,
        };
        if let Some((redirection, error)) = redirection {
            return Ok(Answer::Redirected(redirection, redirection_error(node, error)));
        }
        let outcome = match item.work {
            Work::Get(_) => Reply::read(value, node.endpoint()).map(Outcome::Value),
            Work::Operation(operation) => batch::outcome(operation, value, node.endpoint()),
        };
        match outcome {
            Ok(outcome) => Ok(Answer::Outcome(outcome)),
            Err(error) if target.mode == Mode::Replica => {
                Ok(Answer::Redirected(Redirection::Failed(target.index), error))
            }
            Err(error) => Err(error),
        }
    }

    fn failed(&self, target: Target, item: &Item<'_>, error: &Error) -> Result<Answer> {
        let redirection = self.cluster.redirection_after(error, target.index, item.is_read());
        redirection.map_or_else(|| Err(error.clone()), |redirection| Ok(Answer::Redirected(redirection, error.clone())))
    }
}
