//! The nodes of a Redis Cluster, one of which has the slot of a key.
//!
//! The redis crate has a client for clusters, which would take connections of ours. It was not used: its retries go
//! past a deadline, it knows of no breaker, and its map of slots is its own.

use std::fmt;
use std::time::Instant;

use self::learning::{Learning, Wait};
pub(super) use self::operations::Gets;
use self::redirection::{Course, How, Target, said, without_end};
pub(super) use self::table::Node;
use self::table::Table;
use super::clear::clear;
use super::commands::{self, Request};
use super::config::{Access, Replicas};
use super::exchange::{exchange, reconnect};
use super::protocol::Replies;
use super::reply::{self, Reply};
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::execution::{exchange_timeout, until};
use crate::net::{ExchangeGroup, Retry, Settings, Timeouts, join_all};
use crate::server_stats::ServerStats;
use crate::store::hash_slot::slot;

mod learning;
mod operations;
mod redirection;
mod table;
mod topology;

#[derive(Debug)]
pub(super) struct Cluster {
    table: Table,
    learning: Learning,
    timeouts: Timeouts,
    /// The nodes of the URL, for errors.
    seeds: String,
}

impl Cluster {
    /// No I/O.
    pub(super) fn new(seeds: Vec<Endpoint>, access: Access, settings: Settings, replicas: Replicas) -> Cluster {
        let shown: Vec<String> = seeds.iter().map(ToString::to_string).collect();
        Cluster {
            table: Table::new(seeds, access, settings, replicas),
            learning: Learning::new(),
            timeouts: settings.timeouts,
            seeds: shown.join(","),
        }
    }

    /// One exchange with the node that has a key, whichever that is by now.
    pub(super) async fn call(&self, key: &str, request: &Request, retry: Retry) -> Result<(Replies, &Endpoint)> {
        let slot = slot(key);
        let deadline = self.deadline();
        let mut asked = None;
        if !self.learning.is_in_doubt()
            && let Some((index, node)) = self.table.owner(slot)
        {
            match exchange(&node.link, request, retry, None).await {
                Ok(replies) if reply::errors(&replies).next().is_none() => return Ok((replies, node.endpoint())),
                outcome => asked = Some((Target { index, how: How::AsOwner }, outcome)),
            }
        }
        Box::pin(self.see_through(slot, request, retry, deadline, asked)).await
    }

    /// The same for a read that may be answered by a replica.
    pub(super) async fn read(&self, key: &str, request: &Request) -> Result<(Replies, &Endpoint)> {
        if let Some((index, reader)) = self.table.reader(slot(key)) {
            match exchange(reader, request, Retry::Idempotent, None).await {
                Ok(replies) if reply::errors(&replies).next().is_none() => return Ok((replies, reader.endpoint())),
                // The master knows.
                Ok(_) => {}
                Err(_) => self.learning.doubt(Some(index)),
            }
        }
        self.call(key, request, Retry::Idempotent).await
    }

    /// Sends a request on until a node has answered for its slot.
    async fn see_through(
        &self,
        slot: u16,
        request: &Request,
        retry: Retry,
        deadline: Instant,
        asked: Option<(Target, Result<Replies>)>,
    ) -> Result<(Replies, &Endpoint)> {
        let mut course = Course::new(deadline);
        let (mut target, mut outcome) = match asked {
            Some(asked) => asked,
            None => {
                self.located(std::iter::once(slot), deadline).await?;
                let target = self.first_target(slot)?;
                (target, self.ask(target, request, retry, deadline).await)
            }
        };
        loop {
            let node = self.node(target)?;
            let turned = match &outcome {
                Ok(replies) => replies.iter().find_map(|reply| self.turned_by(reply, node)),
                Err(error) => self.turned_by_failure(error, target.index, retry == Retry::Idempotent),
            };
            let Some(turned) = turned else { return outcome.map(|replies| (replies, node.endpoint())) };
            let Some(next) = self.prepare(&mut course, &[(slot, turned.clone())]).await?.pop().flatten() else {
                return Err(without_end(slot, &turned, error_in(outcome, node)));
            };
            target = next;
            outcome = self.ask(target, request, retry, deadline).await;
        }
    }

