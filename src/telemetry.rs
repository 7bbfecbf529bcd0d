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

#[cfg(not(feature = "tracing"))]
mod off;
#[cfg(feature = "tracing")]
mod on;

#[cfg(not(feature = "tracing"))]
use off as backend;
#[cfg(feature = "tracing")]
use on as backend;

pub(crate) use backend::{
    Span, breaker_closed, breaker_opened, connected, exchange, failed, instrumented, moved, refreshed, unchecked_role,
    unproven, unverified,
};
