//! Requests in flight on one connection, in order, and their replies that are held back.
//!
//! A reply is assembled frame by frame, and held until it is proven ([`connection`](crate::net::connection)).

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::request_queue::Awaited;
use super::slot::Slot;
use super::{Failure, Progress};
use crate::error::{Error, ErrorKind, Result};
use crate::net::connection::{Accepted, Marking, Protocol, Token, foreign_reply_error, is_proof, surplus, unproven};
use crate::net::frame::Frame;

/// The longest wait for a reply, as a multiple of the timeout.
const MAX_TIMEOUTS: u32 = 10;

/// A request that was appended, and its incomplete reply.
pub(super) struct Request<P: Protocol> {
    /// `None` once its caller has got an error.
    slot: Option<Arc<Slot<P>>>,
    pub(super) partial: P::Partial,
    /// When the driver took it, once it has.
    taken: Option<Instant>,
    /// The connection's [`active_time`](InFlight::active_time) when it was taken.
    active_time: Duration,
    /// Whether a frame of its reply has arrived.
    is_begun: bool,
    may_reroute: bool,
    /// The time that is added to the timeout.
    extra_time: Duration,
}

impl<P: Protocol> Request<P> {
    pub(super) fn new(slot: Arc<Slot<P>>, partial: P::Partial, may_reroute: bool, extra_time: Duration) -> Request<P> {
        let active_time = Duration::ZERO;
        Request { slot: Some(slot), partial, taken: None, active_time, is_begun: false, may_reroute, extra_time }
    }

    /// When the request times out. While bytes keep arriving, the deadline moves, up to [`MAX_TIMEOUTS`] timeouts.
    fn deadline(&self, active_time: Duration, timeout: Duration) -> Instant {
        let active_time = active_time.saturating_sub(self.active_time);
        let taken = self.taken.expect("a request in flight was taken");
        taken + timeout + self.extra_time + active_time.min(timeout * (MAX_TIMEOUTS - 1))
    }

    pub(super) fn fail(&mut self, failure: Failure) {
        if let Some(slot) = self.slot.take() {
            slot.complete(Err(failure));
        }
    }
}

/// The requests and markers in flight, with the replies to them.
pub(super) struct InFlight<P: Protocol> {
    awaited: VecDeque<Awaited<P>>,
    /// The number of requests at the front of `awaited` whose replies are complete and not yet proven.
    held: usize,
    /// The tokens of the markers in `awaited`.
    markers: VecDeque<Token>,
    /// The total time in which bytes kept arriving.
    active_time: Duration,
    /// The number of requests that have ended since the last [`take_ended`](InFlight::take_ended).
    ended: usize,
    /// Whether a request ever had extra time, so that deadlines are not in order.
    has_extra_time: bool,
    /// Whether a reply says that another server has replaced this one.
    pub(super) is_replaced: bool,
}