    async fn ask(&self, target: Target, request: &Request, retry: Retry, deadline: Instant) -> Result<Replies> {
        let node = self.node(target)?;
        if target.how != How::Asking {
            return self.in_time(deadline, exchange(&node.link, request, retry, None)).await;
        }
        let mut replies = self.in_time(deadline, exchange(&node.link, &request.asking(), retry, None)).await?;
        replies.remove(0);
        Ok(replies)
    }

    /// When a call has to be over: what one exchange with one server may take that has to be dialled before.
    fn deadline(&self) -> Instant {
        let Timeouts { connect, exchange } = self.timeouts;
        let timeout = exchange_timeout(exchange);
        Instant::now() + if timeout < exchange { timeout } else { timeout + connect }
    }

    async fn in_time<F: Future>(&self, deadline: Instant, future: F) -> F::Output {
        until(deadline, self.timeouts.exchange, future).await
    }

    async fn learn(&self, deadline: Instant, wait: Wait) -> Result<()> {
        self.learning.learn(&self.table, deadline, self.timeouts.exchange, wait).await
    }

    fn node(&self, target: Target) -> Result<&Node> {
        self.table.node(target.index).ok_or_else(crate::store::wrong_count)
    }

    /// The nodes that have slots, as the cluster says now.
    async fn masters(&self) -> Result<Vec<&Node>> {
        self.learn(self.deadline(), Wait::ForOthers).await?;
        self.table.masters()
    }

    /// Clears every master, all at once, and also those beside one that fails.
    pub(super) async fn clear(&self, prefix: &str) -> Result<()> {
        let masters = self.masters().await?;
        let group = ExchangeGroup::default();
        let mut cleared = Vec::with_capacity(masters.len());
        for node in masters {
            cleared.push(clear(&node.link, Some((self, node)), prefix, Some(&group)));
        }
        join_all(cleared).await.into_iter().collect()
    }

    /// Removes what a node has listed. What it does not have any more by now is removed where it is.
    pub(super) async fn unlink(&self, node: &Node, keys: &[Vec<u8>], group: Option<&ExchangeGroup>) -> Result<()> {
        let unlink = |key: &Vec<u8>| commands::unlink(std::slice::from_ref(key));
        let request = Request::several(keys.iter().map(unlink));
        let replies = exchange(&node.link, &request, Retry::Idempotent, group).await?;
        for (key, reply) in keys.iter().zip(replies) {
            if self.turned_by(&reply, node).is_some() {
                let request = Request::one(unlink(key));
                let (replies, by) =
                    self.see_through(slot(key), &request, Retry::Idempotent, self.deadline(), None).await?;
                replies.into_iter().try_for_each(|reply| Reply::new(reply, by).map(|_| ()))?;
            } else {
                Reply::new(reply, node.endpoint())?;
            }
        }
        Ok(())
    }

    pub(super) fn reset(&self) {
        self.learning.reset();
        self.table.nodes().for_each(Node::reset);
    }

    /// Dials every master. Those that do not answer cost one wait together.
    pub(super) async fn reconnect(&self) -> Result<()> {
        self.reset();
        let masters = self.masters().await?;
        let group = ExchangeGroup::until(self.deadline());
        let mut dialled = Vec::with_capacity(masters.len());
        for node in masters {
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

/// What the node has answered, or why it has not.
fn error_in(outcome: Result<Replies>, node: &Node) -> Error {
    match outcome {
        Ok(replies) => reply::errors(&replies).next().map_or_else(crate::store::wrong_count, |error| said(node, error)),
        Err(error) => error,
    }
}

/// As errors speak of it.
impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the cluster of {}", self.seeds)
    }
}
