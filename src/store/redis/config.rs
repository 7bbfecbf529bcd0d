//! The configuration of a store on Redis, parsed from its URL.

use std::fmt;

use super::sentinel;
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::net::{Address, Settings, Tls};
use crate::store::credentials::{Callback, Login};
use crate::store::url::{StoreUrl, invalid};

pub(in crate::store) const SCHEMES: &[&str] = &[
    "redis",
    "rediss",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
    "redis+unix",
    "redis+socket",
    "unix",
];

/// The first is this crate's own scheme, the others are used by other clients.
const UNIX_SCHEMES: &[&str] = &["redis+unix", "redis+socket", "unix"];

const DEFAULT_PORT: u16 = 6379;

/// The server's own default for `proto-max-bulk-len`.
const DEFAULT_MAX_VALUE: usize = 512 << 20;

#[derive(Debug)]
pub(super) struct Config {
    pub(super) location: Location,
    pub(super) access: Access,
    pub(super) settings: Settings,
}

/// The servers that keep the entries.
#[derive(Debug)]
pub(super) enum Location {
    Server(Address),
    /// A cluster, by the nodes of the URL.
    Cluster {
        seeds: Vec<Endpoint>,
        replicas: Replicas,
    },
}

/// The settings of a connection: TLS, login, database and protocol.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) tls: Option<Tls>,
    pub(super) login: Login,
    pub(super) database: u32,
    pub(super) protocol: Version,
    /// The name of a connection; the process id is appended.
    pub(super) client_name: Option<String>,
    pub(super) max_value: usize,
}

/// Whether the replicas of a cluster are read.
///
/// ```
/// use prefork_cache::stores::{RedisStore, Replicas};
///
/// let store = RedisStore::builder("redis+cluster://cache.internal").replicas(Replicas::Prefer).build()?;
/// assert_eq!(store.to_string(), "redis+cluster://cache.internal?replicas=prefer");
/// # Ok::<(), prefork_cache::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replicas {
    /// Every read goes to the master and returns the latest value.
    #[default]
    Never,
    /// `get` and `get_many` read from a replica, which may lag behind, or from the master if the replica does not
    /// respond.
    Prefer,
}

impl fmt::Display for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Replicas::Never => "never",
            Replicas::Prefer => "prefer",
        })
    }
}

/// The version of the protocol that a connection tries first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Version {
    Resp2,
    /// RESP3, or RESP2 if the server does not support RESP3.
    #[default]
    Resp3,
}

impl Config {
    pub(super) fn new(mut url: StoreUrl, callback: Option<Callback>) -> Result<Config> {
        let on_unix_socket = Config::is_on_unix_socket(&url);
        let is_encrypted = url.scheme.starts_with("rediss");
        let is_cluster = url.scheme.ends_with("+cluster");
        if !SCHEMES.contains(&url.scheme.as_str()) {
            let context = format!("the scheme {:?} is not a Redis scheme: {}", url.scheme, SCHEMES.join(", "));
            return Err(invalid(context));
        }
        if !on_unix_socket && url.hosts.is_empty() && !url.path.is_empty() {
            let context = format!(
                "a {} URL has a host before its path: only a single server is reached over a Unix socket, by {}:///path",
                url.scheme, UNIX_SCHEMES[0]
            );
            return Err(invalid(context));
        }
        let is_behind_sentinels = sentinel::is_sentinel_url(&url);
        let master = if is_behind_sentinels { Some(sentinel::take_master(&mut url)?) } else { None };
        let default_port = if is_behind_sentinels { sentinel::DEFAULT_PORT } else { DEFAULT_PORT };
        let endpoints = if on_unix_socket { url.unix_endpoints()? } else { url.tcp_endpoints(default_port)? };
        let login = Login::take(&mut url, callback)?;
        let database = take_database(&mut url, on_unix_socket)?;
        if is_cluster && database != 0 {
            return Err(invalid(format!("a cluster has no database {database}: it has number 0 alone")));
        }
        let replicas =
            url.options.take_text("replicas").map_or(Ok(Replicas::default()), |text| parse_replicas(&text))?;
        let protocol = url.options.take_text("protocol").map_or(Ok(Version::default()), |text| parse_version(&text))?;
        let client_name = url.options.take_text("client_name").map(check_name).transpose()?;
        let settings = url.options.take_settings()?;
        let max_value = url.options.take_number("max_value")?.unwrap_or(DEFAULT_MAX_VALUE);
        let tls = url.take_tls(is_encrypted, &endpoints)?;
        let options = sentinel::Options::take(&mut url)?;
        url.options.finish()?;
        if !is_cluster && replicas != Replicas::Never {
            return Err(invalid(format!("replicas={replicas} is for a cluster: redis+cluster://")));
        }
        let location = match master {
            Some(master) => Location::Server(Address::LookedUp(options.discovery(master, endpoints, tls.as_ref()))),
            None => {
                options.refuse_without_sentinels(&url.scheme)?;
                if is_cluster {
                    Location::Cluster { seeds: endpoints, replicas }
                } else {
                    Location::Server(one(endpoints)?)
                }
            }
        };
        let access = Access { tls, login, database, protocol, client_name, max_value };
        Ok(Config { location, access, settings })
    }

