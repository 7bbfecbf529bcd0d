//! Learning which node has which slots: at first use, and after a sign of change. One caller at a time asks, and not
//! again at once; the others wait for it.
//!
//! Who is at it is a note of this process's, so a fork in the middle leaves a child free to ask for itself. Callers
//! that block and those inside of tokio have a note each: a thread that waited for a task of its own runtime would wait
//! for itself.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::table::{Index, Node, Table};
use super::topology::View;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::{Execution, execution, pause, until};
use crate::lifecycle::{ProcessLocal, generation};
use crate::net::Retry;
use crate::store::redis::commands::{self, Request};
use crate::store::redis::exchange::exchange;
use crate::store::redis::reply;
use crate::sync::Lock;

/// How long an outcome, good or bad, is taken for the present state.
const FRESH: Duration = Duration::from_millis(100);

/// How many nodes are asked that do not know the owners of all slots: some slots may have none.
const MOST_INCOMPLETE: usize = 8;

/// The pauses between two looks at whether another caller is done.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Of no node.
const NONE: Index = Index::MAX;

#[derive(Debug)]
pub(super) struct Learning {
    /// Whether there is a sign that the table is not right any more, and which node is not to be asked about it first.
    is_in_doubt: AtomicBool,
    doubted: AtomicU16,
    /// Who is asked first: another one each time.
    turn: AtomicUsize,
    state: ProcessLocal<Lock<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Since when a caller that blocks, and one inside tokio, is at it.
    under_way: [Option<Instant>; 2],
    /// When it was tried last, and with what outcome.
    last: Option<(Instant, Result<()>)>,
}

/// Ends with a note that it has ended, also where the caller has given up.
struct Asking<'l> {
    learning: &'l Learning,
    state: &'l Lock<State>,
    line: usize,
    since: Instant,
    generation: u64,
    outcome: Option<Result<()>>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if self.generation != generation() {
            // The note is the parent's, and so is its lock.
            return;
        }
        let mut state = self.state.lock();
        // Another one may have taken over.
        if state.under_way[self.line] == Some(self.since) {
            state.under_way[self.line] = None;
        }
        // What this process has run out of says nothing of the cluster.
        let says_something = |outcome: &Result<()>| {
            let kind = outcome.as_ref().err().map(Error::kind);
            !matches!(kind, Some(ErrorKind::OutOfResources | ErrorKind::Forked | ErrorKind::Full))
        };
        match self.outcome.take() {
            Some(outcome) if says_something(&outcome) => state.last = Some((Instant::now(), outcome)),
            Some(_) => {}
            None => self.learning.doubt(None),
        }
    }
}

/// Whether a caller waits for another one that is at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    ForOthers,
    ForNobody,
}

enum Waiter<'l> {
    Own(Asking<'l>),
    Anothers,
    /// Another caller has just tried.
    Over(Result<()>),
}

impl Learning {
    pub(super) fn new() -> Learning {
        Learning {
            is_in_doubt: AtomicBool::new(false),
            doubted: AtomicU16::new(NONE),
            turn: AtomicUsize::new(0),
            state: ProcessLocal::new(),
        }
    }

    #[inline]
    pub(super) fn is_in_doubt(&self) -> bool {
        self.is_in_doubt.load(Ordering::Relaxed)
    }

    /// Makes the next caller learn the slots again. A node that has failed is asked last.
    #[cold]
    pub(super) fn doubt(&self, failed: Option<Index>) {
        if let Some(failed) = failed {
            self.doubted.store(failed, Ordering::Relaxed);
        }
        self.is_in_doubt.store(true, Ordering::Relaxed);
    }

    /// Forgets when it was tried last.
    pub(super) fn reset(&self) {
        if let Some(state) = self.state.get() {
            state.lock().last = None;
        }
    }

    /// Has the table learnt what is so now, by this caller or by another one.
    ///
    /// # Errors
    ///
    /// Where no node has said it before the deadline.
    pub(super) async fn learn(&self, table: &Table, deadline: Instant, timeout: Duration, wait: Wait) -> Result<()> {
        let mut length = SHORTEST_PAUSE;
        loop {
            match self.turn(2 * timeout)? {
                Waiter::Own(mut asking) => {
                    let outcome = self.ask(table, deadline, timeout).await;
                    asking.outcome = Some(outcome.clone());
                    return outcome;
                }
                Waiter::Over(outcome) => return outcome,
                Waiter::Anothers if wait == Wait::ForNobody => return Ok(()),
                Waiter::Anothers if Instant::now() >= deadline => {
                    return Err(unknown(ErrorKind::Timeout, "another caller is still asking"));
                }
                Waiter::Anothers => pause(length).await?,
            }
            length = (2 * length).min(LONGEST_PAUSE);
        }
    }

