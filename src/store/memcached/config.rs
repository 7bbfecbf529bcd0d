//! The configuration of a Memcached store, parsed from its URL.

use std::num::{NonZeroU32, NonZeroUsize};

use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::net::{Settings, Tls};
use crate::store::credentials::{Callback, Login};
use crate::store::url::{StoreUrl, invalid};

pub(in crate::store) const SCHEMES: &[&str] = &["memcached", "memcacheds", "memcached+unix"];

const DEFAULT_PORT: u16 = 11211;

/// The largest value that a server accepts by default, in bytes.
pub(super) const DEFAULT_MAX_VALUE: usize = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Config {
    /// The servers and their weights.
    pub(super) servers: Vec<(Endpoint, u32)>,
    pub(super) failover: bool,
    pub(super) max_value: usize,
    pub(super) settings: Settings,
    pub(super) access: Access,
}

/// The settings for access to the servers: TLS and login.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) tls: Option<Tls>,
    pub(super) login: Login,
}

impl Config {
    pub(super) fn new(mut url: StoreUrl, callback: Option<Callback>) -> Result<Config> {
        let endpoints = endpoints(&url)?;
        let login = take_login(&mut url, callback)?;
        let tls = url.take_tls(url.scheme == "memcacheds", &endpoints)?;
        let mut options = url.options;
        let config = Config {
            settings: options.take_settings()?,
            failover: options.take_bool("failover")?.unwrap_or(true),
            max_value: options.take_number("max_value")?.map_or(DEFAULT_MAX_VALUE, NonZeroUsize::get),
            servers: with_weights(endpoints, options.take_text("weights").as_deref())?,
            access: Access { tls, login },
        };
        options.finish()?;
        Ok(config)
    }
}

fn endpoints(url: &StoreUrl) -> Result<Vec<Endpoint>> {
    let endpoints = match url.scheme.as_str() {
        "memcached" | "memcacheds" => url.tcp_endpoints(DEFAULT_PORT)?,
        "memcached+unix" => url.unix_endpoints()?,
        other => {
            let known = SCHEMES.join(", ");
            return Err(invalid(format!("the scheme {other:?} is not one of Memcached: {known}")));
        }
    };
    if url.scheme != "memcached+unix" && !["", "/"].contains(&url.path.as_str()) {
        return Err(invalid(format!("memcached has no databases: remove the path {:?}", url.path)));
    }
    for (position, endpoint) in endpoints.iter().enumerate() {
        if endpoints[..position].contains(endpoint) {
            return Err(invalid(format!("the server {endpoint} is listed twice")));
        }
    }
    Ok(endpoints)
}

/// Takes the login from the URL. Memcached has no default user, and separates the name from the password by a space.
fn take_login(url: &mut StoreUrl, callback: Option<Callback>) -> Result<Login> {
    let username = url.username.clone();
    let login = Login::take(url, callback)?;
    let needs_username = matches!(login, Login::Fixed(_) | Login::File { .. });
    if needs_username && username.is_none() {
        return Err(invalid("a login on memcached has a user name: write user:password@"));
    }
    if username.is_some_and(|name| name.contains(char::is_whitespace)) {
        return Err(invalid("the user name of a login on memcached has white space in it"));
    }
    Ok(login)
}

fn with_weights(endpoints: Vec<Endpoint>, weights: Option<&str>) -> Result<Vec<(Endpoint, u32)>> {
    let Some(text) = weights else {
        return Ok(endpoints.into_iter().map(|endpoint| (endpoint, 1)).collect());
    };
    let weights: Option<Vec<NonZeroU32>> = text.split(',').map(|weight| weight.parse().ok()).collect();
    match weights {
        Some(weights) if weights.len() == endpoints.len() => {
            Ok(endpoints.into_iter().zip(weights.into_iter().map(NonZeroU32::get)).collect())
        }
        _ => Err(invalid(format!("weights={text:?} is not one positive whole number for each server"))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Config, StoreUrl};
    use crate::error::{ErrorKind, Result};
    use crate::net::Settings;

    fn parse(url: &str) -> Result<Config> {
        Config::new(StoreUrl::parse(url)?, None)
    }

    fn shown(config: &Config) -> Vec<String> {
        config.servers.iter().map(|(endpoint, weight)| format!("{endpoint} x{weight}")).collect()
    }

    #[test]
    fn defaults() {
        let config = parse("memcached://localhost").unwrap();
        assert_eq!(shown(&config), ["localhost:11211 x1"]);
        assert_eq!(config.settings, Settings::default());
        assert!(config.failover);
        assert_eq!(config.max_value, 1_048_576);
    }

    #[test]
    fn all_options() {
        let url = "memcached://a,[::1]:2/?weights=10,5&failover=false&max_value=10&timeout=20ms";
        let config = parse(url).unwrap();
        assert_eq!(shown(&config), ["a:11211 x10", "[::1]:2 x5"]);
        assert_eq!(config.settings.timeouts.exchange, Duration::from_millis(20));
        assert!(!config.failover);
        assert_eq!(config.max_value, 10);
    }

    #[test]
    fn sockets() {
        let config = parse("memcached+unix:///run/a.sock,/run/b.sock").unwrap();
        assert_eq!(shown(&config), ["/run/a.sock x1", "/run/b.sock x1"]);
    }

    #[test]
    fn an_error_names_the_invalid_part() {
        let refusals = [
            ("redis://a", "\"redis\""),
            ("memcached://a/0", "\"/0\""),
            ("memcached://", "empty"),
            ("memcached://a:11211:3", "\"a\""),
            ("memcached://a,a:11211", "a:11211 is listed twice"),
            ("memcached+unix://a", "three slashes"),
            ("memcached+unix:///", "\"/\""),
            ("memcached://a,b?weights=1", "weights=\"1\""),
            ("memcached://a,b?weights=1,0", "weights=\"1,0\""),
            ("memcached://a?max_value=0", "max_value=\"0\""),
            ("memcached://a?failover=yes", "failover=\"yes\""),
            ("memcached://a?db=1", "\"db\""),
        ];
        for (url, part) in refusals {
            let error = parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl);
            assert!(error.to_string().contains(part), "{url}: {error}");
        }
    }

    #[test]
    fn a_login_is_not_shown() {
        let config = parse("memcached://user:hunter2@a").unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        for url in ["memcached://us%20er:hunter2@a", "memcached://:hunter2@a", "memcached://hunter2@a"] {
            let error = parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{url}");
        }
    }
}
