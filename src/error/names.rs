//! Stable names and numbers of error kinds, for logs, metrics and other languages.

use std::fmt;

use super::ErrorKind;

impl ErrorKind {
    /// Returns the stable number of the kind. Numbers begin at 1 and are never reused.
    ///
    /// ```
    /// use prefork_cache::ErrorKind;
    ///
    /// assert_eq!(ErrorKind::Timeout.number(), 15);
    /// ```
    pub fn number(self) -> u16 {
        self.facts().0
    }

    /// Returns the stable name of the kind: "timeout", "invalid_key". [`Display`](fmt::Display) writes the same.
    ///
    /// ```
    /// use prefork_cache::ErrorKind;
    ///
    /// assert_eq!(ErrorKind::InvalidKey.name(), "invalid_key");
    /// assert_eq!(ErrorKind::InvalidKey.to_string(), "invalid_key");
    /// ```
    pub fn name(self) -> &'static str {
        self.facts().1
    }

    /// Returns the number and the name. A new kind gets the next number.
    fn facts(self) -> (u16, &'static str) {
        match self {
            ErrorKind::InvalidUrl => (1, "invalid_url"),
            ErrorKind::InvalidConfig => (2, "invalid_config"),
            ErrorKind::InvalidKey => (3, "invalid_key"),
            ErrorKind::InvalidTtl => (4, "invalid_ttl"),
            ErrorKind::ValueTooLarge => (5, "value_too_large"),
            ErrorKind::Encode => (6, "encode"),
            ErrorKind::Decode => (7, "decode"),
            ErrorKind::NotANumber => (8, "not_a_number"),
            ErrorKind::Conflict => (9, "conflict"),
            ErrorKind::Unsupported => (10, "unsupported"),
            ErrorKind::Auth => (11, "auth"),
            ErrorKind::Connect => (12, "connect"),
            ErrorKind::Unavailable => (13, "unavailable"),
            ErrorKind::Full => (14, "full"),
            ErrorKind::Timeout => (15, "timeout"),
            ErrorKind::Io => (16, "io"),
            ErrorKind::Protocol => (17, "protocol"),
            ErrorKind::Server => (18, "server"),
            ErrorKind::Forked => (19, "forked"),
            ErrorKind::WouldDeadlock => (20, "would_deadlock"),
            ErrorKind::Loader => (21, "loader"),
            ErrorKind::Other => (22, "other"),
            ErrorKind::OutOfResources => (23, "out_of_resources"),
            ErrorKind::Tls => (24, "tls"),
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
