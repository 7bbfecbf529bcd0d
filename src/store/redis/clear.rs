//! Clearing a prefix: lists the keys with `SCAN` and removes the listed ones.

use std::collections::HashSet;

use super::commands::{self, Request};
use super::exchange::exchange;
use super::protocol::Resp;
use super::reply::Reply;
use crate::error::{Error, ErrorKind, Result};
use crate::net::{ExchangeGroup, Link, Retry};
use crate::store::wrong_count;

/// The maximum number of steps of a listing, each of which scans a thousand keys.
const MAX_STEPS: usize = 1 << 22;

/// Clears one server.
pub(super) async fn clear(link: &Link<Resp>, prefix: &str) -> Result<()> {
    let mut listing = Listing::new(link, prefix);
    while let Some(keys) = listing.next(None).await? {
        if !keys.is_empty() {
            let unlink = Request::one(commands::unlink(&keys));
            let removed = exchange(link, &unlink, Retry::Idempotent, None).await?.pop().ok_or_else(wrong_count)?;
            Reply::new(removed, link.endpoint())?.number()?;
        }
    }
    Ok(())
}

/// A listing of the keys that start with a prefix, on one server.
pub(super) struct Listing<'l> {
    link: &'l Link<Resp>,
    pattern: Vec<u8>,
    /// The cursor of the next step; `None` at the end.
    cursor: Option<u64>,
    passed: HashSet<u64>,
}

impl<'l> Listing<'l> {
    pub(super) fn new(link: &'l Link<Resp>, prefix: &str) -> Listing<'l> {
        let pattern = commands::keys_that_start_with(prefix);
        Listing { link, pattern, cursor: Some(0), passed: HashSet::new() }
    }

    /// Returns the keys of the next step, or `None` at the end.
    ///
    /// # Errors
    ///
    /// Also if the server lists its keys without an end.
    pub(super) async fn next(&mut self, group: Option<&ExchangeGroup>) -> Result<Option<Vec<Vec<u8>>>> {
        let Some(cursor) = self.cursor else { return Ok(None) };
        if !self.passed.insert(cursor) || self.passed.len() > MAX_STEPS {
            let endpoint = self.link.endpoint();
            let context = format!("{endpoint} lists its keys without an end: its cursor does not return to 0");
            return Err(Error::new(ErrorKind::Protocol, context));
        }
        let step = Request::one(commands::scan(cursor, &self.pattern));
        let listed = exchange(self.link, &step, Retry::Idempotent, group).await?.pop().ok_or_else(wrong_count)?;
        let (next, keys) = Reply::new(listed, self.link.endpoint())?.scanned()?;
        self.cursor = (next != 0).then_some(next);
        Ok(Some(keys))
    }
}
