//! What is told to the `tracing` crate, with the feature of that name. Without it nothing is, at no cost.
//!
//! The feature is not on by default. A subscriber has locks, and so does `tracing` itself; a child inherits them as
//! they are, and one that another thread held at the fork never opens again. Only the host can judge whether that can
//! happen to its subscriber.
//!
//! A subscriber is somebody else's code, which may use a cache itself. So nothing is told by the fork handlers, the
//! gate or the ledger, or while a lock of this crate is held.
//!
//! An exchange is told while it holds its place in a pool: a subscriber that uses a cache on the same server needs a
//! spare one.
//!
//! The spans are what OpenTelemetry's conventions for database clients call for. No key and no value is told, and of an
//! error only its kind: the text may name a key.

#[cfg(not(feature = "tracing"))]
mod off;
#[cfg(feature = "tracing")]
mod on;

#[cfg(not(feature = "tracing"))]
use off as told;
#[cfg(feature = "tracing")]
use on as told;

pub(crate) use told::{
    Span, breaker_closed, breaker_opened, connected, exchange, failed, instrumented, moved, refreshed, unchecked_role,
    unproven, unverified,
};
