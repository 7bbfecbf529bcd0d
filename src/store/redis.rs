//! A store on a Redis server or on a cluster: the redis crate's values and scripts, over this crate's sockets.
//!
//! Each operation in [`verbs`] builds a request and interprets its replies. A [`Link`] exchanges them with a server. On
//! a cluster, the [`Cluster`] chooses the link.

use std::fmt;

use super::credentials::Callback;
use super::url::StoreUrl;
use crate::error::Result;
use crate::net::Link;
use batch::Scripts;
pub use builder::RedisBuilder;
use cluster::Cluster;
pub use config::Replicas;
pub(super) use config::SCHEMES;
use config::{Config, Location};
use protocol::Resp;

mod batch;
mod builder;
mod chunks;
mod clear;
mod cluster;
mod commands;
mod config;
mod error_replies;
mod exchange;
mod protocol;
mod reply;
mod resp;
mod role;
mod sentinel;
mod verbs;

/// A store that keeps its entries on a Redis server (4.0 or later; also Valkey and others that speak its protocol), or
/// on a [cluster](#cluster).
///
/// It uses RESP3, or RESP2 if the server does not support RESP3. A time to live is rounded up to whole milliseconds.
/// [`clear`](crate::CacheStore::clear) lists the keys with `SCAN` and removes them with `UNLINK`; it never uses `KEYS`
/// or `FLUSHDB`. Batch operations send up to 1,000 entries or 1 MiB in one exchange.
///
/// # Connections
///
/// Inside a tokio runtime all operations share one pipelined connection per runtime; more are opened only while that
/// one is busy with a large value. Elsewhere each operation takes a blocking connection from a pool.
///
/// - **No mixed-up replies.** Every write ends with a marker: an `ECHO` of a random token, or a `PING` if the account
///   may not use `ECHO`. No reply is returned before the token has come back behind it. If the account may use neither,
///   a surplus reply is noticed only while no reply is awaited, and the feature `tracing` logs a warning. If a server
///   swaps two replies of one write, this is not noticed.
/// - **Cancel safety.** Once a request has started, it belongs to its connection. If its future is dropped, the server
///   still executes it, its reply is discarded, and the connection stays in use. Changes are sent in the order in which
///   they were started: a `set` whose future was dropped never overtakes a later `delete`. A change that ended in an
///   error may still take effect until its connection is closed.
/// - **Timeouts.** While replies keep arriving on its connection (64 KiB in each `timeout`), a request inside tokio has
///   more time, at most ten times its `timeout`.
/// - **Large values.** A read that is queued behind a value of more than 64 KiB is sent again over another connection.
/// - **Backpressure.** A pipelined connection takes 8,192 requests, or 16 MiB of unsent bytes. Further requests wait,
///   at most for `connect_timeout` plus `timeout`, and then fail with [`ErrorKind::Full`](crate::ErrorKind::Full). So
///   do blocking operations that have waited for a connection of the pool for `timeout`.
///
/// # URLs
///
/// | URL | server |
/// | --- | --- |
/// | `redis://[user:password@]host[:port][/database]` | one server |
/// | `rediss://` | one server, over [TLS](crate::guide::urls#tls) |
/// | `redis+unix://[user:password@]/path/of/the/socket` | one server, over a Unix socket |
/// | `redis+sentinel://`, `rediss+sentinel://` | a master behind [sentinels](RedisStore#sentinel) |
/// | `redis+cluster://`, `rediss+cluster://` | a [cluster](RedisStore#cluster), by any of its nodes |
///
/// User and password are percent-encoded. The port defaults to 6379, the database to 0. The guide has
/// [all URLs and options](crate::guide::urls#options), and a chapter on
/// [passwords that change](crate::guide::urls#credentials).
///
/// # Sentinel
///
/// `redis+sentinel://[user:password@]sentinel[:port][,sentinel[:port]...]/mymaster[/database]` is the server that
/// [Redis Sentinel](https://redis.io/docs/latest/develop/reference/sentinel-clients/) names as the master `mymaster`.
/// `rediss+sentinel://` uses TLS for the sentinels and the master; the master's certificate must be for the host that
/// the sentinels announce. User and password in the URL are the master's. If the sentinels need a login, it is given by
/// `sentinel_username` and `sentinel_password` or `sentinel_password_file`.
///
/// - **Discovery.** Before a connection is opened, the sentinels are asked for the master's address (`SENTINEL
///   GET-MASTER-ADDR-BY-NAME`), one after the other until one knows it. That one is asked first the next time. The
///   address is valid for `topology_refresh` (five seconds by default) unless something fails in the meantime.
///   Sentinels that do not respond, and the dial, share one `connect_timeout`. If no sentinel gives an address, the
///   error lists the failure of each. After `failures` such errors no sentinel is asked for `retry_after`; open
///   connections stay in use.
/// - **Role check.** A server whose role is not master (by `ROLE`, or by `INFO replication` if the account may not use
///   `ROLE`) is not used: the next sentinel is asked. If the account may use neither, the server is used without this
///   check, and the feature `tracing` logs a warning.
/// - **Failover.** The first `READONLY` closes all connections to the old master, and no further request goes there. If
///   the master has crashed, the new one is used once the sentinels have elected it. A call waits for it no longer
///   than for a server that is down. The new master is found at most `retry_after` after the sentinels name it.
/// - **Isolated master.** A master that is cut off from the sentinels but still accepts writes is abandoned within
///   `topology_refresh`. Once in that time, if there are calls, one of them triggers a query of all sentinels. The
///   address counts that more than half of the responding sentinels give. Inside tokio this runs in the background;
///   elsewhere it makes one call longer, at most by a quarter of `connect_timeout` or by `timeout`. What the isolated
///   master has stored in the meantime is lost. If a sentinel is isolated together with the old master, a dial may
///   still be led there: a dial trusts the first sentinel that gives an address, because each further one would make it
///   longer.
/// - **No sentinel responds.** A connection is opened to the last known address, if the server there is still a master.
/// - **Fork.** A child starts with the address that its parent knew.
/// - **Trust.** A server that impersonates a sentinel decides which server receives the password of the URL. Use
///   `rediss+sentinel://` on a network that others have access to.
///
/// # Cluster
///
/// `redis+cluster://[user:password@]host[:port][,host[:port]...]`, or `rediss+cluster://` over TLS. A key goes to the
/// node that has its slot. Each node has its own connections, as described above. Slots are those of
/// [Redis Cluster](https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/): CRC-16 of the key, or
/// of the part in its first `{braces}`. A lease is in the slot of its key.
///
/// - **Topology.** The owners of the slots are read by `CLUSTER SLOTS`: at first use, and at most ten times a second
///   after a sign of change (`MOVED`, `CLUSTERDOWN`, `READONLY`, a node that fails). The first node that knows the
///   owners of all slots is used; if there is none, the one of up to eight that knows most. Each node gets half of the
///   remaining time, so one that does not respond leaves the other half for the others. A forked child starts with its
///   parent's topology. Nodes are reached under the names that the cluster announces; over TLS a node's certificate
///   must be for that name. A store remembers up to 4,096 addresses.
/// - **Redirections.** After `MOVED`, `ASK`, `TRYAGAIN`, `CLUSTERDOWN` and `READONLY` nothing was executed, so changes
///   are redirected like reads, up to 16 times. If a node cannot be connected to, or is loading its data (`LOADING`),
///   the topology is read again, and its requests go to the new owners of its slots. If a connection breaks in the
///   middle of an exchange, requests that may be executed twice (a read, an unconditional `set`, a `touch`; in a batch
///   only a read) are sent again in the same way. Any other change fails.
/// - **Time.** A call takes at most `connect_timeout` plus `timeout`, regardless of the number of nodes and
///   redirections; a blocking call that has to dial takes at most twice as long, and so does a `get` whose replica does
///   not respond. If a node does not respond, the operations of a batch on the other nodes still succeed.
///   `CLUSTERDOWN` is retried for some 30 ms and then returned; "Hash slot not served", the reply of a node that has
///   left the cluster, for some 110 ms.
/// - **Batches** are split by node, with up to 4,096 commands or 1 MiB in one write, and sent to all nodes at once.
///   Operations on one key, and on a key and its lease, keep their order. While a slot is being moved, a get, a delete
///   or an unconditional set that was executed before an earlier operation on its key is executed again after it. A
///   settle whose two keys are on two nodes while a slot is being moved is executed step by step, after the rest of the
///   batch, and each step has the time of a call.
/// - **[`clear`](crate::CacheStore::clear)** clears all masters at once. If one of them fails, it fails and names the
///   node, and the others are cleared. It removes the entries that existed when it began, also while slots are moved:
///   each node is asked (`CLUSTER NODES`) for slots that it has given away, and the nodes that have received them are
///   cleared again. An entry may remain only if it is moved in each of eight passes, or to a node and back in one
///   pass. Each exchange has the whole `timeout`. [`reconnect`](crate::CacheStore::reconnect) dials every master;
///   [`Stats::servers`](crate::Stats) lists every node.
/// - **Replicas** are read with `replicas=prefer`, and only by [`get`](crate::CacheStore::get) and
///   [`get_many`](crate::CacheStore::get_many). A key is always read from the same replica, or from the master if the
///   replica does not respond. Replication is asynchronous, so a read may not see yet what an earlier call has stored.
///   While a slot is being moved, a replica does not find the entries that were moved already.
///   This is exempt from the [contract](crate::CacheStore#contract); the feature `conformance` lists the checks that
///   may fail because of it. [`get_latest`](crate::CacheStore::get_latest), batches and leases go to masters, so a
///   fetch loads no more often than without replicas.
/// - **Lost writes.** What a master has acknowledged but not replicated is lost when it is replaced. Redis Cluster
///   works that way.
///
/// # Failures
///
/// The table lists the server's error replies and their meaning. An error reply does not count as a failure of the
/// server. The exceptions are replies that refuse a new connection (at login, or "max number of clients"): after
/// `failures` of them in a row the server is not dialled for `retry_after`. Open connections stay in use.
///
/// | error reply | [kind](crate::ErrorKind) | transient | connection |
/// | --- | --- | --- | --- |
/// | `READONLY`, `MASTERDOWN` | `Server` | yes | closed, with all that are older than `retry_after` (behind sentinels: with all), because the name may lead to another server now |
/// | `LOADING`, `BUSY`, `OOM`, `MISCONF`, `NOREPLICAS`, `TRYAGAIN`, `CLUSTERDOWN` | `Server` | yes | kept |
/// | `SHUTDOWN`, "server is closing", "shutting down", "max number of clients" | `Server` | yes | closed |
/// | "upstream ...", "no upstream host", of a proxy, with or without `ERR` | `Server` | yes | kept |
/// | `NOAUTH`, `WRONGPASS`, `DENIED`, and any other reply to `AUTH` that is not transient | `Auth` | no | closed |
/// | `NOPERM`, `NOPROTO`, an unknown command, "cluster support disabled" | `Unsupported` | no | kept |
/// | `MOVED`, `ASK`, `CROSSSLOT`, under a URL of one server | `Unsupported` | no | kept |
/// | "DB index is out of range", "invalid DB index" | `Unsupported` | no | closed |
/// | "invalid bulk length" | `ValueTooLarge` | no | closed |
/// | "exceeds maximum allowed size" | `ValueTooLarge` | no | kept |
/// | "Protocol error" | `Protocol` | yes | closed |
/// | anything else | `Server` | no | kept |
///
/// A connection that fails, times out or receives a malformed reply is closed, and the failure counts: after `failures`
/// in a row the server is not dialled for `retry_after`. A timeout on a connection that has worked before counts only
/// together with the next failure. It also closes the connections that were idle at the time, since a firewall may have
/// dropped them. A lack of resources in this process ([`OutOfResources`](crate::ErrorKind::OutOfResources)) does not
/// count. A read of a key that is not of type string returns no value.
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
    servers: Servers,
    scripts: Scripts,
    max_value: usize,
}

