//! One server, over one protocol: connections, deadlines, one retry, and breakers.
//!
//! What happens now and then (a dial, a wait for a slot, a second attempt) is a future of its own on the heap:
//! otherwise every exchange would carry its size about.

use std::fmt::{self, Debug};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::breaker::Breaker;
use super::company::Company;
use super::connection::{Connection, Protocol};
use super::dial::dial;
use super::drive::{Drive, drive};
use super::endpoint::Endpoint;
#[cfg(feature = "tokio")]
use super::endpoint::timed_out;
#[cfg(feature = "tokio")]
use super::pipeline::{self, Pipelines};
use super::pool::{Lease, NoLease, Pool};
use super::tls;
use crate::error::{Error, ErrorKind, Result};
use crate::telemetry;

/// Whether a request may be sent twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Once more, if a reused connection turns out to be dead before a byte of the reply. A server that does not answer
    /// in time is not asked again.
    Idempotent,
    /// Never. A reused connection is looked at before it is used.
    Never,
}

/// The bounds of every wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timeouts {
    pub(crate) connect: Duration,
    /// For the wait for a free connection, for a greeting, and for a request with its reply: each.
    pub(crate) exchange: Duration,
}

/// How a [`Link`] behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) timeouts: Timeouts,
    pub(crate) pool_size: usize,
    /// After how many failures in a row the server counts as down.
    pub(crate) failures: u32,
    /// How long a server that is down is not dialled.
    pub(crate) retry_after: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        let second = Duration::from_secs(1);
        Settings {
            timeouts: Timeouts { connect: second, exchange: second },
            pool_size: 16,
            failures: 2,
            retry_after: second,
        }
    }
}

/// A server, and the two ways to it: pooled connections for callers that block, one pipeline for each tokio runtime.
pub(crate) struct Link<P: Protocol> {
    server: Arc<Server<P>>,
    /// On the heap, since a lease moves what it holds.
    pool: Pool<Box<Connection<P>>>,
}

/// What every connection to a server has in common.
pub(super) struct Server<P: Protocol> {
    pub(super) protocol: P,
    pub(super) timeouts: Timeouts,
    breaker: Breaker,
    /// Asked before a connection is opened only: a server that has no room for another one, or does not know a new
    /// password, still answers over those that it has let in.
    login_breaker: Breaker,
    #[cfg(feature = "tokio")]
    pub(super) pipelines: Pipelines<P>,
}

impl<P: Protocol> Link<P> {
    /// No I/O.
    pub(crate) fn new(protocol: P, settings: Settings) -> Link<P> {
        let server = Server {
            protocol,
            timeouts: settings.timeouts,
            breaker: Breaker::new(settings.failures, settings.retry_after),
            login_breaker: Breaker::new(settings.failures, settings.retry_after),
            #[cfg(feature = "tokio")]
            pipelines: Pipelines::new(settings.pool_size),
        };
        Link { server: Arc::new(server), pool: Pool::new(settings.pool_size) }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        self.server.protocol.endpoint()
    }

    /// One exchange; with a company, at the same time as the others in it.
    pub(crate) async fn call(&self, request: &P::Request, retry: Retry, company: Option<&Company>) -> Result<P::Reply> {
        match drive()? {
            Drive::Inline if company.is_some() => Box::pin(self.call_inline(request, retry, company)).await,
            Drive::Inline => at_once(self.call_inline(request, retry, None)),
            #[cfg(feature = "tokio")]
            Drive::Tokio(runtime) => {
                let outcome = match pipeline::submit(&self.server, runtime, request, retry) {
                    Ok(appended) => appended.await,
                    Err(failure) => Err(failure),
                };
                match outcome {
                    Ok(reply) => {
                        pipeline::note(&self.server, request, &reply);
                        Ok(reply)
                    }
                    Err(failure) => Box::pin(pipeline::conclude(&self.server, runtime, request, retry, failure)).await,
                }
            }
        }
    }

    /// Forgets every connection, and that the server was down.
    pub(crate) fn reset(&self) {
        self.pool.reset();
        #[cfg(feature = "tokio")]
        self.server.pipelines.reset();
        self.server.breaker.reset();
        self.server.login_breaker.reset();
    }

    /// Forgets every connection, then dials and has the server answer `probe`.
    pub(crate) async fn reconnect(&self, probe: &P::Request) -> Result<P::Reply> {
        self.reset();
        self.call(probe, Retry::Never, None).await
    }

