//! The nodes of a cluster, and the owner of each slot.
//!
//! The table holds the indexes of nodes, which are changed one by one, in place. Another thread or a forked child may
//! see a table that is only partly updated. It still names, for each slot, a present or a former owner, and a former
//! owner redirects the request. So there is no lock that a vanished thread may hold, nothing to leak, and no memory
//! whose release has to wait for readers. The connections of a node that has left the cluster are closed; its entry is
//! reused when it comes back.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use super::topology::Range;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::AppendOnly;
use crate::net::{Address, Link, Settings};
use crate::server_stats::ServerStats;
use crate::store::hash_slot::SLOTS;
use crate::store::redis::config::{Access, Replicas};
use crate::store::redis::protocol::Resp;

/// The maximum number of addresses in the life of a store.
const MAX_NODES: usize = 4_096;

/// The maximum number of replicas of a master that are read.
const MAX_REPLICAS: usize = 8;

const NO_NODE: u16 = u16::MAX;

/// The index of a node in the table.
pub(super) type Index = u16;

pub(super) struct Table {
    nodes: AppendOnly<Node>,
    owners: Box<[AtomicU16]>,
    access: Access,
    settings: Settings,
    replicas: Replicas,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) link: Link<Resp>,
    /// The link for reads that a replica may serve. With one link for both, a master that has become a replica would
    /// serve requests that are meant for the master.
    reader: Option<Link<Resp>>,
    /// Whether the last topology lists the node.
    is_listed: AtomicBool,
    replicas: [AtomicU16; MAX_REPLICAS],
}

impl Table {
    /// Creates a table with these nodes, and without owners of slots. Does no I/O.
    pub(super) fn new(seeds: Vec<Endpoint>, access: Access, settings: Settings, replicas: Replicas) -> Table {
        let owners = (0..SLOTS).map(|_| AtomicU16::new(NO_NODE)).collect();
        let table = Table { nodes: AppendOnly::with_room_for(MAX_NODES), owners, access, settings, replicas };
        for seed in seeds {
            table.index_of(seed);
        }
        table
    }

    #[inline]
    pub(super) fn owner(&self, slot: u16) -> Option<(Index, &Node)> {
        let index = self.owners[usize::from(slot)].load(Ordering::Relaxed);
        self.node(index).map(|node| (index, node))
    }

    /// Returns the replica that may be read instead of the owner. While the replicas stay the same, a slot is always
    /// read from the same one, so that a later read does not return an older value.
    pub(super) fn reader(&self, slot: u16) -> Option<(Index, &Link<Resp>)> {
        if self.replicas == Replicas::Never {
            return None;
        }
        let (_, owner) = self.owner(slot)?;
        let replicas = owner.replicas.iter().map(|replica| replica.load(Ordering::Relaxed));
        let count = replicas.clone().take_while(|replica| *replica != NO_NODE).count();
        let index = replicas.clone().nth(usize::from(slot).checked_rem(count)?)?;
        Some((index, self.node(index)?.reader()))
    }

    #[inline]
    pub(super) fn node(&self, index: Index) -> Option<&Node> {
        self.nodes.get(usize::from(index))
    }

    /// Returns all nodes, with those that have left the cluster.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    /// Returns the nodes that have slots, each with its slots.
    ///
    /// # Errors
    ///
    /// If a slot has no owner.
    pub(super) fn slots_by_owner(&self) -> Result<BTreeMap<Index, Vec<u16>>> {
        let mut owners: BTreeMap<Index, Vec<u16>> = BTreeMap::new();
        for (slot, owner) in (0..).zip(&self.owners) {
            owners.entry(owner.load(Ordering::Relaxed)).or_default().push(slot);
        }
        match owners.get(&NO_NODE) {
            Some(slots) => Err(uncovered(slots[0])),
            None => Ok(owners),
        }
    }

    /// Returns the index of the node at an address, which is added if it is new. Returns `None` if the table is full.
    pub(super) fn index_of(&self, endpoint: Endpoint) -> Option<Index> {
        let is_meant = |node: &Node| *node.endpoint() == endpoint;
        let index = self.nodes.find_or_add(is_meant, || self.open(endpoint.clone()));
        index.and_then(|index| Index::try_from(index).ok())
    }

