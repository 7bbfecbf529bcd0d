//! Who logs in, asked anew at each dial.
//!
//! So a password that is changed is taken up by the next connection, without a restart. The file or the callback is
//! read where a connection is made, with no lock of this crate held and outside of the gate.

use std::error::Error as StdError;
use std::fmt;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::url::{StoreUrl, invalid};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::lifted;

/// How much of a password gives it away.
const TELLING: usize = 6;

/// A user name and a password. Not shown in `Debug`.
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
    /// Of a named user.
    ///
    /// ```
    /// use prefork_cache::stores::Credentials;
    ///
    /// let credentials = Credentials::new("worker", "secret");
    /// ```
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Credentials {
        Credentials { username: Some(username.into()), password: password.into() }
    }

    /// Of the default user, where a server has one: Redis.
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

    /// Whether a text holds the password, or enough of it to give it away. A server may cut or escape what it repeats.
    pub(crate) fn are_shown_in(&self, text: &str) -> bool {
        let (text, password) = (text.as_bytes(), self.password.as_bytes());
        let telling = password.len().min(TELLING);
        telling > 0 && password.windows(telling).any(|part| text.windows(telling).any(|shown| shown == part))
    }

    /// An error that came of a login with these, without what shows them.
    pub(crate) fn hidden_in(&self, endpoint: &Endpoint, error: Error) -> Error {
        if !self.are_shown_in(&format!("{error:#} {error:?}")) {
            return error;
        }
        let context =
            format!("{endpoint} refused the login, in words that are not shown: they may repeat the password");
        Error::new(error.kind(), context)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What a [`Login`] calls for its credentials.
pub(crate) type Callback = Arc<dyn Fn() -> Result<Credentials, Box<dyn StdError + Send + Sync>> + Send + Sync>;

/// Where credentials come from.
#[derive(Clone, Default)]
pub(crate) enum Login {
    /// Nobody logs in.
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
    /// What a URL says of it.
    pub(crate) fn take(url: &mut StoreUrl, callback: Option<Callback>) -> Result<Login> {
        let (username, password, file) =
            (url.username.take(), url.password.take(), url.options.take_text("password_file"));
        if callback.is_some() && (username.is_some() || password.is_some() || file.is_some()) {
            return Err(invalid("there are credentials beside those of the callback: a store has one source of them"));
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

    /// The credentials of now. To be called without a lock, since the callback is a user's code.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Auth`], if there are none to be had.
    pub(crate) fn credentials(&self) -> Result<Option<Credentials>> {
        match self {
            Login::None => Ok(None),
            Login::Fixed(credentials) => Ok(Some(credentials.clone())),
            Login::File { username, path } => {
                Ok(Some(Credentials { username: username.clone(), password: read_password(path)? }))
            }
            Login::Callback(callback) => {
                let called = catch_unwind(AssertUnwindSafe(|| lifted(|| callback())));
                let called =
                    called.map_err(|_| Error::new(ErrorKind::Auth, "the callback for credentials panicked"))?;
                let failed =
                    |error| Error::with_source(ErrorKind::Auth, "the callback for credentials has failed", error);
                called.map(Some).map_err(failed)
            }
        }
    }
}

/// Without the line end that editors put behind it.
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
    fn a_password_is_found_also_where_it_was_cut() {
        let credentials = Credentials::password("correct horse battery");
        assert!(credentials.are_shown_in("unknown command 'AUTH' 'correct hor"));
        assert!(credentials.are_shown_in("...battery'"));
        assert!(!credentials.are_shown_in("WRONGPASS invalid username-password pair"));
        assert!(Credentials::password("abc").are_shown_in("xabcx"));
        assert!(!Credentials::password("").are_shown_in("nothing"));
    }

    #[test]
    fn an_error_that_shows_it_anywhere_is_replaced() {
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
