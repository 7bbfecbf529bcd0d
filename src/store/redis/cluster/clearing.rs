//! Clearing a prefix on all nodes, while slots may be moved from node to node.
//!
//! A key that is moved from a node that has not listed it yet to a node that has been listed already is on neither
//! list. So after a pass over the nodes, each of them is asked which of its slots it has given away, completely or in
//! part, and to which nodes. These are listed in the next pass. Only slots that have been moved again during that pass
//! need another one, so an endless move of slots from one node to another needs two passes.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use redis::Value;

use super::Cluster;
use super::learning::IfRunning;
use super::redirection::Redirection;
use super::table::{Index, Node};
use crate::error::{ErrorKind, Result};
use crate::net::{ExchangeGroup, Retry, join_all};
use crate::store::hash_slot::{SLOTS, crc16, slot, slot_of_sum, tag};
use crate::store::redis::clear::Listing;
use crate::store::redis::commands::{self, Command, Request};
use crate::store::redis::exchange::exchange;
use crate::store::redis::reply::{Reply, text};

/// The maximum number of passes. A key that is never listed was moved in each of them.
const MAX_PASSES: usize = 8;

/// Nodes, each with the slots whose keys it may have.
type SlotsByNode = BTreeMap<Index, Vec<u16>>;

/// The clear of one node.
struct NodeClear<'n> {
    node: &'n Node,
    listing: Listing<'n>,
    /// Keys that were listed and then moved to another node. They are removed after the exchanges with all nodes: on
    /// this thread, the other nodes' connections may be in use until then.
    moved: Vec<Vec<u8>>,
}

fn unlink(key: &Vec<u8>) -> Command {
    commands::unlink(std::slice::from_ref(key))
}

impl Cluster {
    /// Clears all masters at once. If one fails, the others are still cleared.
    pub(in crate::store::redis) async fn clear(&self, prefix: &str) -> Result<()> {
        let deadline = self.deadline();
        self.refresh_topology(deadline, IfRunning::Wait).await?;
        let mut nodes = self.table.slots_by_owner()?;
        let mut outcomes = self.clear_nodes(&nodes, prefix, deadline).await?;
        for _ in 1..MAX_PASSES {
            nodes = self.moved_from(nodes, outcomes, prefix).await?;
            if nodes.is_empty() {
                return Ok(());
            }
            outcomes = self.clear_nodes(&nodes, prefix, self.deadline()).await?;
        }
        outcomes.into_iter().collect()
    }

    /// Lists the keys of all these nodes and removes them. Returns an outcome for each node.
    async fn clear_nodes(&self, nodes: &SlotsByNode, prefix: &str, deadline: Instant) -> Result<Vec<Result<()>>> {
        let mut clears = Vec::with_capacity(nodes.len());
        for index in nodes.keys() {
            let node = self.node(*index)?;
            clears.push(NodeClear { node, listing: Listing::new(&node.link, prefix), moved: Vec::new() });
        }
        // A node that has responded by the deadline has the whole timeout in each of the other exchanges.
        let dialled = ExchangeGroup::until(deadline);
        let mut begun = Vec::with_capacity(clears.len());
        for clear in &mut clears {
            begun.push(self.clear_listed(clear, &dialled));
        }
        let begun = join_all(begun).await;
        let group = ExchangeGroup::default();
        let mut rest = Vec::with_capacity(clears.len());
        for (clear, begun) in clears.iter_mut().zip(begun) {
            let group = &group;
            rest.push(async move {
                let mut goes_on = begun?;
                while goes_on {
                    goes_on = self.clear_listed(clear, group).await?;
                }
                Ok(())
            });
        }
        let mut outcomes: Vec<Result<()>> = join_all(rest).await;
        for (NodeClear { moved, .. }, outcome) in clears.iter().zip(&mut outcomes) {
            if outcome.is_ok() {
                *outcome = self.unlink_moved(moved).await;
            }
        }
        Ok(outcomes)
    }