    /// Removes the database from the path, in the URLs that may have it there.
    pub(super) fn clear_database(url: &mut StoreUrl) {
        if sentinel::is_sentinel_url(url) {
            sentinel::clear_database(url);
        } else if !Config::is_on_unix_socket(url) {
            url.path.clear();
        }
    }

    fn is_on_unix_socket(url: &StoreUrl) -> bool {
        UNIX_SCHEMES.contains(&url.scheme.as_str())
    }
}

fn one(endpoints: Vec<Endpoint>) -> Result<Address> {
    let [endpoint] = <[Endpoint; 1]>::try_from(endpoints).map_err(|_| {
        invalid(
            "a redis URL names one server, without a comma; the nodes of a cluster are those of a redis+cluster URL",
        )
    })?;
    Ok(Address::Fixed(endpoint))
}

fn parse_replicas(text: &str) -> Result<Replicas> {
    let known = [Replicas::Never, Replicas::Prefer];
    let found = known.into_iter().find(|replicas| replicas.to_string() == text);
    found.ok_or_else(|| invalid(format!("replicas={text:?} is neither never nor prefer")))
}

/// Takes the database: from the path, from the option `database`, or from `db`, its name in other clients.
fn take_database(url: &mut StoreUrl, on_unix_socket: bool) -> Result<u32> {
    let in_path = if on_unix_socket { None } else { database_in(&url.path) };
    let given = [in_path, url.options.take_text("database"), url.options.take_text("db")];
    let mut given = given.into_iter().flatten();
    match (given.next(), given.next()) {
        (None, _) => Ok(0),
        (Some(text), None) => parse_database(&text),
        (Some(_), Some(_)) => Err(invalid("a redis URL gives the database twice: in its path, or as database or db")),
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

/// Returns the name of a connection if it is valid: the server refuses spaces and line ends.
fn check_name(name: String) -> Result<String> {
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
    if is_name { Ok(name) } else { Err(invalid(format!("client_name={name:?} is not a word of printable characters"))) }
}

#[cfg(test)]
mod tests {
    use super::{Config, Location, Replicas, StoreUrl};
    use crate::error::Result;
    use crate::store::credentials::Credentials;

    fn parse(url: &str) -> Result<Config> {
        Config::new(StoreUrl::parse(url)?, None)
    }

    /// Returns the servers, separated by commas.
    fn shown(config: &Config) -> String {
        let endpoints = match &config.location {
            Location::Server(address) => std::slice::from_ref(address.endpoint()),
            Location::Cluster { seeds, .. } => seeds,
        };
        endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    fn credentials(config: &Config) -> Credentials {
        config.access.login.credentials().unwrap().unwrap()
    }

    #[test]
    fn a_url_sets_login_database_timeout_and_pool_size() {
        let config = parse("redis://me:pass%2Fword@[::1]:7000/3?timeout=5ms&pool_size=2").unwrap();
        assert_eq!(shown(&config), "[::1]:7000");
        assert_eq!((credentials(&config).username(), credentials(&config).secret()), (Some("me"), "pass/word"));
        assert_eq!(config.access.database, 3);
        assert_eq!(config.settings.timeouts.exchange.as_millis(), 5);
        assert_eq!(config.settings.pool_size, 2);
    }

    #[test]
    fn a_unix_socket_takes_its_database_as_an_option() {
        for url in [
            "redis+unix:///run/redis.sock?database=2",
            "unix:///run/redis.sock?db=2",
            "redis+socket:///run/redis.sock?db=2",
        ] {
            let config = parse(url).unwrap();
            assert_eq!(shown(&config), "/run/redis.sock");
            assert_eq!(config.access.database, 2, "{url}");
        }
    }

    #[test]
    fn a_cluster_url_names_some_of_the_nodes() {
        let config = parse("redis+cluster://me:secret@a,b:7000,[::1]/0?replicas=prefer").unwrap();
        assert_eq!(shown(&config), "a:6379,b:7000,[::1]:6379");
        assert!(matches!(config.location, Location::Cluster { replicas: Replicas::Prefer, .. }));
        for (url, part) in [
            ("redis+cluster://a/1", "no database 1"),
            ("redis+cluster://a?db=2", "no database 2"),
            ("redis+cluster://a?replicas=always", "\"always\""),
            ("redis://a?replicas=prefer", "redis+cluster://"),
            ("redis://a,b", "redis+cluster"),
            ("redis+cluster://", "empty"),
            ("redis+cluster:///run/redis.sock", "a redis+cluster URL has a host before its path"),
            ("redis+sentinel:///run/redis.sock/m", "by redis+unix:///path"),
            ("redis+unix://a:7000/", "a redis+unix URL has no host"),
            ("redis+cluster://a?tls_ca=/ca.pem", "tls_ca"),
        ] {
            let error = parse(url).unwrap_err().to_string();
            assert!(error.contains(part), "{url}: {error}");
        }
    }

    #[test]
    fn a_database_is_given_once() {
        assert_eq!(parse("redis://localhost?db=2").unwrap().access.database, 2);
        assert_eq!(parse("redis://localhost/?database=3").unwrap().access.database, 3);
        for url in ["redis://localhost/2?db=2", "redis://localhost?db=1&database=1"] {
            assert!(parse(url).unwrap_err().to_string().contains("twice"), "{url}");
        }
        assert!(parse("redis://localhost?db=two").unwrap_err().to_string().contains("\"two\""));
    }

    fn refusal(url: &str) -> String {
        let error = parse(url).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::InvalidUrl);
        format!("{error} {error:?}")
    }

    #[test]
    fn a_sentinel_url_names_sentinels_and_a_master() {
        let url = "redis+sentinel://me:secret@a,b:7/my-master.1/3?sentinel_password=0ther&topology_refresh=2s";
        let config = parse(url).unwrap();
        assert_eq!(shown(&config), "my-master.1", "the endpoint, until the address is known");
        assert_eq!((credentials(&config).username(), credentials(&config).secret()), (Some("me"), "secret"));
        assert_eq!(config.access.database, 3);
        let shown = format!("{config:?} {}", StoreUrl::parse(url).unwrap());
        assert!(!shown.contains("secret") && !shown.contains("0ther"), "{shown}");
        assert!(shown.contains("a:26379") || shown.contains("port: 26379"), "{shown}");
        assert_eq!(parse("redis+sentinel://a/m?db=2").unwrap().access.database, 2);
        assert_eq!(parse("redis+sentinel://a/m/").unwrap().access.database, 0);
    }

    #[test]
    fn invalid_sentinel_urls_are_refused() {
        for url in ["redis+sentinel://a", "redis+sentinel://a/", "redis+sentinel://a//2", "redis+sentinel://a/my%20m"] {
            assert!(refusal(url).contains("name of a master"), "{url}");
        }
        assert!(refusal("redis+sentinel://a/m/two").contains("\"two\""));
        assert!(refusal("redis+sentinel://a/m/1/2").contains("\"1/2\""));
        assert!(refusal("redis+sentinel://a,,b/m").contains("empty"));
        assert!(refusal("redis+sentinel://a/m?sentinel_username=me").contains("sentinel_username"));
        assert!(refusal("redis+sentinel://a/m?topology_refresh=0").contains("topology_refresh"));
        let both = "sentinel_password=hunter2&sentinel_password_file=/f";
        assert!(refusal(&format!("redis+sentinel://a/m?{both}")).contains("sentinel_password_file"));
        for url in [format!("redis+sentinel://a/m?{both}"), "redis://a?sentinel_password=hunter2".to_owned()] {
            assert!(!refusal(&url).contains("hunter2"), "{url}");
        }
        for option in ["sentinel_username", "sentinel_password", "sentinel_password_file"] {
            assert!(
                refusal(&format!("redis://a?{option}=x")).contains(&format!("option {option} is given")),
                "{option}"
            );
        }
        assert!(refusal("redis://a?topology_refresh=1s").contains("redis has no sentinels"));
    }

    #[test]
    fn a_password_without_a_user_is_that_of_the_default_user() {
        let config = parse("redis://:secret@localhost").unwrap();
        assert!(!format!("{config:?}").contains("secret"));
        assert_eq!((credentials(&config).username(), credentials(&config).secret()), (None, "secret"));
    }
}
