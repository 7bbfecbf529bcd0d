//! A stream over a socket that is registered with a tokio runtime.
//!
//! Its drop removes the socket from the runtime's epoll instance, closes it and releases its slot in the ledger, in
//! this order. In a child it is leaked instead: the epoll instance is shared with the parent, and removing the socket
//! would stop the parent's events.

use std::io::{self, IoSlice};
use std::mem;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;

use super::socket::Socket;
use super::stream::ByteStream;

/// A non-blocking stream of a tokio runtime.
#[derive(Debug)]
pub(super) struct TokioStream {
    /// `None` only during the drop.
    registered: Option<AsyncFd<Socket>>,
}

impl TokioStream {
    /// Registers a non-blocking socket with the current runtime.
    pub(super) fn new(socket: Socket) -> io::Result<TokioStream> {
        Ok(TokioStream { registered: Some(socket.register()?) })
    }

    pub(super) fn socket(&self) -> &Socket {
        self.registered().get_ref()
    }

    fn registered(&self) -> &AsyncFd<Socket> {
        self.registered.as_ref().expect("it is `None` only during the drop")
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        self.registered().writable().await?.retain_ready();
        Ok(())
    }
}

impl ByteStream for TokioStream {
    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.registered().poll_read_ready(cx))?;
            match self.socket().receive(buffer) {
                Ok(received) => {
                    // The socket's buffer is empty, and the kernel reports when more arrives. This saves a system call.
                    if received > 0 && received < buffer.len() {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(received));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.registered().poll_write_ready(cx))?;
            match self.socket().send(pieces) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    fn receive_at_once(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket().receive_at_once(buffer)
    }

    /// Does nothing: the pipeline has a timer.
    fn set_deadline(&mut self, _: Instant, _: Duration) {}

    fn is_quiet(&mut self) -> bool {
        self.socket().is_quiet()
    }
}

impl Drop for TokioStream {
    fn drop(&mut self) {
        let Some(registered) = self.registered.take() else { return };
        match registered.get_ref().begin_use() {
            Some(_use) => drop(registered),
            None => mem::forget(registered),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::thread;

    use tokio::runtime::{Builder, Runtime};

    use super::{ByteStream, Socket, TokioStream};

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn pair(name: &str, runtime: &Runtime) -> (TokioStream, UnixStream) {
        let path = std::env::temp_dir().join(format!("prefork-cache-{name}-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let socket = Socket::unix().unwrap();
        let _ = socket.start_connecting_unix(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _inside = runtime.enter();
        (TokioStream::new(socket).unwrap(), listener.accept().unwrap().0)
    }

    async fn receive(stream: &mut TokioStream) -> usize {
        poll_fn(|cx| stream.poll_receive(cx, &mut [0; 16])).await.unwrap()
    }

    #[test]
    fn the_end_is_received_after_a_read_that_did_not_fill_the_buffer() {
        let runtime = runtime();
        let (mut stream, mut peer) = pair("end-at-once", &runtime);
        peer.write_all(b"ab").unwrap();
        drop(peer);
        runtime.block_on(async {
            assert_eq!(receive(&mut stream).await, 2);
            assert_eq!(receive(&mut stream).await, 0);
        });
        let (mut stream, mut peer) = pair("end-later", &runtime);
        peer.write_all(b"ab").unwrap();
        runtime.block_on(async {
            assert_eq!(receive(&mut stream).await, 2);
            drop(peer);
            assert_eq!(receive(&mut stream).await, 0);
        });
    }

    #[test]
    fn a_socket_outlives_its_runtime_and_can_be_closed_on_any_thread() {
        let dropped_runtime = runtime();
        let (on_this_thread, mut first_peer) = pair("dropped-here", &dropped_runtime);
        let (on_another_thread, mut second_peer) = pair("dropped-there", &dropped_runtime);
        let (in_another_runtime, mut third_peer) = pair("dropped-inside", &dropped_runtime);
        drop(dropped_runtime);
        drop(on_this_thread);
        thread::spawn(move || drop(on_another_thread)).join().unwrap();
        runtime().block_on(async { drop(in_another_runtime) });
        for peer in [&mut first_peer, &mut second_peer, &mut third_peer] {
            assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the end");
        }
    }
}
