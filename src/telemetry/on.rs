//! Spans and events for `tracing`. Fields are computed only if a subscriber is interested.

use std::borrow::Cow;
use std::cell::LazyCell;
use std::fmt;
use std::future::Future;

use tracing::field::Empty;
use tracing::instrument::{Instrument, Instrumented};

use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};

const TARGET: &str = "prefork_cache";

#[derive(Clone)]
pub(crate) struct Span(tracing::Span);

/// Runs an exchange with a server in a span. `operation` returns its name and its number of commands; `failure`
/// returns the error that a reply contains, if any.
pub(crate) async fn exchange<T, F: Future<Output = Result<T>>>(
    system: &'static str,
    endpoint: &Endpoint,
    database: Option<u32>,
    operation: impl FnOnce() -> (String, usize),
    exchange: F,
    failure: impl FnOnce(&T) -> Option<ErrorKind>,
) -> Result<T> {
    let span = Span::exchange(system, endpoint, database, operation);
    let outcome = instrumented(&span, exchange).await;
    span.failed(|| match &outcome {
        Ok(answer) => failure(answer),
        Err(error) => Some(error.kind()),
    });
    outcome
}

impl Span {
    fn exchange(
        system: &'static str,
        endpoint: &Endpoint,
        database: Option<u32>,
        operation: impl FnOnce() -> (String, usize),
    ) -> Span {
        let operation = LazyCell::new(operation);
        Span(tracing::debug_span!(
            target: TARGET,
            "exchange",
            otel.kind = "client",
            otel.name = operation.0,
            otel.status_code = Empty,
            db.system.name = system,
            db.operation.name = operation.0,
            db.operation.batch.size = Some(operation.1).filter(|size| *size > 1),
            db.namespace = database.map(|number| number.to_string()),
            server.address = &*address(endpoint),
            server.port = port(endpoint),
            network.transport = transport(endpoint),
            "error.type" = Empty,
        ))
    }

    /// Returns the span of a fetch from the cache of this name.
    pub(crate) fn fetch(cache: &str) -> Span {
        Span(tracing::debug_span!(target: TARGET, "fetch", cache.name = cache, cache.outcome = Empty))
    }

    fn failed(&self, kind: impl FnOnce() -> Option<ErrorKind>) {
        if self.0.is_disabled() {
            return;
        }
        if let Some(kind) = kind() {
            self.0.record("error.type", kind.name()).record("otel.status_code", "ERROR");
        }
    }

    /// Records how a fetch ended: `hit`, `stale`, `coalesced`, `loaded` or `failed`.
    pub(crate) fn outcome(&self, outcome: &'static str) {
        self.0.record("cache.outcome", outcome);
    }
}

/// Returns a future that is polled inside a span.
pub(crate) fn instrumented<F: Future>(span: &Span, future: F) -> Instrumented<F> {
    future.instrument(span.0.clone())
}

macro_rules! about_server {
    ($level:ident, $endpoint:expr, $what:literal) => {
        tracing::$level!(
            target: TARGET,
            {
                server.address = &*address($endpoint),
                server.port = port($endpoint),
                network.transport = transport($endpoint),
            },
            $what
        )
    };
}

/// A new connection was made.
pub(crate) fn connected(endpoint: &Endpoint) {
    about_server!(debug, endpoint, "connected");
}

/// A circuit breaker has opened.
pub(crate) fn breaker_opened(endpoint: &Endpoint) {
    about_server!(warn, endpoint, "the server counts as down and is left alone for a while");
}

/// A circuit breaker has closed.
pub(crate) fn breaker_closed(endpoint: &Endpoint) {
    about_server!(info, endpoint, "the server is back");
}

/// Surplus replies of this server are not noticed while other replies are awaited.
pub(crate) fn unproven(endpoint: &Endpoint) {
    about_server!(
        warn,
        endpoint,
        "the account may neither ECHO nor PING: a surplus reply is noticed only while none is awaited"
    );
}

/// The server may be a replica, since its role could not be checked.
pub(crate) fn unchecked_role(endpoint: &Endpoint) {
    about_server!(
        warn,
        endpoint,
        "the account may ask for neither ROLE nor INFO: a replica that sentinels call the master is noticed at its first \
         READONLY"
    );
}

/// The server has moved to another address.
pub(crate) fn moved(endpoint: &Endpoint) {
    about_server!(info, endpoint, "the server is elsewhere by now: the connections to where it was are given up");
}

/// The certificate of the server is not verified.
pub(crate) fn unverified(endpoint: &Endpoint) {
    about_server!(warn, endpoint, "tls_accept_any_certificate: it is not verified who the server is");
}

/// A failure that the caller does not see. A transient one is no warning: while a server is down, there would be one
/// for each fetch.
pub(crate) fn failed(cache: &str, verb: &'static str, error: &Error) {
    macro_rules! event {
        ($level:ident) => {
            tracing::$level!(
                target: TARGET,
                { cache.name = cache, cache.verb = verb, "error.type" = error.kind().name() },
                "a failure that no caller hears of"
            )
        };
    }
    if error.is_transient() { event!(debug) } else { event!(warn) }
}

/// A store was refreshed in this process.
pub(crate) fn refreshed(store: &str, how: &dyn fmt::Display, generation: u64, sockets_cut: usize) {
    tracing::debug!(
        target: TARGET,
        { cache.name = store, refresh = %how, generation, sockets_cut },
        "refreshed after a fork"
    );
}

fn address(endpoint: &Endpoint) -> Cow<'_, str> {
    match endpoint {
        Endpoint::Tcp { host, .. } => host.into(),
        Endpoint::Unix(path) => path.to_string_lossy(),
        Endpoint::Named(name) => name.into(),
    }
}

fn port(endpoint: &Endpoint) -> Option<u16> {
    match endpoint {
        Endpoint::Tcp { port, .. } => Some(*port),
        Endpoint::Unix(_) | Endpoint::Named(_) => None,
    }
}

fn transport(endpoint: &Endpoint) -> Option<&'static str> {
    matches!(endpoint, Endpoint::Unix(_)).then_some("unix")
}
