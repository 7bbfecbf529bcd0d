//! The operations of the store: each builds a request and interprets the replies.

use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::Value;

use super::chunks::{self, in_chunks};
use super::clear::clear;
use super::commands::{self, Command, Request};
use super::exchange::{exchange, reconnect};
use super::protocol::Replies;
use super::reply::{self, Reply};
use super::{RedisStore, Servers, batch};
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::net::Retry;
use crate::server_stats::ServerStats;
use crate::store::{CacheStore, Op, Outcome, Ttl, When, check_key, operation};

impl RedisStore {
    /// Exchanges a request with the server that has a key. Returns the replies and the server's endpoint.
    async fn call(&self, key: &str, request: &Request, retry: Retry) -> Result<(Replies, &Endpoint)> {
        match &self.servers {
            Servers::One(link) => Ok((exchange(link, request, retry, None).await?, link.endpoint())),
            Servers::Cluster(cluster) => cluster.call(key, request, retry).await,
        }
    }

    /// Sends one command and returns its reply. This is not an `async fn`, whose future would contain the command
    /// twice.
    fn command<'s>(
        &'s self,
        key: &'s str,
        command: Command,
        retry: Retry,
    ) -> impl Future<Output = Result<Reply<'s>>> + Send {
        let request = Request::one(command);
        async move {
            let (replies, endpoint) = self.call(key, &request, retry).await?;
            Reply::new(single(replies), endpoint)
        }
    }

    /// Sends several commands as one transaction and returns the reply to the last one. If the server refuses a
    /// command, it discards the transaction. The first error is returned, since it has the reason; the error of EXEC
    /// does not.
    async fn transaction(
        &self,
        key: &str,
        commands: impl IntoIterator<Item = Command>,
        retry: Retry,
    ) -> Result<Reply<'_>> {
        let request = Request::transaction(commands);
        let (replies, endpoint) = self.call(key, &request, retry).await?;
        let accepted: Vec<Reply<'_>> =
            replies.into_iter().map(|reply| Reply::new(reply, endpoint)).collect::<Result<_>>()?;
        let executed = accepted.into_iter().next_back().expect("as many replies as requests");
        let last = executed.array()?.into_iter().next_back().unwrap_or(Value::Nil);
        Reply::new(last, endpoint)
    }

    fn check_value(&self, key: &str, value: &[u8]) -> Result<()> {
        crate::store::check_value(key, value, self.max_value, &self.servers)
    }
}

#[async_trait]
impl CacheStore for RedisStore {
    fn name(&self) -> &str {
        "redis"
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        check_key(key)?;
        let request = Request::one(commands::get(key));
        let (replies, endpoint) = match &self.servers {
            Servers::One(link) => (exchange(link, &request, Retry::Idempotent, None).await?, link.endpoint()),
            Servers::Cluster(cluster) => cluster.read(key, &request).await?,
        };
        Reply::read(single(replies), endpoint)
    }

    async fn get_latest(&self, key: &str) -> Result<Option<Bytes>> {
        check_key(key)?;
        let (replies, endpoint) = self.call(key, &Request::one(commands::get(key)), Retry::Idempotent).await?;
        Reply::read(single(replies), endpoint)
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Ttl, when: When) -> Result<bool> {
        check_key(key)?;
        self.check_value(key, &value)?;
        let retry = if when == When::Always { Retry::Idempotent } else { Retry::Never };
        self.command(key, commands::set(key, &value, ttl, when)?, retry).await?.stored()
    }

    async fn delete(&self, key: &str) -> Result<bool> {
        check_key(key)?;
        self.command(key, commands::unlink(&[key]), Retry::Never).await?.flag()
    }

    async fn compare_and_set(&self, key: &str, expected: Option<&[u8]>, new: Option<Bytes>, ttl: Ttl) -> Result<bool> {
        check_key(key)?;
        if let Some(value) = &new {
            self.check_value(key, value)?;
        }
        let script = &self.scripts.compare_and_set;
        let by_hash = Request::one(script.by_hash(key, expected, new.as_ref(), ttl)?);
        let (replies, mut endpoint) = self.call(key, &by_hash, Retry::Never).await?;
        let mut answer = single(replies);
        if reply::is_unknown_script(&answer) {
            let by_source = Request::one(script.by_source(key, expected, new.as_ref(), ttl)?);
            let (replies, responder) = self.call(key, &by_source, Retry::Never).await?;
            (answer, endpoint) = (single(replies), responder);
        }
        Reply::new(answer, endpoint).map_err(|error| batch::script_error(endpoint, error))?.flag()
    }

