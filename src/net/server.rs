//! A server: what all connections to it have in common, and what is known of its health.

use std::fmt::{self, Debug};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::breaker::{Admission, Breaker};
use super::connection::{Connection, Protocol};
use super::dial::dial;
use super::drive::Drive;
use super::endpoint::{Endpoint, timed_out};
#[cfg(feature = "tokio")]
use super::pipeline::Pipelines;
use super::pool::{NoLease, Pool};
use super::tls;
use super::trial::Trial;
use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::ProcessLocal;
use crate::telemetry;

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

pub(super) struct Server<P: Protocol> {
    pub(super) protocol: P,
    pub(super) settings: Settings,
    breaker: Breaker,
    /// Asked before a connection is opened only: a server that has no room for another one, or does not know a new
    /// password, still answers over those that it has let in.
    login_breaker: Breaker,
    trial: Arc<Trial>,
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
    /// Host and port, or the path of the socket.
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
            trial: Arc::default(),
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
        self.left_alone("has let nobody in", &self.login_breaker)
    }

    /// In fixed words, so that those who collect errors see one and not many.
    fn left_alone(&self, why: &str, breaker: &Breaker) -> Error {
        let context = format!("{} {why}, and is not tried again before retry_after is over", self.protocol.endpoint());
        match breaker.cause() {
            Some(cause) => Error::with_source(ErrorKind::Unavailable, context, cause),
            None => Error::new(ErrorKind::Unavailable, context),
        }
    }

    /// Dials, greets and logs in. A failure is counted before the next caller may dial. So is a refusal, whatever the
    /// server has against the login: one that refuses each is tried no more often than one that is not there.
    pub(super) async fn open(&self, drive: Drive, admissions: Admissions) -> Result<Connection<P>> {
        let patience = self.timeouts().connect + self.timeouts().exchange;
        let _permit = self.trial.permit(drive, patience).await.map_err(|why| match why {
            NoLease::Exhausted => timed_out("connect to", self.protocol.endpoint()),
            NoLease::Forked => Error::begun_by_parent(),
        })?;
        // Those before may have found out that it is down.
        if !self.breaker.still_admits(admissions.call) {
            return Err(self.is_down());
        }
        if !self.login_breaker.still_admits(admissions.login) {
            return Err(self.refuses_logins());
        }
        let opened = self.greeted_at_a_level(drive).await;
        match &opened {
            Ok(_) => _ = self.login_breaker.succeeded(),
            Err(error) if is_refusal(error.kind()) => {
                self.trial.doubt();
                if self.login_breaker.failed(error) {
                    telemetry::breaker_opened(self.protocol.endpoint());
                }
            }
            Err(error) => self.failed(error, false),
        }
        opened
    }

    /// Greets at the best level that the server is known to take part in. One that was never greeted yet and hangs up is
    /// greeted at the next level: at once while nothing else has failed, else when it is tried again.
    async fn greeted_at_a_level(&self, drive: Drive) -> Result<Connection<P>> {
        let best = self.protocol.level();
        if self.has_greeted.load(Ordering::Relaxed) {
            return self.greeted(drive, best).await.map_err(Ungreeted::error);
        }
        let first = self.protocol.next_level().max(best);
        let levels = if self.breaker.has_failed() { first..first + 1 } else { first..P::LEVELS };
        let mut why = None;
        for level in levels {
            match self.greeted(drive, level).await {
                Ok(connection) => {
                    return Ok(self.greeted_better(drive, best..level).await.unwrap_or(connection));
                }
                Err(Ungreeted::HungUp(error)) => {
                    self.protocol.hung_up(level);
                    why.get_or_insert(error);
                }
                Err(Ungreeted::Failed(error)) => return Err(error),
            }
        }
        Err(why.expect("it has hung up at every level"))
    }

    /// At a better level than one at which a server was greeted: it may have hung up there for another reason. Only one
    /// that hangs up once more is known not to take part in it.
    async fn greeted_better(&self, drive: Drive, levels: Range<usize>) -> Option<Connection<P>> {
        let kept = levels.end;
        for level in levels {
            match self.greeted(drive, level).await {
                Ok(connection) => {
                    self.settle_at(level);
                    return Some(connection);
                }
                Err(Ungreeted::HungUp(_)) => {}
                Err(Ungreeted::Failed(_)) => return None,
            }
        }
        self.settle_at(kept);
        None
    }

    fn settle_at(&self, level: usize) {
        self.protocol.keep_level(level);
        self.has_greeted.store(true, Ordering::Relaxed);
    }

    async fn greeted(&self, drive: Drive, level: usize) -> Result<Connection<P>, Ungreeted> {
        let endpoint = self.protocol.endpoint();
        let Timeouts { connect, exchange } = self.timeouts();
        self.counts.get_or_init(Counts::default).dials.fetch_add(1, Ordering::Relaxed);
        let deadline = Instant::now() + connect;
        let mut stream = dial(drive, endpoint, deadline, &self.settings).await?;
        if let Some(tls) = self.protocol.tls() {
            stream = tls::secure(tls, drive, endpoint, stream, deadline, exchange).await?;
        }
        let mut connection = Connection::new(&self.protocol, stream)?;
        telemetry::connected(endpoint);
        let greeting = connection.greet(&self.protocol, level);
        let greeted = match drive {
            Drive::Inline => greeting.await,
            #[cfg(feature = "tokio")]
            Drive::Tokio(_) => {
                tokio::time::timeout(exchange, greeting).await.unwrap_or_else(|_| Err(timed_out("log in to", endpoint)))
            }
        };
        match greeted {
            Ok(()) => Ok(connection),
            // Without a byte of an answer.
            Err(error) if error.kind() == ErrorKind::Io && connection.frames.is_empty() => {
                Err(Ungreeted::HungUp(error))
            }
            Err(error) => Err(Ungreeted::Failed(error)),
        }
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
        self.trial.doubt();
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
        self.trial.doubt();
    }

    /// Records that an exchange came to its end.
    #[inline]
    pub(super) fn succeeded(&self) {
        self.trial.succeeded();
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

/// Why there is no connection.
enum Ungreeted {
    /// The server has closed it, and did not say why.
    HungUp(Error),
    Failed(Error),
}

impl Ungreeted {
    fn error(self) -> Error {
        match self {
            Ungreeted::HungUp(error) | Ungreeted::Failed(error) => error,
        }
    }
}

impl From<Error> for Ungreeted {
    fn from(error: Error) -> Ungreeted {
        Ungreeted::Failed(error)
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

/// Whether a failure to open a connection says that the server lets nobody in.
fn is_refusal(kind: ErrorKind) -> bool {
    let is_ours = matches!(kind, ErrorKind::Forked | ErrorKind::OutOfResources | ErrorKind::Other);
    !is_ours && !is_outage(kind)
}

impl<P: Protocol> Debug for Server<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("protocol", &self.protocol)
            .field("breaker", &self.breaker)
            .finish_non_exhaustive()
    }
}
