//! Statistics of a server.

/// Statistics of one server of a store, in this process. A forked child counts from zero.
///
/// ```no_run
/// use prefork_cache::{Cache, stores::RedisStore};
///
/// let cache = Cache::builder(RedisStore::new("redis://localhost")?).build();
/// for server in cache.stats().servers {
///     println!("{}: {} connections, {} in flight", server.address, server.connections, server.in_flight);
/// }
/// # Ok::<(), prefork_cache::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStats {
    /// Host and port, or the path of the socket. Behind sentinels, the last known address of the master, or its name
    /// before it was found.
    pub address: String,
    /// The number of connections that are open or being opened.
    pub connections: usize,
    /// The number of requests without a complete reply.
    pub in_flight: usize,
    /// The number of attempts to connect since the store was built or forked.
    pub dials: u64,
    /// How often a dial or a request has timed out since the store was built or forked.
    pub timeouts: u64,
    /// Whether a circuit breaker is open: the server has failed, or refuses logins, and is not tried again before
    /// `retry_after` has passed.
    pub is_down: bool,
}

#[cfg(feature = "redis")]
impl ServerStats {
    /// Adds the statistics of another link to the same server.
    pub(crate) fn and(self, other: &ServerStats) -> ServerStats {
        ServerStats {
            connections: self.connections + other.connections,
            in_flight: self.in_flight + other.in_flight,
            dials: self.dials + other.dials,
            timeouts: self.timeouts + other.timeouts,
            is_down: self.is_down || other.is_down,
            ..self
        }
    }
}
