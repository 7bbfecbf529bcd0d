//! The queue that callers of a pipeline append to and its driver takes from, and its capacity.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use tokio::time::Instant;

use super::in_flight::Request;
use super::routes::Route;
use super::slot::{Appended, Slot};
use super::{Failure, Progress};
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::execution::exchange_timeout;
use crate::lifecycle::runtime::RuntimeId;
use crate::net::connection::{Marking, Protocol, Token, Tokens};
use crate::net::retry::Retry;
use crate::net::server::{Server, full};
use crate::net::wait_queue::{Limited, WaitQueue, Waiter};
use crate::net::write_buffer::WriteBuffer;
use crate::sync::Lock;

/// The load above which callers wait, on a connected pipeline and before it is connected.
pub(super) const CAPACITY: Load = Load { requests: 8 << 10, bytes: 16 << 20 };
pub(super) const CAPACITY_BEFORE_CONNECTED: Load = MARKER_INTERVAL;

/// The load after which a marker is written.
pub(super) const MARKER_INTERVAL: Load = Load { requests: 64, bytes: 64 << 10 };

/// A number of requests and of bytes.
#[derive(Clone, Copy)]
pub(super) struct Load {
    pub(super) requests: usize,
    pub(super) bytes: usize,
}

/// A pipeline, as callers and its driver share it.
#[derive(Debug)]
pub(in crate::net) struct Pipeline<P: Protocol> {
    pub(super) runtime: RuntimeId,
    pub(super) is_extra: bool,
    pub(super) is_behind_large_value: AtomicBool,
    pub(super) is_retired: AtomicBool,
    /// Whether appended requests are not sent any more.
    pub(super) is_abandoned: AtomicBool,
    /// When and where it was connected, once it is.
    opened: OnceLock<(std::time::Instant, Endpoint)>,
    pub(super) request_queue: Lock<RequestQueue<P>>,
}

/// The requests that callers have appended since the driver last took them.
pub(super) struct RequestQueue<P: Protocol> {
    pub(super) outgoing: WriteBuffer,
    pub(super) appended: VecDeque<Awaited<P>>,
    /// The load after the last marker in `outgoing`.
    pub(super) unmarked: Load,
    /// `None` until the pipeline is connected.
    pub(super) marking: Option<Marking>,
    pub(super) tokens: Tokens,
    /// The requests that were appended and have not ended, and the bytes that were not sent.
    pub(super) used: Load,
    /// Whether the connection must be checked before it is used: one of the requests may be sent only once.
    pub(super) must_check: bool,
    pub(super) waiters: WaitQueue,
    /// The driver's waker, until a caller takes it to wake the driver.
    pub(super) driver: Option<Waker>,
    /// The error that the pipeline was closed with.
    pub(super) closed: Option<Error>,
}

/// A reply that the server has to send.
pub(super) enum Awaited<P: Protocol> {
    Reply(Request<P>),
    Marker(Token),
}

impl<P: Protocol> Pipeline<P> {
    pub(super) fn new(runtime: RuntimeId, is_extra: bool) -> Result<Pipeline<P>> {
        let request_queue = RequestQueue {
            outgoing: WriteBuffer::default(),
            appended: VecDeque::new(),
            unmarked: Load::NONE,
            marking: None,
            tokens: Tokens::new()?,
            used: Load::NONE,
            must_check: false,
            waiters: WaitQueue::default(),
            driver: None,
            closed: None,
        };
        Ok(Pipeline {
            runtime,
            is_extra,
            is_behind_large_value: AtomicBool::new(false),
            is_retired: AtomicBool::new(false),
            is_abandoned: AtomicBool::new(false),
            opened: OnceLock::new(),
            request_queue: Lock::new("pipeline", request_queue),
        })
    }

    pub(super) fn set_opened(&self, opened: std::time::Instant, endpoint: Endpoint) {
        let _ = self.opened.set((opened, endpoint));
    }

    pub(in crate::net) fn opened(&self) -> Option<std::time::Instant> {
        self.opened.get().map(|(opened, _)| *opened)
    }

    fn is_connected_elsewhere(&self, endpoint: &Endpoint) -> bool {
        self.opened.get().is_some_and(|(_, connected)| connected != endpoint)
    }

    /// Stops sending appended requests if the pipeline is connected elsewhere than to `unless`, or if `unless` is
    /// `None`. Returns whether it stops.
    pub(super) fn abandon(&self, unless: Option<&Endpoint>) -> bool {
        let is_abandoned = unless.is_none_or(|endpoint| self.is_connected_elsewhere(endpoint));
        self.is_abandoned.fetch_or(is_abandoned, Ordering::Relaxed);
        is_abandoned
    }

