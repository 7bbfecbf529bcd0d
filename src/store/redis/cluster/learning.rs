//! The refresh of a cluster's topology: asks the nodes for the owners of all slots, at first use and after a sign of
//! change.
//!
//! # States
//!
//! | state | next |
//! | --- | --- |
//! | idle | *running*, when a caller starts a query, unless the last outcome is *recent* |
//! | running | *idle*, when the query ends or its future is dropped; *running* for another caller, when the query has run for twice the timeout |
//! | recent: the last outcome is less than [`FRESH`] old | callers return this outcome and do not query |
//!
//! One caller at a time queries. The others wait for it, or go on with the present table.
//!
//! The state is process-local, so a child that is forked during a query can start its own. Blocking callers and callers
//! inside tokio have separate states *idle* and *running*: a thread that waited for a task of its own runtime would
//! wait for itself.

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

/// How long the outcome of a query, also an error, is reused.
const FRESH: Duration = Duration::from_millis(100);

/// How many nodes are asked that do not know the owners of all slots. Some slots may have no owner.
const MAX_INCOMPLETE: usize = 8;

/// The pauses between two checks whether another caller's query has ended.
const MIN_PAUSE: Duration = Duration::from_millis(1);
const MAX_PAUSE: Duration = Duration::from_millis(20);

/// The index of no node.
const NONE: Index = Index::MAX;

#[derive(Debug)]
pub(super) struct TopologyRefresh {
    /// Whether there was a sign that the table is outdated.
    is_stale: AtomicBool,
    /// The node that has failed, which is asked last.
    failed: AtomicU16,
    /// The number of queries. Each one starts with another node.
    queries: AtomicUsize,
    state: ProcessLocal<Lock<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The start times of the running queries: that of a blocking caller, and that of a caller inside tokio.
    running: [Option<Instant>; 2],
    /// The time and the outcome of the last query.
    last: Option<(Instant, Result<()>)>,
}

/// A running query. Its drop records that it has ended, also if the caller's future is dropped.
struct Query<'l> {
    refresh: &'l TopologyRefresh,
    state: &'l Lock<State>,
    kind: usize,
    since: Instant,
    generation: u64,
    outcome: Option<Result<()>>,
}

impl Drop for Query<'_> {
    fn drop(&mut self) {
        if self.generation != generation() {
            // The state and its lock are the parent's.
            return;
        }
        let mut state = self.state.lock();
        // Another caller may have taken over.
        if state.running[self.kind] == Some(self.since) {
            state.running[self.kind] = None;
        }
        // A lack of resources in this process says nothing about the cluster.
        let is_informative = |outcome: &Result<()>| {
            let kind = outcome.as_ref().err().map(Error::kind);
            !matches!(kind, Some(ErrorKind::OutOfResources | ErrorKind::Forked | ErrorKind::Full))
        };
        match self.outcome.take() {
            Some(outcome) if is_informative(&outcome) => state.last = Some((Instant::now(), outcome)),
            Some(_) => {}
            None => self.refresh.mark_stale(None),
        }
    }
}

/// What a caller does while another caller's query is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IfRunning {
    Wait,
    /// Goes on with the present table.
    Skip,
}

enum Claim<'l> {
    /// This caller queries.
    Own(Query<'l>),
    /// Another caller's query is running.
    Running,
    /// Another caller's query has just ended with this outcome.
    Recent(Result<()>),
}

impl TopologyRefresh {
    pub(super) fn new() -> TopologyRefresh {
        TopologyRefresh {
            is_stale: AtomicBool::new(false),
            failed: AtomicU16::new(NONE),
            queries: AtomicUsize::new(0),
            state: ProcessLocal::new(),
        }
    }

