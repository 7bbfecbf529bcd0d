//! Pipelines: inside a tokio runtime, one connection on which many requests are in flight.
//!
//! A caller appends its request to a shared buffer, under a short lock, and waits for its reply in a slot. A
//! [`driver`], a task of the runtime, writes all appended requests at once, receives the replies and puts them into the
//! slots in order. The driver also dials, so a caller that is dropped does not end a connection that others wait for.
//!
//! Once a request is appended, its bytes belong to the pipeline. If its caller is dropped, the request is still sent
//! whole, and its reply is read and discarded.
//!
//! # States
//!
//! A pipeline:
//!
//! | state | next |
//! | --- | --- |
//! | connecting: open, no connection yet; takes up to [`CAPACITY_BEFORE_CONNECTED`](request_queue::CAPACITY_BEFORE_CONNECTED) | *connected*, when the greeting succeeds; *closed*, when the dial fails |
//! | connected: open; takes up to [`CAPACITY`](request_queue::CAPACITY) | *retired*, at the idle or age limit, at the first timeout of a request, by a reset, or when sending fails because the server has closed; *abandoned*, when the server has another address; *closed*, when the connection fails |
//! | retired: not in the table, so no new request is routed to it; the others go on | *closed*, when nothing is appended or in flight, when the connection fails, or when all requests in flight have failed |
//! | abandoned: retired; requests that were not sent go to another pipeline | *closed*, as *retired* |
//! | closed: appending fails with the pipeline's error, and the driver has ended or ends | |
//!
//! A request:
//!
//! | state | next |
//! | --- | --- |
//! | waiting for capacity | *appended*, when there is capacity; *failed*, at its deadline |
//! | appended | *in flight*, when the driver takes it to send it; *failed* or submitted again, when the pipeline is closed or abandoned |
//! | in flight | *held*, when its reply is complete; *failed*, at its deadline; *rerouted*, if it is a read behind a large value; *failed* or sent again, when the connection ends |
//! | held: the reply is complete and not yet proven | *done*, when a proof arrives; *failed*, if the marker is refused |
//! | done, failed, rerouted | its caller returns, or submits the request again ([`resubmit`]) |
//!
//! # Order
//!
//! A runtime has one *primary* pipeline to a server. All writes go through it, in order. While it is behind a large
//! value, reads go through an *extra* pipeline. Reads that are in flight behind the value are sent again there, and the
//! first reply to them is discarded. An extra pipeline is closed after it has been idle for five seconds.
//!
//! # Backpressure
//!
//! A pipeline takes a limited number of requests and of bytes. Further callers wait for capacity, within the timeouts.
//!
//! # Forks
//!
//! The table of pipelines is process-local. The driver and the future of a request belong to their process: in another
//! process they touch no lock, no waker and no socket, and their drop leaks them.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::time::Instant;

use super::connection::Protocol;
use super::retry::Retry;
use super::server::{Server, full};
use super::wait_queue::Waiter;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::exchange_timeout;
use crate::lifecycle::ProcessBound;
use crate::lifecycle::runtime::RuntimeId;
use routes::Kind;
pub(super) use routes::Pipelines;
use slot::Appended;

mod driver;
mod in_flight;
mod large_reads;
mod request_queue;
mod routes;
mod slot;

/// The size in bytes above which a value delays the replies behind it, so that reads avoid it.
const LARGE_VALUE: usize = 64 << 10;

/// The number of attempts to send a request, each over another connection.
const ATTEMPTS: usize = 4;

/// Appends a request to this runtime's pipeline and waits for the reply. A failure is passed to [`resubmit`].
pub(super) fn submit<P: Protocol>(
    server: &Arc<Server<P>>,
    runtime: RuntimeId,
    request: &P::Request,
    retry: Retry,
) -> impl Future<Output = Result<P::Reply, Failure>> + Send {
    submit_as(server.pipelines.kind(request), server, runtime, request, retry)
}

