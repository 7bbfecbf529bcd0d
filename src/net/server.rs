//! A server: what all connections to it have in common, and what is known of its health.

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::breaker::{Admission, Breaker};
use super::connection::{Connection, Protocol};
use super::dial_limit::DialLimit;
#[cfg(feature = "tokio")]
use super::pipeline::Pipelines;
use super::pool::Pool;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::{Execution, exchange_timeout};
use crate::lifecycle::ProcessLocal;
use crate::server_stats::ServerStats;
use crate::telemetry;

mod opening;

/// The bounds of every wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timeouts {
    pub(crate) connect: Duration,
    /// For the wait for a free connection, for a greeting, and for a request with its reply: each.
    pub(crate) exchange: Duration,
}

/// How the connections to a server are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) timeouts: Timeouts,
    pub(crate) pool_size: usize,
    /// After how many failures in a row the server counts as down.
    pub(crate) failures: u32,
    /// How long a server that is down is not dialled.
    pub(crate) retry_after: Duration,
    /// After what time without traffic the kernel asks whether the other side is still there.
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

/// The part of the time for a dial that it may take to ask again where a server is.
const REFRESH_PART: u32 = 4;

pub(super) struct Server<P: Protocol> {
    pub(super) protocol: P,
    pub(super) settings: Settings,
    breaker: Breaker,
    /// Asked before a connection is opened only: a server that has no room for another one, or does not know a new
    /// password, still answers over those that it has let in.
    login_breaker: Breaker,
    dial_limit: Arc<DialLimit>,
    has_greeted: AtomicBool,
    counts: ProcessLocal<Counts>,
    /// On the heap, since a lease moves what it holds.
    pub(super) pool: Pool<Box<Connection<P>>>,
    #[cfg(feature = "tokio")]
    pub(super) pipelines: Pipelines<P>,
}

#[derive(Debug, Default)]
struct Counts {
    dials: AtomicU64,
    timeouts: AtomicU64,
}

/// What the breakers said when they let a dial through.
#[derive(Clone, Copy)]
pub(super) struct Admissions {
    call: Admission,
    login: Admission,
}

impl<P: Protocol> Server<P> {
    pub(super) fn new(protocol: P, settings: Settings) -> Server<P> {
        let breaker = || Breaker::new(settings.failures, settings.retry_after);
        Server {
            protocol,
            settings,
            breaker: breaker(),
            login_breaker: breaker(),
            dial_limit: Arc::default(),
            has_greeted: AtomicBool::new(false),
            counts: ProcessLocal::new(),
            pool: Pool::new(settings.pool_size),
            #[cfg(feature = "tokio")]
            pipelines: Pipelines::new(settings.pool_size),
        }
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        self.settings.timeouts
    }

    /// Refuses at once while the server is down.
    pub(super) fn admit(&self) -> Result<Admission> {
        self.breaker.admit().ok_or_else(|| self.is_down())
    }

    /// Refuses also while the server lets no connection in.
    pub(super) fn admit_dial(&self, call: Admission) -> Result<Admissions> {
        let login = self.login_breaker.admit().ok_or_else(|| self.refuses_logins())?;
        Ok(Admissions { call, login })
    }

    #[cold]
    fn is_down(&self) -> Error {
        self.left_alone("has failed", &self.breaker)
    }

    #[cold]
    fn refuses_logins(&self) -> Error {
        let is_looked_up = self.protocol.discovery().is_some();
        let why = if is_looked_up { "was not found, or has let nobody in" } else { "has let nobody in" };
        self.left_alone(why, &self.login_breaker)
    }

    /// In fixed words, so that those who collect errors see one and not many.
    fn left_alone(&self, why: &str, breaker: &Breaker) -> Error {
        let context = format!("{} {why}, and is not tried again before retry_after is over", self.protocol.endpoint());
        match breaker.cause() {
            Some(cause) => Error::with_source(ErrorKind::Unavailable, context, cause),
            None => Error::new(ErrorKind::Unavailable, context),
        }
    }

    /// Asks where the server is by now, and gives up the connections that lead elsewhere.
    pub(super) async fn refresh_address(&self, execution: Execution) {
        let Some(discovery) = self.protocol.discovery() else { return };
        if discovery.refresh(execution, self.patience_to_refresh(), &self.settings).await {
            self.abandon(Some(discovery.endpoint()));
        }
    }

    /// Whether to do so now.
    #[inline]
    pub(super) fn is_address_due(&self) -> bool {
        self.protocol.discovery().is_some_and(|discovery| discovery.is_due(self.patience_to_refresh()))
    }

    /// Not longer than the exchange may take for which a caller waits.
    fn patience_to_refresh(&self) -> Duration {
        let Timeouts { connect, exchange } = self.timeouts();
        (connect / REFRESH_PART).min(exchange_timeout(exchange))
    }

    /// Counts a failure, if it says something about the server. That a reused connection gives no answer says something
    /// about those that were idle beside it, first of all.
    pub(super) fn failed(&self, error: &Error, was_reused: bool) {
        if error.kind() == ErrorKind::Timeout {
            self.counts.get_or_init(Counts::default).timeouts.fetch_add(1, Ordering::Relaxed);
        }
        if !is_outage(error.kind()) {
            return;
        }
        self.doubt();
        if was_reused && error.kind() == ErrorKind::Timeout {
            self.breaker.suspect();
            self.close_idle(None);
        } else if self.breaker.failed(error) {
            telemetry::breaker_opened(self.protocol.endpoint());
        }
    }

