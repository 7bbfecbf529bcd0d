//! Inside a tokio runtime: one connection on which many requests are in flight.
//!
//! A caller appends its request to a shared buffer, under one short lock, and waits for its slot. A [`driver`], a task of the
//! runtime, writes what has gathered in one go, cuts the replies and hands them to the slots in order. It also dials, so that
//! a caller that gives up takes nobody's connection with it.
//!
//! From being appended a request's bytes belong to the pipeline. A caller that is dropped neither removes nor truncates them,
//! and the reply to it is read and thrown away.
//!
//! # Order
//!
//! A runtime has one *primary* pipeline to a server, which every change goes through, in order. While that one is behind a
//! large value, reads go through an extra one, those too that were in flight behind the value: they are sent again, and the
//! first reply to them is thrown away. An extra pipeline is closed when it has had nothing to do for a while.
//!
//! # Backpressure
//!
//! A pipeline takes a bounded number of requests and of bytes. Who comes next waits, within the timeouts, until there is room.
//!
//! # Over a fork
//!
//! The table of pipelines is a process's own. The driver and the future of a request are bound to their process: in another
//! one they touch no lock, no waker and no socket, and are forgotten when they are dropped.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::mem::{self, ManuallyDrop};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Waker};

use tokio::time::Instant;

use super::connection::{Marking, Protocol, Token, Tokens};
use super::link::{Retry, Server, full};
use super::outgoing::Outgoing;
use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::runtime::RuntimeId;
use crate::lifecycle::{ProcessBound, ProcessLocal, generation};
use crate::sync::Lock;
use large_reads::LargeReads;

mod driver;
mod in_flight;
mod large_reads;

/// How much a pipeline takes before callers wait, and while it is not yet connected.
const ROOM: Room = Room { requests: 8 << 10, bytes: 16 << 20 };
const ROOM_BEFORE: Room = UNMARKED;

/// After how much a marker is written.
const UNMARKED: Room = Room { requests: 64, bytes: 64 << 10 };

/// A value of more bytes than this keeps other replies waiting.
const LARGE_VALUE: usize = 64 << 10;

/// Over how many extra pipelines those are spread that were behind a large value.
const SPREAD: usize = 4;

/// How often a request that was not sent is tried over another connection.
const ATTEMPTS: usize = 4;

#[derive(Clone, Copy)]
struct Room {
    requests: usize,
    bytes: usize,
}

/// Appends a request to this runtime's pipeline. The outcome goes to [`conclude`].
pub(super) fn submit<P: Protocol>(
    server: &Arc<Server<P>>,
    runtime: RuntimeId,
    request: &P::Request,
    retry: Retry,
) -> Result<Appended<P>, Failure> {
    let pipelines = &server.pipelines;
    let kind = match P::is_read(request) {
        false => Kind::Change,
        true if pipelines.large_reads.contain(P::key(request)) => Kind::LargeRead,
        true => Kind::Read,
    };
    submit_as(kind, server, runtime, request, retry)
}

fn submit_as<P: Protocol>(
    kind: Kind,
    server: &Arc<Server<P>>,
    runtime: RuntimeId,
    request: &P::Request,
    retry: Retry,
) -> Result<Appended<P>, Failure> {
    let route = server.pipelines.route(server, runtime, kind)?;
    let appended = route.append_or_wait(&server.protocol, request, retry, None)?;
    appended.ok_or_else(|| Failure { error: full(server.protocol.endpoint()), progress: Progress::NoRoom })
}

/// Notes a reply that kept others waiting.
#[inline]
pub(super) fn note<P: Protocol>(server: &Server<P>, request: &P::Request, reply: &P::Reply) {
    if P::longest_value(reply) > LARGE_VALUE && P::is_read(request) {
        server.pipelines.large_reads.remember(P::key(request));
    }
}

