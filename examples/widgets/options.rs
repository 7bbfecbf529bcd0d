//! Command-line options.

use std::ffi::OsString;
use std::str::FromStr;
use std::sync::Arc;

use lexopt::prelude::*;
use prefork_cache::CacheStore;
use prefork_cache::stores::{self, MemoryStore};

pub(crate) const HELP: &str = "\
A preforking web shop whose texts each customer may change.

Usage: widgets [--store URL] [--workers N] [--port N] [--customer NAME]

  --store URL      the store of texts and widgets (default memory://):
                   memory://, redis://[user:password@]host[:port][/db],
                   redis+unix:///path, redis+sentinel://sentinel[:port]/master,
                   redis+cluster://host[:port][,host[:port]...],
                   memcached://host[:port][,host[:port]...]
  --workers N      number of worker processes, 1 to 64 (default 4)
  --port N         port on 127.0.0.1 (default 8080; 0 for any free port)
  --customer NAME  letters, digits, '-' and '_' (default acme)
  --help           show this help

SIGINT (Ctrl-C) and SIGTERM finish the current requests and stop every worker.
";

const MOST_WORKERS: u32 = 64;
const LONGEST_NAME: usize = 40;

pub(crate) struct Options {
    pub(crate) store: Arc<dyn CacheStore>,
    /// The same store if the URL is `memory://`, whose entries the master freezes.
    pub(crate) memory: Option<Arc<MemoryStore>>,
    /// The store's URL without login and options.
    pub(crate) place: String,
    pub(crate) workers: u32,
    pub(crate) port: u16,
    pub(crate) customer: String,
}

impl Options {
    /// Parses the arguments. Returns `None` for `--help`. An error is one line that names the refused part.
    pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Option<Options>, String> {
        let mut store = "memory://".to_owned();
        let mut workers = 4;
        let mut port = 8080;
        let mut customer = "acme".to_owned();

        let mut parser = lexopt::Parser::from_args(arguments);
        while let Some(argument) = parser.next().map_err(refused)? {
            match argument {
                Long("help") | Short('h') => return Ok(None),
                Long("store") => store = text(&mut parser)?,
                Long("workers") => workers = number("--workers", &text(&mut parser)?, 1, MOST_WORKERS)?,
                Long("port") => port = number("--port", &text(&mut parser)?, 0, u16::MAX)?,
                Long("customer") => customer = customer_name(text(&mut parser)?)?,
                unknown => return Err(refused(unknown.unexpected())),
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

fn text(parser: &mut lexopt::Parser) -> Result<String, String> {
    parser.value().and_then(|value| value.string()).map_err(refused)
}

/// Returns the message of an error, without the parts of arguments that may be a password.
fn refused(error: lexopt::Error) -> String {
    use lexopt::Error::{MissingValue, NonUnicodeValue, UnexpectedArgument, UnexpectedOption, UnexpectedValue};
    match error {
        UnexpectedOption(name) => format!("unknown argument {:?}; --help lists the known ones", without_secrets(&name)),
        UnexpectedArgument(argument) => {
            format!("unknown argument {:?}; --help lists the known ones", without_secrets(&argument.to_string_lossy()))
        }
        UnexpectedValue { option, .. } => format!("{option} takes no value"),
        MissingValue { option: Some(option) } => format!("{option} needs a value"),
        NonUnicodeValue(_) => "an argument is not UTF-8".to_owned(),
        other => other.to_string(),
    }
}

fn number<N: FromStr + PartialOrd + std::fmt::Display>(name: &str, text: &str, least: N, most: N) -> Result<N, String> {
    let refused = || format!("{name}: {:?} is not a number from {least} to {most}", without_secrets(text));
    text.parse().ok().filter(|number| (&least..=&most).contains(&number)).ok_or_else(refused)
}

/// Checks a name. It becomes a namespace, whose parts are joined with colons.
fn customer_name(name: String) -> Result<String, String> {
    let allowed = |char: char| char.is_ascii_alphanumeric() || "-_".contains(char);
    if (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(name);
    }
    let refused = without_secrets(&name);
    Err(format!("--customer: {refused:?} is not 1 to {LONGEST_NAME} letters, digits, '-' and '_'"))
}

/// Returns the beginning of an argument, up to where the password of a URL might begin.
fn without_secrets(text: &str) -> String {
    let end = text.find([':', '@', '/']).unwrap_or(text.len());
    let shown: String = text[..end].chars().take(LONGEST_NAME).collect();
    if shown.len() < text.len() { shown + "..." } else { shown }
}

/// Removes user and password from a valid URL, where an `@` can only end the login.
fn without_login(url: &str) -> String {
    let location = url.split('?').next().unwrap_or_default();
    match (location.split_once("://"), location.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, hosts))) => format!("{scheme}://{hosts}"),
        _ => location.to_owned(),
    }
}
