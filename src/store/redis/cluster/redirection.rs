//! Redirections: the replies of a node that does not serve a slot, and what a call does next.
//!
//! After such a reply nothing was executed, so a change is sent again like a read. If a node fails in the middle of an
//! exchange, it is not known whether the request was executed: a read is sent again, a change is not.
//!
//! | reply or failure | [`Redirection`] | before the next attempt | next target |
//! | --- | --- | --- | --- |
//! | `MOVED` | `Moved` | the new owner of the slot is stored in the table | the named node |
//! | `ASK` | `Ask` | nothing | the named node, with `ASKING` |
//! | `TRYAGAIN` | `Split` | a pause | the owner, at most [`MAX_WHILE_SPLIT`] times |
//! | `CLUSTERDOWN The cluster is down` | `Down` | a pause; the topology is refreshed | the owner, at most [`MAX_WHILE_DOWN`] times |
//! | `CLUSTERDOWN Hash slot not served`, `READONLY`, and `MOVED` or `ASK` to a node without a name (`?`) | `Unserved` | as after `Down`, since the node may have left the cluster, or was demoted | the owner, at most [`MAX_WHILE_UNSERVED`] times |
//! | `NOSCRIPT`, in a batch | `UnknownScript` | nothing | the owner |
//! | `LOADING`, a failed dial, or a failure of a request that may be executed twice | `Failed` | the topology is refreshed | the owner, if it is another node by then |
//!
//! A call is redirected at most [`MAX_ROUNDS`] times, and not after its deadline. After [`ROUNDS_AT_ONCE`] rounds there
//! is a pause before each attempt.

use std::time::{Duration, Instant};

use redis::{ServerError, Value};

use super::Cluster;
use super::learning::IfRunning;
use super::table::{Index, Node};
use super::topology::endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::pause;
use crate::store::redis::reply::server_error;

/// How often a call is redirected before it fails, because the nodes do not agree: with the pauses, for about half a
/// second.
const MAX_ROUNDS: u32 = 16;

/// How often a request is sent again while the cluster is down: with the pauses, longer than a slot has no master
/// while it is moved, and shorter than a failover takes.
const MAX_WHILE_DOWN: u32 = 4;

/// How often a request is sent again while the node that is known as the owner of its slot does not serve it: with the
/// pauses, for longer than the outcome of a query for the topology is reused.
const MAX_WHILE_UNSERVED: u32 = 6;

/// How often a request is sent again while its keys are on two nodes: most slots are moved quickly.
const MAX_WHILE_SPLIT: u32 = 4;

/// The number of rounds without a pause. After them the nodes get some time to agree.
const ROUNDS_AT_ONCE: u32 = 2;

const MIN_PAUSE: Duration = Duration::from_millis(2);
const MAX_PAUSE: Duration = Duration::from_millis(50);

/// The node for a request, and the mode of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Target {
    pub(super) index: Index,
    pub(super) mode: Mode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Mode {
    /// To the owner of the slot.
    Owner,
    /// To the node that is importing the slot, with `ASKING`.
    Asking,
    /// To a replica, which may lag behind.
    Replica,
}

/// Why a node has not executed a request.
#[derive(Clone, Debug)]
pub(super) enum Redirection {
    /// This other node has the slot.
    Moved(Index),
    /// This other node is importing the slot, and may have the key already.
    Ask(Index),
    /// The slot is being moved, and the keys of the request are on two nodes.
    Split,
    /// The node does not know the script by its hash.
    UnknownScript,
    /// The cluster is down at the moment.
    Down,
    /// The node does not serve the slot, and does not know the one that does, or not its name.
    Unserved,
    /// This node could not be reached, is loading its data, or has failed in the middle of a request that may be
    /// executed twice.
    Failed(Index),
}

/// The progress of a call through its redirections.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) deadline: Instant,
    rounds: u32,
    while_down: u32,
    while_unserved: u32,
    while_split: u32,
    pause: Duration,
}

