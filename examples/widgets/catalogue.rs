//! The widgets, from a stand-in for a database.

use std::convert::Infallible;
use std::time::Duration;

use prefork_cache::{Cache, Expiry};
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Widget {
    /// The key of its name among the texts.
    pub(crate) name: String,
    pub(crate) sign: char,
    pub(crate) cents: u32,
    pub(crate) stock: u32,
}

const KEY: &str = "widgets";
const HOUR: Duration = Duration::from_secs(60 * 60);
/// One worker reloads the widgets in the last five minutes of their hour. If the database is down then, the old ones
/// serve for another day.
const EXPIRY: Expiry =
    Expiry::after(HOUR).refresh_ahead(Duration::from_secs(5 * 60)).stale_for(HOUR.saturating_mul(24));

/// Returns the widgets from the cache or, if it fails or has none, from the database.
pub(crate) async fn widgets(cache: &Cache) -> Vec<Widget> {
    let Ok(widgets) = cache.fetch(KEY, EXPIRY, async || Ok::<_, Infallible>(query_database())).await;
    widgets
}

/// Loads the widgets in the master, so that no worker has to.
pub(crate) fn warm(cache: &Cache) {
    let Ok(_) = cache.blocking().fetch(KEY, EXPIRY, || Ok::<_, Infallible>(query_database()));
}

fn query_database() -> Vec<Widget> {
    [("widget.gear", '⚙', 420, 12), ("widget.spring", '⌇', 95, 340), ("widget.lever", '⊸', 1350, 3)]
        .map(|(name, sign, cents, stock)| Widget { name: name.to_owned(), sign, cents, stock })
        .into()
}
