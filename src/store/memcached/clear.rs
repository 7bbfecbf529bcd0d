//! Removing every entry with a prefix: the keys are listed, and those listed are deleted.

use std::sync::Arc;
use std::time::Duration;

use super::crawler::Listing;
use super::key::Key;
use super::meta::{Answer, Command};
use super::servers::{Entry, Server, Servers, traced};
use crate::error::{Error, ErrorKind, Result};
use crate::execution::pause;
use crate::net::Retry;

/// How often a listing is attempted while the server's crawler is busy, and the pause between two attempts.
const ATTEMPTS: usize = 100;
const PAUSE: Duration = Duration::from_millis(50);

impl Servers {
    /// Clears every server, even after one of them fails.
    pub(super) async fn clear(&self, prefix: &str) -> Result<()> {
        let mut outcome = Ok(());
        for server in self.iter() {
            outcome = outcome.and(self.clear_one(server, prefix).await);
        }
        outcome
    }

    /// Lists and deletes keys until a listing is complete.
    async fn clear_one(&self, server: &Server, prefix: &str) -> Result<()> {
        let delete = |stored| Entry { key: Key::listed(stored), command: Command::Delete { cas: None } };
        loop {
            let (keys, has_more) = list(server, prefix).await?;
            let entries: Vec<_> = keys.into_iter().map(delete).collect();
            let deletions = self.ask(server, &entries.iter().collect::<Vec<_>>(), Retry::Idempotent, None).await;
            let mut has_deleted = false;
            for deletion in deletions {
                has_deleted |= deletion? == Answer::Done;
            }
            if !has_more {
                return Ok(());
            }
            if !has_deleted {
                let context = format!("{} lists keys that it does not have", server.link.endpoint());
                return Err(Error::new(ErrorKind::Protocol, context));
            }
        }
    }
}

async fn list(server: &Server, prefix: &str) -> Result<(Vec<Vec<u8>>, bool)> {
    let endpoint = server.link.endpoint();
    let prefix = Arc::from(prefix.as_bytes());
    for _ in 0..ATTEMPTS {
        let listing = server.crawler.call(&prefix, Retry::Idempotent, None);
        match traced(server, || ("lru_crawler".to_owned(), 1), listing, refused).await? {
            Listing::Keys(keys, has_more) => {
                // Listings are rare, so the connection is not kept for another.
                server.crawler.reset();
                return Ok((keys, has_more));
            }
            Listing::Busy => pause(PAUSE).await?,
            Listing::Refused(text) => {
                let context = format!("{endpoint} does not list its keys: {text}");
                return Err(Error::new(ErrorKind::Unsupported, context));
            }
        }
    }
    let waited = PAUSE * u32::try_from(ATTEMPTS).unwrap_or(u32::MAX);
    Err(Error::new(ErrorKind::Timeout, format!("listing the keys of {endpoint}: its crawler was busy for {waited:?}")))
}

fn refused(listing: &Listing) -> Option<ErrorKind> {
    matches!(listing, Listing::Refused(_)).then_some(ErrorKind::Unsupported)
}