    /// Removes the keys of the next step of a listing, but those that have been moved since. Returns whether there was
    /// one.
    async fn clear_listed(&self, clear: &mut NodeClear<'_>, group: &ExchangeGroup) -> Result<bool> {
        let NodeClear { node, listing, moved } = clear;
        let Some(keys) = listing.next(Some(group)).await? else { return Ok(false) };
        if keys.is_empty() {
            return Ok(true);
        }
        let request = Request::several(keys.iter().map(unlink));
        let replies = exchange(&node.link, &request, Retry::Idempotent, Some(group)).await?;
        for (key, reply) in keys.into_iter().zip(replies) {
            if self.redirection_in(&reply, node).is_some() {
                moved.push(key);
            } else {
                Reply::new(reply, node.endpoint())?;
            }
        }
        Ok(true)
    }

    /// Removes keys from the nodes that have them now.
    async fn unlink_moved(&self, keys: &[Vec<u8>]) -> Result<()> {
        for key in keys {
            let request = Request::one(unlink(key));
            let (replies, by) =
                self.call_redirected(slot(key), &request, Retry::Idempotent, self.deadline(), None).await?;
            replies.into_iter().try_for_each(|reply| Reply::new(reply, by).map(|_| ()))?;
        }
        Ok(())
    }

    /// Returns the nodes to which slots of these nodes were moved, or are being moved, with these slots.
    ///
    /// # Errors
    ///
    /// If a node has failed and still has one of its slots.
    async fn moved_from(&self, nodes: SlotsByNode, outcomes: Vec<Result<()>>, prefix: &str) -> Result<SlotsByNode> {
        let group = ExchangeGroup::until(self.deadline());
        let mut asked = Vec::with_capacity(nodes.len());
        for ((index, slots), outcome) in nodes.iter().zip(outcomes) {
            let (node, group) = (self.node(*index)?, &group);
            asked.push(async move {
                outcome?;
                self.given_away(node, slots, prefix, group).await
            });
        }
        let mut moved = SlotsByNode::new();
        for ((from, slots), outcome) in nodes.iter().zip(join_all(asked).await) {
            let given_away = match outcome {
                Ok(given_away) => given_away,
                // The node may have left the cluster, without its slots.
                Err(error) if error.kind() != ErrorKind::Timeout => self.taken_from(*from, slots).await.ok_or(error)?,
                Err(error) => return Err(error),
            };
            for (slot, to) in given_away {
                moved.entry(to).or_default().push(slot);
            }
        }
        Ok(moved)
    }

    /// Returns which of these slots a node has given to other nodes, completely or in part, and to which.
    async fn given_away(
        &self,
        node: &Node,
        slots: &[u16],
        prefix: &str,
        group: &ExchangeGroup,
    ) -> Result<Vec<(u16, Index)>> {
        let request = Request::one(commands::cluster_nodes());
        let described = exchange(&node.link, &request, Retry::Idempotent, Some(group)).await?.pop();
        // Without a description, because the account may not ask for it, all slots are checked.
        let kept = described.as_ref().and_then(kept_slots).unwrap_or_else(|| vec![false; SLOTS]);
        let keys = keys_in(slots.iter().copied().filter(|slot| !kept[usize::from(*slot)]), prefix);
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let request = Request::several(keys.iter().map(|(_, key)| commands::get(key)));
        let replies = exchange(&node.link, &request, Retry::Idempotent, Some(group)).await?;
        let mut given_away = Vec::new();
        for ((slot, _), reply) in keys.iter().zip(&replies) {
            match self.redirection_in(reply, node) {
                Some(Redirection::Moved(to) | Redirection::Ask(to)) => given_away.push((*slot, to)),
                // The node has left the cluster, or the cluster is down.
                Some(_) => _ = Reply::new(reply.clone(), node.endpoint())?,
                None => _ = Reply::read(reply.clone(), node.endpoint())?,
            }
        }
        Ok(given_away)
    }

