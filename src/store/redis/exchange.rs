//! Exchanges with one server, each in a tracing span.

use std::future::Future;

use super::commands::Request;
use super::protocol::{Replies, Resp};
use super::reply;
use crate::error::Result;
use crate::net::{ExchangeGroup, Link, Retry};
use crate::telemetry;

/// Sends a request to a server and returns its replies.
pub(super) fn exchange(
    link: &Link<Resp>,
    request: &Request,
    retry: Retry,
    group: Option<&ExchangeGroup>,
) -> impl Future<Output = Result<Replies>> + Send {
    traced(link, request, link.call(request, retry, group))
}

/// Discards every connection to a server, then dials it and waits for a reply to `PING`.
pub(super) async fn reconnect(link: &Link<Resp>, group: Option<&ExchangeGroup>) -> Result<()> {
    let ping = Request::one(super::commands::ping());
    let replies = traced(link, &ping, link.reconnect(&ping, group)).await?;
    replies.into_iter().try_for_each(|answer| reply::Reply::new(answer, link.endpoint()).map(|_| ()))
}

fn traced<F: Future<Output = Result<Replies>> + Send>(
    link: &Link<Resp>,
    request: &Request,
    exchange: F,
) -> impl Future<Output = Result<Replies>> + Send {
    let failure = |replies: &Replies| reply::failure(replies);
    let database = Some(link.protocol().database());
    telemetry::exchange("redis", link.endpoint(), database, || request.operation(), exchange, failure)
}