impl<P: Protocol> InFlight<P> {
    pub(super) fn new() -> InFlight<P> {
        InFlight {
            awaited: VecDeque::new(),
            held: 0,
            markers: VecDeque::new(),
            active_time: Duration::ZERO,
            ended: 0,
            has_extra_time: false,
            is_replaced: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.awaited.is_empty()
    }

    /// Takes requests and markers over. The timeouts of the requests begin.
    pub(super) fn append(&mut self, taken: &mut VecDeque<Awaited<P>>, now: Instant) {
        for awaited in &mut *taken {
            match awaited {
                Awaited::Reply(request) => {
                    (request.taken, request.active_time) = (Some(now), self.active_time);
                    self.has_extra_time |= !request.extra_time.is_zero();
                }
                Awaited::Marker(token) => self.markers.push_back(*token),
            }
        }
        self.awaited.append(taken);
    }

    /// Adds a marker.
    pub(super) fn push_marker(&mut self, token: Token) {
        self.markers.push_back(token);
        self.awaited.push_back(Awaited::Marker(token));
    }

    /// Returns whether held replies wait for a proof and no reply or marker that could bring one is in flight.
    pub(super) fn lacks_proof(&self) -> bool {
        self.held > 0 && self.held == self.awaited.len()
    }

    /// Returns whether a caller waits for the reply that is being received.
    pub(super) fn is_next_wanted(&self) -> bool {
        match self.awaited.get(self.held) {
            Some(Awaited::Reply(Request { slot, .. })) => slot.as_ref().is_some_and(|slot| Arc::strong_count(slot) > 1),
            Some(Awaited::Marker(_)) | None => true,
        }
    }

    /// Adds frames at the beginning of `bytes` to the replies that they belong to, and hands out proven replies, as far
    /// as [`Protocol::accept_run`] and [`Protocol::accept_marker`] go. Returns the length of the frames, and whether
    /// they proved replies.
    pub(super) fn accept_run(&mut self, protocol: &P, marking: Marking, bytes: &[u8]) -> (usize, bool) {
        let (mut taken, mut has_proven) = (0, false);
        if matches!(marking, Marking::Impossible) {
            return (taken, has_proven);
        }
        while let Some(awaited) = self.awaited.get_mut(self.held) {
            let rest = &bytes[taken..];
            let (length, is_complete) = match awaited {
                Awaited::Reply(request) => {
                    let marker = self.markers.front();
                    let (length, is_complete) = protocol.accept_run(&mut request.partial, rest, marker);
                    request.is_begun |= length > 0;
                    self.held += usize::from(is_complete);
                    (length, is_complete)
                }
                Awaited::Marker(token) => {
                    let length = protocol.accept_marker(rest, token);
                    if length > 0 {
                        has_proven = true;
                        self.end_marker();
                    }
                    (length, length > 0)
                }
            };
            taken += length;
            if !is_complete {
                break;
            }
        }
        (taken, has_proven)
    }

    /// Hands the replies before a marker out, after the right reply to it.
    fn end_marker(&mut self) {
        self.markers.pop_front();
        self.hand_out();
        self.awaited.pop_front();
    }

    /// Adds a frame to the reply that it belongs to. Returns whether it proved replies; these are handed out.
    pub(super) fn accept(&mut self, protocol: &P, marking: Marking, frame: Frame<'_>) -> Result<bool> {
        let is_marker = self.markers.front().is_some_and(|token| is_proof(&frame, token));
        let request = match self.awaited.get_mut(self.held) {
            Some(Awaited::Reply(request)) if !is_marker => request,
            Some(Awaited::Marker(_)) if is_marker => {
                self.end_marker();
                return Ok(true);
            }
            Some(Awaited::Marker(_)) => {
                let (error, is_temporary) = unproven(protocol, &frame);
                if !is_temporary {
                    return Err(error);
                }
                self.markers.pop_front();
                self.refuse_held(protocol, &error);
                self.awaited.pop_front();
                return Ok(false);
            }
            Some(Awaited::Reply(_)) => return Err(foreign_reply_error(protocol.endpoint())),
            None => return Err(surplus(protocol.endpoint())),
        };
        request.is_begun = true;
        let Accepted::Complete { proven } = protocol.accept(&mut request.partial, frame)? else { return Ok(false) };
        self.held += 1;
        let is_proven = proven || matches!(marking, Marking::Impossible);
        if is_proven {
            self.hand_out();
        }
        Ok(is_proven)
    }

    /// Hands the held replies out to their callers.
    fn hand_out(&mut self) {
        let held = mem::take(&mut self.held);
        self.ended += held;
        for awaited in self.awaited.drain(..held) {
            if let Awaited::Reply(Request { slot: Some(slot), partial, .. }) = awaited {
                let reply = P::finish(partial);
                self.is_replaced |= P::is_replaced(&reply);
                slot.complete(Ok(reply));
            }
        }
    }

    /// Fails the held requests, because the marker that would prove their replies was refused. Most likely they were
    /// refused as well.
    fn refuse_held(&mut self, protocol: &P, error: &Error) {
        let held = mem::take(&mut self.held);
        self.ended += held;
        for awaited in self.awaited.drain(..held) {
            if let Awaited::Reply(mut request) = awaited {
                let refusal = protocol.refusal(&request.partial).unwrap_or_else(|| error.clone());
                request.fail(refusal.into());
            }
        }
    }

    /// Returns the number of requests that have ended since the last call.
    pub(super) fn take_ended(&mut self) -> usize {
        mem::take(&mut self.ended)
    }

    /// Extends the deadlines of the requests in flight, because bytes kept arriving for this time.
    pub(super) fn add_active_time(&mut self, time: Duration) {
        self.active_time += time;
    }

    /// The earliest deadline of a request that has not failed.
    pub(super) fn deadline(&self, timeout: Duration) -> Option<Instant> {
        let waited_for = self.requests().filter(|request| request.slot.is_some());
        let mut deadlines = waited_for.map(|request| request.deadline(self.active_time, timeout));
        if self.has_extra_time { deadlines.min() } else { deadlines.next() }
    }

    /// Returns whether a request is in flight that has not failed or been rerouted.
    pub(super) fn has_live_requests(&self) -> bool {
        self.requests().any(|request| request.slot.is_some())
    }

    /// Fails reads so that they are sent again through another pipeline, except for the one whose large value is being
    /// received. That one is never rerouted.
    pub(super) fn reroute_reads(&mut self, error: &Error) {
        if let Some(Awaited::Reply(request)) = self.awaited.get_mut(self.held) {
            request.may_reroute = false;
        }
        for request in self.requests_mut().filter(|request| request.may_reroute) {
            request.fail(Failure { error: error.clone(), progress: Progress::Rerouted });
        }
    }

    /// Fails the requests whose deadline has passed.
    pub(super) fn expire(&mut self, now: Instant, timeout: Duration, error: &Error) {
        let active_time = self.active_time;
        for request in self.requests_mut().filter(|request| request.deadline(active_time, timeout) <= now) {
            request.fail(error.clone().into());
        }
    }

    /// Returns whether an error reply arrived before the connection ended: it is the reason.
    pub(super) fn has_refusal(&self, protocol: &P) -> bool {
        self.requests().any(|request| protocol.refusal(&request.partial).is_some())
    }

    /// Fails every request. `is_idle_close`: the connection has served before, and ended without a byte of the next
    /// reply.
    pub(super) fn fail(&mut self, protocol: &P, error: &Error, is_idle_close: bool) {
        for request in self.requests_mut() {
            let refusal = protocol.refusal(&request.partial).filter(|_| error.kind() == ErrorKind::Io);
            let progress = if is_idle_close && !request.is_begun { Progress::Unanswered } else { Progress::Unknown };
            request.fail(Failure { error: refusal.unwrap_or_else(|| error.clone()), progress });
        }
        self.awaited.clear();
        self.held = 0;
    }

    fn requests(&self) -> impl Iterator<Item = &Request<P>> {
        self.awaited.iter().filter_map(|awaited| match awaited {
            Awaited::Reply(request) => Some(request),
            Awaited::Marker(_) => None,
        })
    }

    fn requests_mut(&mut self) -> impl Iterator<Item = &mut Request<P>> {
        self.awaited.iter_mut().filter_map(|awaited| match awaited {
            Awaited::Reply(request) => Some(request),
            Awaited::Marker(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;
    use std::time::Duration;

    use super::{
        Accepted, Arc, Awaited, Error, ErrorKind, Frame, InFlight, Instant, Marking, Protocol, Request, Result, Slot,
    };
    use crate::endpoint::Endpoint;
    use crate::net::{Connection, Framing, Scan, WriteBuffer};

    /// A protocol in which every frame is a reply.
    #[derive(Debug)]
    struct Plain(Endpoint);

    #[derive(Debug)]
    struct PlainFraming;

    impl Framing for PlainFraming {
        fn scan(&mut self, _: &[u8]) -> Result<Scan, String> {
            Ok(Scan::Partial)
        }
    }

    impl Protocol for Plain {
        type Framing = PlainFraming;
        type Request = ();
        type Partial = ();
        type Reply = ();

        fn endpoint(&self) -> &Endpoint {
            &self.0
        }

        fn framing(&self) -> PlainFraming {
            PlainFraming
        }

        fn max_value(&self) -> usize {
            usize::MAX
        }

        async fn greet(&self, _: &mut Connection<Plain>, _: usize) -> Result<Marking> {
            Ok(Marking::Impossible)
        }

        fn is_read((): &()) -> bool {
            true
        }

        fn key((): &()) -> &[u8] {
            &[]
        }

        fn longest_value((): &()) -> usize {
            0
        }

        fn write(&self, (): &(), _: &mut WriteBuffer) {}

        fn accept(&self, (): &mut (), _: Frame<'_>) -> Result<Accepted> {
            Ok(Accepted::Complete { proven: false })
        }

        fn refusal(&self, (): &()) -> Option<Error> {
            None
        }

        fn finish((): ()) {}

        fn is_last((): &()) -> bool {
            false
        }
    }

    const TIMEOUT: Duration = Duration::from_secs(1);

    #[test]
    fn a_failed_request_does_not_extend_the_deadlines_behind_it() {
        let protocol = Plain(Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 1 });
        let mut in_flight = InFlight::<Plain>::new();
        let push = |in_flight: &mut InFlight<Plain>| {
            let slot = Arc::new(Slot::new(Waker::noop()));
            let request = Request::new(slot, (), false, Duration::ZERO);
            in_flight.append(&mut VecDeque::from([Awaited::Reply(request)]), Instant::now());
        };
        let late = Error::new(ErrorKind::Timeout, "late");
        push(&mut in_flight);
        push(&mut in_flight);
        in_flight.expire(Instant::now() + TIMEOUT, TIMEOUT, &late);
        assert!(!in_flight.has_live_requests());
        // The extension moves the deadline of the failed requests beyond that of a later one.
        in_flight.add_active_time(TIMEOUT / 2);
        push(&mut in_flight);
        let frame = Frame { bytes: b"", large: Vec::new() };
        let token = *b"0123456789abcdef";
        in_flight.push_marker(token);
        in_flight.accept(&protocol, Marking::EveryWrite(b""), frame).unwrap();
        let deadline = in_flight.deadline(TIMEOUT).unwrap();
        in_flight.expire(deadline, TIMEOUT, &late);
        assert_eq!(in_flight.deadline(TIMEOUT), None, "otherwise the driver would wait for a past deadline");
    }
}
