//! One server, over one protocol: pooled connections, deadlines, one retry, and a breaker.
//!
//! What happens now and then (a dial, a wait for a place, a second attempt) is a future of its own on the heap: otherwise
//! every exchange would carry its size about.

use std::fmt::{self, Debug};
use std::future::Future;
use std::time::{Duration, Instant};

use super::breaker::Breaker;
use super::company::Company;
use super::dial::dial;
use super::drive::{Drive, drive};
use super::endpoint::{Endpoint, timed_out};
use super::pool::{Lease, NoLease, Pool};
use super::stream::Stream;
use crate::error::{Error, ErrorKind, Result};
use crate::telemetry;

/// What a protocol offers, so that a [`Link`] can pool, bound and retry for it. Written once, as asynchronous code; over a
/// blocking stream each future is ready at its first poll.
pub(crate) trait Protocol: Debug + Send + Sync + 'static {
    type Connection: Send;
    type Request: Sync + ?Sized;
    type Reply: Send;

    /// Makes a connection of a connected stream: handshake and login.
    fn open(&self, stream: Stream) -> impl Future<Output = Result<Self::Connection>> + Send;

    /// Sends a request: the first half of an exchange. After an `Err`, here and below, the connection is destroyed.
    fn send(
        &self,
        connection: &mut Self::Connection,
        request: &Self::Request,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Reads the whole reply to a request that was sent. What the server answers, an error too, is a reply.
    fn receive(
        &self,
        connection: &mut Self::Connection,
        request: &Self::Request,
    ) -> impl Future<Output = Result<Self::Reply>> + Send;

    fn stream(connection: &mut Self::Connection) -> &mut Stream;
}

/// Whether a request may be sent twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Once more, if a reused connection turns out to be dead before a byte of the reply. A server that does not answer in
    /// time is not asked again.
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

pub(crate) struct Link<P: Protocol> {
    protocol: P,
    endpoint: Endpoint,
    timeouts: Timeouts,
    pool: Pool<P::Connection>,
    breaker: Breaker,
    /// Asked before a connection is opened only: a server that has no room for another one, or does not know a new password,
    /// still answers over those that it has let in.
    door: Breaker,
}

