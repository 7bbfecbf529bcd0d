//! Opening a connection: who may, where to, and how the server is greeted.

use std::future::Future;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Admissions, Counts, Server, is_outage};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::Execution;
use crate::net::connection::{Connection, Protocol};
use crate::net::dial::{connection, within};
use crate::net::discovery::Discovery;
use crate::net::io_errors::timed_out;
use crate::net::pool::NoCheckout;
use crate::telemetry;

impl<P: Protocol> Server<P> {
    /// Dials, greets and logs in. A failure is counted before the next caller may dial. So is a refusal, whatever the
    /// server has against the login: one that refuses each is tried no more often than one that is not there.
    pub(in crate::net) async fn open(&self, execution: Execution, admissions: Admissions) -> Result<Connection<P>> {
        let patience = self.timeouts().connect + self.timeouts().exchange;
        let _permit = self.dial_limit.permit(execution, patience).await.map_err(|why| match why {
            NoCheckout::Exhausted => timed_out("connect to", self.protocol.endpoint()),
            NoCheckout::Forked => Error::begun_by_parent(),
        })?;
        // Those before may have found out that it is down.
        if !self.breaker.still_admits(admissions.call) {
            return Err(self.is_down());
        }
        if !self.login_breaker.still_admits(admissions.login) {
            return Err(self.refuses_logins());
        }
        let opened = match self.protocol.discovery() {
            Some(discovery) => self.greeted_where(discovery, execution).await,
            None => {
                let endpoint = self.protocol.endpoint();
                self.greeted_at_a_level(execution, endpoint, self.timeouts().connect).await.map_err(Unopened::Dial)
            }
        };
        match &opened {
            Ok(_) => _ = self.login_breaker.succeeded(),
            Err(Unopened::Discovery(error)) => self.not_let_in(error),
            Err(Unopened::Dial(error)) if is_refusal(error.kind()) => self.not_let_in(error),
            Err(Unopened::Dial(error)) => self.failed(error, false),
        }
        opened.map_err(Unopened::error)
    }

    /// There is no new connection, which says nothing about those that there are.
    fn not_let_in(&self, error: &Error) {
        self.doubt();
        if !is_ours(error.kind()) && self.login_breaker.failed(error) {
            telemetry::breaker_opened(self.protocol.endpoint());
        }
    }

    /// Greets the server where it is said to be. What is not it, or does not answer, has the next one asked, until all
    /// were or the time is over.
    async fn greeted_where(&self, discovery: &Discovery, execution: Execution) -> Result<Connection<P>, Unopened> {
        let deadline = Instant::now() + self.timeouts().connect;
        let mut tried: Vec<Endpoint> = Vec::new();
        let mut why = None;
        let mut asked = 0;
        loop {
            let endpoint = if tried.is_empty() && discovery.is_recent() {
                discovery.endpoint().clone()
            } else {
                asked += 1;
                match (discovery.ask(execution, deadline, &self.settings).await, discovery.found_last()) {
                    (Ok(endpoint), _) => endpoint,
                    // Nobody knows better than that it was there; the greeting says whether it is.
                    (Err(error), Some(last)) if error.is_transient() && !tried.contains(last) => {
                        why.get_or_insert(Unopened::Discovery(error));
                        last.clone()
                    }
                    (Err(error), _) => return Err(why.unwrap_or(Unopened::Discovery(error))),
                }
            };
            if !tried.contains(&endpoint) {
                let left = deadline.saturating_duration_since(Instant::now());
                match self.greeted_at_a_level(execution, &endpoint, left).await {
                    Ok(connection) => {
                        discovery.found(&endpoint).map_err(Unopened::Discovery)?;
                        self.abandon(Some(&endpoint));
                        return Ok(connection);
                    }
                    Err(error) if !may_be_elsewhere(&error) => return Err(Unopened::Dial(error)),
                    Err(error) => _ = why.get_or_insert(Unopened::Dial(error)),
                }
                tried.push(endpoint);
            }
            discovery.distrust();
            if asked >= discovery.members() || Instant::now() >= deadline {
                return Err(why.expect("a dial has failed"));
            }
        }
    }

    /// Greets at the best level that the server is known to take part in. One that was never greeted yet and hangs up is
    /// greeted at the next level: at once while nothing else has failed, else when it is tried again.
    async fn greeted_at_a_level(
        &self,
        execution: Execution,
        endpoint: &Endpoint,
        patience: Duration,
    ) -> Result<Connection<P>> {
        let greeted = |level| self.greeted(execution, endpoint, patience, level);
        let best = self.protocol.level();
        if self.has_greeted.load(Ordering::Relaxed) {
            return greeted(best).await.map_err(Ungreeted::error);
        }
        let first = self.protocol.next_level().max(best);
        let levels = if self.breaker.has_failed() { first..first + 1 } else { first..P::LEVELS };
        let mut why = None;
        for level in levels {
            match greeted(level).await {
                Ok(connection) => {
                    return Ok(self.greeted_better(greeted, best..level).await.unwrap_or(connection));
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
    async fn greeted_better<F: Future<Output = Result<Connection<P>, Ungreeted>>>(
        &self,
        greeted: impl Fn(usize) -> F,
        levels: Range<usize>,
    ) -> Option<Connection<P>> {
        let kept = levels.end;
        for level in levels {
            match greeted(level).await {
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

    async fn greeted(
        &self,
        execution: Execution,
        endpoint: &Endpoint,
        patience: Duration,
        level: usize,
    ) -> Result<Connection<P>, Ungreeted> {
        self.counts.get_or_init(Counts::default).dials.fetch_add(1, Ordering::Relaxed);
        let deadline = Instant::now() + patience;
        let mut connection = connection(execution, &self.protocol, endpoint, deadline, &self.settings).await?;
        let deadline = Instant::now() + self.timeouts().exchange;
        let greeting = connection.greet(&self.protocol, level);
        match within(execution, deadline, endpoint, "log in to", greeting).await {
            Ok(()) => Ok(connection),
            // Without a byte of an answer.
            Err(error) if error.kind() == ErrorKind::Io && connection.frames.is_empty() => {
                Err(Ungreeted::HungUp(error))
            }
            Err(error) => Err(Ungreeted::Failed(error)),
        }
    }
}

/// Why there is no connection.
enum Unopened {
    /// It is not known where to.
    Discovery(Error),
    Dial(Error),
}

impl Unopened {
    fn error(self) -> Error {
        match self {
            Unopened::Discovery(error) | Unopened::Dial(error) => error,
        }
    }
}

/// Why there is no connection with the server there.
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

/// Whether a failure to open a connection says that the server lets nobody in.
fn is_refusal(kind: ErrorKind) -> bool {
    !is_ours(kind) && !is_outage(kind)
}

/// Whether a failure says something of this process alone.
fn is_ours(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Forked | ErrorKind::OutOfResources | ErrorKind::Other)
}

/// Whether what was dialled may be another server than the one that is meant.
fn may_be_elsewhere(error: &Error) -> bool {
    is_outage(error.kind()) || matches!(error.kind(), ErrorKind::Server | ErrorKind::Tls)
}
