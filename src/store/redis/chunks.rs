//! Batches on one server, sent in chunks.

use std::future::Future;

use bytes::Bytes;

use super::batch::{self, Commands, Scripts};
use super::commands::{self, Command, Request};
use super::exchange::exchange;
use super::protocol::Resp;
use super::reply::Reply;
use crate::error::Result;
use crate::net::{Link, Retry};
use crate::store::{Op, Outcome, Ttl, When, wrong_count};

/// The limits of a chunk, which is sent in one exchange. Each exchange has the whole timeout, and neither side has to
/// buffer the whole batch.
const CHUNK_ENTRIES: usize = 1_000;
const CHUNK_BYTES: usize = 1 << 20;

/// Calls `send` for one chunk of a batch after the other. If a chunk fails, the rest is not sent and gets the same
/// error.
pub(super) async fn in_chunks<I, T, F>(
    items: Vec<I>,
    size: impl Fn(&I) -> usize,
    send: impl Fn(Vec<I>) -> F,
) -> Result<Vec<Result<T>>>
where
    F: Future<Output = Result<Vec<Result<T>>>>,
{
    let mut results = Vec::with_capacity(items.len());
    let mut remaining = items.into_iter().peekable();
    while remaining.peek().is_some() {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while let Some(item) = remaining.next_if(|item| {
            bytes += size(item);
            chunk.is_empty() || (chunk.len() < CHUNK_ENTRIES && bytes <= CHUNK_BYTES)
        }) {
            chunk.push(item);
        }
        let count = chunk.len();
        match send(chunk).await {
            Ok(replied) if replied.len() == count => results.extend(replied),
            Ok(_) => return Err(wrong_count()),
            Err(error) => {
                let failed = count + remaining.by_ref().count();
                results.extend((0..failed).map(|_| Err(error.clone())));
            }
        }
    }
    Ok(results)
}

pub(super) async fn get(link: &Link<Resp>, keys: Vec<&str>) -> Result<Vec<Result<Option<Bytes>>>> {
    let request = Request::one(commands::get_many(&keys));
    let mut replies = exchange(link, &request, Retry::Idempotent, None).await?;
    let values = Reply::new(replies.pop().ok_or_else(wrong_count)?, link.endpoint())?.array()?;
    Ok(values.into_iter().map(|value| Reply::read(value, link.endpoint())).collect())
}

pub(super) async fn set(link: &Link<Resp>, entries: Vec<(&str, Bytes)>, ttl: Ttl) -> Result<Vec<Result<()>>> {
    let sets = entries.iter().map(|(key, value)| commands::set(key, value, ttl, When::Always));
    let sets: Vec<Command> = sets.collect::<Result<_>>()?;
    let replies = several(link, sets, Retry::Idempotent).await?;
    Ok(replies.into_iter().map(|reply| reply?.stored().map(|_| ())).collect())
}

pub(super) async fn delete(link: &Link<Resp>, keys: Vec<&str>) -> Result<Vec<Result<bool>>> {
    let replies = several(link, keys.iter().map(|key| commands::unlink(&[*key])), Retry::Never).await?;
    Ok(replies.into_iter().map(|reply| reply?.flag()).collect())
}

pub(super) async fn carry_out(
    link: &Link<Resp>,
    scripts: &Scripts,
    operations: Vec<&Op<'_>>,
) -> Result<Vec<Result<Outcome>>> {
    let mut commands = Commands::new(scripts);
    operations.iter().try_for_each(|operation| commands.push(operation))?;
    let replies = exchange(
        link,
        &Request::several(commands.commands),
        batch::retry(operations.iter().map(|operation| operation.is_read())),
        None,
    )
    .await?;
    let outcomes =
        operations.iter().zip(replies).map(|(operation, reply)| batch::outcome(operation, reply, link.endpoint()));
    Ok(outcomes.collect())
}

/// Sends several commands in one round trip.
async fn several(
    link: &Link<Resp>,
    commands: impl IntoIterator<Item = Command>,
    retry: Retry,
) -> Result<Vec<Result<Reply<'_>>>> {
    let replies = exchange(link, &Request::several(commands), retry, None).await?;
    Ok(replies.into_iter().map(|reply| Reply::new(reply, link.endpoint())).collect())
}
