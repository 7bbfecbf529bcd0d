//! A store on a Redis server, or on the nodes of a cluster: the redis crate's commands and replies, over sockets of
//! ours.
//!
//! A [verb](verbs) is a request and what its replies mean; a [`Link`] takes it there and back. Which link that is, on a
//! cluster, is the business of the [`Cluster`].

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
use config::{Config, Place};
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

/// Keeps its entries on a Redis server (4.0 or later; also Valkey and others that speak its protocol), or on a
/// [cluster](#cluster) of them.
///
/// Speaks RESP3, or RESP2 to a server that does not know the former. A time to live is rounded up to whole
/// milliseconds. [`clear`](crate::CacheStore::clear) goes through the keys with `SCAN` and removes them with `UNLINK`;
/// it never uses `KEYS` or `FLUSHDB`. The batch verbs send up to 1,000 entries or 1 MiB in one exchange.
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
/// `redis+unix://[user:password@]/path/of/the/socket`; a [cluster](RedisStore#cluster) is `redis+cluster://`, with any of
/// its nodes, and what is behind [sentinels](RedisStore#sentinel) `redis+sentinel://`. User and password are
/// percent-encoded. The port defaults to 6379, the database to 0. The guide has
/// [all URLs and options](crate::guide::urls#options), and a chapter on
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
/// - **An isolated master** that still takes writes is left within `topology_refresh`: once in that time, while there
///   are calls, one of them has all sentinels asked, and what more than half of those that answer say counts. Inside
///   tokio that happens beside the calls; elsewhere one call takes longer by it, at most by a quarter of
///   `connect_timeout` or by `timeout`. What an isolated master has taken meanwhile is lost with it. The same goes
///   for one that a sentinel names which is isolated together with it: a dial believes the first sentinel, as it
///   would take longer by each that it asked.
/// - **Where no sentinel answers** a connection is opened to where the master was found last, if it is still one.
/// - **Over a fork** a child goes on with the address that its parent knew.
/// - **Trust.** What answers in the place of a sentinel decides which server is told the password of the URL. Use
///   `rediss+sentinel://` where others can get into the network between.
///
/// # Cluster
///
/// `redis+cluster://[user:password@]host[:port][,host[:port]...]`, or `rediss+cluster://` for the same over TLS. A key
/// goes to the node that has its slot, over connections as above, one set for each node. Slots are those of
/// [Redis Cluster](https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/): CRC-16 of the key, or
/// of the part in its first `{braces}`. A lease is in the slot of its key.
///
/// - **Who has what** is asked by `CLUSTER SLOTS`: at first use, and at most ten times a second after a sign of
///   change (`MOVED`, `CLUSTERDOWN`, a node that fails). Any node will do that knows the owners of all slots; of up
///   to eight that do not, the one counts that knows most. One that does not answer leaves half of the time for the
///   others. A forked child goes on with what its parent knew. Nodes are reached under the names that the cluster
///   gives them; over TLS a node's certificate has to be for that name. A store remembers up to 4,096 addresses.
/// - **Redirections.** `MOVED`, `ASK`, `TRYAGAIN` and `CLUSTERDOWN` say that nothing was carried out, so changes are
///   sent on as reads are, up to 16 times. A node that cannot be connected to is asked about, and what it should have
///   had is sent to the node that has its slots by then. Where a connection breaks in the middle of an exchange, what
///   may be carried out twice (a read, an unconditional `set`, a `touch`; in a batch only a read) is sent again in the
///   same way; any other change is the error of its call.
/// - **Time.** A call takes at most `connect_timeout` and `timeout` join_all, whatever the number of nodes and
///   redirections, and a blocking one that has to dial twice as long. The rest of a batch is answered for while a node
///   is silent. `CLUSTERDOWN` is waited out for some 30 ms and then returned.
/// - **Batches** are split by node, up to 4,096 commands or 1 MiB in one write, and all nodes are asked at once. Those on
///   one key, and on a key and its lease, keep their order; while a slot is being moved, a delete that came before what
///   should precede it is carried out again behind it. A settle whose two keys are on two nodes, for as long as a slot
///   is being moved, is done step by step.
/// - **[`clear`](crate::CacheStore::clear)** goes through all masters at once, and fails, naming the node, if one of
///   them does. It removes what was there when it began, but for entries in slots that are moved to another node meanwhile.
///   [`reconnect`](crate::CacheStore::reconnect) dials every master; [`Stats::servers`](crate::Stats) has every node.
/// - **Replicas** are read with `replicas=prefer`: by [`get`](crate::CacheStore::get) and
///   [`get_many`](crate::CacheStore::get_many) alone, a key always from the same one, and from the master where it does
///   not answer. Replication takes a while: then what one call has stored, the next one may not see yet, which is
///   exempt from the [contract](crate::CacheStore#contract); the feature `conformance` lists the checks that may
///   fail for it. [`get_latest`](crate::CacheStore::get_latest), batches
///   and leases go to masters, so a fetch loads no more often than without.
/// - What a master has acknowledged and not replicated is lost when it is replaced: that is how Redis Cluster works.
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
/// | `NOPERM`, `NOPROTO`, an unknown command, "cluster support disabled" | `Unsupported` | no | kept |
/// | `MOVED`, `ASK`, `CROSSSLOT`, under a URL of one server | `Unsupported` | no | kept |
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
        let Config { place, access, settings } = Config::new(url, callback)?;
        let max_value = access.max_value;
        let servers = match place {
            Place::Server(address) => Servers::One(Link::new(Resp::new(address, access), settings)),
            Place::Cluster { seeds, replicas } => {
                Servers::Cluster(Box::new(Cluster::new(seeds, access, settings, replicas)))
            }
        };
        Ok(RedisStore { url: shown, servers, scripts: Scripts::new(), max_value })
    }
}

/// What a URL says, as text.
#[cfg(all(test, feature = "memory", feature = "redis", feature = "memcached", feature = "tls"))]
pub(super) fn understood(url: &str) -> String {
    format!("{:?}", Config::new(StoreUrl::parse(url).unwrap(), None).unwrap())
}

/// Its URL, without the password.
impl fmt::Display for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// As errors speak of them.
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
