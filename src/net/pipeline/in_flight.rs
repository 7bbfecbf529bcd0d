//! Requests in flight on one connection, in order, and what is held back of their replies.
//!
//! A reply is put together frame by frame, and held until it is proven ([`connection`](crate::net::connection)).

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::request_queue::Awaited;
use super::slot::Slot;
use super::{Failure, Progress};
use crate::error::{Error, ErrorKind, Result};
use crate::net::connection::{Accepted, Marking, Protocol, Token, foreign, is_proof, surplus, unproven};
use crate::net::frame::Frame;

/// By how many times its timeout a request is waited for at the most.
const LONGEST: u32 = 10;

pub(super) struct Request<P: Protocol> {
    /// `None` once its caller was told that it failed.
    slot: Option<Arc<Slot<P>>>,
    pub(super) partial: P::Partial,
    /// When the driver took it, once it has.
    taken: Option<Instant>,
    /// What the connection's [`arriving`](InFlight::arriving) was then.
    arriving: Duration,
    is_begun: bool,
    may_evade: bool,
    /// How much longer than usual it is waited for.
    extra: Duration,
}

impl<P: Protocol> Request<P> {
    pub(super) fn new(slot: Arc<Slot<P>>, partial: P::Partial, may_evade: bool, extra: Duration) -> Request<P> {
        let arriving = Duration::ZERO;
        Request { slot: Some(slot), partial, taken: None, arriving, is_begun: false, may_evade, extra }
    }

    /// While replies keep arriving a request has more time, but at most [`LONGEST`] times its timeout.
    fn deadline(&self, arriving: Duration, timeout: Duration) -> Instant {
        let arriving = arriving.saturating_sub(self.arriving);
        let taken = self.taken.expect("what is in flight was taken");
        taken + timeout + self.extra + arriving.min(timeout * (LONGEST - 1))
    }

    pub(super) fn fail(&mut self, failure: Failure) {
        if let Some(slot) = self.slot.take() {
            slot.complete(Err(failure));
        }
    }
}

pub(super) struct InFlight<P: Protocol> {
    awaited: VecDeque<Awaited<P>>,
    /// How many of them, from the first on, have complete replies that are not yet proven.
    held: usize,
    /// The tokens of the markers in `awaited`.
    markers: VecDeque<Token>,
    /// For how long replies have been arriving without a break.
    arriving: Duration,
    /// How many requests have ended since [`take_ended`](InFlight::take_ended).
    ended: usize,
    /// Whether one has ever been waited for longer than usual, so that deadlines are not in order.
    has_extra: bool,
    /// Whether a reply says that another server has taken the place of this one.
    pub(super) is_replaced: bool,
}

