//! A socket that tokio waits for.
//!
//! Its drop takes it off the runtime's epoll instance, leaves the ledger and closes, in this order. In a child it is
//! forgotten instead: the epoll instance is shared with the parent, and taking the socket off it would silence the parent's.

use std::io;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::socket::{Probe, Socket};

#[derive(Debug)]
pub(crate) struct TokioSocket {
    /// `None` only in the middle of the drop.
    registered: Option<AsyncFd<Socket>>,
}

impl TokioSocket {
    /// Registers a non-blocking socket with the current runtime.
    pub(crate) fn new(socket: Socket) -> io::Result<TokioSocket> {
        Ok(TokioSocket { registered: Some(socket.register()?) })
    }

    pub(crate) fn socket(&self) -> &Socket {
        self.registered().get_ref()
    }

    /// For whoever hands the socket over to a driver.
    pub(crate) fn probe(&self) -> Probe {
        Probe::of(self.socket())
    }

    fn registered(&self) -> &AsyncFd<Socket> {
        self.registered.as_ref().expect("only the drop takes it out")
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.registered().writable().await?.retain_ready();
        Ok(())
    }
}

impl AsyncRead for TokioSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.registered().poll_read_ready(cx))?;
            let space = buffer.initialize_unfilled();
            match self.socket().receive(space) {
                Ok(received) => {
                    // The kernel had no more: it will say so when there is, and a call to be told is saved.
                    if received > 0 && received < space.len() {
                        ready.clear_ready();
                    }
                    buffer.advance(received);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for TokioSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.registered().poll_write_ready(cx))?;
            match self.socket().send(bytes) {
                Ok(sent) => {
                    if sent > 0 && sent < bytes.len() {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(sent));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The end of the stream is said by closing it.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for TokioSocket {
    fn drop(&mut self) {
        let registered = self.registered.take();
        if registered.as_ref().is_some_and(|registered| !registered.get_ref().is_current()) {
            mem::forget(registered);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::thread;

    use tokio::io::AsyncReadExt;
    use tokio::runtime::{Builder, Runtime};

    use super::{Socket, TokioSocket};

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn pair(name: &str, runtime: &Runtime) -> (TokioSocket, UnixStream) {
        let path = std::env::temp_dir().join(format!("prefork-cache-{name}-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let socket = Socket::unix().unwrap();
        let _ = socket.start_connecting_unix(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _inside = runtime.enter();
        (TokioSocket::new(socket).unwrap(), listener.accept().unwrap().0)
    }

    #[test]
    fn the_end_is_seen_after_a_read_that_left_room() {
        let runtime = runtime();
        let (mut socket, mut peer) = pair("end-at-once", &runtime);
        peer.write_all(b"ab").unwrap();
        drop(peer);
        runtime.block_on(async {
            assert_eq!(socket.read(&mut [0; 16]).await.unwrap(), 2);
            assert_eq!(socket.read(&mut [0; 16]).await.unwrap(), 0);
        });
        let (mut socket, mut peer) = pair("end-later", &runtime);
        peer.write_all(b"ab").unwrap();
        runtime.block_on(async {
            assert_eq!(socket.read(&mut [0; 16]).await.unwrap(), 2);
            drop(peer);
            assert_eq!(socket.read(&mut [0; 16]).await.unwrap(), 0);
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
