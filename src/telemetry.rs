//! Spans and events for the `tracing` crate, with the feature of that name. Without the feature there are none, at no
//! cost.
//!
//! The feature is off by default. A subscriber has locks, and so does `tracing` itself. A child inherits them in their
//! current state, and one that another thread held at the fork is never released. Only the host can judge whether that
//! can happen with its subscriber.
//!
//! A subscriber is code of the program, and may use a cache itself. So the fork handlers, the gate and the ledger emit
//! nothing, and nothing is emitted while a lock of this crate is held.
//!
//! The span of an exchange is emitted while the exchange holds its permit in a pool: a subscriber that uses a cache on
//! the same server needs a second permit.
//!
//! The spans follow OpenTelemetry's conventions for database clients. No key and no value is recorded, and of an error
//! only its kind, since its text may contain a key.

use std::future::Future;
use std::pin::Pin;

use crate::endpoint::Endpoint;
use crate::error::{ErrorKind, Result};

#[cfg(not(feature = "tracing"))]
mod off;
#[cfg(feature = "tracing")]
mod on;

#[cfg(not(feature = "tracing"))]
use off as backend;
#[cfg(feature = "tracing")]
use on as backend;

pub(crate) use backend::{
    Span, breaker_closed, breaker_opened, connected, failed, instrumented, moved, refreshed, unchecked_role, unproven,
    unverified,
};

/// Runs an exchange with a server in a span. `operation` returns its name and its number of commands; `failure` returns
/// the error that a reply contains, if any.
pub(crate) async fn exchange<T, F: Future<Output = Result<T>>>(
    system: &'static str,
    endpoint: &Endpoint,
    database: Option<u32>,
    operation: impl FnOnce() -> (String, usize),
    exchange: Pin<&mut F>,
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
