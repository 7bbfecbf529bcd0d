//! Opening a connection: the permit to dial, the address, and the greeting.

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
    /// Dials, greets and logs in. A failure is recorded before the next caller may dial. So is a refused login,
    /// whatever the reason: a server that refuses logins is tried no more often than one that is down.
    pub(in crate::net) async fn open(&self, execution: Execution, admissions: Admissions) -> Result<Connection<P>> {
        let timeout = self.timeouts().connect + self.timeouts().exchange;
        let _permit = self.dial_limit.permit(execution, timeout).await.map_err(|why| match why {
            NoCheckout::Exhausted => timed_out("connect to", self.protocol.endpoint()),
            NoCheckout::Forked => Error::begun_by_parent(),
        })?;
        // While this caller waited for the permit, another one may have opened a breaker.
        if !self.breaker.still_admits(admissions.call) {
            return Err(self.down_error());
        }
        if !self.login_breaker.still_admits(admissions.login) {
            return Err(self.login_refused_error());
        }
        let opened = match self.protocol.discovery() {
            Some(discovery) => self.open_discovered(discovery, execution).await,
            None => {
                let endpoint = self.protocol.endpoint();
                self.open_at(execution, endpoint, self.timeouts().connect).await.map_err(OpenError::Dial)
            }
        };
        match &opened {
            Ok(_) => _ = self.login_breaker.succeeded(),
            Err(OpenError::Discovery(error)) => self.login_failed(error),
            Err(OpenError::Dial(error)) if is_refusal(error.kind()) => self.login_failed(error),
            Err(OpenError::Dial(error)) => self.failed(error, false),
        }
        opened.map_err(OpenError::error)
    }

    /// Records a failure to open a connection that does not affect existing ones: a refused login or a failed lookup.
    fn login_failed(&self, error: &Error) {
        self.mark_unproven();
        if !is_local(error.kind()) && self.login_breaker.failed(error) {
            telemetry::breaker_opened(self.protocol.endpoint());
        }
    }

    /// Looks the address up and opens a connection there. If the server there does not respond or is the wrong one, the
    /// next member of the directory is asked, until all were asked or the time is over.
    async fn open_discovered(&self, discovery: &Discovery, execution: Execution) -> Result<Connection<P>, OpenError> {
        let deadline = Instant::now() + self.timeouts().connect;
        let mut tried: Vec<Endpoint> = Vec::new();
        let mut first_error = None;
        let mut asked = 0;
        loop {
            let endpoint = if tried.is_empty() && discovery.is_recent() {
                discovery.endpoint().clone()
            } else {
                asked += 1;
                match (discovery.ask(execution, deadline, &self.settings).await, discovery.found_last()) {
                    (Ok(endpoint), _) => endpoint,
                    // The lookup failed, so the last known address is tried; the greeting shows whether it is right.
                    (Err(error), Some(last)) if error.is_transient() && !tried.contains(last) => {
                        first_error.get_or_insert(OpenError::Discovery(error));
                        last.clone()
                    }
                    (Err(error), _) => return Err(first_error.unwrap_or(OpenError::Discovery(error))),
                }
            };
            if !tried.contains(&endpoint) {
                let left = deadline.saturating_duration_since(Instant::now());
                match self.open_at(execution, &endpoint, left).await {
                    Ok(connection) => {
                        discovery.found(&endpoint).map_err(OpenError::Discovery)?;
                        self.abandon(Some(&endpoint));
                        return Ok(connection);
                    }
                    Err(error) if !may_be_elsewhere(&error) => return Err(OpenError::Dial(error)),
                    Err(error) => _ = first_error.get_or_insert(OpenError::Dial(error)),
                }
                tried.push(endpoint);
            }
            discovery.distrust();
            if asked >= discovery.members() || Instant::now() >= deadline {
                return Err(first_error.expect("a dial has failed"));
            }
        }
    }

    /// Opens a connection at the best level that the server is known to support. If the server was never greeted and
    /// closes the connection, the next level is tried: at once if nothing else has failed, otherwise at the next call.
    async fn open_at(
        &self,
        execution: Execution,
        endpoint: &Endpoint,
        connect_timeout: Duration,
    ) -> Result<Connection<P>> {
        let open_at_level = |level| self.open_at_level(execution, endpoint, connect_timeout, level);
        let best = self.protocol.level();
        if self.has_greeted.load(Ordering::Relaxed) {
            return open_at_level(best).await.map_err(GreetError::error);
        }
        let first = self.protocol.next_level().max(best);
        let levels = if self.breaker.has_failed() { first..first + 1 } else { first..P::LEVELS };
        let mut first_error = None;
        for level in levels {
            match open_at_level(level).await {
                Ok(connection) => {
                    return Ok(self.retry_better_levels(open_at_level, best..level).await.unwrap_or(connection));
                }
                Err(GreetError::HungUp(error)) => {
                    self.protocol.hung_up(level);
                    first_error.get_or_insert(error);
                }
                Err(GreetError::Failed(error)) => return Err(error),
            }
        }
        Err(first_error.expect("the server hung up at every level"))
    }

    /// Tries the better levels again after a greeting has succeeded: the server may have closed the connection there
    /// for another reason. Only a level at which it closes the connection a second time is unsupported.
    async fn retry_better_levels<F: Future<Output = Result<Connection<P>, GreetError>>>(
        &self,
        open_at_level: impl Fn(usize) -> F,
        levels: Range<usize>,
    ) -> Option<Connection<P>> {
        let succeeded_at = levels.end;
        for level in levels {
            match open_at_level(level).await {
                Ok(connection) => {
                    self.keep_level(level);
                    return Some(connection);
                }
                Err(GreetError::HungUp(_)) => {}
                Err(GreetError::Failed(_)) => return None,
            }
        }
        self.keep_level(succeeded_at);
        None
    }

    fn keep_level(&self, level: usize) {
        self.protocol.keep_level(level);
        self.has_greeted.store(true, Ordering::Relaxed);
    }

    /// Dials and greets at a level.
    async fn open_at_level(
        &self,
        execution: Execution,
        endpoint: &Endpoint,
        connect_timeout: Duration,
        level: usize,
    ) -> Result<Connection<P>, GreetError> {
        self.counts.get_or_init(Counts::default).dials.fetch_add(1, Ordering::Relaxed);
        let deadline = Instant::now() + connect_timeout;
        let mut connection = connection(execution, &self.protocol, endpoint, deadline, &self.settings).await?;
        let deadline = Instant::now() + self.timeouts().exchange;
        let greeting = connection.greet(&self.protocol, level);
        match within(execution, deadline, endpoint, "log in to", greeting).await {
            Ok(()) => Ok(connection),
            // Without a byte of a reply.
            Err(error) if error.kind() == ErrorKind::Io && connection.frames.is_empty() => {
                Err(GreetError::HungUp(error))
            }
            Err(error) => Err(GreetError::Failed(error)),
        }
    }
}

