//! The widgets themselves, as a database would have them.

use std::convert::Infallible;
use std::time::Duration;

use prefork_cache::{Cache, Expiry};
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Widget {
    /// The key of its name among the words.
    pub(crate) name: String,
    pub(crate) sign: char,
    pub(crate) cents: u32,
    pub(crate) stock: u32,
}

const KEY: &str = "widgets";
const HOUR: Duration = Duration::from_secs(60 * 60);
/// Loaded anew by one worker in the last minutes of its hour; should the database be down then, good for another day.
const EXPIRY: Expiry =
    Expiry::after(HOUR).refresh_ahead(Duration::from_secs(5 * 60)).stale_for(HOUR.saturating_mul(24));

/// From the cache or, where that fails or has none, from the database.
pub(crate) async fn widgets(cache: &Cache) -> Vec<Widget> {
    let Ok(widgets) = cache.fetch(KEY, EXPIRY, async || Ok::<_, Infallible>(ask_database())).await;
    widgets
}

/// In the master, so that no worker needs to.
pub(crate) fn warm(cache: &Cache) {
    let Ok(_) = cache.blocking().fetch(KEY, EXPIRY, || Ok::<_, Infallible>(ask_database()));
}

fn ask_database() -> Vec<Widget> {
    [("widget.gear", '⚙', 420, 12), ("widget.spring", '⌇', 95, 340), ("widget.lever", '⊸', 1350, 3)]
        .map(|(name, sign, cents, stock)| Widget { name: name.to_owned(), sign, cents, stock })
        .into()
}
