//! Calls to a server: over pooled connections for blocking callers, over a pipeline in each tokio runtime.
//!
//! Rare steps (a dial, a wait for a permit, a second attempt) are boxed futures. Otherwise the future of every exchange
//! would be large enough to hold them.

use std::fmt::{self, Debug};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::breaker::Admission;
use super::connection::{Connection, Protocol};
use super::join_all::ExchangeGroup;
#[cfg(feature = "tokio")]
use super::pipeline;
use super::pool::{Checkout, NoCheckout};
use super::retry::Retry;
use super::server::{Server, full};
use super::settings::Settings;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::{Execution, exchange_timeout, execution, slice_end};
#[cfg(feature = "tokio")]
use crate::lifecycle::runtime::RuntimeId;
use crate::net::io_errors::timed_out;
use crate::server_stats::ServerStats;

/// The way to a server over one protocol.
pub(crate) struct Link<P: Protocol>(Arc<Server<P>>);

impl<P: Protocol> Link<P> {
    /// Creates a link, without I/O.
    pub(crate) fn new(protocol: P, settings: Settings) -> Link<P> {
        Link(Arc::new(Server::new(protocol, settings)))
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        self.0.protocol.endpoint()
    }

    #[cfg(feature = "redis")]
    pub(crate) fn protocol(&self) -> &P {
        &self.0.protocol
    }

    /// Returns whether the server has failed or become suspect since its last reply.
    #[cfg(feature = "redis")]
    pub(crate) fn is_doubtful(&self) -> bool {
        self.0.is_doubtful()
    }

    pub(crate) fn stats(&self) -> ServerStats {
        self.0.stats()
    }

    /// Runs one exchange. With a group, it runs at the same time as the group's other exchanges.
    pub(crate) async fn call(
        &self,
        request: &P::Request,
        retry: Retry,
        group: Option<&ExchangeGroup>,
    ) -> Result<P::Reply> {
        match execution()? {
            Execution::Inline if group.is_some() || slice_end().is_some() => {
                Box::pin(call_inline(&self.0, request, retry, group)).await
            }
            Execution::Inline => poll_once(call_inline(&self.0, request, retry, None)),
            #[cfg(feature = "tokio")]
            Execution::Tokio(runtime) => {
                let default = self.0.timeouts().exchange;
                let timeout = exchange_timeout(default);
                if timeout < default {
                    // After a timeout the request is still in flight; the pipeline discards its reply.
                    let call = Box::pin(tokio::time::timeout(timeout, self.call_on(runtime, request, retry)));
                    return call.await.unwrap_or_else(|_| Err(timed_out("receive from", self.endpoint())));
                }
                self.call_on(runtime, request, retry).await
            }
        }
    }

    #[cfg(feature = "tokio")]
    async fn call_on(&self, runtime: RuntimeId, request: &P::Request, retry: Retry) -> Result<P::Reply> {
        match pipeline::submit(&self.0, runtime, request, retry).await {
            Ok(reply) => {
                pipeline::record_reply(&self.0, request, &reply);
                Ok(reply)
            }
            Err(failure) => Box::pin(pipeline::resubmit(&self.0, runtime, request, retry, failure)).await,
        }
    }

    /// Discards every connection, and closes the circuit breaker.
    pub(crate) fn reset(&self) {
        self.0.reset();
    }

    /// Discards every connection, then dials and sends `probe`. Returns the reply.
    pub(crate) async fn reconnect(&self, probe: &P::Request, group: Option<&ExchangeGroup>) -> Result<P::Reply> {
        self.reset();
        self.call(probe, Retry::Never, group).await
    }
}

async fn call_inline<P: Protocol>(
    server: &Server<P>,
    request: &P::Request,
    retry: Retry,
    group: Option<&ExchangeGroup>,
) -> Result<P::Reply> {
    let admission = server.admit()?;
    if server.is_address_due() {
        Box::pin(server.refresh_address(Execution::Inline)).await;
    }
    let has_shorter_timeout = exchange_timeout(server.timeouts().exchange) < server.timeouts().exchange;
    let mut checkout = check_out(server, group).await?;
    let now = Instant::now();
    if let Some(connection) = checkout.connection() {
        let was_idle = connection.was_idle(now);
        if (retry == Retry::Never || was_idle) && !connection.stream.is_quiet() {
            checkout.discard();
            server.connection_lost();
        } else if was_idle && server.is_outdated(connection) {
            checkout.discard();
        }
    }
    match attempt(server, &mut checkout, admission, now, request, group).await {
        Err(error) if retry == Retry::Idempotent && is_dead_on_arrival(&mut checkout, &error) => {
            checkout.discard();
            server.connection_lost();
            let again = Box::pin(attempt(server, &mut checkout, admission, now, request, group)).await;
            record_outcome(server, checkout, has_shorter_timeout, again)
        }
        outcome => record_outcome(server, checkout, has_shorter_timeout, outcome),
    }
}