    async fn call_inline(&self, request: &P::Request, retry: Retry, company: Option<&Company>) -> Result<P::Reply> {
        self.server.admit()?;
        let mut lease = self.lease(company).await?;
        let is_suspect = |connection: &mut Box<Connection<P>>| {
            (retry == Retry::Never || connection.has_rested()) && !connection.stream.is_quiet()
        };
        if lease.connection().is_some_and(is_suspect) {
            lease.discard();
        }
        match self.attempt(&mut lease, request, company).await {
            Err(error) if retry == Retry::Idempotent && is_dead_on_arrival(&mut lease, &error) => {
                lease.discard();
                let again = Box::pin(self.attempt(&mut lease, request, company)).await;
                self.concluded(lease, again)
            }
            outcome => self.concluded(lease, outcome),
        }
    }

    fn concluded(&self, lease: Lease<'_, Box<Connection<P>>>, outcome: Result<P::Reply>) -> Result<P::Reply> {
        match outcome {
            Ok(_) => {
                lease.finish();
                self.server.succeeded();
            }
            Err(ref error) => self.server.failed(error),
        }
        outcome
    }

    async fn lease(&self, company: Option<&Company>) -> Result<Lease<'_, Box<Connection<P>>>> {
        match self.pool.try_lease() {
            Some(lease) => Ok(lease),
            None => Box::pin(self.wait_for_lease(company)).await,
        }
    }

    async fn wait_for_lease(&self, company: Option<&Company>) -> Result<Lease<'_, Box<Connection<P>>>> {
        if let Some(company) = company {
            company.let_finish().await;
        }
        self.pool.lease(Instant::now() + self.server.timeouts.exchange).map_err(|why| match why {
            NoLease::Exhausted => full(self.endpoint()),
            NoLease::Forked => Error::begun_by_parent(),
        })
    }

    async fn attempt(
        &self,
        lease: &mut Lease<'_, Box<Connection<P>>>,
        request: &P::Request,
        company: Option<&Company>,
    ) -> Result<P::Reply> {
        if lease.connection().is_none() {
            lease.fill(Box::new(Box::pin(self.open(company)).await?));
        }
        let connection = lease.connection().expect("the lease is filled");
        let protocol = &self.server.protocol;
        let deadline = connection.begin(self.server.timeouts.exchange);
        let exchange = connection.send(protocol, request).await?;
        if let Some(company) = company {
            Box::pin(connection.set_aside(company, deadline)).await;
        }
        connection.receive(protocol, exchange).await
    }

    async fn open(&self, company: Option<&Company>) -> Result<Connection<P>> {
        if let Some(company) = company {
            company.let_finish().await;
        }
        self.server.admit_login()?;
        self.server.open(Drive::Inline).await
    }
}

impl<P: Protocol> Server<P> {
    /// Refuses at once while the server is down.
    pub(super) fn admit(&self) -> Result<()> {
        self.breaker.admit().map_err(|wait| self.left_alone("failed", wait))
    }

    /// Refuses at once while the server lets no connection in.
    pub(super) fn admit_login(&self) -> Result<()> {
        self.login_breaker.admit().map_err(|wait| self.left_alone("refused a login", wait))
    }

    #[cold]
    fn left_alone(&self, did: &str, wait: Duration) -> Error {
        let (endpoint, milliseconds) = (self.protocol.endpoint(), wait.as_millis());
        let context = format!("{endpoint} {did} a moment ago: not tried again for {milliseconds} ms");
        Error::new(ErrorKind::Unavailable, context)
    }

    /// Dials, greets and logs in. A failure counts, whatever the server has against it: one that refuses every login is
    /// tried no more often than one that is not there.
    pub(super) async fn open(&self, drive: Drive) -> Result<Connection<P>> {
        let opened = self.dial_and_greet(drive).await;
        match &opened {
            Ok(_) => _ = self.login_breaker.succeeded(),
            Err(error) if !is_outage(error.kind()) && error.kind() != ErrorKind::Forked => {
                if self.login_breaker.failed() {
                    telemetry::breaker_opened(self.protocol.endpoint());
                }
            }
            Err(_) => {}
        }
        opened
    }