    pub(in crate::net) fn in_flight(&self) -> usize {
        self.request_queue.lock().used.requests
    }

    pub(super) fn is_behind_large_value(&self) -> bool {
        self.is_behind_large_value.load(Ordering::Relaxed)
    }

    /// Marks the pipeline as retired, and wakes the driver.
    pub(super) fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
        let driver = self.request_queue.lock().driver.take();
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

impl Load {
    pub(super) const NONE: Load = Load { requests: 0, bytes: 0 };
}

impl<P: Protocol> Limited for RequestQueue<P> {
    fn room(&self) -> usize {
        let capacity = if self.marking.is_some() { CAPACITY } else { CAPACITY_BEFORE_CONNECTED };
        if self.used.bytes < capacity.bytes { capacity.requests.saturating_sub(self.used.requests) } else { 0 }
    }

    fn waiters(&mut self) -> &mut WaitQueue {
        &mut self.waiters
    }

    /// Also wakes the callers whose deadline has passed.
    fn next(&mut self) -> Vec<Waker> {
        if self.waiters.is_empty() {
            return Vec::new();
        }
        let mut next = self.waiters.take(self.room());
        next.extend(self.waiters.take_late(Instant::now().into_std()));
        next
    }
}

impl<P: Protocol> RequestQueue<P> {
    /// Counts an appended request, and writes a marker once [`MARKER_INTERVAL`] is reached.
    pub(super) fn count(&mut self, length: usize) {
        for count in [&mut self.used, &mut self.unmarked] {
            count.requests += 1;
            count.bytes += length;
        }
        if self.unmarked.requests >= MARKER_INTERVAL.requests || self.unmarked.bytes >= MARKER_INTERVAL.bytes {
            self.mark();
        }
    }

    /// Appends a marker to the requests that have none after them, if replies are proven by markers.
    pub(super) fn mark(&mut self) {
        if let Some(Marking::EveryWrite(command)) = self.marking
            && self.unmarked.requests > 0
        {
            let token = self.tokens.write_marker(command, &mut self.outgoing);
            self.appended.push_back(Awaited::Marker(token));
            self.unmarked = Load::NONE;
        }
    }
}

impl<P: Protocol> std::fmt::Debug for RequestQueue<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestQueue").field("closed", &self.closed).finish_non_exhaustive()
    }
}

impl<P: Protocol> Route<P> {
    /// Appends a request, or queues `waiter` if there is no capacity or other callers wait already. Without a waiter,
    /// returns `None` then.
    pub(super) fn append_or_wait(
        &self,
        server: &Server<P>,
        request: &P::Request,
        retry: Retry,
        waiter: Option<&mut Waiter<'_, RequestQueue<P>>>,
        waker: &Waker,
    ) -> Result<Option<Appended<P>>, Failure> {
        let protocol = &server.protocol;
        let mut request_queue = self.pipeline.request_queue.lock();
        if let Some(error) = &request_queue.closed {
            return Err(Failure { error: error.clone(), progress: Progress::Unsent });
        }
        let has_turn = waiter.as_ref().is_some_and(|waiter| waiter.has_waited());
        if request_queue.room() == 0 || (!has_turn && !request_queue.waiters.is_empty()) {
            return match waiter {
                Some(waiter) if waiter.deadline() <= Instant::now().into_std() => Err(full(protocol.endpoint()).into()),
                Some(waiter) => {
                    waiter.wait(&mut request_queue, waker);
                    Ok(None)
                }
                None => Ok(None),
            };
        }
        let before = request_queue.outgoing.len();
        let partial = protocol.write(request, &mut request_queue.outgoing);
        let slot = Arc::new(Slot::new(waker));
        let timeout = server.timeouts().exchange;
        let extra = exchange_timeout(timeout).saturating_sub(timeout);
        let awaited = Request::new(Arc::clone(&slot), partial, self.may_reroute, extra);
        request_queue.appended.push_back(Awaited::Reply(awaited));
        request_queue.must_check |= retry == Retry::Never;
        let length = request_queue.outgoing.len() - before;
        request_queue.count(length);
        let driver = request_queue.driver.take();
        drop(request_queue);
        if let Some(driver) = driver {
            driver.wake();
        }
        Ok(Some(Appended::new(slot)))
    }
}