fn submit_as<P: Protocol>(
    kind: Kind,
    server: &Arc<Server<P>>,
    runtime: RuntimeId,
    request: &P::Request,
    retry: Retry,
) -> impl Future<Output = Result<P::Reply, Failure>> + Send {
    let mut appended: Option<Appended<P>> = None;
    poll_fn(move |cx| match &mut appended {
        Some(appended) => Pin::new(appended).poll(cx),
        None => {
            let route = server.pipelines.route(server, runtime, kind)?;
            appended = route.append_or_wait(server, request, retry, None, cx.waker())?;
            if appended.is_some() {
                return Poll::Pending;
            }
            Poll::Ready(Err(Failure { error: full(server.protocol.endpoint()), progress: Progress::NoCapacity }))
        }
    })
}

/// Records a large value, for the route of the next read of its key, and a reply that says that this is the wrong
/// server.
#[inline]
pub(super) fn record_reply<P: Protocol>(server: &Server<P>, request: &P::Request, reply: &P::Reply) {
    if P::is_last(reply) {
        server.retire_old_connections();
    }
    if P::longest_value(reply) > LARGE_VALUE && P::is_read(request) {
        server.pipelines.remember_large(request);
    }
}

/// Waits for capacity, or submits the request again, where the failure allows it. Otherwise returns the error.
pub(super) async fn resubmit<P: Protocol>(
    server: &Arc<Server<P>>,
    runtime: RuntimeId,
    request: &P::Request,
    mut retry: Retry,
    mut failure: Failure,
) -> Result<P::Reply> {
    let mut attempts = 1;
    loop {
        let outcome = match failure.progress {
            Progress::NoCapacity => match wait_and_append(server, runtime, request, retry).await {
                Ok(appended) => appended.await,
                Err(failure) => Err(failure),
            },
            Progress::Rerouted => submit_as(Kind::ReroutedRead, server, runtime, request, retry).await,
            Progress::Unsent if attempts < ATTEMPTS => {
                attempts += 1;
                submit(server, runtime, request, retry).await
            }
            Progress::Unanswered if retry == Retry::Idempotent => {
                retry = Retry::Never;
                submit(server, runtime, request, retry).await
            }
            Progress::Unsent | Progress::Unanswered | Progress::Unknown => return Err(failure.error),
        };
        failure = match outcome {
            Ok(reply) => {
                record_reply(server, request, &reply);
                return Ok(reply);
            }
            Err(failure) => failure,
        };
    }
}

/// Waits for capacity and appends the request. The driver wakes the caller at the deadline. It has the only timer: one
/// in a caller's future would panic when its runtime is shut down.
async fn wait_and_append<P: Protocol>(
    server: &Arc<Server<P>>,
    runtime: RuntimeId,
    request: &P::Request,
    retry: Retry,
) -> Result<Appended<P>, Failure> {
    let pipelines = &server.pipelines;
    let appended = ProcessBound::new(Box::pin(async move {
        let route = pipelines.route(server, runtime, pipelines.kind(request))?;
        let deadline = Instant::now() + server.timeouts().connect + exchange_timeout(server.timeouts().exchange);
        let mut waiter = Waiter::new(&route.pipeline.request_queue, deadline.into_std());
        poll_fn(|cx| match route.append_or_wait(server, request, retry, Some(&mut waiter), cx.waker()) {
            Ok(None) => Poll::Pending,
            Ok(Some(appended)) => Poll::Ready(Ok(appended)),
            Err(failure) => Poll::Ready(Err(failure)),
        })
        .await
    }));
    appended.await.unwrap_or_else(|| Err(Error::begun_by_parent().into()))
}

/// The error of a request, and how far the request had come.
#[derive(Debug)]
pub(super) struct Failure {
    error: Error,
    progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// It was not appended, because the pipeline was at capacity.
    NoCapacity,
    /// It is a read behind a large value, to be sent through another pipeline.
    Rerouted,
    /// No byte of it was sent.
    Unsent,
    /// The connection had served replies before, and ended before a byte of the reply to this request.
    Unanswered,
    /// The server may have executed it.
    Unknown,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { error, progress: Progress::Unknown }
    }
}

/// The error of requests on a pipeline that was closed without a failure of its own.
fn closed<P: Protocol>(server: &Server<P>) -> Error {
    let context = format!("the connection to {} was closed", server.protocol.endpoint());
    Error::new(ErrorKind::Io, context)
}
