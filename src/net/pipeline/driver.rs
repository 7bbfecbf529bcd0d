//! The task that drives a pipeline: dials, writes what callers have appended, and hands out the replies.
//!
//! It ends when the connection does, when the pipeline was retired and nothing is in flight any more, or with its
//! runtime. In every case no caller is left waiting.

use std::future::Future;
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep_until};

use super::in_flight::InFlight;
use super::request_queue::{Awaited, Pipeline};
use super::{Failure, LARGE_VALUE, Progress, ended};
use crate::error::{Error, ErrorKind, Result};
use crate::execution::Execution;
use crate::lifecycle::ProcessBound;
use crate::lifecycle::runtime::RuntimeId;
use crate::net::connection::{Connection, Marking, Protocol, REST, at_least_one, malformed};
use crate::net::io_errors::{io_error, timed_out};
use crate::net::server::{Admissions, Server, Settings};
use crate::net::wait_queue::Limited;

/// How much is received before other tasks have their turn.
const AT_A_TIME: usize = 256 << 10;

/// How much has to arrive within a timeout for replies to count as arriving.
const ARRIVING: usize = 64 << 10;

/// How long an extra pipeline is kept with nothing to do.
const EXTRA_IDLE: Duration = Duration::from_secs(5);

/// Starts the task, on the runtime that this is called in.
pub(super) fn spawn<P: Protocol>(server: &Arc<Server<P>>, pipeline: &Arc<Pipeline<P>>, admissions: Admissions) {
    let tenure = Tenure { server: Arc::clone(server), pipeline: Arc::clone(pipeline), in_flight: InFlight::new() };
    let execution = Execution::Tokio(pipeline.runtime);
    tokio::spawn(ProcessBound::new(Box::pin(async move {
        let mut tenure = tenure;
        match tenure.server.open(execution, admissions).await {
            Ok(connection) => Driver::new(tenure, connection).await,
            Err(error) => {
                // What an extra one was for can go through the primary one.
                let progress = if tenure.pipeline.is_extra { Progress::Unsent } else { Progress::Unknown };
                tenure.end(&error, progress);
            }
        }
    })));
}

/// Asks where the server is by now, if it is time to, beside the requests that go on meanwhile.
fn refresh_address<P: Protocol>(server: &Arc<Server<P>>, runtime: RuntimeId) {
    if server.is_address_due() {
        let server = Arc::clone(server);
        let refresh = async move { server.refresh_address(Execution::Tokio(runtime)).await };
        tokio::spawn(ProcessBound::new(Box::pin(refresh)));
    }
}

/// What a driver answers for. Its drop leaves no caller waiting.
struct Tenure<P: Protocol> {
    server: Arc<Server<P>>,
    pipeline: Arc<Pipeline<P>>,
    in_flight: InFlight<P>,
}

