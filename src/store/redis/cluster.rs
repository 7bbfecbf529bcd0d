//! A Redis Cluster: sends each request to the node that has the slot of its key.
//!
//! The redis crate's cluster client can use custom connections, but is not used: its retries exceed a deadline, it has
//! no circuit breaker, and its table of slots is not accessible.

use std::fmt;
use std::time::Instant;

use self::learning::{IfRunning, TopologyRefresh};
use self::redirection::{Mode, Progress, Target, redirection_error, too_many_redirections};
use self::table::{Index, Node, Table, uncovered};
use super::commands::Request;
use super::config::{Access, Replicas};
use super::exchange::{exchange, reconnect};
use super::protocol::{Replies, Resp};
use super::reply;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::execution::{exchange_timeout, until};
use crate::net::{ExchangeGroup, Link, Retry, Settings, Stopwatch, Timeouts, join_all};
use crate::server_stats::ServerStats;
use crate::store::hash_slot::slot;

mod clearing;
mod item;
mod learning;
mod operations;
mod overtaken;
mod redirection;
mod table;
mod topology;

/// Where gets are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gets {
    /// From the masters, which have the latest value.
    FromMasters,
    /// From the replicas, which may lag behind.
    FromReplicas,
}

#[derive(Debug)]
pub(super) struct Cluster {
    table: Table,
    refresh: TopologyRefresh,
    timeouts: Timeouts,
    /// The nodes of the URL, for errors.
    seeds: String,
}

impl Cluster {
    /// Creates a cluster with these nodes. Does no I/O.
    pub(super) fn new(seeds: Vec<Endpoint>, access: Access, settings: Settings, replicas: Replicas) -> Cluster {
        let shown: Vec<String> = seeds.iter().map(ToString::to_string).collect();
        Cluster {
            table: Table::new(seeds, access, settings, replicas),
            refresh: TopologyRefresh::new(),
            timeouts: settings.timeouts,
            seeds: shown.join(","),
        }
    }

    /// Exchanges a request with the node that has a key, and follows redirections. Returns the replies and the node's
    /// endpoint.
    pub(super) fn call(
        &self,
        key: &str,
        request: &Request,
        retry: Retry,
    ) -> impl Future<Output = Result<(Replies, &Endpoint)>> + Send {
        self.call_in(slot(key), request, retry, Gets::FromMasters)
    }

    /// Like [`call`](Cluster::call), for a read that a replica may serve.
    pub(super) fn read(
        &self,
        key: &str,
        request: &Request,
    ) -> impl Future<Output = Result<(Replies, &Endpoint)>> + Send {
        self.call_in(slot(key), request, Retry::Idempotent, Gets::FromReplicas)
    }

    async fn call_in(&self, slot: u16, request: &Request, retry: Retry, gets: Gets) -> Result<(Replies, &Endpoint)> {
        if gets == Gets::FromReplicas
            && let Some(replica) = self.table.reader(slot)
            && let Some(read) = Box::pin(self.read_from(replica, request)).await
        {
            return Ok(read);
        }
        let time = Stopwatch::start();
        let mut first_attempt = None;
        if !self.refresh.is_stale()
            && let Some((index, node)) = self.table.owner(slot)
        {
            match exchange(&node.link, request, retry, None).await {
                Ok(replies) if reply::errors(&replies).next().is_none() => return Ok((replies, node.endpoint())),
                outcome => first_attempt = Some((Target { index, mode: Mode::Owner }, outcome)),
            }
        }
        let deadline = self.deadline() - time.elapsed();
        Box::pin(self.call_redirected(slot, request, retry, deadline, first_attempt)).await
    }

    /// Returns `None` if the replica fails, or if it redirects the read or refuses it: then the master is asked.
    async fn read_from<'t>(
        &self,
        (index, reader): (Index, &'t Link<Resp>),
        request: &Request,
    ) -> Option<(Replies, &'t Endpoint)> {
        match exchange(reader, request, Retry::Idempotent, None).await {
            Ok(replies) if reply::errors(&replies).next().is_none() => Some((replies, reader.endpoint())),
            Ok(replies) => {
                // It may have left the cluster, or be another master's replica.
                if reply::errors(&replies).any(|error| matches!(error.code(), "MOVED" | "CLUSTERDOWN")) {
                    self.refresh.mark_stale(None);
                }
                None
            }
            Err(_) => {
                self.refresh.mark_stale(Some(index));
                None
            }
        }
    }