#[derive(Debug)]
enum Servers {
    One(Link<Resp>),
    Cluster(Box<Cluster>),
}

impl RedisStore {
    /// Creates a store for the server or cluster of a URL. Does no I/O.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`](crate::ErrorKind::InvalidUrl), with the part that is invalid. The error never contains
    /// the password.
    pub fn new(url: &str) -> Result<RedisStore> {
        RedisStore::open(StoreUrl::parse(url)?, None)
    }

    /// Creates a builder for a store, from a URL and options given by methods.
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
        let Config { location, access, settings } = Config::new(url, callback)?;
        let max_value = access.max_value;
        let servers = match location {
            Location::Server(address) => Servers::One(Link::new(Resp::new(address, access), settings)),
            Location::Cluster { seeds, replicas } => {
                Servers::Cluster(Box::new(Cluster::new(seeds, access, settings, replicas)))
            }
        };
        Ok(RedisStore { url: shown, servers, scripts: Scripts::new(), max_value })
    }
}

/// Returns the `Debug` output of the configuration parsed from a URL.
#[cfg(all(test, feature = "memory", feature = "redis", feature = "memcached", feature = "tls"))]
pub(super) fn understood(url: &str) -> String {
    format!("{:?}", Config::new(StoreUrl::parse(url).unwrap(), None).unwrap())
}

/// Writes the URL, without the password.
impl fmt::Display for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// Writes the name that errors use.
impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Servers::One(link) => link.endpoint().fmt(f),
            Servers::Cluster(cluster) => cluster.fmt(f),
        }
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("servers", &self.servers).finish_non_exhaustive()
    }
}