    #[inline]
    pub(super) fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Relaxed)
    }

    /// Makes the next caller refresh the topology. A node that has failed is asked last.
    #[cold]
    pub(super) fn mark_stale(&self, failed: Option<Index>) {
        if let Some(failed) = failed {
            self.failed.store(failed, Ordering::Relaxed);
        }
        self.is_stale.store(true, Ordering::Relaxed);
    }

    /// Discards the recent outcome.
    pub(super) fn reset(&self) {
        if let Some(state) = self.state.get() {
            state.lock().last = None;
        }
    }

    /// Brings the table up to date, by this caller's query or by another caller's.
    ///
    /// # Errors
    ///
    /// If no node has described the cluster before the deadline.
    pub(super) async fn run(
        &self,
        table: &Table,
        deadline: Instant,
        timeout: Duration,
        if_running: IfRunning,
    ) -> Result<()> {
        let mut interval = MIN_PAUSE;
        loop {
            match self.claim(2 * timeout)? {
                Claim::Own(mut query) => {
                    let outcome = self.ask(table, deadline, timeout).await;
                    query.outcome = Some(outcome.clone());
                    return outcome;
                }
                Claim::Recent(outcome) => return outcome,
                Claim::Running if if_running == IfRunning::Skip => return Ok(()),
                Claim::Running if Instant::now() >= deadline => {
                    return Err(unknown(ErrorKind::Timeout, "another caller's query is still running"));
                }
                Claim::Running => pause(interval).await?,
            }
            interval = (2 * interval).min(MAX_PAUSE);
        }
    }

    /// Claims the query for this caller, unless another caller's is running or has just ended. A query that has run for
    /// longer than `patience` is taken over: its future may not be polled any more.
    fn claim(&self, patience: Duration) -> Result<Claim<'_>> {
        let state = self.state.get_or_init(|| Lock::new("cluster", State::default()));
        let kind = usize::from(execution()? != Execution::Inline);
        let now = Instant::now();
        let mut guard = state.lock();
        if let Some((when, outcome)) = &guard.last
            && now < *when + FRESH
        {
            return Ok(Claim::Recent(outcome.clone()));
        }
        if guard.running[kind].is_some_and(|since| now < since + patience) {
            return Ok(Claim::Running);
        }
        guard.running[kind] = Some(now);
        Ok(Claim::Own(Query { refresh: self, state, kind, since: now, generation: generation(), outcome: None }))
    }

    /// Asks one node after the other until one knows the owners of all slots. If none does, the one is used that knows
    /// most. Each node gets half of the remaining time, so one that does not respond leaves the other half for the
    /// others.
    async fn ask(&self, table: &Table, deadline: Instant, timeout: Duration) -> Result<()> {
        self.is_stale.store(false, Ordering::Relaxed);
        let candidates = self.candidates(table);
        let mut failed = None;
        let mut most: Option<(&Node, View)> = None;
        let mut incomplete = 0;
        for (position, node) in candidates.iter().enumerate() {
            let now = Instant::now();
            let remaining = deadline.saturating_duration_since(now);
            if (remaining.is_zero() && (failed.is_some() || most.is_some())) || incomplete == MAX_INCOMPLETE {
                break;
            }
            let is_last = position + 1 == candidates.len();
            let node_deadline = if is_last { deadline } else { now + remaining / 2 };
            match until(node_deadline, timeout, view_of(node)).await {
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
        self.is_stale.store(true, Ordering::Relaxed);
        let error = failed.expect("a URL names at least one node");
        Err(unknown(error.kind(), error))
    }

    /// Returns the nodes to ask: first those that the last topology lists, then the other known ones, then those whose
    /// last exchange failed, and last the one that has failed.
    fn candidates<'t>(&self, table: &'t Table) -> Vec<&'t Node> {
        let failed = usize::from(self.failed.swap(NONE, Ordering::Relaxed));
        let nodes: Vec<(usize, &Node)> = table.nodes().enumerate().collect();
        let first = self.queries.fetch_add(1, Ordering::Relaxed) % nodes.len().max(1);
        let mut ordered: Vec<(usize, &Node)> = nodes[first..].iter().chain(&nodes[..first]).copied().collect();
        ordered.sort_by_cached_key(|(index, node)| (*index == failed, node.link.is_doubtful(), !node.is_listed()));
        ordered.into_iter().map(|(_, node)| node).collect()
    }
}

async fn view_of(node: &Node) -> Result<View> {
    let request = Request::one(commands::cluster_slots());
    let replies = exchange(&node.link, &request, Retry::Idempotent, None).await?;
    let answer = replies.first().ok_or_else(crate::store::wrong_count)?;
    if let Some(error) = reply::errors(&replies).next() {
        return Err(reply::server_error(node.endpoint(), error));
    }
    let view = View::read(answer, node.endpoint())?;
    if view.covered == 0 {
        // The node was removed from its cluster, or is not in one yet.
        let context = format!("{} is not in a cluster that has slots", node.endpoint());
        return Err(Error::from_reply(ErrorKind::Server, true, context));
    }
    Ok(view)
}

fn adopt(table: &Table, node: &Node, view: &View) -> Result<()> {
    table.adopt(&view.ranges)?;
    if !node.is_listed() {
        // The cluster knows the node under another address, or does not know it.
        node.reset();
    }
    Ok(())
}

fn unknown(kind: ErrorKind, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::with_source(kind, "no node of the cluster has described its slots", why)
}