/// Records the outcome of an exchange, and returns the connection to the pool or closes it.
fn record_outcome<P: Protocol>(
    server: &Server<P>,
    mut checkout: Checkout<'_, Box<Connection<P>>>,
    has_shorter_timeout: bool,
    outcome: Result<P::Reply>,
) -> Result<P::Reply> {
    let is_reused = checkout.is_reused();
    match (&outcome, checkout.connection()) {
        (Ok(reply), connection) => {
            server.succeeded();
            let connection = connection.expect("a reply came over a connection");
            if server.is_replaced(reply) {
                server.replaced();
            } else if P::is_last(reply) && server.is_past_retry_after(connection) {
                server.retire_old_connections();
            } else if server.is_at_current_address(connection) {
                checkout.finish();
            }
        }
        // The dial failed, and has been counted.
        (Err(_), None) => {}
        (Err(_), Some(connection)) if connection.is_usable_after_error => checkout.finish(),
        (Err(error), Some(connection)) if has_shorter_timeout && error.kind() == ErrorKind::Timeout => {
            if is_reused {
                server.distrust_idle(connection.begun);
            }
        }
        (Err(error), Some(_)) => server.failed(error, is_reused),
    }
    outcome
}

async fn check_out<'s, P: Protocol>(
    server: &'s Server<P>,
    group: Option<&ExchangeGroup>,
) -> Result<Checkout<'s, Box<Connection<P>>>> {
    match server.pool.try_lease() {
        Some(checkout) => Ok(checkout),
        None => Box::pin(wait_for_checkout(server, group)).await,
    }
}

async fn wait_for_checkout<'s, P: Protocol>(
    server: &'s Server<P>,
    group: Option<&ExchangeGroup>,
) -> Result<Checkout<'s, Box<Connection<P>>>> {
    if let Some(group) = group {
        group.let_finish().await;
    }
    let checkout = server.pool.lease(Instant::now() + exchange_timeout(server.timeouts().exchange)).await;
    checkout.map_err(|why| match why {
        NoCheckout::Exhausted => full(server.protocol.endpoint()),
        NoCheckout::Forked => Error::begun_by_parent(),
    })
}

async fn attempt<P: Protocol>(
    server: &Server<P>,
    checkout: &mut Checkout<'_, Box<Connection<P>>>,
    admission: Admission,
    mut now: Instant,
    request: &P::Request,
    group: Option<&ExchangeGroup>,
) -> Result<P::Reply> {
    if checkout.connection().is_none() {
        checkout.fill(Box::new(Box::pin(open(server, admission, group)).await?));
        now = Instant::now();
    }
    let connection = checkout.connection().expect("the checkout has a connection");
    let protocol = &server.protocol;
    let deadline = connection.begin(now, exchange_timeout(server.timeouts().exchange));
    let exchange = connection.send(protocol, request).await?;
    if let Some(group) = group {
        Box::pin(connection.set_aside(group, deadline)).await;
    }
    connection.receive(protocol, exchange).await
}

async fn open<P: Protocol>(
    server: &Server<P>,
    admission: Admission,
    group: Option<&ExchangeGroup>,
) -> Result<Connection<P>> {
    if let Some(group) = group {
        group.let_finish().await;
        if server.is_doubtful() {
            group.let_dial().await;
        }
        if group.is_over() {
            return Err(timed_out("connect to", server.protocol.endpoint()));
        }
    }
    server.open(Execution::Inline, server.admit_dial(admission)?).await
}

/// Polls an exchange once, which completes it: outside of slices an inline exchange blocks instead of suspending. It is
/// polled on the stack, so the futures that contain this call stay small.
fn poll_once<T>(exchange: impl Future<Output = T>) -> T {
    match pin!(exchange).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("a blocking exchange suspended"),
    }
}

/// Returns whether a reused connection failed before a byte of the reply: the server closed it while it was idle.
fn is_dead_on_arrival<P: Protocol>(checkout: &mut Checkout<'_, Box<Connection<P>>>, error: &Error) -> bool {
    let broke = error.kind() == ErrorKind::Io;
    broke && checkout.is_reused() && checkout.connection().is_some_and(|connection| !connection.has_received)
}

