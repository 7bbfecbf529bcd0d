//! An exchange with one server, in a span.

use std::future::Future;
use std::pin::{Pin, pin};

use super::commands::Request;
use super::protocol::{Replies, Resp};
use super::reply;
use crate::error::Result;
use crate::net::{Company, Link, Retry};
use crate::telemetry;

pub(super) async fn exchange(
    link: &Link<Resp>,
    request: &Request,
    retry: Retry,
    company: Option<&Company>,
) -> Result<Replies> {
    traced(link, request, pin!(link.call(request, retry, company))).await
}

/// Forgets every connection to a server, then dials and has it answer.
pub(super) async fn reconnect(link: &Link<Resp>, company: Option<&Company>) -> Result<()> {
    let ping = Request::one(super::commands::ping());
    let replies = traced(link, &ping, pin!(link.reconnect(&ping, company))).await?;
    replies.into_iter().try_for_each(|answer| reply::Reply::new(answer, link.endpoint()).map(|_| ()))
}

async fn traced<F: Future<Output = Result<Replies>>>(
    link: &Link<Resp>,
    request: &Request,
    exchange: Pin<&mut F>,
) -> Result<Replies> {
    let failure = |replies: &Replies| reply::failure(replies);
    let database = Some(link.protocol().database());
    telemetry::exchange("redis", link.endpoint(), database, || request.operation(), exchange, failure).await
}
