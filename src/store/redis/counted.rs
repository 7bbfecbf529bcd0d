//! A socket for the crate's driver, on which no more is answered than was asked.
//!
//! The driver gives each reply to the request that has waited longest. After a reply too many (a server gone wrong, an array
//! whose count was damaged) every answer would be another's, for as long as somebody is always waiting. So requests and
//! replies are counted as they pass by, and what exceeds the count breaks the connection before the driver sees it. Where
//! several requests are under way, that is when the last of them would be answered: until then a reply too many is not told
//! from a right one. A reply too few is noticed by whoever waits for it in vain.
//!
//! One that comes before the first request is none too many: a server that has no room says so at once.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::tally::Tally;
use crate::net::TokioSocket;

/// What is said of a reply too many.
pub(super) const SURPLUS: &str = "more than it was asked for";

pub(super) struct Counted {
    socket: TokioSocket,
    sent: Tally,
    arrived: Tally,
}

impl Counted {
    pub(super) fn over(socket: TokioSocket) -> Counted {
        Counted { socket, sent: Tally::default(), arrived: Tally::default() }
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, buffer))?;
        let Counted { sent, arrived, .. } = &mut *self;
        arrived.pass(&buffer.filled()[before..]);
        if arrived.begun() > sent.begun().max(1) {
            buffer.set_filled(before);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, SURPLUS)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, bytes))?;
        self.sent.pass(&bytes[..sent]);
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
