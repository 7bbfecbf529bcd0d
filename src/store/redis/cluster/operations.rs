//! Batches of operations on a cluster: one write to each node at a time, to all nodes at once.
//!
//! While a slot is being moved, some of its keys are on the old node and some on the new one. If an operation is
//! redirected and a later one is not, the later one is executed first. It is executed again after the redirected one if
//! both are on the same key, or if it is a delete and the other one is a set that may revoke the key's lease. This
//! keeps a delete final: it revokes the lease first. Only a get, a delete or an unconditional set may be executed
//! twice, and only if no other operation on its key has been executed after it.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use redis::Value;

use super::Cluster;
use super::redirection::{Mode, Progress, Redirection, Target, redirection_error, too_many_redirections};
use super::table::Node;
use crate::error::{Error, Result};
use crate::net::{ExchangeGroup, Link};
use crate::store::hash_slot::slot;
use crate::store::operation::{self, carry_out_settle};
use crate::store::redis::batch::{self, Commands, Scripts};
use crate::store::redis::commands::{self, Request};
use crate::store::redis::exchange::exchange;
use crate::store::redis::protocol::Resp;
use crate::store::redis::reply;
use crate::store::scatter_gather::{Answered, Fleet, Part, Route, carry_out, in_parts};
use crate::store::{CacheStore, Op, Outcome, When};

/// The maximum size of one write to a node.
const PART: Part = Part { items: 4_096, bytes: 1 << 20 };

/// Where gets are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store::redis) enum Gets {
    /// From the masters, which have the latest value.
    FromMasters,
    /// From the replicas, which may lag behind.
    FromReplicas,
}

/// The nodes of a cluster, as a fleet that executes a batch.
struct Nodes<'o> {
    cluster: &'o Cluster,
    scripts: &'o Scripts,
}

struct Item<'o> {
    operation: &'o Op<'o>,
    slot: u16,
}

enum Answer {
    Outcome(Outcome),
    /// With the error that the node has returned.
    Redirected(Redirection, Error),
}

/// The progress of a batch.
struct Batch {
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
        gets: Gets,
    ) -> Vec<Result<Outcome>> {
        let mut outcomes = Vec::with_capacity(operations.len());
        for part in operations.chunk_by(|one, other| !is_on_two_slots(one) && !is_on_two_slots(other)) {
            match part {
                [Op::Settle(settle)] if is_on_two_slots(part[0]) => {
                    outcomes.push(carry_out_settle(store, settle).await);
                }
                part => match self.carry_out(store, scripts, part, gets).await {
                    Ok(carried_out) => outcomes.extend(carried_out),
                    Err(error) => outcomes.extend(part.iter().map(|_| Err(error.clone()))),
                },
            }
        }
        outcomes
    }

    async fn carry_out<S: CacheStore>(
        &self,
        store: &S,
        scripts: &Scripts,
        operations: &[&Op<'_>],
        gets: Gets,
    ) -> Result<Vec<Result<Outcome>>> {
        let items: Vec<Item<'_>> = operations.iter().map(|operation| Item::new(operation)).collect();
        let deadline = self.deadline();
        self.ensure_owners(items.iter().map(|item| item.slot), deadline).await?;
        let parts =
            items.len() / PART.items + items.iter().map(|item| batch::size(item.operation)).sum::<usize>() / PART.bytes;
        let more = self.timeouts.exchange * u32::try_from(parts).unwrap_or(u32::MAX);
        let mut batch = Batch { progress: Progress::new(deadline + more), removed: HashSet::new() };
        let mut unrouted = HashMap::new();
        let mut routes = Vec::with_capacity(items.len());
        for (place, item) in items.iter().enumerate() {
            match self.target_of(item, gets) {
                Ok(member) => routes.push(Route { place, item, member }),
                Err(error) => _ = unrouted.insert(place, error),
            }
        }
        let answers = carry_out(&Nodes { cluster: self, scripts }, items.len(), routes, &mut batch).await;
        let mut outcomes = Vec::with_capacity(answers.len());
        // The keys of settles that are executed here, after the other operations of the batch.
        let mut settled = HashSet::new();
        for ((place, item), answer) in items.iter().enumerate().zip(answers) {
            let answer = answer.map(|(_, answer)| answer);
            outcomes.push(match (answer, item.operation) {
                // The slot is being moved, and one of the two keys is on the new node already.
                (Some(Ok(Answer::Redirected(Redirection::Ask(_) | Redirection::Split, _))), Op::Settle(settle)) => {
                    settled.insert(settle.key);
                    carry_out_settle(store, settle).await
                }
                (Some(Ok(Answer::Outcome(before))), operation)
                    if settled.contains(operation.key()) && may_be_repeated_at(&items, place) =>
                {
                    let again = operation::carry_out(store, operation).await;
                    let has_changed = before.is_done() || batch.removed.contains(&place);
                    again.map(|again| if has_changed { Outcome::Done(true) } else { again })
                }
                (None, _) => Err(unrouted.remove(&place).unwrap_or_else(crate::store::wrong_count)),
                (Some(Ok(Answer::Redirected(redirection, error))), _) => {
                    Err(too_many_redirections(item.slot, &redirection, error))
                }
                (Some(Ok(Answer::Outcome(Outcome::Done(false)))), _) if batch.removed.contains(&place) => {
                    Ok(Outcome::Done(true))
                }
                (Some(Ok(Answer::Outcome(outcome))), _) => Ok(outcome),
                (Some(Err(error)), _) => Err(error),
            });
        }
        Ok(outcomes)
    }

    fn target_of(&self, item: &Item<'_>, gets: Gets) -> Result<Target> {
        if gets == Gets::FromReplicas
            && let Some((index, _)) = self.table.reader(item.slot)
        {
            return Ok(Target { index, mode: Mode::Replica });
        }
        self.first_target(item.slot)
    }
}

