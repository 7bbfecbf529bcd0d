//! A connection with a read buffer: lines and data blocks, with a bound on both.

use std::io;

use bytes::Bytes;

use crate::error::{Error, ErrorKind};
use crate::net::{Endpoint, Stream, io_error};

/// Room for an ordinary reply, so that it takes one system call, and the bound of a line.
const BUFFER: usize = 16 * 1024;
const LINE_END: &[u8] = b"\r\n";

#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    buffer: Box<[u8]>,
    /// What was received and not yet read is `buffer[start..end]`.
    start: usize,
    end: usize,
}

/// Why a connection cannot be used again.
#[derive(Debug)]
pub(super) enum Failure {
    Io(io::Error),
    /// What the server sent is no reply to what it was asked.
    Malformed(String),
    /// An error reply after which it is not known what the next reply answers.
    Refused(String),
}

impl Connection {
    pub(super) fn new(stream: Stream) -> Connection {
        Connection { stream, buffer: vec![0; BUFFER].into(), start: 0, end: 0 }
    }

    pub(super) fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    pub(super) async fn send(&mut self, request: &[u8]) -> Result<(), Failure> {
        Ok(self.stream.write_all(request).await?)
    }

    /// The next line, without its end.
    pub(super) async fn line(&mut self) -> Result<&[u8], Failure> {
        let mut searched = 0;
        let length = loop {
            let received = &self.buffer[self.start..self.end];
            if let Some(position) = received[searched..].iter().position(|byte| *byte == b'\n') {
                break searched + position;
            }
            searched = received.len();
            if searched == self.buffer.len() {
                return Err(malformed("a line without an end"));
            }
            self.fill().await?;
        };
        let line = &self.buffer[self.start..self.start + length];
        self.start += length + 1;
        Ok(line.strip_suffix(b"\r").unwrap_or(line))
    }

    /// A data block, and the line end behind it. Room is made as the data arrives: a garbled length costs nothing.
    pub(super) async fn data(&mut self, length: usize) -> Result<Bytes, Failure> {
        let whole = length + LINE_END.len();
        while whole <= self.buffer.len() && self.end - self.start < whole {
            self.fill().await?;
        }
        let received = &self.buffer[self.start..self.end.min(self.start + whole)];
        self.start += received.len();
        if received.len() == whole {
            return Ok(Bytes::copy_from_slice(without_line_end(received)?));
        }
        let mut data = received.to_vec();
        while data.len() < whole {
            self.receive_into(&mut data, whole).await?;
        }
        data.truncate(without_line_end(&data)?.len());
        Ok(data.into())
    }

    /// Ends an exchange: nothing that was not asked for may be left.
    pub(super) fn finish(&self) -> Result<(), Failure> {
        if self.start == self.end { Ok(()) } else { Err(malformed("more than it was asked for")) }
    }

    async fn fill(&mut self) -> Result<(), Failure> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        self.end += at_least_one(self.stream.read(&mut self.buffer[self.end..]).await?)?;
        Ok(())
    }

    /// Past the buffer, up to a length of `whole`, in steps that double.
    async fn receive_into(&mut self, data: &mut Vec<u8>, whole: usize) -> Result<(), Failure> {
        let filled = data.len();
        data.resize(whole.min(filled + filled.max(self.buffer.len())), 0);
        let received = at_least_one(self.stream.read(&mut data[filled..]).await?)?;
        data.truncate(filled + received);
        Ok(())
    }
}

impl Failure {
    pub(super) fn at(self, endpoint: &Endpoint) -> Error {
        match self {
            Failure::Io(error) => io_error("talking to", endpoint, error),
            Failure::Malformed(what) => Error::new(ErrorKind::Protocol, format!("{endpoint} sent {what}")),
            Failure::Refused(text) => Error::new(ErrorKind::Server, format!("{endpoint} answered: {text}")),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

pub(super) fn malformed(what: impl Into<String>) -> Failure {
    Failure::Malformed(what.into())
}

fn without_line_end(block: &[u8]) -> Result<&[u8], Failure> {
    block.strip_suffix(LINE_END).ok_or_else(|| malformed("a data block that does not end where it should"))
}

fn at_least_one(received: usize) -> io::Result<usize> {
    if received > 0 { Ok(received) } else { Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server hung up")) }
}