    async fn clear(&self, prefix: &str) -> Result<()> {
        match &self.servers {
            Servers::One(link) => clear(link, prefix).await,
            Servers::Cluster(cluster) => cluster.clear(prefix).await,
        }
    }

    fn reset(&self) {
        match &self.servers {
            Servers::One(link) => link.reset(),
            Servers::Cluster(cluster) => cluster.reset(),
        }
    }

    fn servers(&self) -> Vec<ServerStats> {
        match &self.servers {
            Servers::One(link) => vec![link.stats()],
            Servers::Cluster(cluster) => cluster.servers(),
        }
    }

    async fn reconnect(&self) -> Result<()> {
        match &self.servers {
            Servers::One(link) => reconnect(link, None).await,
            Servers::Cluster(cluster) => cluster.reconnect().await,
        }
    }

    async fn touch(&self, key: &str, ttl: Ttl) -> Result<bool> {
        check_key(key)?;
        match ttl.duration()? {
            Some(duration) => self.command(key, commands::expire(key, duration), Retry::Idempotent).await?.flag(),
            None => self.transaction(key, commands::persist(key), Retry::Idempotent).await?.flag(),
        }
    }

    async fn increment(&self, key: &str, by: i64, ttl: Ttl) -> Result<i64> {
        check_key(key)?;
        let counted = self.transaction(key, commands::increment(key, by, ttl)?, Retry::Never).await;
        counted.map_err(|error| reply::counter_error(key, by, error))?.number()
    }

    async fn ttl(&self, key: &str) -> Result<Option<Ttl>> {
        check_key(key)?;
        let milliseconds = self.command(key, commands::ttl(key), Retry::Idempotent).await?.number()?;
        Ok(match milliseconds {
            -2 => None,
            -1 => Some(Ttl::Never),
            remaining => Some(Ttl::After(Duration::from_millis(remaining.max(1).unsigned_abs()))),
        })
    }

    async fn append(&self, key: &str, value: Bytes, ttl: Ttl) -> Result<()> {
        check_key(key)?;
        self.check_value(key, &value)?;
        self.transaction(key, commands::append(key, &value, ttl)?, Retry::Never).await.map(|_| ())
    }

    async fn batch(&self, operations: &[Op<'_>]) -> Vec<Result<Outcome>> {
        let check = |operation| batch::check(operation, |key, value| self.check_value(key, value));
        let checked = operations.iter().map(|operation| check(operation).map(|()| operation)).collect();
        let size = |operation: &&Op<'_>| batch::size(operation);
        let carry_out = async |operations: Vec<&Op<'_>>| match &self.servers {
            Servers::One(link) => {
                in_chunks(operations, size, |part| chunks::carry_out(link, &self.scripts, part)).await
            }
            Servers::Cluster(cluster) => Ok(cluster.batch(self, &self.scripts, &operations).await),
        };
        crate::store::batch(checked, carry_out).await
    }

    async fn get_many(&self, keys: &[&str]) -> Vec<Result<Option<Bytes>>> {
        let get = async |keys: Vec<&str>| match &self.servers {
            Servers::One(link) => in_chunks(keys, |key| key.len(), |keys| chunks::get(link, keys)).await,
            Servers::Cluster(cluster) => Ok(cluster.get_many(self, &self.scripts, &keys).await),
        };
        crate::store::batch(checked(keys), get).await
    }

    async fn set_many(&self, entries: &[(&str, Bytes)], ttl: Ttl) -> Vec<Result<()>> {
        let Servers::One(link) = &self.servers else { return operation::set_many(self, entries, ttl).await };
        let checked = entries.iter().map(|(key, value)| {
            check_key(key)?;
            self.check_value(key, value)?;
            Ok((*key, value.clone()))
        });
        let size = |(key, value): &(&str, Bytes)| key.len() + value.len();
        let set = |entries| in_chunks(entries, size, |entries| chunks::set(link, entries, ttl));
        crate::store::batch(checked.collect(), set).await
    }

    async fn delete_many(&self, keys: &[&str]) -> Vec<Result<bool>> {
        let Servers::One(link) = &self.servers else { return operation::delete_many(self, keys).await };
        let delete = |keys| in_chunks(keys, |key: &&str| key.len(), |keys| chunks::delete(link, keys));
        crate::store::batch(checked(keys), delete).await
    }
}

fn single(mut replies: Replies) -> Value {
    replies.pop().expect("as many replies as requests")
}

fn checked<'a>(keys: &[&'a str]) -> Vec<Result<&'a str>> {
    keys.iter().map(|key| check_key(key).map(|()| *key)).collect()
}