    /// Whose turn it is. Who is at it for longer than this is not polled any more.
    fn turn(&self, patience: Duration) -> Result<Waiter<'_>> {
        let state = self.state.get_or_init(|| Lock::new("cluster", State::default()));
        let line = usize::from(execution()? != Execution::Inline);
        let now = Instant::now();
        let mut held = state.lock();
        if let Some((when, outcome)) = &held.last
            && now < *when + FRESH
        {
            return Ok(Waiter::Over(outcome.clone()));
        }
        if held.under_way[line].is_some_and(|since| now < since + patience) {
            return Ok(Waiter::Anothers);
        }
        held.under_way[line] = Some(now);
        Ok(Waiter::Own(Asking { learning: self, state, line, since: now, generation: generation(), outcome: None }))
    }

    /// Asks one node after the other, until one knows the owners of all slots; else what the one says counts that knows
    /// most of them. One that does not answer leaves half of the time for the others.
    async fn ask(&self, table: &Table, deadline: Instant, timeout: Duration) -> Result<()> {
        self.is_in_doubt.store(false, Ordering::Relaxed);
        let candidates = self.candidates(table);
        let mut failed = None;
        let mut most: Option<(&Node, View)> = None;
        let mut incomplete = 0;
        for (place, node) in candidates.iter().enumerate() {
            let now = Instant::now();
            let left = deadline.saturating_duration_since(now);
            if (left.is_zero() && (failed.is_some() || most.is_some())) || incomplete == MOST_INCOMPLETE {
                break;
            }
            let is_last = place + 1 == candidates.len();
            let until_then = if is_last { deadline } else { now + left / 2 };
            match until(until_then, timeout, seen_by(node)).await {
                Ok(view) if view.is_complete() => return adopt(table, node, &view),
                Ok(view) => {
                    incomplete += 1;
                    if most.as_ref().is_none_or(|(_, most)| view.covered > most.covered) {
                        most = Some((node, view));
                    }
                }
                Err(error) if error.kind() == ErrorKind::Forked => return Err(error),
                Err(error) => failed = Some(error),
            }
        }
        if let Some((node, view)) = most {
            return adopt(table, node, &view);
        }
        self.is_in_doubt.store(true, Ordering::Relaxed);
        let error = failed.expect("a URL names at least one node");
        Err(unknown(error.kind(), error))
    }

    /// Those that the cluster named when it was asked last, then those that are known from elsewhere, and one that was
    /// seen to fail at the end.
    fn candidates<'t>(&self, table: &'t Table) -> Vec<&'t Node> {
        let doubted = usize::from(self.doubted.swap(NONE, Ordering::Relaxed));
        let nodes: Vec<(usize, &Node)> = table.nodes().enumerate().collect();
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % nodes.len().max(1);
        let mut turned: Vec<(usize, &Node)> = nodes[first..].iter().chain(&nodes[..first]).copied().collect();
        turned.sort_by_key(|(index, node)| (*index == doubted, !node.is_listed()));
        turned.into_iter().map(|(_, node)| node).collect()
    }
}

async fn seen_by(node: &Node) -> Result<View> {
    let request = Request::one(commands::cluster_slots());
    let replies = exchange(&node.link, &request, Retry::Idempotent, None).await?;
    let answer = replies.first().ok_or_else(crate::store::wrong_count)?;
    if let Some(error) = reply::errors(&replies).next() {
        return Err(reply::server_error(node.endpoint(), error));
    }
    let view = View::read(answer, node.endpoint())?;
    if view.covered == 0 {
        // It was taken out of the cluster, which knows better, or is in none yet.
        let context = format!("{} is in no cluster that has slots", node.endpoint());
        return Err(Error::from_reply(ErrorKind::Server, true, context));
    }
    Ok(view)
}

fn adopt(table: &Table, node: &Node, view: &View) -> Result<()> {
    table.adopt(&view.ranges)?;
    if !node.is_listed() {
        // It has a name of its own in the cluster, or none.
        node.reset();
    }
    Ok(())
}

fn unknown(kind: ErrorKind, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::with_source(kind, "no node of the cluster lists its slots", why)
}
