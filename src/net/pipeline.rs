//! Inside a tokio runtime: one connection on which many requests are in flight.
//!
//! A caller appends its request to a shared buffer, under one short lock, and waits for its slot. A [`driver`], a task
//! of the runtime, writes what has gathered in one go, cuts the replies and hands them to the slots in order. It also
//! dials, so that a caller that gives up takes nobody's connection with it.
//!
//! From being appended a request's bytes belong to the pipeline. A caller that is dropped neither removes nor truncates
//! them, and the reply to it is read and thrown away.
//!
//! # Order
//!
//! A runtime has one *primary* pipeline to a server, which every change goes through, in order. While that one is
//! behind a large value, reads go through an extra one, those too that were in flight behind the value: they are sent
//! again, and the first reply to them is thrown away. An extra pipeline is closed when it has had nothing to do for a
//! while.
//!
//! # Backpressure
//!
//! A pipeline takes a bounded number of requests and of bytes. Who comes next waits, within the timeouts, until there
//! is room.
//!
//! # Over a fork
//!
//! The table of pipelines is a process's own. The driver and the future of a request are bound to their process: in
//! another one they touch no lock, no waker and no socket, and are forgotten when they are dropped.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::time::Instant;

use super::connection::Protocol;
use super::link::Retry;
use super::server::{Server, full};
use super::wait_queue::Waiter;
use crate::error::{Error, ErrorKind, Result};
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

/// A value of more bytes than this keeps other replies waiting.
const LARGE_VALUE: usize = 64 << 10;

/// How often a request that was not sent is tried over another connection.
const ATTEMPTS: usize = 4;

/// Appends a request to this runtime's pipeline, and waits for the reply. A failure goes to [`conclude`].
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
            Poll::Ready(Err(Failure { error: full(server.protocol.endpoint()), progress: Progress::NoRoom }))
        }
    })
}

/// Notes a reply that kept others waiting, or that says that this is the wrong server.
#[inline]
pub(super) fn note<P: Protocol>(server: &Server<P>, request: &P::Request, reply: &P::Reply) {
    if P::is_last(reply) {
        server.leave();
    }
    if P::longest_value(reply) > LARGE_VALUE && P::is_read(request) {
        server.pipelines.remember_large(request);
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
        let outcome = match failure.progress {
            Progress::NoRoom => match append_when_there_is_room(server, runtime, request, retry).await {
                Ok(appended) => appended.await,
                Err(failure) => Err(failure),
            },
            Progress::Evaded => submit_as(Kind::EvadedRead, server, runtime, request, retry).await,
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
                note(server, request, &reply);
                return Ok(reply);
            }
            Err(failure) => failure,
        };
    }
}

/// Waits until there is room, or the driver says that it took too long. The driver has the only timer: one in a
/// caller's future would panic when its runtime is shut down.
async fn append_when_there_is_room<P: Protocol>(
    server: &Arc<Server<P>>,
    runtime: RuntimeId,
    request: &P::Request,
    retry: Retry,
) -> Result<Appended<P>, Failure> {
    let pipelines = &server.pipelines;
    let room = ProcessBound::new(Box::pin(async move {
        let route = pipelines.route(server, runtime, pipelines.kind(request))?;
        let deadline = Instant::now() + server.timeouts().connect + server.timeouts().exchange;
        let mut turn = Waiter::new(&route.pipeline.request_queue, deadline.into_std());
        poll_fn(|cx| match route.append_or_wait(server, request, retry, Some(&mut turn), cx.waker()) {
            Ok(None) => Poll::Pending,
            Ok(Some(appended)) => Poll::Ready(Ok(appended)),
            Err(failure) => Poll::Ready(Err(failure)),
        })
        .await
    }));
    room.await.unwrap_or_else(|| Err(Error::begun_by_parent().into()))
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

/// What a pipeline is closed with once its driver has ended without a failure.
fn ended<P: Protocol>(server: &Server<P>) -> Error {
    let context = format!("the connection to {} was closed", server.protocol.endpoint());
    Error::new(ErrorKind::Io, context)
}