/// Waits for room, or tries again, where that is the thing to do after a failure.
pub(super) async fn conclude<P: Protocol>(
    server: &Arc<Server<P>>,
    runtime: RuntimeId,
    request: &P::Request,
    mut retry: Retry,
    mut failure: Failure,
) -> Result<P::Reply> {
    let mut attempts = 1;
    loop {
        let submitted = match failure.progress {
            Progress::NoRoom => append_when_there_is_room(server, runtime, request, retry).await,
            Progress::Evaded => submit_as(Kind::EvadedRead, server, runtime, request, retry),
            Progress::Unsent if attempts < ATTEMPTS => {
                attempts += 1;
                submit(server, runtime, request, retry)
            }
            Progress::Unanswered if retry == Retry::Idempotent => {
                retry = Retry::Never;
                submit(server, runtime, request, retry)
            }
            Progress::Unsent | Progress::Unanswered | Progress::Unknown => return Err(failure.error),
        };
        failure = match submitted {
            Ok(appended) => match appended.await {
                Ok(reply) => {
                    note(server, request, &reply);
                    return Ok(reply);
                }
                Err(failure) => failure,
            },
            Err(failure) => failure,
        };
    }
}

/// Waits until there is room, or the driver says that it took too long. The driver has the only timer: one in a caller's
/// future would panic when its runtime is shut down.
async fn append_when_there_is_room<P: Protocol>(
    server: &Arc<Server<P>>,
    runtime: RuntimeId,
    request: &P::Request,
    retry: Retry,
) -> Result<Appended<P>, Failure> {
    let pipelines = &server.pipelines;
    let room = ProcessBound::new(Box::pin(async move {
        let route = pipelines.route(server, runtime, if P::is_read(request) { Kind::Read } else { Kind::Change })?;
        let deadline = Instant::now() + server.timeouts.connect + server.timeouts.exchange;
        let mut turn = Turn { pipeline: &route.pipeline, deadline, ticket: None };
        poll_fn(|cx| match route.append_or_wait(&server.protocol, request, retry, Some((&mut turn, cx.waker()))) {
            Ok(None) => Poll::Pending,
            Ok(Some(appended)) => Poll::Ready(Ok(appended)),
            Err(failure) => Poll::Ready(Err(failure)),
        })
        .await
    }));
    room.await.unwrap_or_else(|| Err(Error::begun_by_parent().into()))
}

/// A caller's turn among those for which there is no room. If it gives up, the next one is to have the room.
struct Turn<'a, P: Protocol> {
    pipeline: &'a Pipeline<P>,
    deadline: Instant,
    /// Its place in the queue.
    ticket: Option<u64>,
}

/// A caller that waits.
struct Waiting {
    ticket: u64,
    deadline: Instant,
    waker: Waker,
}

impl<P: Protocol> Drop for Turn<'_, P> {
    fn drop(&mut self) {
        let next = {
            let mut inbox = self.pipeline.inbox.lock();
            if let Some(Ok(place)) = self.ticket.map(|ticket| inbox.place_of(ticket)) {
                inbox.waiting.remove(place);
            }
            inbox.take_waiting()
        };
        next.into_iter().for_each(Waker::wake);
    }
}

/// Why a request came to nothing, and how far it had come.
#[derive(Debug)]
pub(super) struct Failure {
    error: Error,
    progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// It was not appended.
    NoRoom,
    /// It is a read, and a large value came before it.
    Evaded,
    /// No byte of it was sent.
    Unsent,
    /// The connection had served before, and ended before a byte of the reply.
    Unanswered,
    /// The server may have done what it was asked.
    Unknown,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { error, progress: Progress::Unknown }
    }
}

/// The pipelines of this process to one server.
#[derive(Debug)]
pub(super) struct Pipelines<P: Protocol> {
    /// Those that take requests. Of each runtime, the primary one comes first.
    open: ProcessLocal<Lock<Vec<Arc<Pipeline<P>>>>>,
    /// How many a runtime may have.
    most: usize,
    large_reads: LargeReads,
}

impl<P: Protocol> Pipelines<P> {
    pub(super) fn new(most: usize) -> Pipelines<P> {
        Pipelines { open: ProcessLocal::new(), most: most.max(1), large_reads: LargeReads::new() }
    }