    /// Refreshes the topology. Returns the present owners of slots of a node that has failed or left the cluster.
    async fn taken_from(&self, from: Index, slots: &[u16]) -> Option<Vec<(u16, Index)>> {
        self.refresh.mark_stale(Some(from));
        self.refresh_topology(self.deadline(), IfRunning::Wait).await.ok()?;
        let owner = |slot: u16| self.table.owner(slot).map(|(index, _)| index).filter(|index| *index != from);
        slots.iter().map(|slot| Some((*slot, owner(*slot)?))).collect()
    }
}

/// Returns the slots that a node has or is importing, and is not moving to another node, from its reply to `CLUSTER
/// NODES`.
fn kept_slots(described: &Value) -> Option<Vec<bool>> {
    const FLAGS: usize = 2;
    const FIRST_SLOT: usize = 8;
    let is_itself =
        |fields: &Vec<&str>| fields.get(FLAGS).is_some_and(|flags| flags.split(',').any(|flag| flag == "myself"));
    let fields = text(described)?.lines().map(|line| line.split(' ').collect()).find(is_itself)?;
    let mut kept = vec![false; SLOTS];
    for part in fields.get(FIRST_SLOT..).unwrap_or_default() {
        // A slot that is being moved: `[93->-id]` to the node with this id, `[93-<-id]` from it.
        let (range, is_kept) = match part.strip_prefix('[') {
            Some(moving) => (moving.split_once('-')?.0, moving.contains("-<-")),
            None => (*part, true),
        };
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        kept.get_mut(first.parse().ok()?..=last.parse().ok()?)?.fill(is_kept);
    }
    Some(kept)
}

/// Returns a key in each of these slots that begins with the prefix, and that no caller uses. If the prefix has a hash
/// tag, it has keys in one slot alone.
fn keys_in(slots: impl Iterator<Item = u16>, prefix: &str) -> Vec<(u16, String)> {
    const TRIES: usize = 32 * SLOTS;
    let mut wanted: HashSet<u16> = slots.collect();
    let start = format!("{prefix}prefork-probe:");
    if tag(start.as_bytes()).is_some() {
        wanted.retain(|wanted| *wanted == slot(&start));
        return wanted.into_iter().map(|slot| (slot, start.clone())).collect();
    }
    let sum = crc16(0, start.as_bytes());
    let mut keys = Vec::with_capacity(wanted.len());
    for number in (0..TRIES).map(|number| number.to_string()) {
        if wanted.is_empty() {
            break;
        }
        let slot = slot_of_sum(crc16(sum, number.as_bytes()));
        if wanted.remove(&slot) {
            keys.push((slot, format!("{start}{number}")));
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::{SLOTS, kept_slots, keys_in, slot};

    fn kept(lines: &str) -> Option<Vec<usize>> {
        let kept = kept_slots(&Value::BulkString(lines.as_bytes().to_vec()))?;
        Some((0..SLOTS).filter(|slot| kept[*slot]).collect())
    }

    #[test]
    fn a_node_keeps_its_slots_but_those_that_it_is_moving() {
        let other = "a 127.0.0.1:1@2,host slave b 0 0 1 connected\n";
        let itself = "b 127.0.0.1:3@4,,shard-id=c myself,master - 0 0 2 connected";
        assert_eq!(kept(&format!("{other}{itself} 1-3 9 [2->-a] [7-<-a]\n")), Some(vec![1, 3, 7, 9]));
        assert_eq!(kept(&format!("{itself}\n{other}")), Some(vec![]));
        for invalid in ["", "x", other, &format!("{itself} x"), &format!("{itself} 5-16384")] {
            assert_eq!(kept(invalid), None, "{invalid:?}");
        }
    }

    #[test]
    fn a_key_is_found_for_each_slot() {
        let keys = keys_in(0..16_384, "prefix:{");
        assert_eq!(keys.len(), SLOTS);
        assert!(keys.iter().all(|(number, key)| slot(key) == *number && key.starts_with("prefix:{")));
        let keys = keys_in(0..16_384, "{t}:");
        assert_eq!(keys, [(slot("t"), keys[0].1.clone())]);
    }
}
