//! Redis Sentinel: finds the address of the master
//! (<https://redis.io/docs/latest/develop/reference/sentinel-clients/>).
//!
//! The sentinels are asked when a connection to the master is opened, and every `topology_refresh` while there are
//! calls. Each query has its own connection. An address is used only if the server there reports the role of a master,
//! or if the account may not ask for the role: see the greeting of [`Resp`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use redis::Value;

use super::commands::{Command, Expected, Request};
use super::protocol::Resp;
use super::reply::{login_error, server_error};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::Execution;
use crate::net::{Directory, Discovery, Protocol, Settings, Tls, ask_once, share_of_deadline};
use crate::store::credentials::{Credentials, Login};
use crate::store::url::{StoreUrl, invalid, is_host};

pub(super) const DEFAULT_PORT: u16 = 26379;

const DEFAULT_REFRESH: Duration = Duration::from_secs(5);

/// Returns whether the hosts of a URL are sentinels.
pub(super) fn is_sentinel_url(url: &StoreUrl) -> bool {
    url.scheme.ends_with("+sentinel")
}

/// Takes the name of the master out of the path. A database may follow it, and stays.
pub(super) fn take_master(url: &mut StoreUrl) -> Result<String> {
    let path = url.path.strip_prefix('/').unwrap_or_default();
    let (name, database) = path.split_once('/').unwrap_or((path, ""));
    if !is_host(name) {
        let context = format!(
            "{name:?} is not the name of a master, which a {} URL has behind its hosts: /mymaster, or /mymaster/2 with the \
             database",
            url.scheme
        );
        return Err(invalid(context));
    }
    let (name, database) = (name.to_owned(), format!("/{database}"));
    url.path = database;
    Ok(name)
}

/// Removes the database from the path, and keeps the name of the master.
pub(super) fn clear_database(url: &mut StoreUrl) {
    let name = url.path.split('/').nth(1).unwrap_or_default();
    url.path = format!("/{name}");
}

/// The options of a URL that concern the sentinels.
pub(super) struct Options {
    login: Login,
    refresh: Option<Duration>,
    /// The name of one of the options that were given, for an error.
    given: Option<&'static str>,
}

impl Options {
    pub(super) fn take(url: &mut StoreUrl) -> Result<Options> {
        let username = url.options.take_text("sentinel_username");
        let password = url.options.take_text("sentinel_password");
        let file = url.options.take_text("sentinel_password_file");
        let refresh = url.options.take_duration("topology_refresh")?;
        let given = [
            ("sentinel_username", username.is_some()),
            ("sentinel_password", password.is_some()),
            ("sentinel_password_file", file.is_some()),
            ("topology_refresh", refresh.is_some()),
        ];
        let given = given.into_iter().find_map(|(option, is_given)| is_given.then_some(option));
        let login = match (username, password, file) {
            (None, None, None) => Login::None,
            (Some(_), None, None) => {
                let context =
                    "the option sentinel_username is given without sentinel_password or sentinel_password_file";
                return Err(invalid(context));
            }
            (_, Some(_), Some(_)) => {
                return Err(invalid("sentinel_password and sentinel_password_file are given: there is one password"));
            }
            (None, Some(password), None) => Login::Fixed(Credentials::password(password)),
            (Some(username), Some(password), None) => Login::Fixed(Credentials::new(username, password)),
            (username, None, Some(path)) => Login::File { username, path: path.into() },
        };
        Ok(Options { login, refresh, given })
    }

    /// Refuses the options in a URL without sentinels.
    pub(super) fn refuse_without_sentinels(&self, scheme: &str) -> Result<()> {
        match self.given {
            None => Ok(()),
            Some(option) => Err(invalid(format!("the option {option} is given, and {scheme} has no sentinels"))),
        }
    }

