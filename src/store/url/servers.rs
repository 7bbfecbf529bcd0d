//! The common parts of the URLs of stores with servers: hosts, sockets, and the options of connections.

use std::net::Ipv6Addr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use super::{Options, StoreUrl, decode, invalid};
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::execution::MAX_TIMEOUT;
use crate::net::{Settings, Timeouts};

/// The longest path of a Unix socket that the kernel accepts, in bytes.
const LONGEST_SOCKET_PATH: usize = 107;

impl StoreUrl {
    /// Parses the hosts, which are separated by commas. A host without a port gets the default port.
    pub(crate) fn tcp_endpoints(&self, default_port: u16) -> Result<Vec<Endpoint>> {
        self.hosts.split(',').map(|host| parse_host(host, default_port)).collect()
    }

    /// Parses the path as paths of Unix sockets, which are separated by commas. There must be no host.
    pub(crate) fn unix_endpoints(&self) -> Result<Vec<Endpoint>> {
        if !self.hosts.is_empty() {
            let scheme = &self.scheme;
            return Err(invalid(format!("a {scheme} URL has no host: write {scheme}:///path, with three slashes")));
        }
        self.path.split(',').map(parse_socket_path).collect()
    }
}

impl Options {
    /// Sets an option, replacing an option of the same name.
    pub(crate) fn set(&mut self, name: &str, value: String) {
        match self.left.iter_mut().find(|(given, _)| given == name) {
            Some((_, given)) => *given = value,
            None => self.left.push((name.to_owned(), value)),
        }
    }

    #[cfg(feature = "redis")]
    pub(crate) fn remove(&mut self, name: &str) {
        self.left.retain(|(given, _)| given != name);
    }

    pub(crate) fn take_bool(&mut self, name: &'static str) -> Result<Option<bool>> {
        self.take(name, "true or false", |text| text.parse().ok())
    }

    /// Takes a duration such as `500ms`, `2s`, `1m`, `1h` or `2`, which is in seconds.
    pub(crate) fn take_duration(&mut self, name: &'static str) -> Result<Option<Duration>> {
        self.take(
            name,
            "a duration above zero and up to a day, such as 500ms, 2s, 1m, 1h or 2 (seconds)",
            parse_duration,
        )
    }

    /// Takes a duration, or `Some(None)` for `off`.
    fn take_duration_or_off(&mut self, name: &'static str) -> Result<Option<Option<Duration>>> {
        self.take(name, "off, or a duration above zero and up to a day, such as 60s or 5m", |text| match text {
            "off" => Some(None),
            text => parse_duration(text).map(Some),
        })
    }

    /// Takes the options that every store with servers has.
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

/// Returns whether a string has the form of a host name or an IPv4 address.
pub(crate) fn is_host(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|char| char.is_ascii_alphanumeric() || "-._".contains(char))
}

/// Parses a port. The error does not contain the text if it is not a number: it may be the password of a login whose
/// `@` is missing.
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
    (Duration::ZERO < duration && duration <= MAX_TIMEOUT).then_some(duration)
}