    async fn dial_and_greet(&self, drive: Drive) -> Result<Connection<P>> {
        let endpoint = self.protocol.endpoint();
        let deadline = Instant::now() + self.timeouts.connect;
        let mut stream = dial(drive, endpoint, deadline, self.timeouts.exchange).await?;
        if let Some(tls) = self.protocol.tls() {
            stream = tls::secure(tls, drive, endpoint, stream, deadline, self.timeouts.exchange).await?;
        }
        telemetry::connected(endpoint);
        let greeting = Connection::open(&self.protocol, stream);
        match drive {
            Drive::Inline => greeting.await,
            #[cfg(feature = "tokio")]
            Drive::Tokio(_) => tokio::time::timeout(self.timeouts.exchange, greeting)
                .await
                .unwrap_or_else(|_| Err(timed_out("greeting", endpoint))),
        }
    }

    /// Counts a failure with the breaker, if it says something about the server.
    pub(super) fn failed(&self, error: &Error) {
        if is_outage(error.kind()) && self.breaker.failed() {
            telemetry::breaker_opened(self.protocol.endpoint());
        }
    }

    /// Records with the breaker that an exchange came to its end.
    #[inline]
    pub(super) fn succeeded(&self) {
        if self.breaker.succeeded() {
            telemetry::breaker_closed(self.protocol.endpoint());
        }
    }
}

/// Runs an exchange that blocks instead of suspending. On the stack: the futures that contain this call stay small.
fn at_once<T>(exchange: impl Future<Output = T>) -> T {
    match pin!(exchange).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("a blocking exchange has suspended"),
    }
}

/// Of a request for which there is no room.
pub(super) fn full(endpoint: &Endpoint) -> Error {
    let context = format!("as many requests to {endpoint} are under way as there may be, and none ended in time");
    Error::new(ErrorKind::Full, context)
}

/// Whether a failure says that the server, or the way to it, is out of order.
fn is_outage(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Connect | ErrorKind::Timeout | ErrorKind::Io | ErrorKind::Protocol)
}

/// Whether a reused connection failed before a byte of the reply: the server has closed it while it was idle.
fn is_dead_on_arrival<P: Protocol>(lease: &mut Lease<'_, Box<Connection<P>>>, error: &Error) -> bool {
    let broke = error.kind() == ErrorKind::Io;
    broke && lease.is_reused() && lease.connection().is_some_and(|connection| !connection.answered)
}

impl<P: Protocol> Debug for Link<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("protocol", &self.server.protocol)
            .field("breaker", &self.server.breaker)
            .finish_non_exhaustive()
    }
}

#[cfg(feature = "tokio")]
impl<P: Protocol> Drop for Link<P> {
    fn drop(&mut self) {
        self.server.pipelines.reset();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;
    use std::time::Duration;

    use super::{Connection, Endpoint, Error, ErrorKind, Link, Protocol, Result, Retry, Settings, Timeouts, at_once};
    use crate::net::drive::inline;
    use crate::net::{Accepted, Frame, Framing, Marking, Outgoing, Scan};

    /// Lines there, lines back.
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

        async fn greet(&self, _: &mut Connection<Lines>) -> Result<Marking> {
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

        fn write(&self, request: &String, outgoing: &mut Outgoing) -> String {
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
    }

    /// A link to a server that handles each request as told, and what the server was asked.
    fn link(serve: impl Fn(&str, &mut TcpStream) -> bool + Send + 'static) -> (Link<Lines>, Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
        let (asked, requests) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let reader = BufReader::new(stream.try_clone().unwrap());
                for request in reader.lines().map_while(std::io::Result::ok) {
                    let goes_on = serve(&request, &mut stream);
                    if asked.send(request).is_err() || !goes_on {
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
        inline(|| at_once(link.call(&request, retry, None)))
    }

    #[test]
    fn a_server_that_does_not_answer_in_time_is_not_asked_again() {
        let (link, requests) = link(|request, stream| request == "slow" || stream.write_all(b"reply\n").is_ok());
        call(&link, "warm\n", Retry::Idempotent).unwrap();
        assert_eq!(call(&link, "slow\n", Retry::Idempotent).unwrap_err().kind(), ErrorKind::Timeout);
        call(&link, "after\n", Retry::Idempotent).unwrap();
        let asked: Vec<String> = requests.iter().take(3).collect();
        assert_eq!(asked, ["warm", "slow", "after"]);
    }

    #[test]
    fn a_reused_connection_that_died_is_replaced_once() {
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
