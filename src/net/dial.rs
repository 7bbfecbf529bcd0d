//! Dialling: resolving a host name and connecting a socket, within a deadline.
//!
//! Only the opening of the socket is a section of the gate. The dial itself is not, so a fork never waits for a server.
//! A host name that is not an IP address is resolved by the system's resolver. Outside of tokio the deadline does not
//! apply to it, only the resolver's own timeout (`resolv.conf`, usually some seconds): a process without threads cannot
//! interrupt it.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use super::connection::{Connection, Protocol};
use super::settings::Settings;
use super::socket::{Connecting, Socket};
use super::stream::{BlockingStream, ByteStream};
use super::tls;
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::execution::{Execution, blocking, sleep};
use crate::net::io_errors::{dial_error, is_shortage, timed_out};
use crate::telemetry;

/// The pause before another attempt to connect to a Unix socket whose queue is full.
const QUEUE_PAUSE: Duration = Duration::from_millis(1);

/// Connects to `endpoint`, over TLS if the protocol has it, without a greeting.
pub(super) async fn connection<P: Protocol>(
    execution: Execution,
    protocol: &P,
    endpoint: &Endpoint,
    deadline: Instant,
    settings: &Settings,
) -> Result<Connection<P>> {
    let mut stream = dial(execution, endpoint, deadline, settings).await?;
    if let Some(tls) = protocol.tls() {
        stream = tls::secure(tls, execution, endpoint, stream, deadline, settings.timeouts.exchange).await?;
    }
    let connection = Connection::new(protocol, endpoint, stream)?;
    telemetry::connected(endpoint);
    Ok(connection)
}

/// Sends one request over a new connection without a greeting, and returns the reply. The connection is used for
/// nothing else.
pub(crate) async fn ask_once<P: Protocol>(
    execution: Execution,
    protocol: &P,
    request: &P::Request,
    deadline: Instant,
    settings: &Settings,
) -> Result<P::Reply> {
    let mut connection = connection(execution, protocol, protocol.endpoint(), deadline, settings).await?;
    let now = Instant::now();
    connection.stream.set_deadline(now, deadline.saturating_duration_since(now));
    within(execution, deadline, protocol.endpoint(), "receive from", connection.ask(protocol, request)).await
}

/// Applies a deadline to a step in a runtime. Inline, the blocking stream has the deadline.
#[cfg_attr(not(feature = "tokio"), expect(unused_variables))]
pub(super) async fn within<T>(
    execution: Execution,
    deadline: Instant,
    endpoint: &Endpoint,
    do_what: &str,
    step: impl Future<Output = Result<T>>,
) -> Result<T> {
    match execution {
        Execution::Inline => step.await,
        #[cfg(feature = "tokio")]
        Execution::Tokio(_) => {
            let done = tokio::time::timeout_at(deadline.into(), step).await;
            done.unwrap_or_else(|_| Err(timed_out(do_what, endpoint)))
        }
    }
}

/// Connects a stream to `endpoint`.
pub(super) async fn dial(
    execution: Execution,
    endpoint: &Endpoint,
    deadline: Instant,
    settings: &Settings,
) -> Result<Box<dyn ByteStream>> {
    let connected: io::Result<Box<dyn ByteStream>> = match execution {
        Execution::Inline => connect(endpoint, deadline, settings.keepalive)
            .await
            .and_then(|socket| BlockingStream::new(socket, settings.timeouts.exchange))
            .map(|stream| Box::new(stream) as _),
        #[cfg(feature = "tokio")]
        Execution::Tokio(_) => {
            let connect = on_tokio::connect(endpoint, deadline, settings.keepalive);
            let connected = tokio::time::timeout_at(deadline.into(), connect).await;
            connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(|stream| Box::new(stream) as _)
        }
    };
    connected.map_err(|error| dial_error(endpoint, error))
}

async fn connect(endpoint: &Endpoint, deadline: Instant, keepalive: Option<Duration>) -> io::Result<Socket> {
    match endpoint {
        Endpoint::Unix(path) => connect_unix(path, deadline).await,
        Endpoint::Named(_) => Err(unknown()),
        Endpoint::Tcp { host, port } => {
            let addresses = match numeric(host, *port) {
                Some(address) => vec![address],
                None => (host.as_str(), *port).to_socket_addrs().map_err(shortage_or)?.collect(),
            };
            let connect = async |address, share| connect_tcp(&address, share, keepalive).await;
            connect_to_one_of(&addresses, deadline, connect).await
        }
    }
}

/// Tries one address after the other. Each gets an equal share of the remaining time.
async fn connect_to_one_of<S, F: Future<Output = io::Result<S>>>(
    addresses: &[SocketAddr],
    deadline: Instant,
    connect: impl Fn(SocketAddr, Instant) -> F,
) -> io::Result<S> {
    let mut result = Err(io::Error::new(io::ErrorKind::NotFound, "the host name has no address"));
    for (index, address) in addresses.iter().enumerate() {
        let connected = connect(*address, share_of_deadline(deadline, addresses.len() - index)).await;
        // The lack of a local address concerns this address only (on a machine without IPv6, for example). The error
        // of the address before it is more useful.
        let is_unavailable = matches!(&connected, Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable);
        if is_unavailable && index > 0 {
            continue;
        }
        let is_over = connected.as_ref().map_or_else(|error| is_shortage(error) && !is_unavailable, |_| true);
        result = connected;
        if is_over {
            break;
        }
    }
    result
}