    /// The pipeline that a request of `runtime` goes through, which may have to be connected yet.
    fn route(&self, server: &Arc<Server<P>>, runtime: RuntimeId, kind: Kind) -> Result<Route<P>> {
        let open = self.open.get_or_init(|| Lock::new("pipelines", Vec::new())).lock();
        let mut own = open.iter().filter(|pipeline| pipeline.runtime == runtime);
        let first = match kind {
            Kind::Change => own.next(),
            Kind::Read => own.find(|pipeline| !pipeline.is_behind_large_value()),
            Kind::EvadedRead | Kind::LargeRead => None,
        };
        if let Some(pipeline) = first {
            return Ok(Route { pipeline: Arc::clone(pipeline), may_evade: kind != Kind::Change });
        }
        self.open_or_share(server, runtime, kind, open)
    }

    /// Opens another pipeline, or takes the one with the fewest requests in flight where there are enough.
    fn open_or_share(
        &self,
        server: &Arc<Server<P>>,
        runtime: RuntimeId,
        kind: Kind,
        mut open: MutexGuard<'_, Vec<Arc<Pipeline<P>>>>,
    ) -> Result<Route<P>> {
        let own: Vec<_> = open.iter().filter(|pipeline| pipeline.runtime == runtime).collect();
        let candidates = own.iter().skip(usize::from(kind == Kind::LargeRead));
        let free = candidates.clone().filter(|pipeline| !pipeline.is_behind_large_value());
        let least = free.map(|pipeline| (pipeline.in_flight(), *pipeline)).min_by_key(|(in_flight, _)| *in_flight);
        let is_enough = match least {
            Some((in_flight, _)) => in_flight == 0 || own.len() > SPREAD,
            None => false,
        };
        let is_full = own.len() >= self.most;
        let admitted = if is_enough || is_full { Ok(()) } else { server.admit().and_then(|()| server.admit_login()) };
        if (is_enough || is_full || admitted.is_err())
            && let Some(pipeline) = least.map(|(_, pipeline)| pipeline).or(own.first().copied())
        {
            let may_evade = kind == Kind::EvadedRead && least.is_some();
            return Ok(Route { pipeline: Arc::clone(pipeline), may_evade });
        }
        admitted?;
        let pipeline = Arc::new(Pipeline::new(runtime, !own.is_empty())?);
        open.push(Arc::clone(&pipeline));
        drop(open);
        driver::spawn(server, &pipeline);
        Ok(Route { pipeline, may_evade: matches!(kind, Kind::Read | Kind::EvadedRead) })
    }

    /// Has the next request of each runtime dial. Requests in flight end as they would have.
    pub(super) fn reset(&self) {
        let Some(open) = self.open.get() else { return };
        let retired = mem::take(&mut *open.lock());
        for pipeline in &retired {
            pipeline.retire();
        }
    }

    /// Has this pipeline take no more requests.
    fn retire(&self, pipeline: &Arc<Pipeline<P>>) {
        if let Some(open) = self.open.get() {
            open.lock().retain(|other| !Arc::ptr_eq(other, pipeline));
        }
        pipeline.retire();
    }
}

/// What has to be known of a request to find its way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Change,
    Read,
    /// It was behind a large value.
    EvadedRead,
    /// It was answered with a large value last.
    LargeRead,
}

/// Where a request goes.
struct Route<P: Protocol> {
    pipeline: Arc<Pipeline<P>>,
    /// Whether it goes elsewhere if a large value comes before it: a read, if there is another way.
    may_evade: bool,
}

