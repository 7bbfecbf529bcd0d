//! A Redis URL, understood.

use std::fmt;

use crate::error::Result;
use crate::net::{Endpoint, Settings};
use crate::store::url::{StoreUrl, invalid};

const DEFAULT_PORT: u16 = 6379;

/// The server's own default for `proto-max-bulk-len`.
const DEFAULT_MAX_VALUE: usize = 512 << 20;

#[derive(Debug)]
pub(super) struct Config {
    pub(super) endpoint: Endpoint,
    pub(super) login: Login,
    pub(super) settings: Settings,
    pub(super) max_value: usize,
}

/// What is said to the server first.
#[derive(Clone, Default)]
pub(super) struct Login {
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: u32,
    pub(super) protocol: Version,
    /// What the server is told, with the process id behind it.
    pub(super) client_name: Option<String>,
}

/// The version of the protocol that a connection begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Version {
    Resp2,
    /// Or the other one, where the server does not know it.
    #[default]
    Resp3,
}

impl Config {
    pub(super) fn parse(url: &str) -> Result<Config> {
        let mut url = StoreUrl::parse(url)?;
        let on_unix_socket = match url.scheme.as_str() {
            "redis" => false,
            "redis+unix" => true,
            other => {
                return Err(invalid(format!("the scheme {other:?} is not one of Redis: redis or redis+unix")));
            }
        };
        let endpoints = if on_unix_socket { url.unix_endpoints()? } else { url.tcp_endpoints(DEFAULT_PORT)? };
        let [endpoint] = <[Endpoint; 1]>::try_from(endpoints)
            .map_err(|_| invalid("a redis URL names one server, without a comma"))?;
        if url.username.is_some() && url.password.is_none() {
            return Err(invalid("a redis URL has a user name without a password: write user:password@, or :password@"));
        }
        let database = if on_unix_socket { url.options.take_text("database") } else { database_in(&url.path) };
        let login = Login {
            database: database.map_or(Ok(0), |text| parse_database(&text))?,
            username: url.username,
            password: url.password,
            protocol: url.options.take_text("protocol").map_or(Ok(Version::default()), |text| parse_version(&text))?,
            client_name: url.options.take_text("client_name").map(check_name).transpose()?,
        };
        let settings = url.options.take_settings()?;
        let max_value = url.options.take_number("max_value")?.unwrap_or(DEFAULT_MAX_VALUE);
        url.options.finish()?;
        Ok(Config { endpoint, login, settings, max_value })
    }
}

fn database_in(path: &str) -> Option<String> {
    path.strip_prefix('/').filter(|path| !path.is_empty()).map(str::to_owned)
}

fn parse_database(text: &str) -> Result<u32> {
    text.parse().map_err(|_| invalid(format!("the database {text:?} of a redis URL is not a number")))
}

fn parse_version(text: &str) -> Result<Version> {
    match text {
        "2" => Ok(Version::Resp2),
        "3" => Ok(Version::Resp3),
        _ => Err(invalid(format!("protocol={text:?} is neither 2 nor 3"))),
    }
}

/// The server takes no spaces and no line ends in it.
fn check_name(name: String) -> Result<String> {
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
    if is_name { Ok(name) } else { Err(invalid(format!("client_name={name:?} is not a word of printable characters"))) }
}

/// Without the password.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("database", &self.database).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::Config;

    #[test]
    fn everything_in_its_place() {
        let config = Config::parse("redis://me:pass%2Fword@[::1]:7000/3?timeout=5ms&pool_size=2").unwrap();
        assert_eq!(config.endpoint.to_string(), "[::1]:7000");
        assert_eq!(config.login.username.as_deref(), Some("me"));
        assert_eq!(config.login.password.as_deref(), Some("pass/word"));
        assert_eq!(config.login.database, 3);
        assert_eq!(config.settings.timeouts.exchange.as_millis(), 5);
        assert_eq!(config.settings.pool_size, 2);
    }

    #[test]
    fn a_unix_socket_takes_its_database_as_an_option() {
        let config = Config::parse("redis+unix:///run/redis.sock?database=2").unwrap();
        assert_eq!(config.endpoint.to_string(), "/run/redis.sock");
        assert_eq!(config.login.database, 2);
    }

    #[test]
    fn a_password_alone_is_the_default_users() {
        let config = Config::parse("redis://:secret@localhost").unwrap();
        assert!(!format!("{config:?}").contains("secret"));
        assert_eq!((config.login.username.as_deref(), config.login.password.as_deref()), (None, Some("secret")));
    }
}
