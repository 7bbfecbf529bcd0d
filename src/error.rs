//! What can go wrong, in one opaque type.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

mod names;

/// The result of a cache operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a cache operation failed.
///
/// The text says what was being done and to which server, and names the part of the input that was refused. It never
/// holds a password, and it does not repeat what [`source`](StdError::source) says; the alternate form, `{:#}`, adds
/// the causes, for a log. Cloning is cheap: waiters that share one failed exchange share one error.
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
    /// The cache and the verb that have failed.
    origin: Option<(String, &'static str)>,
}

/// The kind of an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A store's URL has a scheme, host, port, database or option that is not understood.
    InvalidUrl,
    /// A setting of a store or a cache is out of its range, or a file that it names cannot be used.
    InvalidConfig,
    /// The key is empty, or longer than the store can hold.
    InvalidKey,
    /// The time to live is zero, or further away than the store can express.
    InvalidTtl,
    /// The value is larger than the server, or the store, accepts.
    ValueTooLarge,
    /// The value could not be encoded, or would not be read as it was.
    Encode,
    /// A value was read that is not one of the wanted type, or was written under another key: a miss, and told to
    /// [`on_error`](crate::Builder::on_error) alone.
    Decode,
    /// The entry holds something that is not a number, or the result does not fit into one.
    NotANumber,
    /// Other writers kept changing the entry, until the attempts ran out.
    Conflict,
    /// The server, or its configuration, does not offer what was asked for.
    Unsupported,
    /// The server refused the user name or password.
    Auth,
    /// No connection could be made.
    Connect,
    /// The server was reached, but there is no TLS with it: one side does not trust the other's certificate, or what
    /// answers does not speak TLS.
    Tls,
    /// The server has failed, and is not dialled again before `retry_after` has passed. The
    /// [source](StdError::source) is the first of the failures.
    Unavailable,
    /// This process, or its machine, has run out of descriptors, ports or memory. Nothing was sent, and it says nothing
    /// of the server.
    OutOfResources,
    /// As many requests to the server are under way as there may be, and none of them ended in time: this one was not
    /// sent.
    Full,
    /// The time for the operation ran out.
    Timeout,
    /// A connection broke in the middle of an exchange.
    Io,
    /// The server sent something that is not a reply to what it was asked.
    Protocol,
    /// The server answered with an error.
    Server,
    /// What the operation stands on was inherited through a fork: a connection or a runtime of the parent's.
    Forked,
    /// Waiting here would block the thread that has to do the work.
    WouldDeadlock,
    /// A loader failed, and the older value goes on serving: told to [`on_error`](crate::Builder::on_error) alone,
    /// since the loader's own error is lost with it.
    Loader,
    /// A store that is not this crate's failed in its own way.
    Other,
}

impl Error {
    /// Makes an error, for stores written outside of this crate.
    ///
    /// `context` says what was being done and to which server; it must hold no secret.
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

    /// The same error with its cause.
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

    /// What a server has answered, which may be transient or not whatever its kind.
    #[cfg(feature = "__servers")]
    pub(crate) fn answered(kind: ErrorKind, is_transient: bool, context: impl Into<String>) -> Error {
        Error { inner: Arc::new(Inner { kind, is_transient, context: context.into(), source: None, origin: None }) }
    }

    /// The same error, as [`on_error`](crate::Builder::on_error) is told of it.
    pub(crate) fn told(&self, cache: &str, verb: &'static str) -> Error {
        let Inner { kind, is_transient, context, source, .. } = &*self.inner;
        let (context, source, origin) = (context.clone(), source.clone(), Some((cache.to_owned(), verb)));
        Error { inner: Arc::new(Inner { kind: *kind, is_transient: *is_transient, context, source, origin }) }
    }

    /// Of an operation that came through a fork.
    #[cold]
    pub(crate) fn begun_by_parent() -> Error {
        Error::new(ErrorKind::Forked, "a parent process began this operation, before a fork: begin it again")
    }

    /// What kind of failure this is.
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

    /// The [name](crate::Builder::name) of the cache that has failed, where [`on_error`](crate::Builder::on_error) is told
    /// of it. `None` in an error that a caller gets.
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

    /// The method of [`Cache`](crate::Cache) that has failed, such as "fetch", where
    /// [`on_error`](crate::Builder::on_error) is told of it. `None` in an error that a caller gets.
    ///
    /// ```
    /// use prefork_cache::{Error, ErrorKind};
    ///
    /// assert_eq!(Error::new(ErrorKind::Timeout, "reading from the shelf").verb(), None);
    /// ```
    pub fn verb(&self) -> Option<&'static str> {
        self.inner.origin.as_ref().map(|(_, verb)| *verb)
    }

    /// Whether the same operation may well succeed later: the server was not reached, did not answer in time, lost the
    /// connection, or refused for the moment (it is loading, say, or has become a replica). It does not say that a write
    /// had no effect.
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
    /// Unless the server has said more.
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
