//! Listing the keys of a server with its LRU crawler.
//!
//! The listing walks the hash table (`metadump hash`). A listing by the LRU queues (`all`) omits entries that were
//! just read and are waiting to be moved within a queue. A listing may take longer than an ordinary exchange, so it
//! has a link of its own.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode;

use super::config::Access;
use super::framing::{LineFraming, without_end};
use super::key::starts_with;
use super::login::log_in;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::net::{Accepted, Connection, Frame, Marking, Protocol, Settings, Timeouts, Tls, WriteBuffer};

/// The timeout of a listing.
const LISTING_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn crawl_settings(settings: Settings) -> Settings {
    let exchange = settings.timeouts.exchange.max(LISTING_TIMEOUT);
    // A server makes one listing at a time.
    Settings { timeouts: Timeouts { exchange, ..settings.timeouts }, pool_size: 1, ..settings }
}

#[derive(Debug)]
pub(super) struct Crawler {
    endpoint: Endpoint,
    access: Access,
}

impl Crawler {
    pub(super) fn new(endpoint: Endpoint, access: Access) -> Crawler {
        Crawler { endpoint, access }
    }
}

/// The maximum memory for the keys of one listing, in bytes. Further keys are dropped.
const MAX_KEPT: usize = 64 << 20;

#[derive(Debug)]
pub(super) enum Listing {
    /// The stored keys, and whether there are more.
    Keys(Vec<Vec<u8>>, bool),
    /// The crawler is working for another client.
    Busy,
    Refused(String),
}

/// A listing that is being received.
pub(super) struct Partial {
    prefix: Arc<[u8]>,
    keys: Vec<Vec<u8>>,
    /// The memory that all keys with the prefix need, in bytes.
    size: usize,
    ended: Option<Listing>,
}

impl Protocol for Crawler {
    type Framing = LineFraming;
    /// The prefix of the keys to list.
    type Request = Arc<[u8]>;
    type Partial = Partial;
    type Reply = Listing;

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn tls(&self) -> Option<&Tls> {
        self.access.tls.as_ref()
    }

    fn framing(&self) -> LineFraming {
        LineFraming::new()
    }

    fn max_value(&self) -> usize {
        0
    }

    async fn greet(&self, connection: &mut Connection<Crawler>, _: usize) -> Result<Marking> {
        log_in(self, connection, &self.access.login).await?;
        Ok(Marking::Impossible)
    }

    fn is_read(_: &Arc<[u8]>) -> bool {
        true
    }

    fn key(prefix: &Arc<[u8]>) -> &[u8] {
        prefix
    }

    fn longest_value(_: &Listing) -> usize {
        0
    }

    fn write(&self, prefix: &Arc<[u8]>, outgoing: &mut WriteBuffer) -> Partial {
        outgoing.buffer().extend_from_slice(b"lru_crawler metadump hash\r\n");
        Partial { prefix: Arc::clone(prefix), keys: Vec::new(), size: 0, ended: None }
    }

    fn accept(&self, partial: &mut Partial, frame: Frame<'_>) -> Result<Accepted> {
        let line = without_end(frame.bytes);
        partial.ended = if let Some(key) = listed_key(line) {
            if starts_with(&key, &partial.prefix) {
                partial.size += key.len() + size_of::<Vec<u8>>();
                if partial.size <= MAX_KEPT {
                    partial.keys.push(key.into_owned());
                }
            }
            return Ok(Accepted::Incomplete);
        } else if line == b"END" {
            None
        } else if line.starts_with(b"BUSY") {
            Some(Listing::Busy)
        } else if is_error(line) {
            Some(Listing::Refused(String::from_utf8_lossy(line).into_owned()))
        } else {
            let context = format!("{} sent a line that lists no key", self.endpoint);
            return Err(Error::new(ErrorKind::Protocol, context));
        };
        Ok(Accepted::Complete { proven: false })
    }

    fn refusal(&self, _: &Partial) -> Option<Error> {
        None
    }

    fn finish(partial: Partial) -> Listing {
        let has_more = partial.size > MAX_KEPT;
        partial.ended.unwrap_or(Listing::Keys(partial.keys, has_more))
    }

    fn is_last(_: &Listing) -> bool {
        false
    }
}

/// Returns the key in a line `key=<percent-encoded> exp=... la=...`.
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
