//! A store on a Redis server: the redis crate's commands and replies, over sockets of ours.
//!
//! A verb is a [`Request`] and what its replies mean; a [`Link`] takes it there and back.

use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::time::Duration;

use ::redis::Value;
use async_trait::async_trait;
use bytes::Bytes;

use super::credentials::Callback;
use super::url::StoreUrl;
use super::{CacheStore, Op, Outcome, Ttl, When, check_key};
use crate::error::{Error, ErrorKind, Result};
use crate::net::{Link, Retry, ServerStats};
use crate::telemetry;
use batch::SettleScript;
pub use builder::RedisBuilder;
use commands::{Command, CompareAndSet, Request};
use config::Config;
pub(super) use config::SCHEMES;
use protocol::{Replies, Resp};
use reply::Reply;

mod batch;
mod builder;
mod commands;
mod config;
mod protocol;
mod refusals;
mod reply;
mod resp;
mod role;
mod sentinel;

/// How much of a batch goes in one exchange: each has the whole timeout, and neither side holds all of it at once.
const PART_ENTRIES: usize = 1_000;
const PART_BYTES: usize = 1 << 20;

/// The most steps of a listing, each of which looks at a thousand keys.
const MOST_STEPS: usize = 1 << 22;

/// Keeps its entries on a Redis server (4.0 or later; also Valkey and others that speak its protocol).
///
/// Speaks RESP3, or RESP2 to a server that does not know the former. A time to live is rounded up to whole
/// milliseconds. [`clear`](CacheStore::clear) goes through the keys with `SCAN` and removes them with `UNLINK`; it
/// never uses `KEYS` or `FLUSHDB`. The batch verbs send up to 1,000 entries or 1 MiB in one exchange.
///
/// # Connections
///
/// Inside a tokio runtime all operations share one pipelined connection per runtime, and more only while it is behind a
/// large value. Elsewhere each operation takes a blocking connection from a pool.
///
/// - **No foreign reply.** Every write ends with an `ECHO` of a random token (a `PING` where the account may not
///   `ECHO`), and no reply is handed out before that token has come back behind it. Where the account may do neither, a
///   surplus reply is noticed only while none is awaited; the feature `tracing` has a warning for it. A server that
///   swaps two replies of one write cannot be told from a right one.
/// - **Cancel safety.** A request belongs to its connection once it was begun. When its future is dropped the server
///   still carries it out, its reply is thrown away, and the connection lives on. Changes go out in the order in which
///   they were begun: a `set` that was dropped never overtakes a later `delete`. A change that ended in an error may
///   still take effect until its connection is closed.
/// - **Timeouts.** While replies keep arriving on its connection (64 KiB in each `timeout`), a request inside tokio has
///   more time, at most ten times its `timeout`.
/// - **Large values.** A read that finds itself behind a value of more than 64 KiB is sent again over another
///   connection.
/// - **Backpressure.** A pipelined connection takes 8,192 requests, or 16 MiB that were not sent. Further requests
///   wait, for `connect_timeout` and `timeout` together at most, and then fail with
///   [`ErrorKind::Full`](crate::ErrorKind::Full). So do blocking operations that wait for a connection of the pool,
///   after `timeout`.
///
/// # URLs
///
/// `redis://[user:password@]host[:port][/database]`, `rediss://` for the same over [TLS](crate::guide::urls#tls), or
/// `redis+unix://[user:password@]/path/of/the/socket`; behind sentinels see [below](RedisStore#sentinel). User and password are percent-encoded. The port defaults to 6379,
/// the database to 0. The guide has [all URLs and options](crate::guide::urls#options), and a chapter on
/// [passwords that change](crate::guide::urls#credentials).
///
/// # Sentinel
///
/// `redis+sentinel://[user:password@]sentinel[:port][,sentinel[:port]...]/mymaster[/database]` is the server that
/// [Redis Sentinel](https://redis.io/docs/latest/develop/reference/sentinel-clients/) calls the master of that name;
/// `rediss+sentinel://` for sentinels and master over TLS, where the master's certificate must be for the host that the
/// sentinels announce. User and password are the master's. Those for the sentinels, if they want any, are
/// `sentinel_username` and `sentinel_password` or `sentinel_password_file`.
///
/// - **Who is asked.** Before a connection is opened the sentinels are asked for the address (`SENTINEL
///   GET-MASTER-ADDR-BY-NAME`), one after the other until one knows it; that one is the first to be asked next time. An
///   answer counts for `topology_refresh` (five seconds) unless something fails meanwhile. Sentinels that do not answer,
///   and the dial, share one `connect_timeout`. Where none gives an address the error says what each of them did, and
///   after `failures` of that kind none is asked for `retry_after`; connections that there are serve on.
/// - **Who is believed.** A server that calls itself anything but a master (`ROLE`, or `INFO replication` where the account
///   may not ask for the former) is not used: the next sentinel is asked. An account that may ask for neither is served
///   without that check, of which the feature `tracing` has a warning.
/// - **After a failover** the first `READONLY` gives up all connections to the old master, and no further request goes
///   there. A master that was killed is followed once the sentinels have elected another one; a call waits for that no
///   longer than for a server that is down, and finds the new one at most `retry_after` later than it could.
/// - **An isolated master** that still takes writes is left within `topology_refresh`: once in that time, while there are
///   calls, one of them has all sentinels asked, and what more than half of those that answer say counts. Inside tokio that
///   happens beside the calls; elsewhere one call takes longer by it, at most by a quarter of `connect_timeout` or by `timeout`. What an
///   isolated master has taken meanwhile is lost with it.
/// - **Over a fork** a child goes on with the address that its parent knew.
/// - **Trust.** What answers in the place of a sentinel decides which server is told the password of the URL. Use
///   `rediss+sentinel://` where others can get into the network between.
///
/// # Failures
///
/// What the server says when it refuses, and what that means. None of it counts as a failure of the server, except where
/// it lets nobody in: then it is not dialled for `retry_after`, as one that is down.
///
/// | the server says | [kind](crate::ErrorKind) | transient | connection |
/// | --- | --- | --- | --- |
/// | `READONLY`, `MASTERDOWN` | `Server` | yes | given up, with all that are older than `retry_after` (behind sentinels: with all): the name may lead to another server now |
/// | `LOADING`, `BUSY`, `OOM`, `MISCONF`, `NOREPLICAS`, `TRYAGAIN`, `CLUSTERDOWN` | `Server` | yes | kept |
/// | `SHUTDOWN`, "server is closing", "shutting down", "max number of clients" | `Server` | yes | given up |
/// | "upstream ...", "no upstream host", of a proxy, with or without `ERR` | `Server` | yes | kept |
/// | `NOAUTH`, `WRONGPASS`, `DENIED`, and whatever else a login is answered | `Auth` | no | given up |
/// | `NOPERM`, `NOPROTO`, `MOVED`, `ASK`, `CROSSSLOT`, an unknown command | `Unsupported` | no | kept |
/// | a database that there is not | `Unsupported` | no | given up |
/// | "invalid bulk length", "exceeds maximum allowed size" | `ValueTooLarge` | no | given up, kept |
/// | "Protocol error" | `Protocol` | yes | given up |
/// | anything else | `Server` | no | kept |
///
/// A connection that fails, times out or brings what is no reply is closed and counts: after `failures` in a row the
/// server is not tried for `retry_after`. A timeout on a connection that has served counts together with the next
/// failure only, and closes those that were idle beside it: a firewall may have forgotten them. What this process has
/// run out of ([`OutOfResources`](crate::ErrorKind::OutOfResources)) counts for nothing. A key of another type than a
/// string is absent to every read.
///
/// ```
/// use prefork_cache::{Cache, stores::RedisStore};
///
/// // No I/O yet.
/// let cache = Cache::register(RedisStore::new("redis://127.0.0.1:6379/2?timeout=250ms")?);
///
/// let refused = RedisStore::new("redis://me:secret@127.0.0.1:6379/two").unwrap_err();
/// assert_eq!(refused.to_string(), "the database \"two\" of a redis URL is not a number");
/// # Ok::<(), prefork_cache::Error>(())
/// ```
pub struct RedisStore {
    url: String,
    link: Link<Resp>,
    compare_and_set: CompareAndSet,
    settle: SettleScript,
    database: u32,
    max_value: usize,
}