/// Replaces a resolver's error by a shortage of descriptors or memory if there is one, which the resolver hides.
fn shortage_or(error: io::Error) -> io::Error {
    Socket::unix().err().filter(is_shortage).unwrap_or(error)
}

async fn connect_tcp(address: &SocketAddr, deadline: Instant, keepalive: Option<Duration>) -> io::Result<Socket> {
    let socket = Socket::tcp(address, keepalive)?;
    if let Connecting::UnderWay = socket.start_connecting_tcp(address)? {
        let writable = blocking(deadline, |until| socket.wait_writable(until)).await;
        writable.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))?;
        socket.connected()?;
    }
    Ok(socket)
}

async fn connect_unix(path: &Path, deadline: Instant) -> io::Result<Socket> {
    let socket = Socket::unix()?;
    while let Connecting::Full = socket.start_connecting_unix(path)? {
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        sleep(QUEUE_PAUSE).await;
    }
    Ok(socket)
}

fn unknown() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the address is not known")
}

fn numeric(host: &str, port: u16) -> Option<SocketAddr> {
    host.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, port))
}

/// The deadline of the first of `steps` steps that share the time until `deadline` equally.
pub(crate) fn share_of_deadline(deadline: Instant, steps: usize) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / u32::try_from(steps).unwrap_or(u32::MAX).max(1)
}

#[cfg(feature = "tokio")]
mod on_tokio {
    use tokio::net::lookup_host;
    use tokio::time::timeout_at;

    use super::{
        Connecting, Duration, Endpoint, Instant, Path, QUEUE_PAUSE, Socket, SocketAddr, connect_to_one_of, io, numeric,
        shortage_or, unknown,
    };
    use crate::net::tokio_stream::TokioStream;

    pub(super) async fn connect(
        endpoint: &Endpoint,
        deadline: Instant,
        keepalive: Option<Duration>,
    ) -> io::Result<TokioStream> {
        match endpoint {
            Endpoint::Unix(path) => connect_unix(path).await,
            Endpoint::Named(_) => Err(unknown()),
            Endpoint::Tcp { host, port } => {
                let addresses = match numeric(host, *port) {
                    Some(address) => vec![address],
                    None => lookup_host((host.as_str(), *port)).await.map_err(shortage_or)?.collect(),
                };
                let connect = async |address, share: Instant| {
                    let connected = timeout_at(share.into(), connect_tcp(address, keepalive)).await;
                    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                };
                connect_to_one_of(&addresses, deadline, connect).await
            }
        }
    }

    async fn connect_tcp(address: SocketAddr, keepalive: Option<Duration>) -> io::Result<TokioStream> {
        let socket = Socket::tcp(&address, keepalive)?;
        let connecting = socket.start_connecting_tcp(&address)?;
        let socket = TokioStream::new(socket)?;
        if let Connecting::UnderWay = connecting {
            socket.writable().await?;
            socket.socket().connected()?;
        }
        Ok(socket)
    }

    async fn connect_unix(path: &Path) -> io::Result<TokioStream> {
        let socket = Socket::unix()?;
        while let Connecting::Full = socket.start_connecting_unix(path)? {
            tokio::time::sleep(QUEUE_PAUSE).await;
        }
        TokioStream::new(socket)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future, ready};
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use nix::errno::Errno;

    use super::{Instant, SocketAddr, connect_to_one_of, io, is_shortage};

    /// The error of connecting to several addresses that fail with these errors.
    fn error(errors: &[Errno]) -> io::Error {
        let addresses: Vec<SocketAddr> =
            (1_u16..).zip(errors).map(|(port, _)| SocketAddr::from(([127, 0, 0, 1], port))).collect();
        let connect = |address: SocketAddr, _| ready(Err::<(), _>(errors[usize::from(address.port()) - 1].into()));
        let deadline = Instant::now() + Duration::from_secs(60);
        let attempt = std::pin::pin!(connect_to_one_of(&addresses, deadline, connect));
        match attempt.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result.unwrap_err(),
            Poll::Pending => panic!("the attempt is pending"),
        }
    }

    #[test]
    fn an_unavailable_address_family_does_not_hide_a_refused_connection() {
        for errors in [[Errno::ECONNREFUSED, Errno::EADDRNOTAVAIL], [Errno::EADDRNOTAVAIL, Errno::ECONNREFUSED]] {
            assert_eq!(error(&errors).raw_os_error(), Some(Errno::ECONNREFUSED as i32), "{errors:?}");
        }
        assert!(is_shortage(&error(&[Errno::EADDRNOTAVAIL; 2])));
        assert!(
            is_shortage(&error(&[Errno::EMFILE, Errno::ECONNREFUSED])),
            "after a shortage the next address is not tried"
        );
    }
}
