//! The meaning of an error reply: one row of a store's table of error replies.

use crate::error::{Error, ErrorKind};

/// The meaning of an error reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ErrorReply {
    pub(crate) kind: ErrorKind,
    pub(crate) lasts: Persistence,
    pub(crate) connection: Connection,
}

/// Whether the same request may succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Persistence {
    /// It may: the error is transient.
    Transient,
    /// It is refused until the request or the server's configuration changes.
    Permanent,
}

/// What is done with the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    Kept,
    /// It is closed: a new one may reach another server, or log in again.
    Closed,
    /// It is closed, and another server has taken the place of this one. If the address comes from discovery, all
    /// connections to this server are closed and the address is looked up again.
    #[cfg(feature = "redis")]
    AllClosed,
}

impl ErrorReply {
    pub(crate) fn error(self, context: impl Into<String>) -> Error {
        Error::from_reply(self.kind, self.lasts == Persistence::Transient, context)
    }

    /// Returns whether the error is transient and the connection is kept.
    pub(crate) fn is_transient(self) -> bool {
        self.lasts == Persistence::Transient && !self.closes_connection()
    }

    /// Returns whether the connection is closed.
    pub(crate) fn closes_connection(self) -> bool {
        self.connection != Connection::Kept
    }

    /// Returns whether another server has taken the place of this one.
    #[cfg(feature = "redis")]
    pub(crate) fn is_replaced(self) -> bool {
        self.connection == Connection::AllClosed
    }
}
