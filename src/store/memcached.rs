//! The Memcached store, which speaks the meta protocol.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use self::builder::MemcachedBuilder;
pub(super) use self::config::SCHEMES;
use self::config::{Config, DEFAULT_MAX_VALUE};
use self::expiry::expiry;
use self::key::{Key, LONGEST};
use self::meta::{Answer, Command, Condition, Request};
use self::servers::{Entry, Servers, traced};
use super::credentials::Callback;
use super::url::StoreUrl;
use super::{CONFLICT_ATTEMPTS, CacheStore, Op, Outcome, Ttl, When, conflict};
use crate::error::Result;
use crate::net::Retry;
use crate::server_stats::ServerStats;

mod atomic;
mod batch;
mod builder;
mod clear;
mod config;
mod crawler;
mod error_replies;
mod expiry;
mod framing;
mod key;
mod login;
mod meta;
mod ring;
mod servers;
mod settling;

/// The bytes that a server needs for an entry besides its key and value.
const ENTRY_OVERHEAD: usize = 59;

/// A store on one Memcached server, or on several.
///
/// ```no_run
/// use prefork_cache::{CacheStore, Ttl, When, stores::MemcachedStore};
///
/// # async fn example() -> prefork_cache::Result<()> {
/// let store = MemcachedStore::new("memcached://10.0.0.1,10.0.0.2?timeout=200ms")?;
/// store.set("motd", "hello".into(), Ttl::Never, When::Always).await?;
/// assert_eq!(store.get("motd").await?.as_deref(), Some(&b"hello"[..]));
/// # Ok(())
/// # }
/// ```
///
/// It needs Memcached 1.6, for the meta protocol. Connecting to any other server fails with
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported).
///
/// # URL
///
/// `memcached://[user:password@]host[:port][,host[:port]...]`, `memcacheds://` for [TLS](crate::guide::urls#tls), or
/// `memcached+unix:///path[,/path...]`. The default port is 11211. An IPv6 address is in brackets. Characters with a
/// meaning in a URL are percent-encoded. User and password are for servers with a password file (`-Y`); SASL is not
/// supported. The guide has [all URLs and options](crate::guide::urls#options), and a chapter on [changing
/// passwords](crate::guide::urls#credentials).
///
/// # Connections
///
/// As for [`RedisStore`](super::stores::RedisStore): one pipelined connection per runtime and server inside a tokio
/// runtime, and a pool of blocking connections elsewhere, with the same cancel safety, order of changes, timeouts and
/// backpressure. Every command of the meta protocol has a token, which proves that its reply belongs to it. An error
/// reply has no token. A marker is sent after it, and the error is returned once the marker's reply has come.
///
/// # Failures
///
/// As for [`RedisStore`](super::stores::RedisStore), with the error replies of this server:
///
/// | error reply | [kind](crate::ErrorKind) | transient | connection |
/// | --- | --- | --- | --- |
/// | "object too large" | `ValueTooLarge` | no | kept |
/// | "out of memory", any other `SERVER_ERROR` | `Server` | yes | kept |
/// | "Too many open connections" | `Server` | yes | closed |
/// | "unauthenticated", "authentication failure" | `Auth` | no | closed |
/// | "non-numeric" | `NotANumber` | no | kept |
/// | "bad data chunk" | `Protocol` | yes | closed |
/// | any other `CLIENT_ERROR` | `Server` | no | kept; closed if the command had a value |
/// | `ERROR`: unknown command | `Unsupported` | no | kept |
///
/// # Several servers
///
/// Keys are distributed, digested and encoded as in the Ruby client Dalli (3.0 and later), so programs that use either
/// find the same entries. A server counts as down after `failures` consecutive failures. If a server is down or
/// refuses the connection, its keys go to the ring's next server, unless `failover` is `false`. Any other failure,
/// including a timeout, is returned as an error, since the server may have carried out the command. When the server is
/// back, it may still have its old entries: entries that must never be outdated need `failover=false`.
/// [`reconnect`](CacheStore::reconnect) and [`clear`](CacheStore::clear) try every server, and fail if one of them
/// fails.
///
/// # Keys
///
/// A key of ASCII letters, digits and punctuation of up to 250 bytes is stored unchanged. Any other key is sent as
/// base64, and stored unchanged up to 186 bytes. A longer key is stored as its beginning and an MD5 digest of the
/// whole key. [`clear`](CacheStore::clear) finds such an entry by a prefix of up to 212 bytes (146 if there are other
/// characters among them), and does not remove it for a longer prefix. A digested key with a namespace differs from
/// Dalli's, which since 3.0.5 keeps another number of characters in front of the digest.
///
/// # Differences from other stores
///
/// - A TTL is rounded up to seconds, and an entry may still expire up to a second early. The server's calendar ends in
///   January 2038; a TTL beyond it is [`ErrorKind::InvalidTtl`](crate::ErrorKind::InvalidTtl).
/// - A counter does not go below 0; one that is created by a negative amount starts at 0. If a sum exceeds `i64::MAX`,
///   a second command subtracts the amount again and the call fails with
///   [`ErrorKind::NotANumber`](crate::ErrorKind::NotANumber); other clients may read the sum in between. The entry of
///   a counter may end in spaces after a decrement. A number with a plus sign, leading zeros or trailing spaces,
///   stored by another program, is a counter in this store, and in no other.
/// - [`clear`](CacheStore::clear) lists all keys of each server, which may take up to a minute, and deletes those that
///   match. It never flushes. It fails with [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) on a server with
///   `-o no_lru_crawler`. Entries that are stored in the meantime may stay.
/// - The batch methods send one request to each server, or several of 64 KiB, and the servers work at the same time.
///   Without a runtime, the replies are read one server after the other.
/// - The empty value that Dalli and other programs store as a placeholder for a value counts as absent.
pub struct MemcachedStore {
    url: String,
    servers: Servers,
    max_value: usize,
    /// The timeout of an exchange with a server.
    timeout: Duration,
}