impl<P: Protocol> Route<P> {
    /// Appends a request, or has a caller wait for its turn. A new one stands behind those that wait.
    fn append_or_wait(
        &self,
        protocol: &P,
        request: &P::Request,
        retry: Retry,
        turn: Option<(&mut Turn<'_, P>, &Waker)>,
    ) -> Result<Option<Appended<P>>, Failure> {
        let mut inbox = self.pipeline.inbox.lock();
        if let Some(error) = &inbox.closed {
            return Err(Failure { error: error.clone(), progress: Progress::Unsent });
        }
        let has_turn = turn.as_ref().is_some_and(|(turn, _)| turn.ticket.is_some());
        if inbox.room() == 0 || (!has_turn && !inbox.waiting.is_empty()) {
            return match turn {
                Some((turn, _)) if turn.deadline <= Instant::now() => Err(full(protocol.endpoint()).into()),
                Some((turn, waker)) => {
                    inbox.wait(turn, waker);
                    Ok(None)
                }
                None => Ok(None),
            };
        }
        let before = inbox.outgoing.len();
        let partial = protocol.write(request, &mut inbox.outgoing);
        let slot = Arc::new(Slot(Lock::new("slot", SlotState::Empty)));
        inbox.appended.push(Awaited::Reply(in_flight::Request::new(Arc::clone(&slot), partial, self.may_evade)));
        inbox.is_careful |= retry == Retry::Never;
        let length = inbox.outgoing.len() - before;
        inbox.count(length);
        let driver = inbox.driver.take();
        drop(inbox);
        if let Some(driver) = driver {
            driver.wake();
        }
        Ok(Some(Appended { generation: generation(), slot: ManuallyDrop::new(slot) }))
    }
}

/// What callers and the driver share.
#[derive(Debug)]
struct Pipeline<P: Protocol> {
    runtime: RuntimeId,
    is_extra: bool,
    is_behind_large_value: AtomicBool,
    is_retired: AtomicBool,
    inbox: Lock<Inbox<P>>,
}

/// What callers have appended since the driver looked last.
struct Inbox<P: Protocol> {
    outgoing: Outgoing,
    appended: Vec<Awaited<P>>,
    /// Behind the last marker in `outgoing`.
    unmarked: Room,
    /// Once it is connected.
    marking: Option<Marking>,
    tokens: Tokens,
    /// Requests that were appended and have not ended, and bytes that were not sent.
    used: Room,
    /// Whether one of the requests must not be lost to a connection that has ended.
    is_careful: bool,
    waiting: VecDeque<Waiting>,
    next_ticket: u64,
    driver: Option<Waker>,
    closed: Option<Error>,
}

/// What the server has to send, in order.
enum Awaited<P: Protocol> {
    Reply(in_flight::Request<P>),
    Marker(Token),
}

impl<P: Protocol> Pipeline<P> {
    fn new(runtime: RuntimeId, is_extra: bool) -> Result<Pipeline<P>> {
        let inbox = Inbox {
            outgoing: Outgoing::default(),
            appended: Vec::new(),
            unmarked: Room::NONE,
            marking: None,
            tokens: Tokens::new()?,
            used: Room::NONE,
            is_careful: false,
            waiting: VecDeque::new(),
            next_ticket: 0,
            driver: None,
            closed: None,
        };
        Ok(Pipeline {
            runtime,
            is_extra,
            is_behind_large_value: AtomicBool::new(false),
            is_retired: AtomicBool::new(false),
            inbox: Lock::new("pipeline", inbox),
        })
    }

    fn in_flight(&self) -> usize {
        self.inbox.lock().used.requests
    }

    fn is_behind_large_value(&self) -> bool {
        self.is_behind_large_value.load(Ordering::Relaxed)
    }

    fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
        let driver = self.inbox.lock().driver.take();
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

impl Room {
    const NONE: Room = Room { requests: 0, bytes: 0 };
}

impl<P: Protocol> Inbox<P> {
    /// For how many requests there is room.
    fn room(&self) -> usize {
        let room = if self.marking.is_some() { ROOM } else { ROOM_BEFORE };
        if self.used.bytes < room.bytes { room.requests.saturating_sub(self.used.requests) } else { 0 }
    }

    /// Where in the queue a ticket is, or would be.
    fn place_of(&self, ticket: u64) -> Result<usize, usize> {
        self.waiting.binary_search_by_key(&ticket, |waiting| waiting.ticket)
    }