impl RedisStore {
    /// A store on the server of a URL. No I/O.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`](crate::ErrorKind::InvalidUrl), with the part that was refused. It never shows the
    /// password.
    pub fn new(url: &str) -> Result<RedisStore> {
        RedisStore::open(StoreUrl::parse(url)?, None)
    }

    /// A store on the server of a URL, with options that are methods.
    ///
    /// ```
    /// use prefork_cache::stores::{Credentials, RedisStore};
    /// use std::time::Duration;
    ///
    /// let store = RedisStore::builder("redis://cache.internal:6379/2")
    ///     .timeout(Duration::from_millis(250))
    ///     .credentials(|| Ok(Credentials::new("worker", std::fs::read_to_string("/run/token")?)))
    ///     .build()?;
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn builder(url: &str) -> RedisBuilder {
        RedisBuilder::new(url)
    }

    fn open(url: StoreUrl, callback: Option<Callback>) -> Result<RedisStore> {
        let shown = url.to_string();
        let config = Config::new(url, callback)?;
        let (settings, database, max_value) = (config.settings, config.database, config.max_value);
        Ok(RedisStore {
            url: shown,
            link: Link::new(Resp::new(config), settings),
            compare_and_set: CompareAndSet::new(),
            settle: SettleScript::new(),
            database,
            max_value,
        })
    }

