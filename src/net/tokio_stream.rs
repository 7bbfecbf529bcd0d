//! A socket that tokio waits for.
//!
//! Its drop takes it off the runtime's epoll instance, leaves the ledger and closes, in this order. In a child it is
//! forgotten instead: the epoll instance is shared with the parent, and taking the socket off it would silence the
//! parent's.

use std::io::{self, IoSlice};
use std::mem;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;

use super::socket::Socket;
use super::stream::ByteStream;

#[derive(Debug)]
pub(super) struct TokioStream {
    /// `None` only in the middle of the drop.
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
        self.registered.as_ref().expect("only the drop takes it out")
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
                    // The kernel had no more, and will say when it has: a system call is saved.
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

    /// The pipeline has a timer.
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
    fn the_end_is_seen_after_a_read_that_left_room() {
        let runtime = runtime();
        let (mut socket, mut peer) = pair("end-at-once", &runtime);
        peer.write_all(b"ab").unwrap();
        drop(peer);
        runtime.block_on(async {
            assert_eq!(receive(&mut socket).await, 2);
            assert_eq!(receive(&mut socket).await, 0);
        });
        let (mut socket, mut peer) = pair("end-later", &runtime);
        peer.write_all(b"ab").unwrap();
        runtime.block_on(async {
            assert_eq!(receive(&mut socket).await, 2);
            drop(peer);
            assert_eq!(receive(&mut socket).await, 0);
        });
    }

    #[test]
    fn a_socket_outlives_its_runtime_and_closes_anywhere() {
        let gone = runtime();
        let (here, mut peer_of_here) = pair("dropped-here", &gone);
        let (there, mut peer_of_there) = pair("dropped-there", &gone);
        let (inside, mut peer_of_inside) = pair("dropped-inside", &gone);
        drop(gone);
        drop(here);
        thread::spawn(move || drop(there)).join().unwrap();
        runtime().block_on(async { drop(inside) });
        for peer in [&mut peer_of_here, &mut peer_of_there, &mut peer_of_inside] {
            assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the end");
        }
    }
}