/// The error of opening a connection.
enum OpenError {
    /// The address was not found.
    Discovery(Error),
    Dial(Error),
}

impl OpenError {
    fn error(self) -> Error {
        match self {
            OpenError::Discovery(error) | OpenError::Dial(error) => error,
        }
    }
}

/// The error of dialling and greeting at one level.
enum GreetError {
    /// The server closed the connection without a reply.
    HungUp(Error),
    Failed(Error),
}

impl GreetError {
    fn error(self) -> Error {
        match self {
            GreetError::HungUp(error) | GreetError::Failed(error) => error,
        }
    }
}

impl From<Error> for GreetError {
    fn from(error: Error) -> GreetError {
        GreetError::Failed(error)
    }
}

/// Returns whether a failure to open a connection is counted by the login breaker.
fn is_refusal(kind: ErrorKind) -> bool {
    !is_local(kind) && !is_outage(kind)
}

/// Returns whether a failure is one of this process, and not of the server.
fn is_local(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Forked | ErrorKind::OutOfResources | ErrorKind::Other)
}

/// Returns whether, after this error, the server may be at another address.
fn may_be_elsewhere(error: &Error) -> bool {
    is_outage(error.kind()) || matches!(error.kind(), ErrorKind::Server | ErrorKind::Tls)
}