impl MemcachedStore {
    /// Creates a store on the servers of a URL. Does no I/O with them: the first operation dials.
    ///
    /// ```
    /// use prefork_cache::stores::MemcachedStore;
    ///
    /// assert!(MemcachedStore::new("memcached://localhost").is_ok());
    /// assert!(MemcachedStore::new("memcached://localhost?timeuot=1s").is_err());
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`](crate::ErrorKind::InvalidUrl) for an invalid scheme, host, port, path or option, and
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for a file that cannot be used. The error names
    /// the part, and never contains the password.
    pub fn new(url: &str) -> Result<MemcachedStore> {
        MemcachedStore::open(StoreUrl::parse(url)?, None)
    }

    /// Returns a builder of a store on the servers of a URL, with a method for each option.
    ///
    /// ```
    /// use prefork_cache::stores::MemcachedStore;
    /// use std::time::Duration;
    ///
    /// let store = MemcachedStore::builder("memcached://10.0.0.1,10.0.0.2")
    ///     .timeout(Duration::from_millis(250))
    ///     .username("worker")
    ///     .password_file("/run/secrets/memcached")
    ///     .build()?;
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn builder(url: &str) -> MemcachedBuilder {
        MemcachedBuilder::new(url)
    }

    fn open(url: StoreUrl, callback: Option<Callback>) -> Result<MemcachedStore> {
        let shown = url.to_string();
        let config = Config::new(url, callback)?;
        let timeout = config.settings.timeouts.exchange;
        Ok(MemcachedStore { url: shown, servers: Servers::new(&config), max_value: config.max_value, timeout })
    }

    /// Checks the size of a value. It is checked here because a server that refuses a value as too large also removes
    /// the previous entry.
    fn check_value(&self, key: &str, value: &[u8]) -> Result<()> {
        let entry = self.max_value.max(DEFAULT_MAX_VALUE);
        let limit = self.max_value.min(entry - ENTRY_OVERHEAD - key.len().min(LONGEST));
        super::check_value(key, value, limit, &self.name())
    }

    fn set_of<'k>(&self, key: &'k str, value: Bytes, ttl: Ttl, condition: Condition) -> Result<Entry<'k>> {
        self.check_value(key, &value)?;
        Ok(Entry { key: Key::new(key)?, command: Command::Set { value, expiry: expiry(ttl)?, condition } })
    }
}

#[async_trait]
impl CacheStore for MemcachedStore {
    fn name(&self) -> &str {
        "memcached"
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let (_, answer) = self.servers.call(&get_of(key)?, Retry::Idempotent).await?;
        Ok(value(answer))
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Ttl, when: When) -> Result<bool> {
        let (condition, retry) = match when {
            When::Always => (Condition::Always, Retry::Idempotent),
            When::IfAbsent => (Condition::IfAbsent, Retry::Never),
            When::IfPresent => (Condition::IfPresent, Retry::Never),
        };
        let (_, answer) = self.servers.call(&self.set_of(key, value, ttl, condition)?, retry).await?;
        Ok(answer == Answer::Done)
    }

    async fn delete(&self, key: &str) -> Result<bool> {
        let (_, answer) = self.servers.call(&delete_of(key)?, Retry::Never).await?;
        Ok(answer == Answer::Done)
    }

    async fn compare_and_set(&self, key: &str, expected: Option<&[u8]>, new: Option<Bytes>, ttl: Ttl) -> Result<bool> {
        let new = match new {
            Some(value) => {
                self.check_value(key, &value)?;
                Some((value, expiry(ttl)?))
            }
            None => None,
        };
        self.servers.compare_and_set(key, expected, new).await
    }

    async fn clear(&self, prefix: &str) -> Result<()> {
        self.servers.clear(prefix).await
    }