impl<P: Protocol> Tenure<P> {
    /// Closes the pipeline, and fails what was appended and not yet taken.
    fn end(&mut self, error: &Error, progress: Progress) {
        self.server.pipelines.retire(&self.pipeline);
        let (appended, waiting) = {
            let mut request_queue = self.pipeline.request_queue.lock();
            request_queue.closed.get_or_insert_with(|| error.clone());
            (mem::take(&mut request_queue.appended), request_queue.waiters.take(usize::MAX))
        };
        for awaited in appended {
            if let Awaited::Reply(mut request) = awaited {
                request.fail(Failure { error: error.clone(), progress });
            }
        }
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl<P: Protocol> Drop for Tenure<P> {
    fn drop(&mut self) {
        let error = ended(&self.server);
        self.in_flight.fail(&self.server.protocol, &error, false);
        self.end(&error, Progress::Unsent);
    }
}

struct Driver<P: Protocol> {
    tenure: Tenure<P>,
    connection: Connection<P>,
    timer: Pin<Box<Sleep>>,
    /// Whether a reply was proven on this connection.
    has_served: bool,
    /// Whether a request has run into its timeout.
    has_timed_out: bool,
    last_active: Instant,
    /// When the first caller for which there is no room gives up.
    waiting_until: Option<Instant>,
    /// What has arrived since when, for [`ARRIVING`].
    arrived: usize,
    arrived_since: Instant,
}

impl<P: Protocol> Driver<P> {
    fn new(tenure: Tenure<P>, connection: Connection<P>) -> Driver<P> {
        let now = Instant::now();
        tenure.pipeline.note_opened(connection.opened, connection.endpoint.clone());
        {
            let mut request_queue = tenure.pipeline.request_queue.lock();
            request_queue.marking = Some(connection.marking);
            request_queue.mark();
            request_queue.next()
        }
        .into_iter()
        .for_each(Waker::wake);
        Driver {
            timer: Box::pin(sleep_until(now + tenure.server.timeouts().exchange)),
            tenure,
            connection,
            has_served: false,
            has_timed_out: false,
            last_active: now,
            waiting_until: None,
            arrived: 0,
            arrived_since: now,
        }
    }

    /// One turn: takes, writes, reads. Ready once the pipeline is retired and has nothing to do.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Failure> {
        self.take(cx)?;
        self.send(cx)?;
        self.receive(cx)?;
        self.give_way()?;
        if let Marking::WhereUnproven(command) = self.connection.marking
            && self.tenure.in_flight.lacks_proof()
        {
            let Connection { tokens, outgoing, .. } = &mut self.connection;
            let marker = Awaited::Marker(tokens.write_marker(command, outgoing));
            self.tenure.in_flight.push(marker, Instant::now());
            self.send(cx)?;
        }
        self.make_room();
        self.keep_time(cx)?;
        if self.tenure.pipeline.is_retired.load(Ordering::Relaxed) && self.is_done() {
            return Ok(Poll::Ready(()));
        }
        Ok(Poll::Pending)
    }

    /// Takes what callers have appended.
    fn take(&mut self, cx: &Context<'_>) -> Result<(), Failure> {
        let Driver { tenure, connection, .. } = self;
        if tenure.pipeline.is_abandoned.load(Ordering::Relaxed) {
            let error = ended(&tenure.server);
            tenure.end(&error, Progress::Unsent);
            return Ok(());
        }
        let mut request_queue = tenure.pipeline.request_queue.lock();
        if request_queue.driver.is_none() {
            request_queue.driver = Some(cx.waker().clone());
        }
        if request_queue.appended.is_empty() {
            return Ok(());
        }
        request_queue.mark();
        let is_careful = mem::take(&mut request_queue.is_careful);
        let now = Instant::now();
        if tenure.in_flight.is_empty() {
            if (is_careful || now - self.last_active > REST) && !connection.stream.is_quiet() {
                let error = ended(&tenure.server);
                if self.has_served {
                    tenure.server.lost();
                } else {
                    // It lets everybody in, and serves nobody.
                    tenure.server.failed(&error, false);
                }
                return Err(Failure { error, progress: Progress::Unsent });
            }
            (self.arrived, self.arrived_since) = (0, now);
        }
        request_queue.appended.drain(..).for_each(|awaited| tenure.in_flight.push(awaited, now));
        request_queue.outgoing.move_to(&mut connection.outgoing);
        drop(request_queue);
        refresh_address(&tenure.server, tenure.pipeline.runtime);
        Ok(())
    }

    fn send(&mut self, cx: &mut Context<'_>) -> Result<()> {
        let Connection { endpoint, stream, outgoing, .. } = &mut self.connection;
        match outgoing.poll_send(&mut **stream, cx) {
            Poll::Ready(Err(error)) if has_ended(&error) => {
                // The end will be received, and before it perhaps why the server does not read on.
                self.tenure.server.pipelines.retire(&self.tenure.pipeline);
                Ok(())
            }
            // Whatever followed would be taken for the rest of what was cut short.
            Poll::Ready(Err(error)) => Err(io_error("send to", endpoint, error)),
            _ => Ok(()),
        }
    }

    /// Receives and hands out what there is.
    fn receive(&mut self, cx: &mut Context<'_>) -> Result<()> {
        let Driver { tenure: Tenure { server, in_flight, .. }, connection, .. } = self;
        let protocol = &server.protocol;
        let mut received = 0;
        let mut has_proven = false;
        while let Poll::Ready(count) = connection.stream.poll_receive(cx, connection.frames.space()) {
            let count = at_least_one(count).map_err(|error| io_error("receive from", &connection.endpoint, error))?;
            connection.frames.received(count);
            received += count;
            while let Some(cut) = connection
                .frames
                .next_if(in_flight.is_next_wanted())
                .map_err(|what| malformed(&connection.endpoint, &what))?
            {
                has_proven |= in_flight.accept(protocol, connection.marking, connection.frames.frame(cut))?;
            }
            if received >= AT_A_TIME {
                // Not merely woken, which would keep the runtime from looking at its other sockets for 61 turns.
                let _ = pin!(yield_now()).poll(cx);
                break;
            }
        }
        if has_proven {
            self.has_served = true;
            server.succeeded();
            if mem::take(&mut in_flight.is_replaced) && server.protocol.discovery().is_some() {
                server.replaced();
            }
        }
        if received > 0 {
            self.note_arrival(received);
        }
        Ok(())
    }

    fn note_arrival(&mut self, count: usize) {
        self.last_active = Instant::now();
        self.arrived += count;
        if self.arrived >= ARRIVING {
            let time = self.last_active - self.arrived_since;
            if time <= self.tenure.server.timeouts().exchange {
                self.tenure.in_flight.arrived_for(time);
            }
            (self.arrived, self.arrived_since) = (0, self.last_active);
        }
    }

    /// While a large value is under way, has reads go another way. One that nobody waits for any more is not received.
    fn give_way(&mut self) -> Result<(), Failure> {
        let Driver { tenure: Tenure { server, pipeline, in_flight }, connection, .. } = self;
        let receives_large = connection.frames.announced().is_some_and(|length| length > LARGE_VALUE);
        pipeline.is_behind_large_value.store(receives_large || connection.outgoing.has_large(), Ordering::Relaxed);
        if receives_large {
            in_flight.evade(&ended(server));
            if !in_flight.is_waited_for() {
                return Err(Failure { error: ended(server), progress: Progress::Unsent });
            }
        }
        Ok(())
    }

    /// Lets as many callers go on as there is room for.
    fn make_room(&mut self) {
        let Driver { tenure: Tenure { pipeline, in_flight, .. }, connection, .. } = self;
        let mut request_queue = pipeline.request_queue.lock();
        request_queue.used.requests -= in_flight.take_ended();
        request_queue.used.bytes = connection.outgoing.len() + request_queue.outgoing.len();
        let woken = request_queue.next();
        self.waiting_until = request_queue.waiters.first_deadline().map(Instant::from_std);
        drop(request_queue);
        woken.into_iter().for_each(Waker::wake);
    }

    /// When something has to happen, if nothing arrives.
    fn next_deadline(&self) -> Option<Instant> {
        let reply = self.tenure.in_flight.deadline(self.tenure.server.timeouts().exchange);
        [reply, self.waiting_until, self.end_of_service()].into_iter().flatten().min()
    }

    /// When the connection has been idle for too long, or is too old, to take more requests.
    fn end_of_service(&self) -> Option<Instant> {
        let Tenure { server, pipeline, in_flight } = &self.tenure;
        if pipeline.is_retired.load(Ordering::Relaxed) {
            return None;
        }
        let Settings { max_idle, max_age, .. } = server.settings;
        let max_idle = if pipeline.is_extra { Some(EXTRA_IDLE) } else { max_idle };
        let idle = max_idle.filter(|_| in_flight.is_empty()).map(|time| self.last_active + time);
        let old = max_age.map(|time| Instant::from_std(self.connection.opened) + time);
        [idle, old].into_iter().flatten().min()
    }

    /// Waits for the next deadline, and for the one after it.
    fn keep_time(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        while let Some(next) = self.next_deadline() {
            if self.timer.deadline() > next {
                self.timer.as_mut().reset(next);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                break;
            }
            let now = Instant::now();
            if now < next {
                self.timer.as_mut().reset(next);
            } else {
                self.expire(now)?;
            }
        }
        Ok(())
    }

    /// Fails what is late. A connection on which a reply was takes no more requests.
    fn expire(&mut self, now: Instant) -> Result<(), Failure> {
        let is_over = self.end_of_service().is_some_and(|end| end <= now);
        let Tenure { server, pipeline, in_flight } = &mut self.tenure;
        let timeout = server.timeouts().exchange;
        if is_over {
            server.pipelines.retire(pipeline);
        }
        if in_flight.deadline(timeout).is_some_and(|deadline| deadline <= now) {
            let late = timed_out("receive from", &self.connection.endpoint);
            in_flight.expire(now, timeout, &late);
            if !mem::replace(&mut self.has_timed_out, true) {
                server.failed(&late, self.has_served);
                server.pipelines.retire(pipeline);
            }
            if !in_flight.is_waited_for() {
                return Err(late.into());
            }
        }
        self.make_room();
        Ok(())
    }

    /// Whether nothing is left to do; then the pipeline is closed.
    fn is_done(&mut self) -> bool {
        let Driver { tenure: Tenure { server, pipeline, in_flight }, .. } = self;
        let mut request_queue = pipeline.request_queue.lock();
        let is_done = in_flight.is_empty() && request_queue.appended.is_empty();
        if is_done {
            request_queue.closed = Some(ended(server));
        }
        is_done
    }

    /// Fails what is in flight.
    fn fail(&mut self, failure: &Failure) {
        let Failure { error, progress } = failure;
        let is_silent = self.has_served && error.kind() == ErrorKind::Io && self.connection.frames.is_empty();
        let Tenure { server, in_flight, .. } = &mut self.tenure;
        let is_no_outage = is_silent || in_flight.is_refused(&server.protocol);
        if *progress == Progress::Unknown && in_flight.is_waited_for() && !is_no_outage && !self.has_timed_out {
            server.failed(error, self.has_served);
        } else if is_silent {
            server.lost();
        }
        in_flight.fail(&server.protocol, error, is_silent);
        self.tenure.end(error, Progress::Unsent);
    }
}

/// Whether nothing can be sent any more, so that nothing can follow a request that was cut short.
fn has_ended(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Nothing in it is pinned but the timer, which is on the heap.
impl<P: Protocol> Unpin for Driver<P> {}

impl<P: Protocol> Future for Driver<P> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.turn(cx).unwrap_or_else(|failure| {
            self.fail(&failure);
            Poll::Ready(())
        })
    }
}
