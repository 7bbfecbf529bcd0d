//! What a server holds, as its LRU crawler lists it.
//!
//! It goes by the hash table (`metadump hash`): a listing by the LRU queues (`all`) leaves out entries that were read a
//! moment ago and wait for their place in a queue. A listing may take longer than an ordinary exchange, so it goes over
//! a link of its own.

use std::borrow::Cow;
use std::time::Duration;

use percent_encoding::percent_decode;

use super::connection::{Connection, Failure, malformed};
use super::key::starts_with;
use crate::error::Result;
use crate::net::{Endpoint, Protocol, Settings, Stream, Timeouts};

/// How long a server may take to list its keys.
const LISTING: Duration = Duration::from_secs(60);

pub(super) fn crawl_settings(settings: Settings) -> Settings {
    let exchange = settings.timeouts.exchange.max(LISTING);
    // A server makes one listing at a time.
    Settings { timeouts: Timeouts { exchange, ..settings.timeouts }, pool_size: 1, ..settings }
}

#[derive(Debug)]
pub(super) struct Crawler {
    endpoint: Endpoint,
}

impl Crawler {
    pub(super) fn new(endpoint: Endpoint) -> Crawler {
        Crawler { endpoint }
    }
}

#[derive(Debug)]
pub(super) enum Listing {
    /// The keys as they are stored.
    Keys(Vec<Vec<u8>>),
    /// The crawler is at work for somebody else.
    Busy,
    Refused(String),
}

impl Protocol for Crawler {
    type Connection = Connection;
    /// What the keys start with.
    type Request = [u8];
    type Reply = Listing;

    async fn open(&self, stream: Stream) -> Result<Connection> {
        Ok(Connection::new(stream))
    }

    async fn send(&self, connection: &mut Connection, _: &[u8]) -> Result<()> {
        let sent = connection.send(b"lru_crawler metadump hash\r\n").await;
        sent.map_err(|failure| failure.at(&self.endpoint))
    }

    async fn receive(&self, connection: &mut Connection, prefix: &[u8]) -> Result<Listing> {
        list(connection, prefix).await.map_err(|failure| failure.at(&self.endpoint))
    }

    fn stream(connection: &mut Connection) -> &mut Stream {
        connection.stream()
    }
}

async fn list(connection: &mut Connection, prefix: &[u8]) -> Result<Listing, Failure> {
    let mut keys = Vec::new();
    let listing = loop {
        let line = connection.line().await?;
        if let Some(key) = listed_key(line) {
            if starts_with(&key, prefix) {
                keys.push(key.into_owned());
            }
        } else if line == b"END" {
            break Listing::Keys(keys);
        } else if line.starts_with(b"BUSY") {
            break Listing::Busy;
        } else if is_error(line) {
            break Listing::Refused(String::from_utf8_lossy(line).into_owned());
        } else {
            return Err(malformed("a line that lists no key"));
        }
    };
    connection.finish()?;
    Ok(listing)
}

/// `key=<percent-encoded> exp=... la=...`
fn listed_key(line: &[u8]) -> Option<Cow<'_, [u8]>> {
    let key = line.strip_prefix(b"key=")?.split(|byte| *byte == b' ').next()?;
    Some(percent_decode(key).into())
}

fn is_error(line: &[u8]) -> bool {
    [&b"ERROR"[..], b"CLIENT_ERROR", b"SERVER_ERROR", b"BADCLASS"].iter().any(|error| line.starts_with(error))
}

#[cfg(test)]
mod tests {
    use super::listed_key;

    #[test]
    fn a_listed_key_is_percent_encoded() {
        let line = b"key=%C3%BC%20w%3A6%25 exp=1795561881 la=1795561781 cas=3 fetch=no cls=1 size=64";
        assert_eq!(listed_key(line).unwrap(), "ü w:6%".as_bytes());
        assert_eq!(listed_key(b"END"), None);
    }
}
