//! The task of a pipeline: it dials, sends the requests that callers have appended, and hands out the replies.
//!
//! It ends when the connection fails, when the pipeline is retired and nothing is in flight, or when its runtime is
//! shut down. In each case it completes the slots of all callers. The states are in [`pipeline`](super).

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
use super::{Failure, LARGE_VALUE, Progress, closed};
use crate::error::{Error, ErrorKind, Result};
use crate::execution::Execution;
use crate::lifecycle::ProcessBound;
use crate::lifecycle::runtime::RuntimeId;
use crate::net::connection::{CHECK_AFTER_IDLE, Connection, Marking, Protocol, at_least_one, malformed};
use crate::net::io_errors::{io_error, timed_out};
use crate::net::server::{Admissions, Server};
use crate::net::settings::Settings;
use crate::net::wait_queue::Limited;

/// The number of bytes that are received before the task yields to others.
const RECEIVE_BUDGET: usize = 256 << 10;

/// The number of bytes that must arrive within a timeout for the deadlines of the requests in flight to be extended.
const PROGRESS_BYTES: usize = 64 << 10;

/// How long an extra pipeline may be idle before it is closed.
const EXTRA_IDLE: Duration = Duration::from_secs(5);

/// Spawns the task, on the current runtime.
pub(super) fn spawn<P: Protocol>(server: &Arc<Server<P>>, pipeline: &Arc<Pipeline<P>>, admissions: Admissions) {
    let guard =
        PipelineGuard { server: Arc::clone(server), pipeline: Arc::clone(pipeline), in_flight: InFlight::new() };
    let execution = Execution::Tokio(pipeline.runtime);
    tokio::spawn(ProcessBound::new(Box::pin(async move {
        let mut guard = guard;
        match guard.server.open(execution, admissions).await {
            Ok(connection) => Driver::new(guard, connection).await,
            Err(error) => {
                // Requests of an extra pipeline can go through the primary one.
                let progress = if guard.pipeline.is_extra { Progress::Unsent } else { Progress::Unknown };
                guard.end(&error, progress);
            }
        }
    })));
}

/// If it is due, looks up the server's address in a task of its own, while requests go on.
fn refresh_address<P: Protocol>(server: &Arc<Server<P>>, runtime: RuntimeId) {
    if server.is_address_due() {
        let server = Arc::clone(server);
        let refresh = async move { server.refresh_address(Execution::Tokio(runtime)).await };
        tokio::spawn(ProcessBound::new(Box::pin(refresh)));
    }
}

/// A pipeline and its requests in flight. The drop fails all of them, so that no caller waits after the driver ends.
struct PipelineGuard<P: Protocol> {
    server: Arc<Server<P>>,
    pipeline: Arc<Pipeline<P>>,
    in_flight: InFlight<P>,
}

impl<P: Protocol> PipelineGuard<P> {
    /// Closes the pipeline, and fails the requests that were appended and not yet taken.
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

impl<P: Protocol> Drop for PipelineGuard<P> {
    fn drop(&mut self) {
        let error = closed(&self.server);
        self.in_flight.fail(&self.server.protocol, &error, false);
        self.end(&error, Progress::Unsent);
    }
}

/// The future of the task, once the pipeline is connected.
struct Driver<P: Protocol> {
    guard: PipelineGuard<P>,
    connection: Connection<P>,
    timer: Pin<Box<Sleep>>,
    /// Whether a reply was proven on this connection.
    has_served: bool,
    /// Whether a request has timed out.
    has_timed_out: bool,
    /// When bytes last arrived.
    last_active: Instant,
    /// The deadline of the first caller that waits for capacity.
    first_waiter_deadline: Option<Instant>,
    /// The number of bytes that have arrived since `arrived_since`, to compare with [`PROGRESS_BYTES`].
    arrived: usize,
    arrived_since: Instant,
}

impl<P: Protocol> Driver<P> {
    fn new(guard: PipelineGuard<P>, connection: Connection<P>) -> Driver<P> {
        let now = Instant::now();
        guard.pipeline.set_opened(connection.opened, connection.endpoint.clone());
        {
            let mut request_queue = guard.pipeline.request_queue.lock();
            request_queue.marking = Some(connection.marking);
            request_queue.mark();
            request_queue.next()
        }
        .into_iter()
        .for_each(Waker::wake);
        Driver {
            timer: Box::pin(sleep_until(now + guard.server.timeouts().exchange)),
            guard,
            connection,
            has_served: false,
            has_timed_out: false,
            last_active: now,
            first_waiter_deadline: None,
            arrived: 0,
            arrived_since: now,
        }
    }

