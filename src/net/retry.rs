//! Whether a request may be sent again.

/// Whether a request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// The request is sent a second time if a reused connection fails before a byte of the reply. It is not sent again
    /// after a timeout.
    Idempotent,
    /// The request is sent once. A reused connection is checked before it is used.
    Never,
}