impl Progress {
    pub(super) fn new(deadline: Instant) -> Progress {
        Progress { deadline, rounds: 0, while_down: 0, while_unserved: 0, while_split: 0, pause: MIN_PAUSE }
    }
}

impl Cluster {
    /// Returns the redirection in a reply, if it is one.
    #[inline]
    pub(super) fn redirection_in(&self, reply: &Value, node: &Node) -> Option<Redirection> {
        match reply {
            Value::ServerError(error) => self.redirection_in_error(error, node),
            _ => None,
        }
    }

    #[cold]
    fn redirection_in_error(&self, error: &ServerError, node: &Node) -> Option<Redirection> {
        match error.code() {
            "MOVED" | "ASK" if is_to_unnamed_node(error) => Some(Redirection::Unserved),
            "MOVED" => self.named_in(error, node).map(Redirection::Moved),
            "ASK" => self.named_in(error, node).map(Redirection::Ask),
            "TRYAGAIN" => Some(Redirection::Split),
            "READONLY" => Some(Redirection::Unserved),
            "CLUSTERDOWN" if error.details().is_some_and(|details| details.contains("not served")) => {
                Some(Redirection::Unserved)
            }
            "CLUSTERDOWN" => Some(Redirection::Down),
            // The node was restarted, and a replica may have replaced it.
            "LOADING" => self.table.index_of(node.endpoint().clone()).map(Redirection::Failed),
            _ => None,
        }
    }

    /// Returns the node that a redirection names. Its details are the slot, a space, the host, a colon and the port.
    fn named_in(&self, error: &ServerError, node: &Node) -> Option<Index> {
        let (_, address) = error.details()?.split_once(' ')?;
        let (host, port) = address.rsplit_once(':')?;
        self.table.index_of(endpoint(host, port.parse().ok().filter(|port| *port != 0)?, node.endpoint())?)
    }

    /// Returns the redirection after a failure of a node, if the request may be sent again.
    pub(super) fn redirection_after(&self, error: &Error, index: Index, is_read: bool) -> Option<Redirection> {
        match error.kind() {
            ErrorKind::Connect | ErrorKind::Unavailable => Some(Redirection::Failed(index)),
            ErrorKind::Io | ErrorKind::Timeout => {
                self.refresh.mark_stale(Some(index));
                is_read.then_some(Redirection::Failed(index))
            }
            _ => None,
        }
    }

    /// Prepares the next round for requests on these slots: updates the table, refreshes the topology or pauses.
    /// Returns the next target of each request, or `None` if the request ends with its last reply.
    pub(super) async fn prepare(
        &self,
        progress: &mut Progress,
        redirections: &[(u16, Redirection)],
    ) -> Result<Vec<Option<Target>>> {
        progress.rounds += 1;
        let is_down = redirections.iter().any(|(_, redirection)| matches!(redirection, Redirection::Down));
        let is_unserved = redirections.iter().any(|(_, redirection)| matches!(redirection, Redirection::Unserved));
        let is_split = redirections.iter().any(|(_, redirection)| matches!(redirection, Redirection::Split));
        progress.while_down += u32::from(is_down);
        progress.while_unserved += u32::from(is_unserved);
        progress.while_split += u32::from(is_split);
        let is_down = is_down || is_unserved;
        let over = progress.rounds > MAX_ROUNDS
            || progress.while_down > MAX_WHILE_DOWN
            || progress.while_unserved > MAX_WHILE_UNSERVED
            || Instant::now() >= progress.deadline;
        if is_down || over {
            self.refresh.mark_stale(None);
        }
        if over {
            return Ok(vec![None; redirections.len()]);
        }
        for (slot, redirection) in redirections {
            if let Redirection::Moved(index) = redirection {
                self.table.set_owner(*slot, *index);
                self.refresh.mark_stale(None);
            }
        }
        if is_split || is_down || progress.rounds > ROUNDS_AT_ONCE {
            let remaining = progress.deadline.saturating_duration_since(Instant::now());
            pause(progress.pause.min(remaining)).await?;
            progress.pause = (2 * progress.pause).min(MAX_PAUSE);
        }
        let failed = redirections.iter().find_map(|(_, redirection)| failed(redirection));
        if is_down || failed.is_some() {
            self.refresh.mark_stale(failed);
            // If this fails, the caller gets the failure that led here.
            let _ = self.refresh_topology(progress.deadline, IfRunning::Wait).await;
        }
        let is_tried_enough = |redirection: &Redirection| {
            matches!(redirection, Redirection::Split) && progress.while_split > MAX_WHILE_SPLIT
        };
        let next = |(slot, redirection): &(u16, Redirection)| {
            self.next_target(*slot, redirection).filter(|_| !is_tried_enough(redirection))
        };
        Ok(redirections.iter().map(next).collect())
    }