    fn reset(&self) {
        for server in self.servers.iter() {
            server.link.reset();
            server.crawler.reset();
        }
    }

    fn servers(&self) -> Vec<ServerStats> {
        self.servers.iter().map(|server| server.link.stats()).collect()
    }

    async fn reconnect(&self) -> Result<()> {
        self.reset();
        let probe = Request::probe(self.servers.tokens(1))?;
        let mut outcome = Ok(());
        for server in self.servers.iter() {
            let answered = server.link.reconnect(&probe, None);
            outcome = outcome.and(traced(server, || ("get".to_owned(), 1), answered, |_| None).await.map(|_| ()));
        }
        outcome
    }

    async fn touch(&self, key: &str, ttl: Ttl) -> Result<bool> {
        let entry = Entry { key: Key::new(key)?, command: Command::Touch { expiry: expiry(ttl)? } };
        let (_, answer) = self.servers.call(&entry, Retry::Idempotent).await?;
        Ok(answer == Answer::Done)
    }

    async fn increment(&self, key: &str, by: i64, ttl: Ttl) -> Result<i64> {
        self.servers.increment(key, by, ttl).await
    }

    async fn ttl(&self, key: &str) -> Result<Option<Ttl>> {
        let entry = Entry { key: Key::new(key)?, command: Command::TimeLeft };
        let (_, answer) = self.servers.call(&entry, Retry::Idempotent).await?;
        Ok(match answer {
            // In its last second, an entry has 0 seconds left.
            Answer::TimeLeft(seconds) if seconds >= 0 => {
                Some(Ttl::After(Duration::from_secs(seconds.max(1).unsigned_abs())))
            }
            Answer::TimeLeft(_) => Some(Ttl::Never),
            _ => None,
        })
    }

    async fn append(&self, key: &str, value: Bytes, ttl: Ttl) -> Result<()> {
        let create = self.set_of(key, value.clone(), ttl, Condition::IfAbsent)?;
        let append = Entry { key: Key::new(key)?, command: Command::Append { value } };
        // Not every server creates a missing entry when appending.
        for _ in 0..CONFLICT_ATTEMPTS {
            for entry in [&append, &create] {
                if self.servers.call(entry, Retry::Never).await?.1 == Answer::Done {
                    return Ok(());
                }
            }
        }
        Err(conflict("appending to", key))
    }

    async fn batch(&self, operations: &[Op<'_>]) -> Vec<Result<Outcome>> {
        self.carry_out(operations).await
    }

    async fn get_many(&self, keys: &[&str]) -> Vec<Result<Option<Bytes>>> {
        let entries: Vec<_> = keys.iter().map(|key| get_of(key)).collect();
        let answers = self.servers.batch(&entries, Retry::Idempotent).await;
        let mut values: Vec<_> = answers.into_iter().map(|answer| answer.map(value)).collect();
        for (key, value) in keys.iter().zip(&mut values) {
            // The reply to a text `get` does not distinguish an empty value from a placeholder for one.
            if matches!(value, Ok(Some(bytes)) if bytes.is_empty()) {
                *value = self.get(key).await;
            }
        }
        values
    }

    async fn set_many(&self, entries: &[(&str, Bytes)], ttl: Ttl) -> Vec<Result<()>> {
        let set = |key, value: &Bytes| self.set_of(key, value.clone(), ttl, Condition::Always);
        let entries: Vec<_> = entries.iter().map(|(key, value)| set(key, value)).collect();
        let answers = self.servers.batch(&entries, Retry::Idempotent).await;
        answers.into_iter().map(|answer| answer.map(|_| ())).collect()
    }

    async fn delete_many(&self, keys: &[&str]) -> Vec<Result<bool>> {
        let entries: Vec<_> = keys.iter().map(|key| delete_of(key)).collect();
        let answers = self.servers.batch(&entries, Retry::Never).await;
        answers.into_iter().map(|answer| answer.map(|answer| answer == Answer::Done)).collect()
    }
}

/// Returns the configuration that a URL describes, as a string.
#[cfg(all(test, feature = "memory", feature = "redis", feature = "memcached", feature = "tls"))]
pub(super) fn understood(url: &str) -> String {
    format!("{:?}", Config::new(StoreUrl::parse(url).unwrap(), None).unwrap())
}

fn get_of(key: &str) -> Result<Entry<'_>> {
    Ok(Entry { key: Key::new(key)?, command: Command::Get })
}

fn delete_of(key: &str) -> Result<Entry<'_>> {
    Ok(Entry { key: Key::new(key)?, command: Command::Delete { cas: None } })
}

fn value(answer: Answer) -> Option<Bytes> {
    match answer {
        Answer::Value { value, .. } => Some(value),
        _ => None,
    }
}

/// Its URL, without the password.
impl fmt::Display for MemcachedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// The URL only, without the connections.
impl fmt::Debug for MemcachedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemcachedStore").field("url", &self.url).finish_non_exhaustive()
    }
}
