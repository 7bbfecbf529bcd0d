//! The settings of the connections to a server.

use std::time::Duration;

/// The timeouts of every wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timeouts {
    /// For a dial, including a lookup of the address and TLS.
    pub(crate) connect: Duration,
    /// For each of: the wait for a free connection, a greeting, and an exchange.
    pub(crate) exchange: Duration,
}

/// How the connections to a server are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) timeouts: Timeouts,
    pub(crate) pool_size: usize,
    /// The number of consecutive failures after which the circuit breaker opens.
    pub(crate) failures: u32,
    /// How long a server that is down is not dialled.
    pub(crate) retry_after: Duration,
    /// The time without traffic after which the kernel sends keepalive probes.
    pub(crate) keepalive: Option<Duration>,
    /// How long a connection may be idle, and how old it may be, to be used again.
    pub(crate) max_idle: Option<Duration>,
    pub(crate) max_age: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Settings {
        let second = Duration::from_secs(1);
        Settings {
            timeouts: Timeouts { connect: second, exchange: second },
            pool_size: 16,
            failures: 2,
            retry_after: second,
            keepalive: Some(60 * second),
            max_idle: None,
            max_age: None,
        }
    }
}
