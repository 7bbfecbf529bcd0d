//! A server: the state that all connections to it share, and its health.

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
use super::settings::{Settings, Timeouts};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::{Execution, exchange_timeout};
use crate::lifecycle::ProcessLocal;
use crate::server_stats::ServerStats;
use crate::telemetry;

mod opening;

/// A refresh of the address may take the connect timeout divided by this.
const REFRESH_PART: u32 = 4;

/// A server over one protocol.
pub(super) struct Server<P: Protocol> {
    pub(super) protocol: P,
    pub(super) settings: Settings,
    breaker: Breaker,
    /// Checked only before a connection is opened: a server that is at its connection limit, or does not know a new
    /// password, still responds over its existing connections.
    login_breaker: Breaker,
    dial_limit: Arc<DialLimit>,
    has_greeted: AtomicBool,
    counts: ProcessLocal<Counts>,
    /// The connections are boxed because a checkout moves them.
    pub(super) pool: Pool<Box<Connection<P>>>,
    #[cfg(feature = "tokio")]
    pub(super) pipelines: Pipelines<P>,
}

#[derive(Debug, Default)]
struct Counts {
    dials: AtomicU64,
    timeouts: AtomicU64,
}

/// The admissions of both circuit breakers for a dial.
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

    /// Admits a call. Fails at once while the server is down.
    pub(super) fn admit(&self) -> Result<Admission> {
        self.breaker.admit().ok_or_else(|| self.down_error())
    }

    /// Admits a dial for an admitted call. Fails at once while the server refuses logins.
    pub(super) fn admit_dial(&self, call: Admission) -> Result<Admissions> {
        let login = self.login_breaker.admit().ok_or_else(|| self.login_refused_error())?;
        Ok(Admissions { call, login })
    }

    #[cold]
    fn down_error(&self) -> Error {
        self.unavailable("has failed", &self.breaker)
    }

    #[cold]
    fn login_refused_error(&self) -> Error {
        let is_looked_up = self.protocol.discovery().is_some();
        let why = if is_looked_up { "was not found, or refused the login" } else { "refused the login" };
        self.unavailable(why, &self.login_breaker)
    }

    /// The error while a breaker is open. Its text is constant, so that error collectors group all of them as one.
    fn unavailable(&self, why: &str, breaker: &Breaker) -> Error {
        let context = format!("{} {why}, and is not tried again before retry_after is over", self.protocol.endpoint());
        match breaker.cause() {
            Some(cause) => Error::with_source(ErrorKind::Unavailable, context, cause),
            None => Error::new(ErrorKind::Unavailable, context),
        }
    }

    /// Looks the server's address up, and abandons the connections to other addresses.
    pub(super) async fn refresh_address(&self, execution: Execution) {
        let Some(discovery) = self.protocol.discovery() else { return };
        if discovery.refresh(execution, self.refresh_timeout(), &self.settings).await {
            self.abandon(Some(discovery.endpoint()));
        }
    }

    /// Returns whether the caller must refresh the address now. Only one caller is chosen for each period.
    #[inline]
    pub(super) fn is_address_due(&self) -> bool {
        self.protocol.discovery().is_some_and(|discovery| discovery.is_due(self.refresh_timeout()))
    }

    /// The timeout of a refresh, at most that of the exchange that waits for it.
    fn refresh_timeout(&self) -> Duration {
        let Timeouts { connect, exchange } = self.timeouts();
        (connect / REFRESH_PART).min(exchange_timeout(exchange))
    }

    /// Records a failure, if its kind is one of the server or the network. A timeout on a reused connection may be a
    /// fault of the connection: it only makes the server suspect, and closes the idle connections.
    pub(super) fn failed(&self, error: &Error, was_reused: bool) {
        if error.kind() == ErrorKind::Timeout {
            self.counts.get_or_init(Counts::default).timeouts.fetch_add(1, Ordering::Relaxed);
        }
        if !is_outage(error.kind()) {
            return;
        }
        self.mark_unproven();
        if was_reused && error.kind() == ErrorKind::Timeout {
            self.breaker.suspect();
            self.close_idle(None);
        } else if self.breaker.failed(error) {
            telemetry::breaker_opened(self.protocol.endpoint());
        }
    }

    /// Closes the connections that have been idle since before `since`, after a timeout shorter than the server's. Such
    /// a timeout is no failure of the server, but the connections may be dead.
    pub(super) fn distrust_idle(&self, since: Instant) {
        self.pool.close_idle(|connection| connection.begun < since);
    }

    /// Returns whether the server has failed or become suspect since its last reply.
    pub(super) fn is_doubtful(&self) -> bool {
        self.breaker.is_doubtful()
    }

    /// Records that the server closed a connection that had served.
    pub(super) fn connection_lost(&self) {
        self.mark_unproven();
    }

    /// Limits dials, and makes the next one look the address up, until the server responds again.
    fn mark_unproven(&self) {
        self.dial_limit.mark_unproven();
        if let Some(discovery) = self.protocol.discovery() {
            discovery.mark_doubtful();
        }
    }

    /// Records a complete exchange.
    #[inline]
    pub(super) fn succeeded(&self) {
        self.dial_limit.succeeded();
        if self.breaker.succeeded() {
            telemetry::breaker_closed(self.protocol.endpoint());
        }
    }

    /// Closes connections older than `retry_after`, after a reply that this is the wrong server: a new connection may
    /// lead to another one.
    #[cold]
    pub(super) fn retire_old_connections(&self) {
        self.close_idle(Some(Instant::now() - self.settings.retry_after));
    }

    /// Returns whether a connection is older than `retry_after`. A younger one is kept: another dial would lead to the
    /// same server.
    pub(super) fn is_past_retry_after(&self, connection: &Connection<P>) -> bool {
        connection.opened.elapsed() > self.settings.retry_after
    }

    /// Returns whether a reply says that another server has replaced this one, and its address can be looked up.
    #[inline]
    pub(super) fn is_replaced(&self, reply: &P::Reply) -> bool {
        self.protocol.discovery().is_some() && P::is_replaced(reply)
    }

    /// Abandons all connections, because another server has replaced this one. The next dial looks its address up.
    #[cold]
    pub(super) fn replaced(&self) {
        self.mark_unproven();
        self.pool.reset();
        self.abandon(None);
    }

    /// Abandons the connections to other addresses than `unless`; all of them without one.
    fn abandon(&self, unless: Option<&Endpoint>) {
        self.pool.close_idle(|connection| unless.is_none_or(|endpoint| connection.endpoint != *endpoint));
        #[cfg(feature = "tokio")]
        self.pipelines.abandon(unless);
    }

    /// Returns whether a connection leads to the server's last known address.
    #[inline]
    pub(super) fn is_at_current_address(&self, connection: &Connection<P>) -> bool {
        self.protocol.discovery().is_none_or(|discovery| *discovery.endpoint() == connection.endpoint)
    }

    /// Closes idle pooled connections and retires pipelines: those that were opened before `opened_before`, or without
    /// it all that have no request in flight.
    fn close_idle(&self, opened_before: Option<Instant>) {
        let is_old = |opened: Instant| opened_before.is_none_or(|before| opened < before);
        self.pool.close_idle(|connection| is_old(connection.opened));
        #[cfg(feature = "tokio")]
        self.pipelines.retire_if(|pipeline| match opened_before {
            None => pipeline.in_flight() == 0,
            Some(before) => pipeline.opened().is_some_and(|opened| opened < before),
        });
    }

    /// Returns whether a connection was idle for longer than `max_idle`, or is older than `max_age`.
    pub(super) fn is_outdated(&self, connection: &Connection<P>) -> bool {
        let is_over = |limit: Option<Duration>, since: Instant| limit.is_some_and(|limit| since.elapsed() > limit);
        is_over(self.settings.max_idle, connection.begun) || is_over(self.settings.max_age, connection.opened)
    }

    /// Discards every connection, and closes both circuit breakers.
    pub(super) fn reset(&self) {
        if let Some(discovery) = self.protocol.discovery() {
            discovery.mark_doubtful();
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

/// The error of a request that found no capacity in time.
pub(super) fn full(endpoint: &Endpoint) -> Error {
    let context = format!("the limit of requests in flight to {endpoint} is reached, and none ended in time");
    Error::new(ErrorKind::Full, context)
}

/// Returns whether a failure is one of the server or the network, which the circuit breaker counts.
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
