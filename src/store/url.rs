//! The URL of a store, taken apart.
//!
//! `scheme://[user[:password]@]host[:port][,host[:port]...][/path][?option=value&...]`. A store takes the options that
//! it knows by name and refuses whatever is left. No error and no `Debug` output shows anything from before the `@`; where
//! that might be in an unexpected place (a password with a bare `/`, say), nothing of the URL is shown at all.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv6Addr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::LONGEST;
use crate::net::{Settings, Timeouts};

/// Options whose values are not shown.
const SECRET: &[&str] = &["sentinel_password"];

/// The room that the kernel has for the path of a Unix socket.
const LONGEST_SOCKET_PATH: usize = 107;

pub(crate) struct StoreUrl {
    /// In lower case.
    pub(crate) scheme: String,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<String>,
    /// What stands between the `@` and the path, as it was written.
    pub(crate) hosts: String,
    /// From its first `/` on, as it was written; empty if there is none.
    pub(crate) path: String,
    pub(crate) options: Options,
}

impl StoreUrl {
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`], as from everything in this module.
    pub(crate) fn parse(url: &str) -> Result<StoreUrl> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| invalid("the URL does not begin with scheme://"))?;
        if !is_scheme(scheme) {
            return Err(invalid("the scheme of the URL is not a word of letters, digits, '+', '-' and '.'"));
        }
        if rest.contains('#') {
            return Err(invalid("the URL has a '#': write %23 for one inside of a part"));
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

    /// The hosts, separated by commas, each with a port or the default one.
    pub(crate) fn tcp_endpoints(&self, default_port: u16) -> Result<Vec<Endpoint>> {
        self.hosts.split(',').map(|host| parse_host(host, default_port)).collect()
    }

    /// The path as those of Unix sockets, separated by commas. There must be no host.
    pub(crate) fn unix_endpoints(&self) -> Result<Vec<Endpoint>> {
        if !self.hosts.is_empty() {
            let scheme = &self.scheme;
            return Err(invalid(format!("a {scheme} URL has no host: write {scheme}:///path, with three slashes")));
        }
        self.path.split(',').map(parse_socket_path).collect()
    }
}

/// As it was written, but for the passwords.
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

/// The options of a URL that were not taken yet, and the names of those that were asked for.
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

    /// Gives an option, in the place of the one of that name if there is one.
    pub(crate) fn set(&mut self, name: &str, value: String) {
        match self.left.iter_mut().find(|(given, _)| given == name) {
            Some((_, given)) => *given = value,
            None => self.left.push((name.to_owned(), value)),
        }
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.left.retain(|(given, _)| given != name);
    }

    pub(crate) fn take_text(&mut self, name: &'static str) -> Option<String> {
        self.known.insert(name);
        let position = self.left.iter().position(|(given, _)| given == name)?;
        Some(self.left.remove(position).1)
    }

    /// A number, in the range of its type.
    pub(crate) fn take_number<N: FromStr>(&mut self, name: &'static str) -> Result<Option<N>> {
        self.take(name, "a number in the allowed range", |text| text.parse().ok())
    }

    pub(crate) fn take_bool(&mut self, name: &'static str) -> Result<Option<bool>> {
        self.take(name, "true or false", |text| text.parse().ok())
    }

    /// A duration such as `500ms`, `2s`, `1m`, `1h` or `2`, which is in seconds.
    pub(crate) fn take_duration(&mut self, name: &'static str) -> Result<Option<Duration>> {
        self.take(
            name,
            "a duration above zero and up to a day, such as 500ms, 2s, 1m, 1h or 2 (seconds)",
            parse_duration,
        )
    }

    /// The same, or `off`.
    fn take_duration_or_off(&mut self, name: &'static str) -> Result<Option<Option<Duration>>> {
        self.take(name, "off, or a duration above zero and up to a day, such as 60s or 5m", |text| match text {
            "off" => Some(None),
            text => parse_duration(text).map(Some),
        })
    }

    /// What every store with connections can be told.
    pub(crate) fn take_settings(&mut self) -> Result<Settings> {
        let default = Settings::default();
        Ok(Settings {
            timeouts: Timeouts {
                connect: self.take_duration("connect_timeout")?.unwrap_or(default.timeouts.connect),
                exchange: self.take_duration("timeout")?.unwrap_or(default.timeouts.exchange),
            },
            pool_size: self.take_number("pool_size")?.map_or(default.pool_size, NonZeroUsize::get),
            failures: self.take_number("failures")?.map_or(default.failures, NonZeroU32::get),
            retry_after: self.take_duration("retry_after")?.unwrap_or(default.retry_after),
            keepalive: self.take_duration_or_off("keepalive")?.unwrap_or(default.keepalive),
            max_idle: self.take_duration("max_idle")?,
            max_age: self.take_duration("max_age")?,
        })
    }

    /// Refuses what nobody took.
    pub(crate) fn finish(self) -> Result<()> {
        let Some((unknown, _)) = self.left.first() else { return Ok(()) };
        let known: Vec<_> = self.known.into_iter().collect();
        Err(invalid(format!("unknown option {unknown:?}: known are {}", known.join(", "))))
    }

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

/// Names only: a value may have been meant to be secret.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.left.iter().map(|(name, _)| name)).finish()
    }
}

/// An error about a store's URL. The context must hold nothing from before the `@`.
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

fn parse_host(text: &str, default_port: u16) -> Result<Endpoint> {
    let (host, port) = if let Some(bracketed) = text.strip_prefix('[') {
        let (address, port) = bracketed.split_once(']').ok_or_else(|| invalid(format!("{text:?} has no ']'")))?;
        if address.parse::<Ipv6Addr>().is_err() {
            return Err(invalid(format!("{address:?} is not an IPv6 address")));
        }
        let port = if port.is_empty() { None } else { Some(port.strip_prefix(':').unwrap_or(port)) };
        (address, port)
    } else {
        if text.parse::<Ipv6Addr>().is_ok() {
            return Err(invalid(format!("write the IPv6 address {text:?} in brackets")));
        }
        match text.split_once(':') {
            Some((host, port)) => (check_host(host)?, Some(port)),
            None => (check_host(text)?, None),
        }
    };
    let port = port.map_or(Ok(default_port), |port| parse_port(host, port))?;
    Ok(Endpoint::Tcp { host: host.to_owned(), port })
}

fn check_host(host: &str) -> Result<&str> {
    if host.is_empty() {
        return Err(invalid("a host of the URL is empty"));
    }
    if !is_host(host) {
        return Err(invalid(format!("{host:?} is not the name or address of a host")));
    }
    Ok(host)
}

/// Whether it is written as the name or the IPv4 address of a host is.
pub(crate) fn is_host(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|char| char.is_ascii_alphanumeric() || "-._".contains(char))
}

/// Does not show what is no number: it may be the password of a login without its `@`.
fn parse_port(host: &str, text: &str) -> Result<u16> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number {
        return Err(invalid(format!("the port of the host {host:?} is not a number")));
    }
    let port = text.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| invalid(format!("the port {text} of the host {host:?} is not between 1 and 65535")))
}

fn parse_socket_path(text: &str) -> Result<Endpoint> {
    let path = decode(text, "the path of the socket")?;
    if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
        return Err(invalid(format!("{path:?} is not the absolute path of a socket")));
    }
    if path.len() > LONGEST_SOCKET_PATH {
        return Err(invalid(format!("the socket path {path:?} is longer than {LONGEST_SOCKET_PATH} bytes")));
    }
    Ok(Endpoint::Unix(PathBuf::from(path)))
}

fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let number: u64 = number.parse().ok()?;
    let duration = match unit {
        "ms" => Duration::from_millis(number),
        "s" | "" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.checked_mul(60)?),
        "h" => Duration::from_secs(number.checked_mul(60 * 60)?),
        _ => return None,
    };
    (Duration::ZERO < duration && duration <= LONGEST).then_some(duration)
}

/// What means nothing in a URL, or nothing where it is used here.
const HARMLESS: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/').remove(b',');

fn encode(text: &str) -> impl fmt::Display {
    utf8_percent_encode(text, HARMLESS).to_string()
}

/// Undoes percent-encoding. `what` names the part, whose text is not shown.
fn decode(text: &str, what: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(String::from).map_err(|_| invalid(format!("{what} is not UTF-8 once its percent-encoding is undone")))
}

#[cfg(test)]
mod tests;
