//! What a `memcached://` URL says.

use std::num::{NonZeroU32, NonZeroUsize};

use crate::error::Result;
use crate::net::{Endpoint, Settings};
use crate::store::url::{StoreUrl, invalid};

const DEFAULT_PORT: u16 = 11211;

/// What a server takes if it is not told otherwise.
pub(super) const DEFAULT_MAX_VALUE: usize = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Config {
    /// The servers and their weights.
    pub(super) servers: Vec<(Endpoint, u32)>,
    pub(super) failover: bool,
    pub(super) max_value: usize,
    pub(super) settings: Settings,
}

impl Config {
    pub(super) fn parse(url: &str) -> Result<Config> {
        let url = StoreUrl::parse(url)?;
        let endpoints = endpoints(&url)?;
        let mut options = url.options;
        let config = Config {
            settings: options.take_settings()?,
            failover: options.take_bool("failover")?.unwrap_or(true),
            max_value: options.take_number("max_value")?.map_or(DEFAULT_MAX_VALUE, NonZeroUsize::get),
            servers: weigh(endpoints, options.take_text("weights").as_deref())?,
        };
        options.finish()?;
        Ok(config)
    }
}

fn endpoints(url: &StoreUrl) -> Result<Vec<Endpoint>> {
    let endpoints = match url.scheme.as_str() {
        "memcached" => url.tcp_endpoints(DEFAULT_PORT)?,
        "memcached+unix" => url.unix_endpoints()?,
        other => return Err(invalid(format!("the scheme {other:?} is neither memcached nor memcached+unix"))),
    };
    if url.username.is_some() || url.password.is_some() {
        return Err(invalid("a login is not supported with memcached: remove what stands before the '@'"));
    }
    if url.scheme == "memcached" && !["", "/"].contains(&url.path.as_str()) {
        return Err(invalid(format!("memcached has no databases: remove the path {:?}", url.path)));
    }
    for (position, endpoint) in endpoints.iter().enumerate() {
        if endpoints[..position].contains(endpoint) {
            return Err(invalid(format!("the server {endpoint} is listed twice")));
        }
    }
    Ok(endpoints)
}

fn weigh(endpoints: Vec<Endpoint>, weights: Option<&str>) -> Result<Vec<(Endpoint, u32)>> {
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

    use super::Config;
    use crate::error::ErrorKind;
    use crate::net::Settings;

    fn shown(config: &Config) -> Vec<String> {
        config.servers.iter().map(|(endpoint, weight)| format!("{endpoint} x{weight}")).collect()
    }

    #[test]
    fn defaults() {
        let config = Config::parse("memcached://localhost").unwrap();
        assert_eq!(shown(&config), ["localhost:11211 x1"]);
        assert_eq!(config.settings, Settings::default());
        assert!(config.failover);
        assert_eq!(config.max_value, 1_048_576);
    }

    #[test]
    fn everything() {
        let url = "memcached://a,[::1]:2/?weights=10,5&failover=false&max_value=10&timeout=20ms";
        let config = Config::parse(url).unwrap();
        assert_eq!(shown(&config), ["a:11211 x10", "[::1]:2 x5"]);
        assert_eq!(config.settings.timeouts.exchange, Duration::from_millis(20));
        assert!(!config.failover);
        assert_eq!(config.max_value, 10);
    }

    #[test]
    fn sockets() {
        let config = Config::parse("memcached+unix:///run/a.sock,/run/b.sock").unwrap();
        assert_eq!(shown(&config), ["/run/a.sock x1", "/run/b.sock x1"]);
    }

    #[test]
    fn refusals_name_the_part() {
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
            let error = Config::parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl);
            assert!(error.to_string().contains(part), "{url}: {error}");
        }
    }

    #[test]
    fn a_login_is_refused_and_not_shown() {
        for url in ["memcached://user:hunter2@a", "memcached://:hunter2@a", "memcached://hunter2@a"] {
            let error = Config::parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{url}");
        }
    }
}
