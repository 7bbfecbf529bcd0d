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

use super::socket::Socket;

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
