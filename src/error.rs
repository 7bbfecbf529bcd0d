//! The error type of the crate.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

mod names;

/// The result of a cache operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a cache operation.
///
/// Its text says what was being done and to which server, and names the part of the input that was refused. It never
/// contains a password, and does not repeat the [`source`](StdError::source). The alternate form, `{:#}`, adds the
/// causes, for a log. Cloning is cheap: callers that wait for one failed exchange share one error.
///
/// ```
/// use prefork_cache::{ErrorKind, stores};
///
/// let error = stores::from_url("gopher://localhost").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidUrl);
/// assert!(!error.is_transient());
/// ```
#[derive(Clone)]
pub struct Error {
    inner: Arc<Inner>,
}

struct Inner {
    kind: ErrorKind,
    is_transient: bool,
    context: String,
    source: Option<Arc<dyn StdError + Send + Sync>>,
    /// The cache and the method that failed.
    origin: Option<(String, &'static str)>,
}

/// The kind of an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A store's URL has an invalid or unknown scheme, host, port, database or option.
    InvalidUrl,
    /// A setting of a store or a cache is out of range, or a file that it names cannot be used.
    InvalidConfig,
    /// The key is empty, or longer than the store can hold.
    InvalidKey,
    /// The time to live is zero, or longer than the store can represent.
    InvalidTtl,
    /// The value is larger than the server or the store accepts.
    ValueTooLarge,
    /// The value cannot be encoded, or would not be read back as it was.
    Encode,
    /// An entry is not a value of the wanted type, or was written under another key. The read is a miss; the error goes
    /// only to [`on_error`](crate::Builder::on_error).
    Decode,
    /// The entry is not a number, or the result is out of range.
    NotANumber,
    /// Other writers changed the entry during each attempt, and no attempts are left.
    Conflict,
    /// The server, or its configuration, does not support the operation.
    Unsupported,
    /// The server refused the user name or password.
    Auth,
    /// No connection could be made.
    Connect,
    /// The server was reached, but the TLS handshake failed: one side does not trust the other's certificate, or the
    /// server does not speak TLS.
    Tls,
    /// The server has failed, and is not dialled again before `retry_after` has passed. The [source](StdError::source)
    /// is the first failure.
    Unavailable,
    /// This process, or its machine, has run out of descriptors, ports or memory. Nothing was sent. The error does not
    /// mean that the server has failed.
    OutOfResources,
    /// The limit of requests in flight to the server was reached, and none of them ended in time. This request was not
    /// sent.
    Full,
    /// The time for the operation ran out.
    Timeout,
    /// A connection broke during an exchange.
    Io,
    /// The server sent something that is not a reply to the request.
    Protocol,
    /// The server replied with an error.
    Server,
    /// The operation uses a connection or a runtime that was inherited from a parent process.
    Forked,
    /// Waiting would block the thread that has to do the work.
    WouldDeadlock,
    /// A loader failed while there was an old value, which its caller got. The error goes only to
    /// [`on_error`](crate::Builder::on_error). It does not contain the loader's own error.
    Loader,
    /// A store of another crate failed for a reason of its own.
    Other,
}

impl Error {
    /// Returns a new error, for stores outside this crate.
    ///
    /// `context` says what was being done and to which server. It must not contain a secret.
    ///
    /// ```
    /// use prefork_cache::{Error, ErrorKind};
    ///
    /// let error = Error::new(ErrorKind::Timeout, "reading from the shelf");
    /// assert_eq!(error.to_string(), "reading from the shelf");
    /// assert!(error.is_transient());
    /// ```
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Error {
        Error::build(kind, context.into(), None)
    }