    /// Like `index_of`, with a cache in front: when slots are scattered, the same node occurs in many ranges.
    fn cached_index_of<'e>(&self, endpoint: &'e Endpoint, known: &mut HashMap<&'e Endpoint, Index>) -> Result<Index> {
        if let Some(index) = known.get(endpoint) {
            return Ok(*index);
        }
        let index = self.index_of(endpoint.clone()).ok_or_else(too_many)?;
        known.insert(endpoint, index);
        Ok(index)
    }

    fn open(&self, endpoint: Endpoint) -> Node {
        let resp = || Resp::new(Address::Fixed(endpoint.clone()), self.access.clone());
        let reader = (self.replicas == Replicas::Prefer).then(|| Link::new(resp().reading_replica(), self.settings));
        Node {
            link: Link::new(resp(), self.settings),
            reader,
            is_listed: AtomicBool::new(false),
            replicas: [const { AtomicU16::new(NO_NODE) }; MAX_REPLICAS],
        }
    }

    /// Stores the new owner of a slot.
    pub(super) fn set_owner(&self, slot: u16, owner: Index) {
        if let Some(node) = self.node(owner) {
            node.is_listed.store(true, Ordering::Relaxed);
        }
        self.owners[usize::from(slot)].store(owner, Ordering::Relaxed);
    }

    /// Replaces the topology. Slots that the ranges do not contain have no owner; slots whose master has no name yet
    /// keep theirs, which redirects. The connections of nodes that the ranges do not contain are closed.
    ///
    /// # Errors
    ///
    /// If there are too many nodes.
    pub(super) fn adopt(&self, ranges: &[Range]) -> Result<()> {
        let mut owners = vec![NO_NODE; SLOTS];
        let mut listed = Vec::new();
        let mut known = HashMap::new();
        for range in ranges {
            let slots = usize::from(range.first)..=usize::from(range.last);
            let Some(master) = &range.master else {
                for slot in slots {
                    owners[slot] = self.owners[slot].load(Ordering::Relaxed);
                    listed.push(owners[slot]);
                }
                continue;
            };
            let mut index = |endpoint| self.cached_index_of(endpoint, &mut known);
            let owner = index(master)?;
            let replicas: Vec<Index> = range.replicas.iter().map(index).collect::<Result<_>>()?;
            let node = self.node(owner).ok_or_else(too_many)?;
            let padded = replicas.iter().copied().chain([NO_NODE; MAX_REPLICAS]);
            for (current, replica) in node.replicas.iter().zip(padded) {
                current.store(replica, Ordering::Relaxed);
            }
            owners[slots].fill(owner);
            listed.push(owner);
            listed.extend(replicas);
        }
        for (current, owner) in self.owners.iter().zip(owners) {
            current.store(owner, Ordering::Relaxed);
        }
        listed.sort_unstable();
        for (index, node) in self.nodes().enumerate() {
            let is_listed = Index::try_from(index).is_ok_and(|index| listed.binary_search(&index).is_ok());
            if node.is_listed.swap(is_listed, Ordering::Relaxed) && !is_listed {
                node.reset();
            }
        }
        Ok(())
    }
}

/// Leaves out the owners of the slots.
impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("nodes", &self.nodes).field("replicas", &self.replicas).finish_non_exhaustive()
    }
}

impl Node {
    pub(super) fn endpoint(&self) -> &Endpoint {
        self.link.endpoint()
    }

    /// Returns the link for reads that a replica may serve.
    pub(super) fn reader(&self) -> &Link<Resp> {
        self.reader.as_ref().unwrap_or(&self.link)
    }

    pub(super) fn is_listed(&self) -> bool {
        self.is_listed.load(Ordering::Relaxed)
    }

    pub(super) fn reset(&self) {
        self.links().for_each(Link::reset);
    }

    /// Returns the statistics of both links.
    pub(super) fn stats(&self) -> ServerStats {
        let own = self.link.stats();
        self.reader.iter().fold(own, |sum, reader| sum.and(&reader.stats()))
    }

    fn links(&self) -> impl Iterator<Item = &Link<Resp>> {
        [&self.link].into_iter().chain(&self.reader)
    }
}

/// Returns the error of a slot without an owner.
pub(super) fn uncovered(slot: u16) -> Error {
    Error::from_reply(ErrorKind::Server, true, format!("no node of the cluster has slot {slot}"))
}

fn too_many() -> Error {
    Error::new(ErrorKind::Protocol, format!("the cluster has named more than {MAX_NODES} addresses"))
}