    async fn call(&self, request: &Request, retry: Retry) -> Result<Replies> {
        self.traced(request, pin!(self.link.call(request, retry, None))).await
    }

    async fn traced<F: Future<Output = Result<Replies>>>(
        &self,
        request: &Request,
        exchange: Pin<&mut F>,
    ) -> Result<Replies> {
        let failure = |replies: &Replies| reply::failure(replies);
        let (endpoint, database) = (self.link.endpoint(), Some(self.database));
        telemetry::exchange("redis", endpoint, database, || request.operation(), exchange, failure).await
    }

    /// One command, one reply. No `async fn`, whose future would hold the command twice.
    fn command(&self, command: Command, retry: Retry) -> impl Future<Output = Result<Reply<'_>>> + Send {
        let request = Request::one(command);
        async move { self.reply(only(self.call(&request, retry).await?)) }
    }

    /// Several commands in one round trip.
    async fn several(&self, request: Request, retry: Retry) -> Result<Vec<Result<Reply<'_>>>> {
        let replies = self.call(&request, retry).await?;
        Ok(replies.into_iter().map(|reply| self.reply(reply)).collect())
    }

    /// Several commands as one transaction; the reply to the last of them. Where one is refused the whole is discarded:
    /// the first error says why, and that of EXEC only that.
    async fn transaction(&self, commands: impl IntoIterator<Item = Command>, retry: Retry) -> Result<Reply<'_>> {
        let replies = self.several(Request::transaction(commands), retry).await?;
        let accepted: Vec<Reply<'_>> = replies.into_iter().collect::<Result<_>>()?;
        let executed = accepted.into_iter().next_back().expect("as many replies as requests");
        let last = executed.array()?.into_iter().next_back().unwrap_or(Value::Nil);
        self.reply(last)
    }

    async fn get_part(&self, keys: Vec<&str>) -> Result<Vec<Result<Option<Bytes>>>> {
        let replies = self.command(commands::get_many(&keys), Retry::Idempotent).await?.array()?;
        Ok(replies.into_iter().map(|reply| Reply::read(reply, self.link.endpoint())).collect())
    }

    async fn set_part(&self, entries: Vec<(&str, Bytes)>, ttl: Ttl) -> Result<Vec<Result<()>>> {
        let sets = entries.iter().map(|(key, value)| commands::set(key, value, ttl, When::Always));
        let sets: Vec<Command> = sets.collect::<Result<_>>()?;
        let replies = self.several(Request::several(sets), Retry::Idempotent).await?;
        Ok(replies.into_iter().map(|reply| reply?.stored().map(|_| ())).collect())
    }

    async fn delete_part(&self, keys: Vec<&str>) -> Result<Vec<Result<bool>>> {
        let replies =
            self.several(Request::several(keys.iter().map(|key| commands::unlink(&[*key]))), Retry::Never).await?;
        Ok(replies.into_iter().map(|reply| reply?.flag()).collect())
    }

    async fn batch_part<'o>(&self, operations: Vec<&'o Op<'o>>) -> Result<Vec<Result<Outcome>>> {
        let mut commands = batch::Commands::new(&self.compare_and_set, &self.settle);
        operations.iter().try_for_each(|operation| commands.push(operation))?;
        let replies = self.call(&Request::several(commands.commands), batch::retry(&operations)).await?;
        let endpoint = self.link.endpoint();
        let outcomes =
            operations.iter().zip(replies).map(|(operation, reply)| batch::outcome(operation, reply, endpoint));
        Ok(outcomes.collect())
    }

    fn reply(&self, value: Value) -> Result<Reply<'_>> {
        Reply::new(value, self.link.endpoint())
    }

    fn check_value(&self, key: &str, value: &[u8]) -> Result<()> {
        super::check_value(key, value, self.max_value, self.link.endpoint())
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
        Reply::read(only(self.call(&request, Retry::Idempotent).await?), self.link.endpoint())
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Ttl, when: When) -> Result<bool> {
        check_key(key)?;
        self.check_value(key, &value)?;
        let retry = if when == When::Always { Retry::Idempotent } else { Retry::Never };
        self.command(commands::set(key, &value, ttl, when)?, retry).await?.stored()
    }

    async fn delete(&self, key: &str) -> Result<bool> {
        check_key(key)?;
        self.command(commands::unlink(&[key]), Retry::Never).await?.flag()
    }

    async fn compare_and_set(&self, key: &str, expected: Option<&[u8]>, new: Option<Bytes>, ttl: Ttl) -> Result<bool> {
        check_key(key)?;
        if let Some(value) = &new {
            self.check_value(key, value)?;
        }
        let script = &self.compare_and_set;
        let by_hash = Request::one(script.by_hash(key, expected, new.as_ref(), ttl)?);
        let mut answer = only(self.call(&by_hash, Retry::Never).await?);
        if reply::is_unknown_script(&answer) {
            let by_text = Request::one(script.by_text(key, expected, new.as_ref(), ttl)?);
            answer = only(self.call(&by_text, Retry::Never).await?);
        }
        self.reply(answer).map_err(|error| batch::scripted(self.link.endpoint(), error))?.flag()
    }

    async fn clear(&self, prefix: &str) -> Result<()> {
        let pattern = commands::keys_that_start_with(prefix);
        let mut cursor = 0;
        let mut passed = HashSet::new();
        while passed.insert(cursor) {
            let (next, keys) = self.command(commands::scan(cursor, &pattern), Retry::Idempotent).await?.scanned()?;
            if !keys.is_empty() {
                self.command(commands::unlink(&keys), Retry::Idempotent).await?.number()?;
            }
            if next == 0 {
                return Ok(());
            }
            if passed.len() >= MOST_STEPS {
                break;
            }
            cursor = next;
        }
        let context =
            format!("{} lists its keys without an end: its cursor does not return to 0", self.link.endpoint());
        Err(Error::new(ErrorKind::Protocol, context))
    }

    fn reset(&self) {
        self.link.reset();
    }

    fn servers(&self) -> Vec<ServerStats> {
        vec![self.link.stats()]
    }

    async fn reconnect(&self) -> Result<()> {
        let ping = Request::one(commands::ping());
        let replies = self.traced(&ping, pin!(self.link.reconnect(&ping))).await?;
        replies.into_iter().try_for_each(|reply| self.reply(reply).map(|_| ()))
    }

    async fn touch(&self, key: &str, ttl: Ttl) -> Result<bool> {
        check_key(key)?;
        match ttl.duration()? {
            Some(duration) => self.command(commands::expire(key, duration), Retry::Idempotent).await?.flag(),
            None => self.transaction(commands::persist(key), Retry::Idempotent).await?.flag(),
        }
    }

    async fn increment(&self, key: &str, by: i64, ttl: Ttl) -> Result<i64> {
        check_key(key)?;
        let counted = self.transaction(commands::increment(key, by, ttl)?, Retry::Never).await;
        counted.map_err(|error| reply::counting(key, by, error))?.number()
    }

    async fn ttl(&self, key: &str) -> Result<Option<Ttl>> {
        check_key(key)?;
        let milliseconds = self.command(commands::ttl(key), Retry::Idempotent).await?.number()?;
        Ok(match milliseconds {
            -2 => None,
            -1 => Some(Ttl::Never),
            left => Some(Ttl::After(Duration::from_millis(left.max(1).unsigned_abs()))),
        })
    }

    async fn append(&self, key: &str, value: Bytes, ttl: Ttl) -> Result<()> {
        check_key(key)?;
        self.check_value(key, &value)?;
        self.transaction(commands::append(key, &value, ttl)?, Retry::Never).await.map(|_| ())
    }

    async fn batch(&self, operations: &[Op<'_>]) -> Vec<Result<Outcome>> {
        let check = |operation| batch::check(operation, |key, value| self.check_value(key, value));
        let checked = operations.iter().map(|operation| check(operation).map(|()| operation)).collect();
        let size = |operation: &&Op<'_>| batch::size(operation);
        super::batch(checked, |operations| in_parts(operations, size, |part| self.batch_part(part))).await
    }

    async fn get_many(&self, keys: &[&str]) -> Vec<Result<Option<Bytes>>> {
        super::batch(checked(keys), |keys| in_parts(keys, |key| key.len(), |keys| self.get_part(keys))).await
    }

    async fn set_many(&self, entries: &[(&str, Bytes)], ttl: Ttl) -> Vec<Result<()>> {
        let checked = entries.iter().map(|(key, value)| {
            check_key(key)?;
            self.check_value(key, value)?;
            Ok((*key, value.clone()))
        });
        let size = |(key, value): &(&str, Bytes)| key.len() + value.len();
        super::batch(checked.collect(), |entries| in_parts(entries, size, |entries| self.set_part(entries, ttl))).await
    }

    async fn delete_many(&self, keys: &[&str]) -> Vec<Result<bool>> {
        super::batch(checked(keys), |keys| in_parts(keys, |key| key.len(), |keys| self.delete_part(keys))).await
    }
}

