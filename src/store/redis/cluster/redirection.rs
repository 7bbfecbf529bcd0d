//! What a node says that does not have a slot, and what is done about it.
//!
//! Such a reply means that nothing was carried out, so a change is sent on as a read is. Where a node fails in the
//! middle of an exchange it is not known whether it has carried out what it was asked: a read is sent on, a change is
//! not.

use std::time::{Duration, Instant};

use redis::{ServerError, Value};

use super::Cluster;
use super::learning::Wait;
use super::table::{Index, Node, uncovered};
use super::topology::endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::pause;
use crate::store::redis::reply::server_error;

/// How often a call is sent on before the nodes are taken not to agree: with the pauses, for about half a second.
const MOST_ROUNDS: u32 = 16;

/// How often a node is asked again that says that the cluster is down: longer than a slot is without a master while it
/// is moved, shorter than it takes to replace one that has failed.
const MOST_WHILE_DOWN: u32 = 4;

/// How often a request is tried again whose keys are on two nodes: most slots are moved in no time.
const MOST_WHILE_APART: u32 = 4;

/// After so many rounds it is time to let the nodes agree.
const ROUNDS_AT_ONCE: u32 = 2;

const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Whom to ask, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Target {
    pub(super) index: Index,
    pub(super) how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum How {
    AsOwner,
    /// It takes the slot over, and answers for it if it is told that this is known.
    Asking,
    /// It has a copy, which may be behind.
    AsReplica,
}

/// Why a node was asked to no effect.
#[derive(Clone, Debug)]
pub(super) enum Turned {
    /// Another one has the slot.
    Moved(Index),
    /// Another one takes the slot over, and may have the key already.
    Ask(Index),
    /// The slot is being moved, and the keys of the request are on two nodes.
    Apart,
    /// It does not know the script by its hash.
    UnknownScript,
    /// The cluster is down, for the moment.
    Down,
    /// It could not be asked, or has failed in the middle of a read.
    Failed(Index),
}

/// A call on its way.
#[derive(Debug)]
pub(super) struct Course {
    pub(super) deadline: Instant,
    rounds: u32,
    while_down: u32,
    while_apart: u32,
    pause: Duration,
}

impl Course {
    pub(super) fn new(deadline: Instant) -> Course {
        Course { deadline, rounds: 0, while_down: 0, while_apart: 0, pause: SHORTEST_PAUSE }
    }
}

impl Cluster {
    /// Why this reply turns a request away, if it does.
    #[inline]
    pub(super) fn turned_by(&self, reply: &Value, node: &Node) -> Option<Turned> {
        match reply {
            Value::ServerError(error) => self.turned_by_error(error, node),
            _ => None,
        }
    }

    #[cold]
    fn turned_by_error(&self, error: &ServerError, node: &Node) -> Option<Turned> {
        match error.code() {
            "MOVED" => self.named_in(error, node).map(Turned::Moved),
            "ASK" => self.named_in(error, node).map(Turned::Ask),
            "TRYAGAIN" => Some(Turned::Apart),
            "CLUSTERDOWN" => Some(Turned::Down),
            _ => None,
        }
    }

    /// The node in a redirection: the slot, a space, host and port.
    fn named_in(&self, error: &ServerError, node: &Node) -> Option<Index> {
        let (_, address) = error.details()?.split_once(' ')?;
        let (host, port) = address.rsplit_once(':')?;
        self.table.index_of(endpoint(host, port.parse().ok().filter(|port| *port != 0)?, node.endpoint())?)
    }

    /// Why this failure of a node lets a request be sent on, if it does.
    pub(super) fn turned_by_failure(&self, error: &Error, index: Index, is_read: bool) -> Option<Turned> {
        match error.kind() {
            ErrorKind::Connect | ErrorKind::Unavailable => Some(Turned::Failed(index)),
            ErrorKind::Io | ErrorKind::Timeout => {
                self.learning.doubt(Some(index));
                is_read.then_some(Turned::Failed(index))
            }
            _ => None,
        }
    }

    /// Does what has to be done before requests on these slots are sent on. Returns the next target of each; `None`
    /// where the request ends with the answer that it has.
    pub(super) async fn prepare(&self, course: &mut Course, turned: &[(u16, Turned)]) -> Result<Vec<Option<Target>>> {
        course.rounds += 1;
        let is_down = turned.iter().any(|(_, turned)| matches!(turned, Turned::Down));
        let is_apart = turned.iter().any(|(_, turned)| matches!(turned, Turned::Apart));
        course.while_down += u32::from(is_down);
        course.while_apart += u32::from(is_apart);
        let over =
            course.rounds > MOST_ROUNDS || course.while_down > MOST_WHILE_DOWN || Instant::now() >= course.deadline;
        if is_down || over {
            self.learning.doubt(None);
        }
        if over {
            return Ok(vec![None; turned.len()]);
        }
        for (slot, turned) in turned {
            if let Turned::Moved(index) = turned {
                self.table.set_owner(*slot, *index);
                self.learning.doubt(None);
            }
        }
        if let Some(failed) = turned.iter().find_map(|(_, turned)| failed(turned)) {
            self.learning.doubt(Some(failed));
            // Without an answer, the caller gets the failure that led here.
            let _ = self.learn(course.deadline, Wait::ForOthers).await;
        }
        if is_apart || is_down || course.rounds > ROUNDS_AT_ONCE {
            let left = course.deadline.saturating_duration_since(Instant::now());
            pause(course.pause.min(left)).await?;
            course.pause = (2 * course.pause).min(LONGEST_PAUSE);
        }
        let is_tried_enough =
            |turned: &Turned| matches!(turned, Turned::Apart) && course.while_apart > MOST_WHILE_APART;
        let next =
            |(slot, turned): &(u16, Turned)| self.next_target(*slot, turned).filter(|_| !is_tried_enough(turned));
        Ok(turned.iter().map(next).collect())
    }

    fn next_target(&self, slot: u16, turned: &Turned) -> Option<Target> {
        match turned {
            Turned::Moved(index) => Some(Target { index: *index, how: How::AsOwner }),
            Turned::Ask(index) => Some(Target { index: *index, how: How::Asking }),
            Turned::Apart | Turned::Down | Turned::UnknownScript => self.owner(slot),
            Turned::Failed(failed) => self.owner(slot).filter(|owner| owner.index != *failed),
        }
    }

    fn owner(&self, slot: u16) -> Option<Target> {
        self.table.owner(slot).map(|(index, _)| Target { index, how: How::AsOwner })
    }

    /// Whom to ask first. Where that is not known, or not certain any more, it is learnt before.
    pub(super) async fn located(&self, slots: impl Iterator<Item = u16> + Clone, deadline: Instant) -> Result<()> {
        if slots.clone().any(|slot| self.table.owner(slot).is_none()) {
            return self.learn(deadline, Wait::ForOthers).await;
        }
        if self.learning.is_in_doubt() {
            // What is known may do.
            let _ = self.learn(deadline, Wait::ForNobody).await;
        }
        Ok(())
    }

    pub(super) fn first_target(&self, slot: u16) -> Result<Target> {
        self.owner(slot).ok_or_else(|| uncovered(slot))
    }
}

fn failed(turned: &Turned) -> Option<Index> {
    if let Turned::Failed(index) = turned { Some(*index) } else { None }
}

/// What a node has said that turned a request away.
pub(super) fn said(node: &Node, error: &ServerError) -> Error {
    match error.code() {
        "MOVED" | "ASK" => {
            let details = error.details().unwrap_or_default();
            Error::from_reply(ErrorKind::Server, true, format!("{} says {} {details}", node.endpoint(), error.code()))
        }
        _ => server_error(node.endpoint(), error),
    }
}

/// Of a request that was sent on until it was enough, by the last answer to it.
pub(super) fn without_end(slot: u16, turned: &Turned, answered: Error) -> Error {
    match turned {
        Turned::Moved(_) | Turned::Ask(_) => {
            let context = format!("the nodes pass slot {slot} on to each other, and none answers for it: {answered}");
            Error::from_reply(ErrorKind::Server, true, context)
        }
        Turned::Apart | Turned::UnknownScript | Turned::Down | Turned::Failed(_) => answered,
    }
}