impl<'o> Item<'o> {
    fn new(operation: &'o Op<'o>) -> Item<'o> {
        Item { operation, slot: slot(operation.key()) }
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
        let size = |item: &Item<'o>| batch::size(item.operation);
        let exchange = |part| self.exchange(target, part, &batch.progress, group);
        in_parts(items, PART, size, exchange, |item, error| self.failed(target, item, error)).await
    }

    async fn send_on<'i>(&self, batch: &mut Batch, answered: &[Answered<'i, Self>]) -> Vec<Route<'i, Self>> {
        let redirection_of = |answered: &Answered<'i, Self>| match &answered.answer {
            Ok(Answer::Redirected(redirection, _)) => Some((answered.route.item.slot, redirection.clone())),
            _ => None,
        };
        let redirections: Vec<(u16, Redirection)> = answered.iter().filter_map(redirection_of).collect();
        if redirections.is_empty() {
            return Vec::new();
        }
        let Ok(targets) = self.cluster.prepare(&mut batch.progress, &redirections).await else { return Vec::new() };
        let mut targets = targets.into_iter();
        let mut sent_on = SentOn::new(answered);
        let mut routes = Vec::with_capacity(redirections.len());
        for (number, Answered { route: Route { place, item, member }, answer }) in answered.iter().enumerate() {
            let next = match answer {
                Ok(Answer::Redirected(..)) => targets.next().flatten(),
                Ok(Answer::Outcome(outcome)) => {
                    let next = sent_on.after_overtaken(*member, item, number);
                    if next.is_some() && outcome.is_done() {
                        batch.removed.insert(*place);
                    }
                    next
                }
                Err(_) => None,
            };
            if let Some(next) = next {
                sent_on.add(*member, item, next);
                routes.push(Route { place: *place, item: *item, member: next });
            }
        }
        routes
    }
}

/// The operations of a round that are sent in another one, by the node that was asked.
struct SentOn<'o> {
    keys: HashMap<(Target, &'o str), Target>,
    /// The slots in which a set is sent on that may revoke a lease.
    marks: HashMap<(Target, u16), Target>,
    /// The last operation on a key that was executed and is not executed again, by its number in the round.
    done: HashMap<(Target, &'o str), usize>,
}

impl<'o> SentOn<'o> {
    fn new(answered: &[Answered<'_, Nodes<'o>>]) -> SentOn<'o> {
        let is_done = |answered: &Answered<'_, Nodes<'o>>| match &answered.answer {
            Ok(Answer::Outcome(outcome)) => outcome.is_done() && !may_be_repeated(answered.route.item.operation),
            _ => false,
        };
        let done = answered.iter().enumerate().filter(|(_, answered)| is_done(answered));
        let key = |route: &Route<'_, Nodes<'o>>| (route.member, route.item.operation.key());
        let done = done.map(|(number, answered)| (key(&answered.route), number)).collect();
        SentOn { keys: HashMap::new(), marks: HashMap::new(), done }
    }

    fn add(&mut self, by: Target, item: &Item<'o>, next: Target) {
        self.keys.insert((by, item.operation.key()), next);
        match item.operation {
            Op::Settle(settle) => _ = self.keys.insert((by, settle.lease), next),
            Op::Set { when: When::IfPresent, .. } => _ = self.marks.insert((by, item.slot), next),
            _ => {}
        }
    }

    /// Returns where an operation is executed again that `by` has executed before one that was meant to come first.
    fn after_overtaken(&self, by: Target, item: &Item<'o>, number: usize) -> Option<Target> {
        let key = (by, item.operation.key());
        if !may_be_repeated(item.operation) || self.done.get(&key).is_some_and(|done| *done > number) {
            return None;
        }
        let of_key = self.keys.get(&key);
        match item.operation {
            Op::Delete { .. } => of_key.or_else(|| self.marks.get(&(by, item.slot))).copied(),
            _ => of_key.copied(),
        }
    }
}

/// Returns whether the operation at `place` may be executed again after all others.
fn may_be_repeated_at(items: &[Item<'_>], place: usize) -> bool {
    let key = items[place].operation.key();
    items[place..].iter().all(|item| item.operation.key() != key || may_be_repeated(item.operation))
}

/// Returns whether an operation may be executed twice.
fn may_be_repeated(operation: &Op<'_>) -> bool {
    matches!(operation, Op::Get { .. } | Op::Delete { .. } | Op::Set { when: When::Always, .. })
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
            commands.push(item.operation)?;
        }
        let loads = commands.loads();
        let count = loads.len();
        let request = Request::several(loads.into_iter().chain(commands.commands));
        let retry = batch::retry(items.iter().map(|item| item.operation));
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

    fn answer(&self, target: Target, node: &Node, item: &Item<'_>, value: Value) -> Result<Answer> {
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
        match batch::outcome(item.operation, value, node.endpoint()) {
            Ok(outcome) => Ok(Answer::Outcome(outcome)),
            Err(error) if target.mode == Mode::Replica => {
                Ok(Answer::Redirected(Redirection::Failed(target.index), error))
            }
            Err(error) => Err(error),
        }
    }

    fn failed(&self, target: Target, item: &Item<'_>, error: &Error) -> Result<Answer> {
        let redirection = self.cluster.redirection_after(error, target.index, item.operation.is_read());
        redirection.map_or_else(|| Err(error.clone()), |redirection| Ok(Answer::Redirected(redirection, error.clone())))
    }
}
