//! What callers and the driver of a pipeline share, and how much of it there may be.

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
use crate::net::link::Retry;
use crate::net::server::{Server, full};
use crate::net::wait_queue::{Limited, WaitQueue, Waiter};
use crate::net::write_buffer::WriteBuffer;
use crate::sync::Lock;

/// How much a pipeline takes before callers wait, and while it is not yet connected.
pub(super) const ROOM: Room = Room { requests: 8 << 10, bytes: 16 << 20 };
pub(super) const ROOM_BEFORE: Room = UNMARKED;

/// After how much a marker is written.
pub(super) const UNMARKED: Room = Room { requests: 64, bytes: 64 << 10 };

#[derive(Clone, Copy)]
pub(super) struct Room {
    pub(super) requests: usize,
    pub(super) bytes: usize,
}

/// What callers and the driver share.
#[derive(Debug)]
pub(in crate::net) struct Pipeline<P: Protocol> {
    pub(super) runtime: RuntimeId,
    pub(super) is_extra: bool,
    pub(super) is_behind_large_value: AtomicBool,
    pub(super) is_retired: AtomicBool,
    /// Whether nothing is sent any more.
    pub(super) is_abandoned: AtomicBool,
    /// When it was connected, and to where, once it is.
    opened: OnceLock<(std::time::Instant, Endpoint)>,
    pub(super) request_queue: Lock<RequestQueue<P>>,
}

/// What callers have appended since the driver looked last.
pub(super) struct RequestQueue<P: Protocol> {
    pub(super) outgoing: WriteBuffer,
    pub(super) appended: Vec<Awaited<P>>,
    /// Behind the last marker in `outgoing`.
    pub(super) unmarked: Room,
    /// Once it is connected.
    pub(super) marking: Option<Marking>,
    pub(super) tokens: Tokens,
    /// Requests that were appended and have not ended, and bytes that were not sent.
    pub(super) used: Room,
    /// Whether one of the requests must not be lost to a connection that has ended.
    pub(super) is_careful: bool,
    pub(super) waiters: WaitQueue,
    pub(super) driver: Option<Waker>,
    pub(super) closed: Option<Error>,
}

/// What the server has to send, in order.
pub(super) enum Awaited<P: Protocol> {
    Reply(Request<P>),
    Marker(Token),
}

impl<P: Protocol> Pipeline<P> {
    pub(super) fn new(runtime: RuntimeId, is_extra: bool) -> Result<Pipeline<P>> {
        let request_queue = RequestQueue {
            outgoing: WriteBuffer::default(),
            appended: Vec::new(),
            unmarked: Room::NONE,
            marking: None,
            tokens: Tokens::new()?,
            used: Room::NONE,
            is_careful: false,
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

    pub(super) fn note_opened(&self, opened: std::time::Instant, endpoint: Endpoint) {
        let _ = self.opened.set((opened, endpoint));
    }

    pub(in crate::net) fn opened(&self) -> Option<std::time::Instant> {
        self.opened.get().map(|(opened, _)| *opened)
    }

    fn is_connected_elsewhere(&self, endpoint: &Endpoint) -> bool {
        self.opened.get().is_some_and(|(_, connected)| connected != endpoint)
    }

    /// Takes no more requests, and none is sent; unless it leads there.
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

    pub(super) fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
        let driver = self.request_queue.lock().driver.take();
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

impl Room {
    pub(super) const NONE: Room = Room { requests: 0, bytes: 0 };
}

impl<P: Protocol> Limited for RequestQueue<P> {
    fn room(&self) -> usize {
        let room = if self.marking.is_some() { ROOM } else { ROOM_BEFORE };
        if self.used.bytes < room.bytes { room.requests.saturating_sub(self.used.requests) } else { 0 }
    }

    fn waiters(&mut self) -> &mut WaitQueue {
        &mut self.waiters
    }

    /// Also those that have waited too long.
    fn next(&mut self) -> Vec<Waker> {
        if self.waiters.is_empty() {
            return Vec::new();
        }
        let late = self.waiters.late(Instant::now().into_std());
        let room = self.room();
        self.waiters.take(room.max(late))
    }
}

impl<P: Protocol> RequestQueue<P> {
    /// Counts a request that was appended, and marks where it is time to.
    pub(super) fn count(&mut self, length: usize) {
        for count in [&mut self.used, &mut self.unmarked] {
            count.requests += 1;
            count.bytes += length;
        }
        if self.unmarked.requests >= UNMARKED.requests || self.unmarked.bytes >= UNMARKED.bytes {
            self.mark();
        }
    }

    /// Ends what was appended with a marker, unless replies are proven in another way.
    pub(super) fn mark(&mut self) {
        if let Some(Marking::EveryWrite(command)) = self.marking
            && self.unmarked.requests > 0
        {
            let token = self.tokens.write_marker(command, &mut self.outgoing);
            self.appended.push(Awaited::Marker(token));
            self.unmarked = Room::NONE;
        }
    }
}

impl<P: Protocol> std::fmt::Debug for RequestQueue<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestQueue").field("closed", &self.closed).finish_non_exhaustive()
    }
}

impl<P: Protocol> Route<P> {
    /// Appends a request, or has a caller wait for its turn. A new one stands behind those that wait.
    pub(super) fn append_or_wait(
        &self,
        server: &Server<P>,
        request: &P::Request,
        retry: Retry,
        turn: Option<&mut Waiter<'_, RequestQueue<P>>>,
        waker: &Waker,
    ) -> Result<Option<Appended<P>>, Failure> {
        let protocol = &server.protocol;
        let mut request_queue = self.pipeline.request_queue.lock();
        if let Some(error) = &request_queue.closed {
            return Err(Failure { error: error.clone(), progress: Progress::Unsent });
        }
        let has_turn = turn.as_ref().is_some_and(|turn| turn.has_waited());
        if request_queue.room() == 0 || (!has_turn && !request_queue.waiters.is_empty()) {
            return match turn {
                Some(turn) if turn.deadline() <= Instant::now().into_std() => Err(full(protocol.endpoint()).into()),
                Some(turn) => {
                    turn.wait(&mut request_queue, waker);
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
        request_queue.appended.push(Awaited::Reply(Request::new(Arc::clone(&slot), partial, self.may_evade, extra)));
        request_queue.is_careful |= retry == Retry::Never;
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