/// What a URL says, as text.
#[cfg(test)]
pub(super) fn understood(url: &str) -> String {
    format!("{:?}", Config::new(StoreUrl::parse(url).unwrap(), None).unwrap())
}

fn only(replies: Replies) -> Value {
    replies.into_iter().next().expect("as many replies as requests")
}

/// Has `send` deal with a batch part by part. Once one fails, the rest is not sent.
async fn in_parts<I, T, F>(
    items: Vec<I>,
    size: impl Fn(&I) -> usize,
    send: impl Fn(Vec<I>) -> F,
) -> Result<Vec<Result<T>>>
where
    F: Future<Output = Result<Vec<Result<T>>>>,
{
    let mut results = Vec::with_capacity(items.len());
    let mut left = items.into_iter().peekable();
    while left.peek().is_some() {
        let (mut part, mut bytes) = (Vec::new(), 0);
        while let Some(item) = left.next_if(|item| {
            bytes += size(item);
            part.is_empty() || (part.len() < PART_ENTRIES && bytes <= PART_BYTES)
        }) {
            part.push(item);
        }
        let asked = part.len();
        match send(part).await {
            Ok(answered) if answered.len() == asked => results.extend(answered),
            Ok(_) => return Err(super::wrong_count()),
            Err(error) => {
                let unanswered = asked + left.by_ref().count();
                results.extend((0..unanswered).map(|_| Err(error.clone())));
            }
        }
    }
    Ok(results)
}

fn checked<'a>(keys: &[&'a str]) -> Vec<Result<&'a str>> {
    keys.iter().map(|key| check_key(key).map(|()| *key)).collect()
}

/// Its URL, without the password.
impl fmt::Display for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("link", &self.link).finish_non_exhaustive()
    }
}