    fn wait(&mut self, turn: &mut Turn<'_, P>, waker: &Waker) {
        let ticket = *turn.ticket.get_or_insert(self.next_ticket);
        self.next_ticket = self.next_ticket.max(ticket + 1);
        let waiting = Waiting { ticket, deadline: turn.deadline, waker: waker.clone() };
        match self.place_of(ticket) {
            Ok(place) => self.waiting[place] = waiting,
            Err(place) => self.waiting.insert(place, waiting),
        }
    }

    /// The callers to be woken: there is room for them, or they have waited too long.
    fn take_waiting(&mut self) -> Vec<Waker> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let now = Instant::now();
        let late = self.waiting.iter().take_while(|waiting| waiting.deadline <= now).count();
        let count = self.room().max(late).min(self.waiting.len());
        self.waiting.drain(..count).map(|waiting| waiting.waker).collect()
    }

    /// Counts a request that was appended, and marks where it is time to.
    fn count(&mut self, length: usize) {
        for count in [&mut self.used, &mut self.unmarked] {
            count.requests += 1;
            count.bytes += length;
        }
        if self.unmarked.requests >= UNMARKED.requests || self.unmarked.bytes >= UNMARKED.bytes {
            self.mark();
        }
    }

    /// Ends what was appended with a marker, unless replies are proven in another way.
    fn mark(&mut self) {
        if let Some(Marking::EveryWrite(command)) = self.marking
            && self.unmarked.requests > 0
        {
            let token = self.tokens.write_marker(command, &mut self.outgoing);
            self.appended.push(Awaited::Marker(token));
            self.unmarked = Room::NONE;
        }
    }
}

impl<P: Protocol> std::fmt::Debug for Inbox<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("closed", &self.closed).finish_non_exhaustive()
    }
}

/// Where the reply to a request is put.
struct Slot<P: Protocol>(Lock<SlotState<P>>);

enum SlotState<P: Protocol> {
    Empty,
    Awaited(Waker),
    Done(Result<P::Reply, Failure>),
}

impl<P: Protocol> Slot<P> {
    fn complete(&self, outcome: Result<P::Reply, Failure>) {
        let before = mem::replace(&mut *self.0.lock(), SlotState::Done(outcome));
        if let SlotState::Awaited(waker) = before {
            waker.wake();
        }
    }
}

/// A request that was appended. Dropping it leaves the request in flight.
pub(super) struct Appended<P: Protocol> {
    generation: u64,
    /// Dropped in the process that appended it only: it may hold a waker.
    slot: ManuallyDrop<Arc<Slot<P>>>,
}

impl<P: Protocol> Future for Appended<P> {
    type Output = Result<P::Reply, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<P::Reply, Failure>> {
        if self.generation != generation() {
            return Poll::Ready(Err(Error::begun_by_parent().into()));
        }
        let mut state = self.slot.0.lock();
        match &*state {
            SlotState::Done(_) => {}
            SlotState::Awaited(waker) if waker.will_wake(cx.waker()) => return Poll::Pending,
            SlotState::Awaited(_) | SlotState::Empty => {
                let before = mem::replace(&mut *state, SlotState::Awaited(cx.waker().clone()));
                drop(state);
                drop(before);
                return Poll::Pending;
            }
        }
        match mem::replace(&mut *state, SlotState::Empty) {
            SlotState::Done(outcome) => Poll::Ready(outcome),
            SlotState::Empty | SlotState::Awaited(_) => unreachable!("it was done a moment ago"),
        }
    }
}

impl<P: Protocol> Drop for Appended<P> {
    #[expect(unsafe_code, reason = "in another process it is forgotten")]
    fn drop(&mut self) {
        if self.generation == generation() {
            // SAFETY: dropped once, here; nothing uses it afterwards.
            unsafe { ManuallyDrop::drop(&mut self.slot) };
        }
    }
}

/// What a pipeline is closed with once its driver has ended without a failure.
fn ended<P: Protocol>(server: &Server<P>) -> Error {
    let context = format!("the connection to {} was closed", server.protocol.endpoint());
    Error::new(ErrorKind::Io, context)
}