impl<P: Protocol> Debug for Link<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(feature = "tokio")]
impl<P: Protocol> Drop for Link<P> {
    fn drop(&mut self) {
        self.0.pipelines.reset();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;
    use std::time::Duration;

    use super::{Connection, Endpoint, Error, ErrorKind, Link, Protocol, Result, Retry, Settings, poll_once};
    use crate::execution::inline;
    use crate::net::{Accepted, Frame, Framing, Marking, Scan, Timeouts, WriteBuffer};

    /// A protocol of one line for each request and one for each reply.
    #[derive(Debug)]
    struct Lines(Endpoint);

    #[derive(Debug)]
    struct LineFraming;

    impl Framing for LineFraming {
        fn scan(&mut self, bytes: &[u8]) -> Result<Scan, String> {
            let end = bytes.iter().position(|byte| *byte == b'\n');
            Ok(end.map_or(Scan::Partial, |end| Scan::Complete { length: end + 1 }))
        }
    }

    impl Protocol for Lines {
        type Framing = LineFraming;
        type Request = String;
        type Partial = String;
        type Reply = String;

        fn endpoint(&self) -> &Endpoint {
            &self.0
        }

        fn framing(&self) -> LineFraming {
            LineFraming
        }

        fn max_value(&self) -> usize {
            usize::MAX
        }

        async fn greet(&self, _: &mut Connection<Lines>, _: usize) -> Result<Marking> {
            Ok(Marking::Impossible)
        }

        fn is_read(_: &String) -> bool {
            true
        }

        fn key(request: &String) -> &[u8] {
            request.as_bytes()
        }

        fn longest_value(reply: &String) -> usize {
            reply.len()
        }

        fn write(&self, request: &String, outgoing: &mut WriteBuffer) -> String {
            outgoing.buffer().extend_from_slice(request.as_bytes());
            String::new()
        }

        fn accept(&self, partial: &mut String, frame: Frame<'_>) -> Result<Accepted> {
            *partial = String::from_utf8(frame.bytes.to_vec())
                .map_err(|error| Error::with_source(ErrorKind::Protocol, "reading", error))?;
            Ok(Accepted::Complete { proven: false })
        }

        fn refusal(&self, _: &String) -> Option<Error> {
            None
        }

        fn finish(partial: String) -> String {
            partial
        }

        fn is_last(_: &String) -> bool {
            false
        }
    }

    /// Returns a link to a server that runs `serve` for each request, and a channel with the requests it received.
    fn link(serve: impl Fn(&str, &mut TcpStream) -> bool + Send + 'static) -> (Link<Lines>, Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
        let (log, requests) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let reader = BufReader::new(stream.try_clone().unwrap());
                for request in reader.lines().map_while(std::io::Result::ok) {
                    let goes_on = serve(&request, &mut stream);
                    if log.send(request).is_err() || !goes_on {
                        break;
                    }
                }
            }
        });
        let timeouts = Timeouts { connect: Duration::from_secs(60), exchange: Duration::from_millis(200) };
        (Link::new(Lines(endpoint), Settings { timeouts, ..Settings::default() }), requests)
    }

    fn call(link: &Link<Lines>, request: &str, retry: Retry) -> Result<String> {
        let request = request.to_owned();
        inline(|| poll_once(link.call(&request, retry, None)))
    }

    #[test]
    fn a_request_is_not_sent_again_after_a_timeout() {
        let (link, requests) = link(|request, stream| request == "slow" || stream.write_all(b"reply\n").is_ok());
        call(&link, "warm\n", Retry::Idempotent).unwrap();
        assert_eq!(call(&link, "slow\n", Retry::Idempotent).unwrap_err().kind(), ErrorKind::Timeout);
        call(&link, "after\n", Retry::Idempotent).unwrap();
        let received: Vec<String> = requests.iter().take(3).collect();
        assert_eq!(received, ["warm", "slow", "after"]);
    }

    #[test]
    fn a_dead_reused_connection_is_replaced_once() {
        let (close, closed) = channel();
        let (link, requests) = link(move |_, stream| {
            stream.write_all(b"reply\n").unwrap();
            stream.shutdown(Shutdown::Both).unwrap();
            close.send(()).unwrap();
            false
        });
        for retry in [Retry::Idempotent, Retry::Idempotent, Retry::Never] {
            let replied = call(&link, "once\n", retry);
            assert_eq!(replied.unwrap(), "reply\n");
            assert_eq!(requests.recv().unwrap(), "once");
            closed.recv().unwrap();
        }
    }
}