    fn next_target(&self, slot: u16, redirection: &Redirection) -> Option<Target> {
        match redirection {
            Redirection::Moved(index) => Some(Target { index: *index, mode: Mode::Owner }),
            Redirection::Ask(index) => Some(Target { index: *index, mode: Mode::Asking }),
            Redirection::Split | Redirection::Down | Redirection::Unserved | Redirection::UnknownScript => {
                self.owner(slot)
            }
            Redirection::Failed(failed) => self.owner(slot).filter(|owner| owner.index != *failed),
        }
    }

    pub(super) fn owner(&self, slot: u16) -> Option<Target> {
        self.table.owner(slot).map(|(index, _)| Target { index, mode: Mode::Owner })
    }

    /// Makes sure that the owners of these slots are known. Refreshes the topology if an owner is unknown or the
    /// topology may be stale.
    ///
    /// # Errors
    ///
    /// If an owner is unknown, and the refresh fails.
    pub(super) async fn ensure_owners(
        &self,
        slots: impl Iterator<Item = u16> + Clone,
        deadline: Instant,
    ) -> Result<()> {
        if slots.clone().any(|slot| self.table.owner(slot).is_none()) {
            return self.refresh_topology(deadline, IfRunning::Wait).await;
        }
        if self.refresh.is_stale() {
            // If this fails, the known owners may still be right.
            let _ = self.refresh_topology(deadline, IfRunning::Skip).await;
        }
        Ok(())
    }
}

/// Returns whether a redirection leads to a node that has announced no host name yet, where names are preferred.
fn is_to_unnamed_node(error: &ServerError) -> bool {
    error.details().and_then(|details| details.split_once(' ')).is_some_and(|(_, address)| address.starts_with("?:"))
}

fn failed(redirection: &Redirection) -> Option<Index> {
    if let Redirection::Failed(index) = redirection { Some(*index) } else { None }
}

/// Converts the error reply of a redirection.
pub(super) fn redirection_error(node: &Node, error: &ServerError) -> Error {
    match error.code() {
        "MOVED" | "ASK" => {
            let details = error.details().unwrap_or_default();
            Error::from_reply(
                ErrorKind::Server,
                true,
                format!("{} answered {} {details}", node.endpoint(), error.code()),
            )
        }
        _ => server_error(node.endpoint(), error),
    }
}

/// Returns the error of a request that was redirected too often. `answered` is the last reply to it.
pub(super) fn too_many_redirections(slot: u16, redirection: &Redirection, answered: Error) -> Error {
    match redirection {
        Redirection::Moved(_) | Redirection::Ask(_) => {
            let context = format!("the nodes redirect slot {slot} to each other, and none serves it: {answered}");
            Error::from_reply(ErrorKind::Server, true, context)
        }
        Redirection::Split
        | Redirection::UnknownScript
        | Redirection::Down
        | Redirection::Unserved
        | Redirection::Failed(_) => answered,
    }
}
