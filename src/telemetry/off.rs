//! Emits nothing.

use std::fmt;
use std::future::Future;

use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};

/// Returns the exchange itself, without a second future around it.
#[inline]
pub(crate) fn exchange<T, F: Future<Output = Result<T>>>(
    _: &'static str,
    _: &Endpoint,
    _: Option<u32>,
    _: impl FnOnce() -> (String, usize),
    exchange: F,
    _: impl FnOnce(&T) -> Option<ErrorKind>,
) -> F {
    exchange
}

#[derive(Clone)]
pub(crate) struct Span;

impl Span {
    #[inline]
    pub(crate) fn fetch(_: &str) -> Span {
        Span
    }

    #[inline]
    pub(crate) fn outcome(&self, _: &'static str) {}
}

#[inline]
pub(crate) fn instrumented<F: Future>(_: &Span, future: F) -> F {
    future
}

#[inline]
pub(crate) fn connected(_: &Endpoint) {}

#[inline]
pub(crate) fn breaker_opened(_: &Endpoint) {}

#[inline]
pub(crate) fn breaker_closed(_: &Endpoint) {}

#[inline]
pub(crate) fn unproven(_: &Endpoint) {}

#[inline]
pub(crate) fn unchecked_role(_: &Endpoint) {}

#[inline]
pub(crate) fn moved(_: &Endpoint) {}

#[inline]
pub(crate) fn unverified(_: &Endpoint) {}

#[inline]
pub(crate) fn failed(_: &str, _: &'static str, _: &Error) {}

#[inline]
pub(crate) fn refreshed(_: &str, _: &dyn fmt::Display, _: u64, _: usize) {}