    /// One that had less time than the server may take got no answer in it. That says nothing of the server, but those
    /// that were idle meanwhile may be gone as well.
    pub(super) fn distrust_idle(&self, since: Instant) {
        self.pool.close_idle(|connection| connection.begun < since);
    }

    /// A connection that has served was closed.
    pub(super) fn lost(&self) {
        self.doubt();
    }

    /// Nothing good is known of the server any more.
    fn doubt(&self) {
        self.dial_limit.doubt();
        if let Some(discovery) = self.protocol.discovery() {
            discovery.doubt();
        }
    }

    /// Records that an exchange came to its end.
    #[inline]
    pub(super) fn succeeded(&self) {
        self.dial_limit.succeeded();
        if self.breaker.succeeded() {
            telemetry::breaker_closed(self.protocol.endpoint());
        }
    }

    /// This is not the server that is meant, or no longer: the next connection may lead to another one.
    #[cold]
    pub(super) fn leave(&self) {
        self.close_idle(Some(Instant::now() - self.settings.retry_after));
    }

    /// Whether a connection is old enough to be left: another one that was just dialled would lead to the same server.
    pub(super) fn is_settled(&self, connection: &Connection<P>) -> bool {
        connection.opened.elapsed() > self.settings.retry_after
    }

    /// Whether another server has taken the place of the one that has answered this. Where that is has to be asked.
    #[inline]
    pub(super) fn is_replaced(&self, reply: &P::Reply) -> bool {
        self.protocol.discovery().is_some() && P::is_replaced(reply)
    }

    /// Another server has taken the place of the one that there are connections to: no request goes there any more, and
    /// the next dial asks where it is.
    #[cold]
    pub(super) fn replaced(&self) {
        self.doubt();
        self.pool.reset();
        self.abandon(None);
    }

    /// Gives up the connections; of those to this server, none.
    fn abandon(&self, unless: Option<&Endpoint>) {
        self.pool.close_idle(|connection| unless.is_none_or(|endpoint| connection.endpoint != *endpoint));
        #[cfg(feature = "tokio")]
        self.pipelines.abandon(unless);
    }

    /// Whether a connection leads to where the server is, as far as is known.
    #[inline]
    pub(super) fn is_there(&self, connection: &Connection<P>) -> bool {
        self.protocol.discovery().is_none_or(|discovery| *discovery.endpoint() == connection.endpoint)
    }

    /// Closes the connections that have nothing to do, or those that were opened before this.
    fn close_idle(&self, opened_before: Option<Instant>) {
        let is_meant = |opened: Instant| opened_before.is_none_or(|before| opened < before);
        self.pool.close_idle(|connection| is_meant(connection.opened));
        #[cfg(feature = "tokio")]
        self.pipelines.retire_if(|pipeline| match opened_before {
            None => pipeline.in_flight() == 0,
            Some(before) => pipeline.opened().is_some_and(|opened| opened < before),
        });
    }

    /// Whether a connection was idle for too long, or is too old.
    pub(super) fn is_outdated(&self, connection: &Connection<P>) -> bool {
        let is_over = |limit: Option<Duration>, since: Instant| limit.is_some_and(|limit| since.elapsed() > limit);
        is_over(self.settings.max_idle, connection.begun) || is_over(self.settings.max_age, connection.opened)
    }

    /// Forgets every connection, and that the server was down.
    pub(super) fn reset(&self) {
        if let Some(discovery) = self.protocol.discovery() {
            discovery.doubt();
        }
        self.pool.reset();
        #[cfg(feature = "tokio")]
        self.pipelines.reset();
        self.breaker.reset();
        self.login_breaker.reset();
    }

    pub(super) fn stats(&self) -> ServerStats {
        let (idle, leased) = self.pool.count();
        #[cfg(feature = "tokio")]
        let (pipelines, in_flight) = self.pipelines.count();
        #[cfg(not(feature = "tokio"))]
        let (pipelines, in_flight) = (0, 0);
        let counts = self.counts.get_or_init(Counts::default);
        ServerStats {
            address: self.protocol.endpoint().to_string(),
            connections: idle + leased + pipelines,
            in_flight: leased + in_flight,
            dials: counts.dials.load(Ordering::Relaxed),
            timeouts: counts.timeouts.load(Ordering::Relaxed),
            is_down: self.breaker.is_open() || self.login_breaker.is_open(),
        }
    }
}

/// Of a request for which there is no room.
pub(super) fn full(endpoint: &Endpoint) -> Error {
    let context = format!("as many requests to {endpoint} are under way as there may be, and none ended in time");
    Error::new(ErrorKind::Full, context)
}

/// Whether a failure says that the server, or the way to it, is out of order.
fn is_outage(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Connect | ErrorKind::Timeout | ErrorKind::Io | ErrorKind::Protocol)
}

impl<P: Protocol> Debug for Server<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("protocol", &self.protocol)
            .field("breaker", &self.breaker)
            .finish_non_exhaustive()
    }
}
