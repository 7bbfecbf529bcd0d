//! The credentials of a login, which are read again for each new connection.
//!
//! So the next connection uses a changed password, without a restart. The file is read, or the callback called, where a
//! connection is made, outside of the gate and with no lock of this crate held.

use std::error::Error as StdError;
use std::fmt;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::url::{StoreUrl, invalid};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::outside_inline;

/// The number of consecutive bytes of a password that must not be shown.
const REVEALING: usize = 6;

/// A user name and a password. `Debug` does not show the password.
///
/// ```
/// use prefork_cache::stores::Credentials;
///
/// let credentials = Credentials::new("worker", "secret");
/// assert!(!format!("{credentials:?}").contains("secret"));
/// ```
#[derive(Clone)]
pub struct Credentials {
    username: Option<String>,
    password: String,
}

impl Credentials {
    /// Creates the credentials of a named user.
    ///
    /// ```
    /// use prefork_cache::stores::Credentials;
    ///
    /// let credentials = Credentials::new("worker", "secret");
    /// ```
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Credentials {
        Credentials { username: Some(username.into()), password: password.into() }
    }

    /// Creates the credentials of the default user, on a server that has one: Redis.
    ///
    /// ```
    /// use prefork_cache::stores::Credentials;
    ///
    /// let credentials = Credentials::password("secret");
    /// ```
    pub fn password(password: impl Into<String>) -> Credentials {
        Credentials { username: None, password: password.into() }
    }

    pub(crate) fn username(&self) -> Option<&str> {
        self.username.as_deref()
    }

    pub(crate) fn secret(&self) -> &str {
        &self.password
    }

    /// Returns whether a string contains the password or a revealing part of it. A server may truncate or escape a
    /// password that it repeats.
    pub(crate) fn are_shown_in(&self, text: &str) -> bool {
        let (text, password) = (text.as_bytes(), self.password.as_bytes());
        let length = password.len().min(REVEALING);
        length > 0 && password.windows(length).any(|part| text.windows(length).any(|shown| shown == part))
    }