impl<P: Protocol> InFlight<P> {
    pub(super) fn new() -> InFlight<P> {
        InFlight {
            awaited: VecDeque::new(),
            held: 0,
            markers: VecDeque::new(),
            arriving: Duration::ZERO,
            ended: 0,
            has_extra: false,
            is_replaced: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.awaited.is_empty()
    }

    /// The time for a reply begins.
    pub(super) fn push(&mut self, mut awaited: Awaited<P>, now: Instant) {
        match &mut awaited {
            Awaited::Reply(request) => {
                (request.taken, request.arriving) = (Some(now), self.arriving);
                self.has_extra |= !request.extra.is_zero();
            }
            Awaited::Marker(token) => self.markers.push_back(*token),
        }
        self.awaited.push_back(awaited);
    }

    /// Whether replies wait for a proof that nothing in flight will bring.
    pub(super) fn lacks_proof(&self) -> bool {
        self.held > 0 && self.held == self.awaited.len()
    }

    /// Whether a caller waits for the reply that is being received.
    pub(super) fn is_next_wanted(&self) -> bool {
        match self.awaited.get(self.held) {
            Some(Awaited::Reply(Request { slot, .. })) => slot.as_ref().is_some_and(|slot| Arc::strong_count(slot) > 1),
            Some(Awaited::Marker(_)) | None => true,
        }
    }

    /// Takes a frame. Returns whether it has proven replies, which were handed out.
    pub(super) fn accept(&mut self, protocol: &P, marking: Marking, frame: Frame<'_>) -> Result<bool> {
        let is_marker = self.markers.front().is_some_and(|token| is_proof(&frame, token));
        let request = match self.awaited.get_mut(self.held) {
            Some(Awaited::Reply(request)) if !is_marker => request,
            Some(Awaited::Marker(_)) if is_marker => {
                self.markers.pop_front();
                self.hand_out();
                self.awaited.pop_front();
                return Ok(true);
            }
            Some(Awaited::Marker(_)) => {
                let (error, is_for_the_moment) = unproven(protocol, &frame);
                if !is_for_the_moment {
                    return Err(error);
                }
                self.markers.pop_front();
                self.refuse_held(protocol, &error);
                self.awaited.pop_front();
                return Ok(false);
            }
            Some(Awaited::Reply(_)) => return Err(foreign(protocol.endpoint())),
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

    /// What is held will not be proven. The marker behind it was refused, so most likely it was as well.
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

    /// How many requests have ended since this was last asked.
    pub(super) fn take_ended(&mut self) -> usize {
        mem::take(&mut self.ended)
    }

    /// Replies have been arriving for so much longer.
    pub(super) fn arrived_for(&mut self, time: Duration) {
        self.arriving += time;
    }

    /// When the first request that is still waited for must be answered.
    pub(super) fn deadline(&self, timeout: Duration) -> Option<Instant> {
        let waited_for = self.requests().filter(|request| request.slot.is_some());
        let mut deadlines = waited_for.map(|request| request.deadline(self.arriving, timeout));
        if self.has_extra { deadlines.min() } else { deadlines.next() }
    }

    /// Whether anybody waits for what is in flight.
    pub(super) fn is_waited_for(&self) -> bool {
        self.requests().any(|request| request.slot.is_some())
    }

    /// Has reads go another way, but for the one whose reply is a large value that is being received, from now on.
    pub(super) fn evade(&mut self, error: &Error) {
        if let Some(Awaited::Reply(request)) = self.awaited.get_mut(self.held) {
            request.may_evade = false;
        }
        for request in self.requests_mut().filter(|request| request.may_evade) {
            request.fail(Failure { error: error.clone(), progress: Progress::Evaded });
        }
    }

    /// Fails the requests whose deadline has passed.
    pub(super) fn expire(&mut self, now: Instant, timeout: Duration, error: &Error) {
        let arriving = self.arriving;
        for request in self.requests_mut().filter(|request| request.deadline(arriving, timeout) <= now) {
            request.fail(error.clone().into());
        }
    }

    /// Whether the server has refused something before the connection ended: it says why.
    pub(super) fn is_refused(&self, protocol: &P) -> bool {
        self.requests().any(|request| protocol.refusal(&request.partial).is_some())
    }

    /// Fails every request. `is_silent`: the connection had served before, and has ended without a byte of the next
    /// reply.
    pub(super) fn fail(&mut self, protocol: &P, error: &Error, is_silent: bool) {
        for request in self.requests_mut() {
            let refusal = protocol.refusal(&request.partial).filter(|_| error.kind() == ErrorKind::Io);
            let progress = if is_silent && !request.is_begun { Progress::Unanswered } else { Progress::Unknown };
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
    use std::task::Waker;
    use std::time::Duration;

    use super::{
        Accepted, Arc, Awaited, Error, ErrorKind, Frame, InFlight, Instant, Marking, Protocol, Request, Result, Slot,
    };
    use crate::endpoint::Endpoint;
    use crate::net::{Connection, Framing, Scan, WriteBuffer};

    /// Every frame is a reply.
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
    fn one_that_has_failed_keeps_none_behind_it_from_failing() {
        let protocol = Plain(Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 1 });
        let mut in_flight = InFlight::<Plain>::new();
        let push = |in_flight: &mut InFlight<Plain>| {
            let slot = Arc::new(Slot::new(Waker::noop()));
            in_flight.push(Awaited::Reply(Request::new(slot, (), false, Duration::ZERO)), Instant::now());
        };
        let late = Error::new(ErrorKind::Timeout, "late");
        push(&mut in_flight);
        push(&mut in_flight);
        in_flight.expire(Instant::now() + TIMEOUT, TIMEOUT, &late);
        assert!(!in_flight.is_waited_for());
        // What arrives meanwhile gives those that have failed more time than one that comes later.
        in_flight.arrived_for(TIMEOUT / 2);
        push(&mut in_flight);
        let frame = Frame { bytes: b"", large: Vec::new() };
        let token = *b"0123456789abcdef";
        in_flight.push(Awaited::Marker(token), Instant::now());
        in_flight.accept(&protocol, Marking::EveryWrite(b""), frame).unwrap();
        let deadline = in_flight.deadline(TIMEOUT).unwrap();
        in_flight.expire(deadline, TIMEOUT, &late);
        assert_eq!(in_flight.deadline(TIMEOUT), None, "else its driver waits for what is past");
    }
}