    pub(super) fn discovery(self, master: String, sentinels: Vec<Endpoint>, tls: Option<&Tls>) -> Discovery {
        let sentinel = |endpoint| Resp::without_greeting(endpoint, tls.cloned());
        let directory = Sentinels {
            master: master.clone(),
            sentinels: sentinels.into_iter().map(sentinel).collect(),
            login: self.login,
            first: AtomicUsize::new(0),
        };
        Discovery::new(&master, directory, self.refresh.unwrap_or(DEFAULT_REFRESH))
    }
}

#[derive(Debug)]
struct Sentinels {
    master: String,
    sentinels: Vec<Resp>,
    login: Login,
    /// The index of the sentinel that is asked first.
    first: AtomicUsize,
}

#[async_trait]
impl Directory for Sentinels {
    fn members(&self) -> usize {
        self.sentinels.len()
    }

    async fn ask(&self, execution: Execution, deadline: Instant, settings: &Settings) -> Result<Endpoint> {
        let first = self.first.load(Ordering::Relaxed);
        let members = self.sentinels.len();
        let mut failures = Vec::new();
        for step in 0..members {
            let index = (first + step) % members;
            // One share is left for the dial of the master.
            let share = share_of_deadline(deadline, members - step + 1);
            match self.ask_one(index, execution, share, settings).await {
                Ok(endpoint) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok(endpoint);
                }
                Err(error) if is_local(&error) => return Err(error),
                Err(error) => failures.push(error),
            }
        }
        Err(self.no_master_named(&failures))
    }

    async fn ask_all(&self, execution: Execution, deadline: Instant, settings: &Settings) -> Option<Endpoint> {
        let members = self.sentinels.len();
        let mut named = Vec::new();
        for index in 0..members {
            let share = share_of_deadline(deadline, members - index);
            if let Ok(endpoint) = self.ask_one(index, execution, share, settings).await {
                named.push((index, endpoint));
            }
        }
        let (index, endpoint) = majority(&named)?;
        self.first.store(*index, Ordering::Relaxed);
        Some(endpoint.clone())
    }

    fn distrust(&self) {
        let next = (self.first.load(Ordering::Relaxed) + 1) % self.sentinels.len();
        self.first.store(next, Ordering::Relaxed);
    }
}

impl Sentinels {
    async fn ask_one(
        &self,
        index: usize,
        execution: Execution,
        deadline: Instant,
        settings: &Settings,
    ) -> Result<Endpoint> {
        let sentinel = &self.sentinels[index];
        let login = self.login.credentials()?;
        let named = self.query(sentinel, login.as_ref(), execution, deadline, settings).await;
        match &login {
            Some(login) => named.map_err(|error| login.hidden_in(sentinel.endpoint(), error)),
            None => named,
        }
    }

    async fn query(
        &self,
        sentinel: &Resp,
        login: Option<&Credentials>,
        execution: Execution,
        deadline: Instant,
        settings: &Settings,
    ) -> Result<Endpoint> {
        let auth = login.map(|login| {
            let auth = Command::new("AUTH", Expected::Anything);
            login.username().into_iter().fold(auth, Command::with).with(login.secret())
        });
        let question = Command::new("SENTINEL", Expected::Anything).with("GET-MASTER-ADDR-BY-NAME").with(&self.master);
        let request = Request::several(auth.into_iter().chain([question]));
        let mut replies = ask_once(execution, sentinel, &request, deadline, settings).await?.into_iter();
        let endpoint = sentinel.endpoint();
        if let Some(login) = login
            && let Some(Value::ServerError(error)) = replies.next()
        {
            return Err(login_error(endpoint, login, &error));
        }
        match replies.next().unwrap_or_default() {
            Value::ServerError(error) => Err(server_error(endpoint, &error)),
            Value::Nil => {
                let context = format!("the sentinel {endpoint} does not know the master {:?}", self.master);
                Err(Error::new(ErrorKind::Unsupported, context))
            }
            named => parse_address(&named).ok_or_else(|| {
                let context = format!(
                    "the sentinel {endpoint} gave an invalid address for the master {:?}: {}",
                    self.master,
                    shown(&named)
                );
                Error::new(ErrorKind::Protocol, context)
            }),
        }
    }