    /// Returns the error of a failed login, replaced by one of the same kind if it contains the password.
    pub(crate) fn hidden_in(&self, endpoint: &Endpoint, error: Error) -> Error {
        if !self.are_shown_in(&format!("{error:#} {error:?}")) {
            return error;
        }
        let context =
            format!("{endpoint} refused the login; its message is not shown, since it may contain the password");
        Error::new(error.kind(), context)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// The callback of a [`Login`], which returns the credentials.
pub(crate) type Callback = Arc<dyn Fn() -> Result<Credentials, Box<dyn StdError + Send + Sync>> + Send + Sync>;

/// The source of a store's credentials.
#[derive(Clone, Default)]
pub(crate) enum Login {
    /// The store does not log in.
    #[default]
    None,
    Fixed(Credentials),
    File {
        username: Option<String>,
        path: PathBuf,
    },
    Callback(Callback),
}

impl Login {
    /// Takes the login from a URL, unless there is a callback.
    pub(crate) fn take(url: &mut StoreUrl, callback: Option<Callback>) -> Result<Login> {
        let (username, password, file) =
            (url.username.take(), url.password.take(), url.options.take_text("password_file"));
        if callback.is_some() && (username.is_some() || password.is_some() || file.is_some()) {
            return Err(invalid("credentials are given besides the callback: a store has one source of credentials"));
        }
        match (password, file, callback) {
            (_, _, Some(callback)) => Ok(Login::Callback(callback)),
            (Some(_), Some(_), _) => Err(invalid("a password and a password_file are given: a store has one of them")),
            (Some(password), None, _) => Ok(Login::Fixed(Credentials { username, password })),
            (None, Some(path), _) => Ok(Login::File { username, path: path.into() }),
            (None, None, _) if username.is_some() => {
                let context = format!(
                    "a {} URL has a user name without a password: write user:password@, or :password@, or give a \
                     password_file",
                    url.scheme
                );
                Err(invalid(context))
            }
            (None, None, _) => Ok(Login::None),
        }
    }

    /// Returns the current credentials. Must be called without a lock, since the callback is the user's code.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Auth`] if the file cannot be read or is empty, or the callback fails.
    pub(crate) fn credentials(&self) -> Result<Option<Credentials>> {
        match self {
            Login::None => Ok(None),
            Login::Fixed(credentials) => Ok(Some(credentials.clone())),
            Login::File { username, path } => {
                Ok(Some(Credentials { username: username.clone(), password: read_password(path)? }))
            }
            Login::Callback(callback) => {
                let called = catch_unwind(AssertUnwindSafe(|| outside_inline(|| callback())));
                let called =
                    called.map_err(|_| Error::new(ErrorKind::Auth, "the callback for credentials panicked"))?;
                let failed =
                    |error| Error::with_source(ErrorKind::Auth, "the callback for credentials has failed", error);
                called.map(Some).map_err(failed)
            }
        }
    }
}

/// Reads a password from a file, without the line end that editors add.
fn read_password(path: &Path) -> Result<String> {
    let about = || format!("the password file {}", path.display());
    let text = fs::read_to_string(path).map_err(|error| Error::with_source(ErrorKind::Auth, about(), error))?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(Error::new(ErrorKind::Auth, format!("{} is empty", about())));
    }
    Ok(password.to_owned())
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Login::None => f.write_str("None"),
            Login::Fixed(credentials) => credentials.fmt(f),
            Login::File { username, path } => {
                f.debug_struct("File").field("username", username).field("path", path).finish()
            }
            Login::Callback(_) => f.write_str("Callback"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Credentials, Endpoint, Error, ErrorKind, Login};

    #[test]
    fn a_truncated_password_is_recognised() {
        let credentials = Credentials::password("correct horse battery");
        assert!(credentials.are_shown_in("unknown command 'AUTH' 'correct hor"));
        assert!(credentials.are_shown_in("...battery'"));
        assert!(!credentials.are_shown_in("WRONGPASS invalid username-password pair"));
        assert!(Credentials::password("abc").are_shown_in("xabcx"));
        assert!(!Credentials::password("").are_shown_in("nothing"));
    }

    #[test]
    fn an_error_that_contains_the_password_is_replaced() {
        let endpoint = Endpoint::Tcp { host: "localhost".to_owned(), port: 1 };
        let credentials = Credentials::new("me", "hunter2hunter2");
        let shown = Error::with_source(ErrorKind::Server, "harmless", std::io::Error::other("set hunter2hunter2"));
        let hidden = credentials.hidden_in(&endpoint, shown);
        assert_eq!(hidden.kind(), ErrorKind::Server);
        assert!(!format!("{hidden:#} {hidden:?}").contains("hunter2"), "{hidden:?}");
        let harmless = credentials.hidden_in(&endpoint, Error::new(ErrorKind::Auth, "wrong password"));
        assert_eq!(harmless.to_string(), "wrong password");
    }

    #[test]
    fn a_file_is_read_each_time() {
        let path = std::env::temp_dir().join(format!("prefork-cache-password-{}", std::process::id()));
        let login = Login::File { username: Some("me".to_owned()), path: path.clone() };
        let secret = || Some(login.credentials().ok()??.secret().to_owned());
        assert_eq!(login.credentials().unwrap_err().kind(), ErrorKind::Auth);
        std::fs::write(&path, "first\n").unwrap();
        assert_eq!(secret().as_deref(), Some("first"));
        std::fs::write(&path, " second \r\n").unwrap();
        assert_eq!(secret().as_deref(), Some(" second "));
        std::fs::write(&path, "\n").unwrap();
        assert!(login.credentials().unwrap_err().to_string().ends_with("is empty"));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_callback_that_panics_is_an_error() {
        let login = Login::Callback(std::sync::Arc::new(|| panic!("as planned")));
        assert_eq!(login.credentials().unwrap_err().kind(), ErrorKind::Auth);
    }
}
