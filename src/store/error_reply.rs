//! What it means that a server refuses: one line of a store's table of what its servers say.

use crate::error::{Error, ErrorKind};

/// What follows from an error reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ErrorReply {
    pub(crate) kind: ErrorKind,
    pub(crate) lasts: Lasts,
    pub(crate) connection: Connection,
}

/// For how long the same request would be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lasts {
    /// For the moment: the error is transient.
    Briefly,
    /// Until somebody changes the request or the server.
    OnAndOn,
}

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    Kept,
    /// Another one may lead to another server, or log in again.
    GivenUp,
    /// So is every other one to the same server, where it can be asked which one is meant.
    #[cfg(feature = "redis")]
    AllGivenUp,
}

impl ErrorReply {
    pub(crate) fn error(self, context: impl Into<String>) -> Error {
        Error::from_reply(self.kind, self.lasts == Lasts::Briefly, context)
    }

    /// Whether it is for the moment, and the same connection will do later.
    pub(crate) fn is_for_the_moment(self) -> bool {
        self.lasts == Lasts::Briefly && !self.gives_up()
    }

    pub(crate) fn gives_up(self) -> bool {
        self.connection != Connection::Kept
    }

    /// Whether the server is not the one that is meant any more.
    #[cfg(feature = "redis")]
    pub(crate) fn is_left(self) -> bool {
        self.connection == Connection::AllGivenUp
    }
}