    /// Returns the error that no sentinel has named the master. It is transient if one of the failures is.
    fn no_master_named(&self, failures: &[Error]) -> Error {
        let transient = failures.iter().find(|failure| failure.is_transient());
        let kind = transient.or(failures.first()).map_or(ErrorKind::Connect, Error::kind);
        let each: Vec<String> = failures.iter().map(|failure| format!("{failure:#}")).collect();
        let context = format!("no sentinel has named the master {:?}: {}", self.master, each.join("; "));
        Error::from_reply(kind, transient.is_some(), context)
    }
}

/// Returns the first address, with its sentinel's index, that more than half of the sentinels give.
fn majority(named: &[(usize, Endpoint)]) -> Option<&(usize, Endpoint)> {
    let mut votes: HashMap<&Endpoint, usize> = HashMap::new();
    named.iter().find(|(_, endpoint)| {
        let votes = votes.entry(endpoint).or_default();
        *votes += 1;
        2 * *votes > named.len()
    })
}

fn parse_address(named: &Value) -> Option<Endpoint> {
    const MAX_HOST_LENGTH: usize = 255;
    let Value::Array(parts) = named else { return None };
    let [Value::BulkString(host), Value::BulkString(port)] = parts.as_slice() else { return None };
    let host = str::from_utf8(host).ok()?;
    let is_host = host.parse::<IpAddr>().is_ok() || (host.len() <= MAX_HOST_LENGTH && is_host(host));
    let port = str::from_utf8(port).ok()?.parse().ok().filter(|port| *port != 0)?;
    is_host.then(|| Endpoint::Tcp { host: host.to_owned(), port })
}

/// Returns the beginning of a malformed reply, for an error.
fn shown(value: &Value) -> String {
    const SHOWN: usize = 80;
    format!("{value:?}").chars().take(SHOWN).collect()
}

/// Returns whether an error is not the sentinel's but this process's, so that asking the next one would not help.
fn is_local(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::OutOfResources | ErrorKind::Forked)
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::{Endpoint, majority, parse_address};

    fn address(host: &str, port: &str) -> Option<String> {
        let parts = [host, port].map(|part| Value::BulkString(part.into()));
        parse_address(&Value::Array(parts.into())).map(|endpoint| endpoint.to_string())
    }

    #[test]
    fn an_address_is_a_host_name_or_an_ip_address() {
        assert_eq!(address("10.0.0.1", "6379").as_deref(), Some("10.0.0.1:6379"));
        assert_eq!(address("2001:db8::1", "1").as_deref(), Some("[2001:db8::1]:1"));
        assert_eq!(address("redis-0.redis.svc", "65535").as_deref(), Some("redis-0.redis.svc:65535"));
        for (host, port) in [("", "1"), ("a b", "1"), ("a", "0"), ("a", "65536"), ("a", ""), ("a", "-1"), ("a@b", "1")]
        {
            assert_eq!(address(host, port), None, "{host}:{port}");
        }
        assert_eq!(address(&"a".repeat(256), "1"), None);
        for other in [Value::Nil, Value::Okay, Value::Array(Vec::new()), Value::Array(vec![Value::Nil; 2])] {
            assert_eq!(parse_address(&other), None);
        }
    }

    #[test]
    fn the_address_of_a_majority_is_used() {
        let named = |ports: &[u16]| -> Vec<(usize, Endpoint)> {
            let endpoint = |port: &u16| Endpoint::Tcp { host: "a".to_owned(), port: *port };
            ports.iter().map(endpoint).enumerate().collect()
        };
        let port = |ports: &[u16]| majority(&named(ports)).map(|(_, endpoint)| endpoint.to_string());
        assert_eq!(port(&[]), None);
        assert_eq!(port(&[1]).as_deref(), Some("a:1"));
        assert_eq!(port(&[1, 2]), None);
        assert_eq!(port(&[1, 2, 2]).as_deref(), Some("a:2"));
        assert_eq!(port(&[1, 2, 1, 2]), None);
        assert_eq!(port(&[1, 2, 3]), None);
    }
}
