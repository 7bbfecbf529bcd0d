//! What is known of a server, for statistics.

/// What this process has to do with one server of a store: a forked child counts from zero.
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
    /// Host and port, or the path of the socket. Behind sentinels it is where the master was found last, and its name
    /// before that.
    pub address: String,
    /// Connections, idle or not, and those that are being made.
    pub connections: usize,
    /// Requests that are not answered yet.
    pub in_flight: usize,
    /// Attempts to connect, from the beginning on.
    pub dials: u64,
    /// How often a dial, or a request on a connection, took longer than it may, from the beginning on.
    pub timeouts: u64,
    /// Whether the server has failed, or has let nobody in, and is not tried again before `retry_after` has passed.
    pub is_down: bool,
}

#[cfg(feature = "redis")]
impl ServerStats {
    /// The same with what goes over another link to the same server.
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