    /// Takes the appended requests, sends and receives. Ready once the pipeline is retired and has nothing to do.
    fn step(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Failure> {
        self.take(cx)?;
        self.send(cx)?;
        self.receive(cx)?;
        self.reroute_around_large_value()?;
        if let Marking::WhereUnproven(command) = self.connection.marking
            && self.guard.in_flight.lacks_proof()
        {
            let Connection { tokens, outgoing, .. } = &mut self.connection;
            self.guard.in_flight.push_marker(tokens.write_marker(command, outgoing));
            self.send(cx)?;
        }
        self.wake_waiters();
        self.poll_timer(cx)?;
        if self.guard.pipeline.is_retired.load(Ordering::Relaxed) && self.is_done() {
            return Ok(Poll::Ready(()));
        }
        Ok(Poll::Pending)
    }

    /// Takes the requests that callers have appended.
    fn take(&mut self, cx: &Context<'_>) -> Result<(), Failure> {
        let Driver { guard, connection, .. } = self;
        if guard.pipeline.is_abandoned.load(Ordering::Relaxed) {
            let error = closed(&guard.server);
            guard.end(&error, Progress::Unsent);
            return Ok(());
        }
        let mut request_queue = guard.pipeline.request_queue.lock();
        if request_queue.driver.is_none() {
            request_queue.driver = Some(cx.waker().clone());
        }
        if request_queue.appended.is_empty() {
            return Ok(());
        }
        request_queue.mark();
        let must_check = mem::take(&mut request_queue.must_check);
        let now = Instant::now();
        if guard.in_flight.is_empty() {
            if (must_check || now - self.last_active > CHECK_AFTER_IDLE) && !connection.stream.is_quiet() {
                let error = closed(&guard.server);
                if self.has_served {
                    guard.server.connection_lost();
                } else {
                    // The server accepts connections and closes them without a reply.
                    guard.server.failed(&error, false);
                }
                return Err(Failure { error, progress: Progress::Unsent });
            }
            (self.arrived, self.arrived_since) = (0, now);
        }
        guard.in_flight.append(&mut request_queue.appended, now);
        request_queue.outgoing.move_to(&mut connection.outgoing);
        drop(request_queue);
        refresh_address(&guard.server, guard.pipeline.runtime);
        Ok(())
    }

    fn send(&mut self, cx: &mut Context<'_>) -> Result<()> {
        let Connection { endpoint, stream, outgoing, .. } = &mut self.connection;
        match outgoing.poll_send(&mut **stream, cx) {
            Poll::Ready(Err(error)) if has_ended(&error) => {
                // The end of the stream will be received, perhaps after a reply with the reason.
                self.guard.server.pipelines.retire(&self.guard.pipeline);
                Ok(())
            }
            // The server would take bytes that are sent after a request that was cut short for the rest of it.
            Poll::Ready(Err(error)) => Err(io_error("send to", endpoint, error)),
            _ => Ok(()),
        }
    }

    /// Receives the bytes that have arrived, and hands out the proven replies.
    fn receive(&mut self, cx: &mut Context<'_>) -> Result<()> {
        let Driver { guard: PipelineGuard { server, in_flight, .. }, connection, .. } = self;
        let protocol = &server.protocol;
        let mut received = 0;
        let mut has_proven = false;
        while let Poll::Ready(count) = connection.stream.poll_receive(cx, connection.frames.space()) {
            let count = at_least_one(count).map_err(|error| io_error("receive from", &connection.endpoint, error))?;
            connection.frames.received(count);
            received += count;
            loop {
                has_proven |= connection.frames.take(|bytes| in_flight.accept_run(protocol, connection.marking, bytes));
                let cut = connection.frames.next_if(in_flight.is_next_wanted());
                let Some(cut) = cut.map_err(|what| malformed(&connection.endpoint, &what))? else { break };
                has_proven |= in_flight.accept(protocol, connection.marking, connection.frames.frame(cut))?;
            }
            if received >= RECEIVE_BUDGET {
                // `yield_now` instead of `wake`: a task that only wakes itself makes the runtime run up to 61 tasks
                // before it polls its other sockets.
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
            self.record_arrival(received);
        }
        Ok(())
    }

    /// Counts received bytes. Extends the deadlines in flight each time that enough have arrived within a timeout.
    fn record_arrival(&mut self, count: usize) {
        self.last_active = Instant::now();
        self.arrived += count;
        if self.arrived >= PROGRESS_BYTES {
            let time = self.last_active - self.arrived_since;
            if time <= self.guard.server.timeouts().exchange {
                self.guard.in_flight.add_active_time(time);
            }
            (self.arrived, self.arrived_since) = (0, self.last_active);
        }
    }

    /// While a large value is sent or received, new reads avoid this pipeline. While one is received, reads in flight
    /// behind it are rerouted. If all requests in flight have failed or were rerouted, the connection is closed instead
    /// of receiving the value.
    fn reroute_around_large_value(&mut self) -> Result<(), Failure> {
        let Driver { guard: PipelineGuard { server, pipeline, in_flight }, connection, .. } = self;
        let receives_large = connection.frames.announced().is_some_and(|length| length > LARGE_VALUE);
        pipeline.is_behind_large_value.store(receives_large || connection.outgoing.has_large(), Ordering::Relaxed);
        if receives_large {
            in_flight.reroute_reads(&closed(server));
            if !in_flight.has_live_requests() {
                return Err(Failure { error: closed(server), progress: Progress::Unsent });
            }
        }
        Ok(())
    }

    /// Updates the load, and wakes as many waiting callers as there is capacity for.
    fn wake_waiters(&mut self) {
        let Driver { guard: PipelineGuard { pipeline, in_flight, .. }, connection, .. } = self;
        let mut request_queue = pipeline.request_queue.lock();
        request_queue.used.requests -= in_flight.take_ended();
        request_queue.used.bytes = connection.outgoing.len() + request_queue.outgoing.len();
        let woken = request_queue.next();
        self.first_waiter_deadline = request_queue.waiters.first_deadline().map(Instant::from_std);
        drop(request_queue);
        woken.into_iter().for_each(Waker::wake);
    }

    /// When the driver must act next, if nothing arrives.
    fn next_deadline(&self) -> Option<Instant> {
        let reply = self.guard.in_flight.deadline(self.guard.server.timeouts().exchange);
        [reply, self.first_waiter_deadline, self.end_of_service()].into_iter().flatten().min()
    }

    /// When the connection reaches its idle limit or its age limit. `None` if it is retired already.
    fn end_of_service(&self) -> Option<Instant> {
        let PipelineGuard { server, pipeline, in_flight } = &self.guard;
        if pipeline.is_retired.load(Ordering::Relaxed) {
            return None;
        }
        let Settings { max_idle, max_age, .. } = server.settings;
        let max_idle = if pipeline.is_extra { Some(EXTRA_IDLE) } else { max_idle };
        let idle = max_idle.filter(|_| in_flight.is_empty()).map(|time| self.last_active + time);
        let old = max_age.map(|time| Instant::from_std(self.connection.opened) + time);
        [idle, old].into_iter().flatten().min()
    }

    /// Sets the timer to the next deadline, and acts on deadlines that have passed.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
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

    /// Fails the requests whose deadline has passed. The first timeout of a connection retires the pipeline.
    fn expire(&mut self, now: Instant) -> Result<(), Failure> {
        let is_over = self.end_of_service().is_some_and(|end| end <= now);
        let PipelineGuard { server, pipeline, in_flight } = &mut self.guard;
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
            if !in_flight.has_live_requests() {
                return Err(late.into());
            }
        }
        self.wake_waiters();
        Ok(())
    }

    /// Returns whether nothing is appended or in flight, and if so closes the pipeline.
    fn is_done(&mut self) -> bool {
        let Driver { guard: PipelineGuard { server, pipeline, in_flight }, .. } = self;
        let mut request_queue = pipeline.request_queue.lock();
        let is_done = in_flight.is_empty() && request_queue.appended.is_empty();
        if is_done {
            request_queue.closed = Some(closed(server));
        }
        is_done
    }

    /// Fails the requests in flight, and records the failure of the server if it is one.
    fn fail(&mut self, failure: &Failure) {
        let Failure { error, progress } = failure;
        let is_idle_close = self.has_served && error.kind() == ErrorKind::Io && self.connection.frames.is_empty();
        let PipelineGuard { server, in_flight, .. } = &mut self.guard;
        let is_no_outage = is_idle_close || in_flight.has_refusal(&server.protocol);
        if *progress == Progress::Unknown && in_flight.has_live_requests() && !is_no_outage && !self.has_timed_out {
            server.failed(error, self.has_served);
        } else if is_idle_close {
            server.connection_lost();
        }
        in_flight.fail(&server.protocol, error, is_idle_close);
        self.guard.end(error, Progress::Unsent);
    }
}

/// Returns whether a send failed because the server has closed the connection: then nothing can be sent after a request
/// that was cut short.
fn has_ended(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Only the timer is pinned, and it is boxed.
impl<P: Protocol> Unpin for Driver<P> {}

impl<P: Protocol> Future for Driver<P> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.step(cx).unwrap_or_else(|failure| {
            self.fail(&failure);
            Poll::Ready(())
        })
    }
}