    /// Returns the error with a cause.
    ///
    /// ```
    /// use prefork_cache::{Error, ErrorKind};
    /// use std::error::Error as _;
    ///
    /// let cause = std::io::Error::other("the shelf is empty");
    /// let error = Error::with_source(ErrorKind::Io, "reading from the shelf", cause);
    /// assert_eq!(error.source().unwrap().to_string(), "the shelf is empty");
    /// assert_eq!(format!("{error:#}"), "reading from the shelf: the shelf is empty");
    /// ```
    pub fn with_source(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Error {
        Error::build(kind, context.into(), Some(source.into()))
    }

    fn build(kind: ErrorKind, context: String, source: Option<Box<dyn StdError + Send + Sync>>) -> Error {
        let (is_transient, source) = (kind.is_transient(), source.map(Arc::from));
        Error { inner: Arc::new(Inner { kind, is_transient, context, source, origin: None }) }
    }

    /// Returns an error for a server's error reply, which may be transient or not whatever its kind.
    #[cfg(feature = "__servers")]
    pub(crate) fn from_reply(kind: ErrorKind, is_transient: bool, context: impl Into<String>) -> Error {
        Error { inner: Arc::new(Inner { kind, is_transient, context: context.into(), source: None, origin: None }) }
    }

    /// Returns the error with its cache and method, for [`on_error`](crate::Builder::on_error).
    pub(crate) fn with_origin(&self, cache: &str, verb: &'static str) -> Error {
        let Inner { kind, is_transient, context, source, .. } = &*self.inner;
        let (context, source, origin) = (context.clone(), source.clone(), Some((cache.to_owned(), verb)));
        Error { inner: Arc::new(Inner { kind: *kind, is_transient: *is_transient, context, source, origin }) }
    }

    /// Returns the error of an operation that a parent process began.
    #[cold]
    pub(crate) fn begun_by_parent() -> Error {
        Error::new(ErrorKind::Forked, "a parent process began this operation, before a fork: begin it again")
    }

    /// Returns the kind of the error.
    ///
    /// ```
    /// use prefork_cache::{Cache, ErrorKind, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let refused = cache.blocking().set("motd", "hello", Duration::ZERO).unwrap_err();
    /// assert_eq!(refused.kind(), ErrorKind::InvalidTtl);
    /// ```
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Returns the [name](crate::Builder::name) of the cache that failed, in an error passed to
    /// [`on_error`](crate::Builder::on_error). `None` in an error that a caller gets.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let log = |error: &prefork_cache::Error| {
    ///     assert_eq!((error.cache(), error.verb()), (Some("prices"), Some("fetch")));
    ///     assert_eq!(error.to_string(), "the key is empty");
    /// };
    /// let cache = Cache::builder(MemoryStore::new()).name("prices").on_error(log).build();
    /// let price = cache.blocking().fetch("", Duration::from_secs(60), || Ok::<u32, std::io::Error>(100))?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn cache(&self) -> Option<&str> {
        self.inner.origin.as_ref().map(|(cache, _)| &**cache)
    }

    /// Returns the method of [`Cache`](crate::Cache) that failed, such as "fetch", in an error passed to
    /// [`on_error`](crate::Builder::on_error). `None` in an error that a caller gets.
    ///
    /// ```
    /// use prefork_cache::{Error, ErrorKind};
    ///
    /// assert_eq!(Error::new(ErrorKind::Timeout, "reading from the shelf").verb(), None);
    /// ```
    pub fn verb(&self) -> Option<&'static str> {
        self.inner.origin.as_ref().map(|(_, verb)| *verb)
    }

    /// Returns whether the same operation may succeed later: the server was not reached, did not reply in time, lost
    /// the connection, or refused temporarily (it is loading, for example, or has become a replica). A transient
    /// failure of a write does not mean that the write had no effect.
    ///
    /// ```
    /// use prefork_cache::{Error, ErrorKind};
    ///
    /// assert!(Error::new(ErrorKind::Timeout, "reading from the shelf").is_transient());
    /// assert!(!Error::new(ErrorKind::InvalidKey, "the key is empty").is_transient());
    /// ```
    pub fn is_transient(&self) -> bool {
        self.inner.is_transient
    }
}

impl ErrorKind {
    /// Returns the default, for errors where the server has not said which.
    fn is_transient(self) -> bool {
        use ErrorKind::{Conflict, Connect, Full, Io, OutOfResources, Protocol, Timeout, Unavailable};
        matches!(self, Connect | Unavailable | OutOfResources | Full | Timeout | Io | Protocol | Conflict)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.context)?;
        let mut cause = if f.alternate() { StdError::source(self) } else { None };
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Error");
        debug.field("kind", &self.inner.kind).field("context", &self.inner.context);
        if let Some(source) = &self.inner.source {
            debug.field("source", source);
        }
        debug.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}