impl<P: Protocol> Link<P> {
    /// No I/O.
    pub(crate) fn new(protocol: P, endpoint: Endpoint, settings: Settings) -> Link<P> {
        Link {
            protocol,
            endpoint,
            timeouts: settings.timeouts,
            pool: Pool::new(settings.pool_size),
            breaker: Breaker::new(settings.failures, settings.retry_after),
            door: Breaker::new(settings.failures, settings.retry_after),
        }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// One exchange, over a pooled connection or a new one; with a company, at the same time as the others in it.
    pub(crate) async fn call(&self, request: &P::Request, retry: Retry, company: Option<&Company>) -> Result<P::Reply> {
        let drive = drive()?;
        self.admit()?;
        let mut lease = self.lease(drive, company).await?;
        if retry == Retry::Never && lease.connection().is_some_and(|connection| !P::stream(connection).is_quiet()) {
            lease.discard();
        }
        self.fill(drive, &mut lease, company).await?;
        match self.attempt(drive, &mut lease, request, company).await {
            Ok(reply) => {
                lease.finish();
                self.succeeded();
                Ok(reply)
            }
            Err(error) if retry == Retry::Idempotent && is_dead_on_arrival::<P>(&mut lease, &error) => {
                lease.discard();
                Box::pin(self.last_attempt(drive, lease, request, company)).await
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Forgets every connection, and that the server was down.
    pub(crate) fn reset(&self) {
        self.pool.reset();
        self.breaker.reset();
        self.door.reset();
    }

    /// Has the server answer `probe` now, whatever the breaker says. After a [`reset`](Link::reset) that takes a dial.
    pub(crate) async fn reconnect(&self, probe: &P::Request) -> Result<P::Reply> {
        let drive = drive()?;
        let lease = self.lease(drive, None).await?;
        self.last_attempt(drive, lease, probe, None).await
    }

    /// A connected stream for a protocol that keeps its own connections, and counts its failures to open one.
    pub(crate) async fn dial(&self) -> Result<Stream> {
        self.connect(drive()?).await
    }

    /// Refuses at once while the server is down.
    pub(crate) fn admit(&self) -> Result<()> {
        self.breaker.admit().map_err(|wait| {
            let milliseconds = wait.as_millis();
            let context = format!("{} failed a moment ago: not tried again for {milliseconds} ms", self.endpoint);
            Error::new(ErrorKind::Unavailable, context)
        })
    }

    /// Refuses at once while the server turns us away.
    pub(crate) fn admit_at_door(&self) -> Result<()> {
        self.door.admit().map_err(|wait| {
            let milliseconds = wait.as_millis();
            let context =
                format!("{} turned us away a moment ago: not tried again for {milliseconds} ms", self.endpoint);
            Error::new(ErrorKind::Unavailable, context)
        })
    }

    /// The server has let us in.
    pub(crate) fn welcomed(&self) {
        self.door.succeeded();
    }

    /// Counts a failure to open a connection, whatever the server had against us: one that turns us away at the door is
    /// knocked at no more often than one that is not there.
    pub(crate) fn turned_away(&self, error: Error) -> Error {
        if !is_outage(error.kind()) && error.kind() != ErrorKind::Forked && self.door.failed() {
            telemetry::breaker_opened(&self.endpoint);
        }
        self.failed(error)
    }

    /// Counts a failed exchange with the breaker, if it says something about the server.
    pub(crate) fn failed(&self, error: Error) -> Error {
        if is_outage(error.kind()) {
            self.count_failure();
        }
        error
    }

    fn count_failure(&self) {
        if self.breaker.failed() {
            telemetry::breaker_opened(&self.endpoint);
        }
    }

    /// Tells the breaker of an exchange that came to its end.
    #[inline]
    pub(crate) fn succeeded(&self) {
        if self.breaker.succeeded() {
            telemetry::breaker_closed(&self.endpoint);
        }
    }

    async fn last_attempt(
        &self,
        drive: Drive,
        mut lease: Lease<'_, P::Connection>,
        request: &P::Request,
        company: Option<&Company>,
    ) -> Result<P::Reply> {
        self.fill(drive, &mut lease, company).await?;
        let reply = self.attempt(drive, &mut lease, request, company).await.map_err(|error| self.failed(error))?;
        lease.finish();
        self.succeeded();
        Ok(reply)
    }

    async fn lease(&self, drive: Drive, company: Option<&Company>) -> Result<Lease<'_, P::Connection>> {
        match self.pool.try_lease(drive) {
            Some(lease) => Ok(lease),
            None => Box::pin(self.wait_for_lease(drive, company)).await,
        }
    }

    async fn wait_for_lease(&self, drive: Drive, company: Option<&Company>) -> Result<Lease<'_, P::Connection>> {
        if let Some(company) = company {
            company.let_finish().await;
        }
        let deadline = Instant::now() + self.timeouts.exchange;
        let leased = self.within(drive, deadline, self.pool.lease(drive, deadline)).await;
        leased.unwrap_or(Err(NoLease::Exhausted)).map_err(|why| {
            let (kind, why) = match why {
                NoLease::Exhausted => (ErrorKind::Timeout, "every connection of the pool is in use"),
                NoLease::Forked => (ErrorKind::Forked, "the operation began in a parent process"),
            };
            Error::new(kind, format!("talking to {}: {why}", self.endpoint))
        })
    }

    async fn attempt(
        &self,
        drive: Drive,
        lease: &mut Lease<'_, P::Connection>,
        request: &P::Request,
        company: Option<&Company>,
    ) -> Result<P::Reply> {
        let connection = lease.connection().expect("the lease is filled");
        let deadline = Instant::now() + self.timeouts.exchange;
        P::stream(connection).begin(deadline);
        let exchange = async {
            self.protocol.send(connection, request).await?;
            if let Some(company) = company {
                Box::pin(company.set_aside(P::stream(connection))).await;
            }
            self.protocol.receive(connection, request).await
        };
        let replied = self.within(drive, deadline, exchange).await;
        replied.unwrap_or_else(|| Err(timed_out("waiting for", &self.endpoint)))
    }

    /// Makes sure that there is a connection.
    async fn fill(&self, drive: Drive, lease: &mut Lease<'_, P::Connection>, company: Option<&Company>) -> Result<()> {
        if lease.connection().is_none() {
            let opened = Box::pin(async {
                if let Some(company) = company {
                    company.let_finish().await;
                }
                self.admit_at_door()?;
                self.open(drive).await.map_err(|error| self.turned_away(error))
            });
            lease.fill(opened.await?);
            self.welcomed();
        }
        Ok(())
    }

    async fn open(&self, drive: Drive) -> Result<P::Connection> {
        let stream = self.connect(drive).await?;
        let deadline = Instant::now() + self.timeouts.exchange;
        let opened = self.within(drive, deadline, self.protocol.open(stream)).await;
        opened.unwrap_or_else(|| Err(timed_out("greeting", &self.endpoint)))
    }

    async fn connect(&self, drive: Drive) -> Result<Stream> {
        let deadline = Instant::now() + self.timeouts.connect;
        let stream = dial(drive, &self.endpoint, deadline, self.timeouts.exchange).await?;
        telemetry::connected(&self.endpoint);
        Ok(stream)
    }

    /// In a runtime, ends `work` at the deadline; a blocking stream keeps its own.
    #[cfg_attr(not(feature = "tokio"), expect(unused_variables))]
    async fn within<F: Future>(&self, drive: Drive, deadline: Instant, work: F) -> Option<F::Output> {
        match drive {
            Drive::Inline => Some(work.await),
            #[cfg(feature = "tokio")]
            Drive::Tokio(_) => tokio::time::timeout_at(deadline.into(), work).await.ok(),
        }
    }
}

/// Whether a failure says that the server, or the way to it, is out of order.
fn is_outage(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Connect | ErrorKind::Timeout | ErrorKind::Io | ErrorKind::Protocol)
}

/// Whether a reused connection failed before a byte of the reply: the server has closed it while it was idle.
fn is_dead_on_arrival<P: Protocol>(lease: &mut Lease<'_, P::Connection>, error: &Error) -> bool {
    let broke = error.kind() == ErrorKind::Io;
    broke && lease.is_reused() && lease.connection().is_some_and(|connection| !P::stream(connection).answered())
}

impl<P: Protocol> Debug for Link<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("endpoint", &self.endpoint)
            .field("protocol", &self.protocol)
            .field("breaker", &self.breaker)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::io::{BufRead, BufReader, ErrorKind as Kind, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::pin::pin;
    use std::sync::mpsc::{Receiver, channel};
    use std::task::{Context, Poll, Waker};
    use std::thread;
    use std::time::Duration;

    use super::{Endpoint, Error, ErrorKind, Link, Protocol, Result, Retry, Settings, Stream, Timeouts};
    use crate::net::drive::inline;
    use crate::net::io_error;

    /// Lines there, lines back.
    #[derive(Debug)]
    struct Lines;

    impl Protocol for Lines {
        type Connection = Stream;
        type Request = str;
        type Reply = String;

        async fn open(&self, stream: Stream) -> Result<Stream> {
            Ok(stream)
        }

        async fn send(&self, stream: &mut Stream, request: &str) -> Result<()> {
            stream.write_all(request.as_bytes()).await.map_err(failed)
        }

        async fn receive(&self, stream: &mut Stream, _: &str) -> Result<String> {
            let mut reply = Vec::new();
            while !reply.ends_with(b"\n") {
                let mut some = [0; 64];
                match stream.read(&mut some).await.map_err(failed)? {
                    0 => return Err(failed(Kind::UnexpectedEof.into())),
                    received => reply.extend_from_slice(&some[..received]),
                }
            }
            String::from_utf8(reply).map_err(|error| Error::with_source(ErrorKind::Protocol, "reading", error))
        }

        fn stream(stream: &mut Stream) -> &mut Stream {
            stream
        }
    }

    fn failed(error: std::io::Error) -> Error {
        io_error("talking to", &Endpoint::Unix("lines".into()), error)
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
        (Link::new(Lines, endpoint, Settings { timeouts, ..Settings::default() }), requests)
    }

    fn call(link: &Link<Lines>, request: &str, retry: Retry) -> Result<String> {
        inline(|| match pin!(link.call(request, retry, None)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(replied) => replied,
            Poll::Pending => panic!("an inline call suspended"),
        })
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
