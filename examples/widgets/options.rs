//! What the command line asks for.

use std::ffi::OsString;
use std::str::FromStr;
use std::sync::Arc;

use prefork_cache::CacheStore;
use prefork_cache::stores::{self, MemoryStore};

pub(crate) const HELP: &str = "\
A preforking web shop whose words each customer may change.

Usage: widgets [--store URL] [--workers N] [--port N] [--customer NAME]

  --store URL      where words and widgets are kept (default memory://):
                   memory://, redis://[user:password@]host[:port][/db],
                   redis+unix:///path, redis+sentinel://sentinel[:port]/master,
                   redis+cluster://host[:port][,host[:port]...],
                   memcached://host[:port][,host[:port]...]
  --workers N      processes that answer, 1 to 64 (default 4)
  --port N         on 127.0.0.1 (default 8080; 0 takes any that is free)
  --customer NAME  letters, digits, '-' and '_' (default acme)
  --help           this text

SIGINT (Ctrl-C) and SIGTERM finish the requests under way and stop every worker.
";

const MOST_WORKERS: u32 = 64;
const LONGEST_NAME: usize = 40;

pub(crate) struct Options {
    pub(crate) store: Arc<dyn CacheStore>,
    /// The same, if it is memory without options: what the master has frozen.
    pub(crate) memory: Option<Arc<MemoryStore>>,
    /// The store's URL without login and options.
    pub(crate) place: String,
    pub(crate) workers: u32,
    pub(crate) port: u16,
    pub(crate) customer: String,
}

impl Options {
    /// `None` where help is asked for. An error is one line that names the part that was refused.
    pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Option<Options>, String> {
        let mut store = "memory://".to_owned();
        let mut workers = 4;
        let mut port = 8080;
        let mut customer = "acme".to_owned();

        let mut arguments = arguments.map(|argument| argument.into_string().map_err(|_| "an argument is not UTF-8"));
        while let Some(argument) = arguments.next().transpose()? {
            let (name, given) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (argument.as_str(), None),
            };
            let mut value = || match &given {
                Some(value) => Ok(value.clone()),
                None => arguments.next().transpose()?.ok_or_else(|| format!("{name} needs a value")),
            };
            match name {
                "--help" | "-h" => return Ok(None),
                "--store" => store = value()?,
                "--workers" => workers = number(name, &value()?, 1, MOST_WORKERS)?,
                "--port" => port = number(name, &value()?, 0, u16::MAX)?,
                "--customer" => customer = customer_name(value()?)?,
                _ => return Err(format!("unknown argument {:?}; --help lists those there are", harmless(name))),
            }
        }
        if store == "memory" {
            store.push_str("://");
        }
        let place = without_login(&store);
        let memory = (store == "memory://").then(|| Arc::new(MemoryStore::new()));
        let store = match &memory {
            Some(memory) => Arc::clone(memory) as Arc<dyn CacheStore>,
            None => stores::from_url(&store).map_err(|error| format!("--store: {error}"))?,
        };
        Ok(Some(Options { store, memory, place, workers, port, customer }))
    }
}

fn number<N: FromStr + PartialOrd + std::fmt::Display>(name: &str, text: &str, least: N, most: N) -> Result<N, String> {
    let refused = || format!("{name}: {:?} is not a number from {least} to {most}", harmless(text));
    text.parse().ok().filter(|number| (&least..=&most).contains(&number)).ok_or_else(refused)
}

/// The name becomes a namespace, whose parts are joined with colons.
fn customer_name(name: String) -> Result<String, String> {
    let allowed = |char: char| char.is_ascii_alphanumeric() || "-_".contains(char);
    if (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(name);
    }
    let refused = harmless(&name);
    Err(format!("--customer: {refused:?} is not 1 to {LONGEST_NAME} letters, digits, '-' and '_'"))
}

/// The beginning of an argument, up to where the password of a URL might begin.
fn harmless(text: &str) -> String {
    let end = text.find([':', '@', '/']).unwrap_or(text.len());
    let shown: String = text[..end].chars().take(LONGEST_NAME).collect();
    if shown.len() < text.len() { shown + "..." } else { shown }
}

/// Of a URL that a store accepts: there an `@` ends the login, and stands nowhere else.
fn without_login(url: &str) -> String {
    let location = url.split('?').next().unwrap_or_default();
    match (location.split_once("://"), location.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, hosts))) => format!("{scheme}://{hosts}"),
        _ => location.to_owned(),
    }
}