    /// Sends a request to the nodes that redirections name, until one executes it.
    async fn call_redirected(
        &self,
        slot: u16,
        request: &Request,
        retry: Retry,
        deadline: Instant,
        first_attempt: Option<(Target, Result<Replies>)>,
    ) -> Result<(Replies, &Endpoint)> {
        let mut progress = Progress::new(deadline);
        let (mut target, mut outcome) = match first_attempt {
            Some(attempt) => attempt,
            None => {
                self.ensure_owners(std::iter::once(slot), deadline).await?;
                let target = self.owner(slot).ok_or_else(|| uncovered(slot))?;
                (target, self.ask(target, request, retry, deadline).await)
            }
        };
        loop {
            let node = self.node(target.index)?;
            let redirection = match &outcome {
                Ok(replies) => replies.iter().find_map(|reply| self.redirection_in(reply, node)),
                Err(error) => self.redirection_after(error, target.index, retry == Retry::Idempotent),
            };
            let Some(redirection) = redirection else { return outcome.map(|replies| (replies, node.endpoint())) };
            let Some(next) = self.prepare(&mut progress, &[(slot, redirection.clone())]).await?.pop().flatten() else {
                return Err(too_many_redirections(slot, &redirection, error_in(outcome, node)));
            };
            target = next;
            outcome = self.ask(target, request, retry, deadline).await;
        }
    }

    async fn ask(&self, target: Target, request: &Request, retry: Retry, deadline: Instant) -> Result<Replies> {
        let node = self.node(target.index)?;
        if target.mode != Mode::Asking {
            return self.in_time(deadline, exchange(&node.link, request, retry, None)).await;
        }
        let mut replies = self.in_time(deadline, exchange(&node.link, &request.asking(), retry, None)).await?;
        replies.remove(0);
        Ok(replies)
    }

    /// Returns the deadline of a call that starts now: the time of a dial and one exchange.
    fn deadline(&self) -> Instant {
        let Timeouts { connect, exchange } = self.timeouts;
        let timeout = exchange_timeout(exchange);
        Instant::now() + if timeout < exchange { timeout } else { timeout + connect }
    }

    async fn in_time<F: Future>(&self, deadline: Instant, future: F) -> F::Output {
        until(deadline, self.timeouts.exchange, future).await
    }

    async fn refresh_topology(&self, deadline: Instant, if_running: IfRunning) -> Result<()> {
        self.refresh.run(&self.table, deadline, self.timeouts.exchange, if_running).await
    }

    fn node(&self, index: Index) -> Result<&Node> {
        self.table.node(index).ok_or_else(crate::store::wrong_count)
    }

    pub(super) fn reset(&self) {
        self.refresh.reset();
        self.table.nodes().for_each(Node::reset);
    }

    /// Closes all connections and dials all masters at once, with one deadline.
    pub(super) async fn reconnect(&self) -> Result<()> {
        self.reset();
        let deadline = self.deadline();
        self.refresh_topology(deadline, IfRunning::Wait).await?;
        let masters = self.table.slots_by_owner()?;
        let group = ExchangeGroup::until(deadline);
        let mut dialled = Vec::with_capacity(masters.len());
        for index in masters.keys() {
            let node = self.node(*index)?;
            dialled.push(reconnect(&node.link, Some(&group)));
        }
        join_all(dialled).await.into_iter().collect()
    }

    pub(super) fn servers(&self) -> Vec<ServerStats> {
        let listed: Vec<&Node> = self.table.nodes().filter(|node| node.is_listed()).collect();
        let all = if listed.is_empty() { self.table.nodes().collect() } else { listed };
        all.into_iter().map(Node::stats).collect()
    }
}

/// Returns the error of a node's reply, or the failure of the exchange.
fn error_in(outcome: Result<Replies>, node: &Node) -> Error {
    match outcome {
        Ok(replies) => reply::errors(&replies)
            .next()
            .map_or_else(crate::store::wrong_count, |error| redirection_error(node, error)),
        Err(error) => error,
    }
}

/// Writes the name that errors use.
impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the cluster of {}", self.seeds)
    }
}
