//! Clearing a prefix: lists the keys with `SCAN` and removes the listed ones.

use std::collections::HashSet;

use super::cluster::{Cluster, Node};
use super::commands::{self, Request};
use super::exchange::exchange;
use super::protocol::Resp;
use super::reply::Reply;
use crate::error::{Error, ErrorKind, Result};
use crate::net::{ExchangeGroup, Link, Retry};
use crate::store::wrong_count;

/// The maximum number of steps of a listing, each of which scans a thousand keys.
const MAX_STEPS: usize = 1 << 22;

/// Clears one server, or one node of a cluster. `of` is the cluster: there, a command may only have keys of one slot.
pub(super) async fn clear(
    link: &Link<Resp>,
    of: Option<(&Cluster, &Node)>,
    prefix: &str,
    group: Option<&ExchangeGroup>,
) -> Result<()> {
    let pattern = commands::keys_that_start_with(prefix);
    let mut cursor = 0;
    let mut passed = HashSet::new();
    while passed.insert(cursor) {
        let step = Request::one(commands::scan(cursor, &pattern));
        let listed = exchange(link, &step, Retry::Idempotent, group).await?.pop().ok_or_else(wrong_count)?;
        let (next, keys) = Reply::new(listed, link.endpoint())?.scanned()?;
        if !keys.is_empty() {
            match of {
                Some((cluster, node)) => cluster.unlink(node, &keys, group).await?,
                None => {
                    let unlink = Request::one(commands::unlink(&keys));
                    let removed = exchange(link, &unlink, Retry::Idempotent, group).await?.pop();
                    Reply::new(removed.ok_or_else(wrong_count)?, link.endpoint())?.number()?;
                }
            }
        }
        if next == 0 {
            return Ok(());
        }
        if passed.len() >= MAX_STEPS {
            break;
        }
        cursor = next;
    }
    let context = format!("{} lists its keys without an end: its cursor does not return to 0", link.endpoint());
    Err(Error::new(ErrorKind::Protocol, context))
}
