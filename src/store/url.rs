//! Parsing the URL of a store.
//!
//! `scheme://[user[:password]@]host[:port][,host[:port]...][/path][?option=value&...]`. A store takes the options that
//! it knows by name and refuses the others. No error and no `Debug` output contains anything from before the `@`. If
//! the login might be elsewhere, say because of an unescaped `/` in a password, no part of the URL is shown at all.

use std::collections::BTreeSet;
use std::fmt;
#[cfg(any(feature = "memory", feature = "__servers"))]
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::error::{Error, ErrorKind, Result};

#[cfg(feature = "__servers")]
mod servers;
#[cfg(feature = "redis")]
pub(crate) use servers::is_host;
#[cfg(all(test, feature = "__servers"))]
mod tests;

/// Options whose values are not shown.
const SECRET: &[&str] = &["sentinel_password"];

pub(crate) struct StoreUrl {
    /// In lower case.
    pub(crate) scheme: String,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<String>,
    /// The part between the `@` and the path, still percent-encoded.
    pub(crate) hosts: String,
    /// The path with its first `/`, still percent-encoded; empty if there is none.
    pub(crate) path: String,
    pub(crate) options: Options,
}

impl StoreUrl {
    /// Parses a URL.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`], like every function of this module.
    pub(crate) fn parse(url: &str) -> Result<StoreUrl> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| invalid("the URL does not begin with scheme://"))?;
        if !is_scheme(scheme) {
            return Err(invalid("the scheme of the URL is not a word of letters, digits, '+', '-' and '.'"));
        }
        if rest.contains('#') {
            return Err(invalid("the URL has a '#': write it as %23"));
        }
        let (location, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = location.split_at(location.find('/').unwrap_or(location.len()));
        if path.contains('@') || query.contains('@') {
            let context = "the URL has an '@' after a '/' or '?': write %2F and %3F for these in a user name or password, \
                           and %40 for an '@' in a path or option";
            return Err(invalid(context));
        }
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, authority),
        };
        let (username, password) = login.map_or(Ok((None, None)), parse_login)?;
        Ok(StoreUrl {
            scheme: scheme.to_ascii_lowercase(),
            username,
            password,
            hosts: hosts.to_owned(),
            path: path.to_owned(),
            options: Options::parse(query)?,
        })
    }
}

/// The URL without its passwords.
impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme)?;
        if let Some(username) = &self.username {
            write!(f, "{}@", encode(username))?;
        }
        write!(f, "{}{}", self.hosts, self.path)?;
        let shown = self.options.left.iter().filter(|(name, _)| !SECRET.contains(&name.as_str()));
        for (position, (name, value)) in shown.enumerate() {
            write!(f, "{}{}={}", if position == 0 { '?' } else { '&' }, encode(name), encode(value))?;
        }
        Ok(())
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreUrl")
            .field("scheme", &self.scheme)
            .field("hosts", &self.hosts)
            .field("path", &self.path)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// The options of a URL that were not taken yet, and the names of all options that the store knows.
pub(crate) struct Options {
    left: Vec<(String, String)>,
    known: BTreeSet<&'static str>,
}

impl Options {
    fn parse(query: &str) -> Result<Options> {
        let mut left: Vec<(String, String)> = Vec::new();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let name = decode(name, "the name of an option")?;
            if left.iter().any(|(taken, _)| *taken == name) {
                return Err(invalid(format!("the option {name:?} is given twice")));
            }
            let value = decode(value, &format!("the option {name:?}"))?;
            left.push((name, value));
        }
        Ok(Options { left, known: BTreeSet::new() })
    }

    #[cfg(any(feature = "memory", feature = "__servers"))]
    pub(crate) fn take_text(&mut self, name: &'static str) -> Option<String> {
        self.known.insert(name);
        let position = self.left.iter().position(|(given, _)| given == name)?;
        Some(self.left.remove(position).1)
    }

    /// Takes a number in the range of its type.
    #[cfg(any(feature = "memory", feature = "__servers"))]
    pub(crate) fn take_number<N: FromStr>(&mut self, name: &'static str) -> Result<Option<N>> {
        self.take(name, "a number in the allowed range", |text| text.parse().ok())
    }

    /// Returns an error if an option was not taken.
    pub(crate) fn finish(self) -> Result<()> {
        let Some((unknown, _)) = self.left.first() else { return Ok(()) };
        let known: Vec<_> = self.known.into_iter().collect();
        Err(invalid(format!("unknown option {unknown:?}: known are {}", known.join(", "))))
    }

    #[cfg(any(feature = "memory", feature = "__servers"))]
    fn take<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(text) = self.take_text(name) else { return Ok(None) };
        let refused = || invalid(format!("the option {name}={text:?} is not {expected}"));
        parse(&text).map(Some).ok_or_else(refused)
    }
}

/// The names only: a value may be secret.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.left.iter().map(|(name, _)| name)).finish()
    }
}

/// Returns an error about a store's URL. The context must not contain anything from before the `@`.
pub(crate) fn invalid(context: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidUrl, context)
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|char| char.is_ascii_alphanumeric() || "+-.".contains(char))
}

fn parse_login(login: &str) -> Result<(Option<String>, Option<String>)> {
    let (username, password) = match login.split_once(':') {
        Some((username, password)) => (username, Some(password)),
        None => (login, None),
    };
    let username = decode(username, "the user name")?;
    let password = password.map(|password| decode(password, "the password")).transpose()?;
    Ok((Some(username).filter(|username| !username.is_empty()), password))
}

/// The characters to encode: all but those that have no meaning in a URL, or none in a user name or an option.
const ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/').remove(b',');

fn encode(text: &str) -> impl fmt::Display {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// Undoes percent-encoding. `what` names the part for the error, which does not contain the part itself.
fn decode(text: &str, what: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(String::from).map_err(|_| invalid(format!("{what} is not UTF-8 after percent-decoding")))
}
