//! The contract of stores, as checks to run on any store.
//!
//! A check is an asynchronous function that panics if the store breaks a promise of [`CacheStore`]'s contract. The
//! message says what was expected. [`CHECKS`] lists all checks. Each uses keys of its own under `conformance:`, so a
//! server can be shared, and all entries that it leaves behind expire.
//!
//! Some checks wait for an entry to expire, which takes a few seconds.
//!
//! ```
//! use prefork_cache::{conformance, stores::MemoryStore};
//!
//! conformance::check_all(&MemoryStore::new());
//! ```
//!
//! Inside a tokio runtime, where a store's waits are asynchronous:
//!
//! ```
//! use prefork_cache::{conformance, stores::MemoryStore};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let store = MemoryStore::new();
//! for check in conformance::CHECKS {
//!     check.run(&store).await;
//! }
//! # });
//! ```
//!
//! # Exceptions
//!
//! - `clear_removes_what_starts_with_the_prefix` accepts a store whose server cannot list its keys
//!   ([`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported)).
//! - `an_increment_keeps_the_remaining_time` fails for a store that uses the provided [`CacheStore::increment`].
//! - A Redis store with `replicas=prefer` fails these from time to time, where they read what they have just written:
//!   `get_returns_the_last_set`, `empty_binary_and_large_values_are_returned_unchanged`,
//!   `keys_with_special_characters_are_distinct`, `conditional_writes_check_for_an_entry`,
//!   `compare_and_set_compares`, `append_appends`, `counters_count`,
//!   `an_increment_of_a_non_number_is_refused`, `entries_expire`, `an_increment_keeps_the_remaining_time`,
//!   `batch_results_are_in_key_order`, `an_invalid_key_fails_alone`, `one_of_many_compare_and_sets_wins`,
//!   `a_dropped_future_disturbs_no_other`, `clear_removes_what_starts_with_the_prefix`,
//!   `reset_and_reconnect_leave_the_store_usable`.
//! - [`NullStore`](crate::stores::NullStore) fails almost all of them, by design.

use std::future::Future;
use std::pin::Pin;

use crate::execution::inline;
use crate::store::CacheStore;
use crate::sync::block_on;

pub use batches::*;
pub use concurrency::*;
pub use counters::*;
pub use expiry::*;
pub use values::*;
pub use whole_store::*;

mod batches;
mod concurrency;
mod counters;
mod expiry;
mod keys;
mod values;
mod whole_store;

type Running<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A check of one promise.
///
/// ```
/// use prefork_cache::{conformance, stores::MemoryStore};
///
/// let named = |check: &&conformance::Check| check.name() == "counters_count";
/// conformance::CHECKS.iter().find(named).unwrap().run_inline(&MemoryStore::new());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Check {
    name: &'static str,
    run: for<'a> fn(&'a dyn CacheStore) -> Running<'a>,
}

impl Check {
    /// Returns the name of the check's function, which states the promise.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs the check.
    ///
    /// # Panics
    ///
    /// When the future is polled, if the promise is broken.
    pub async fn run(&self, store: &dyn CacheStore) {
        (self.run)(store).await;
    }

    /// Runs the check inline on this thread. If the store suspends nevertheless, the thread waits for it.
    ///
    /// # Panics
    ///
    /// If the promise is broken.
    pub fn run_inline(&self, store: &dyn CacheStore) {
        inline(|| block_on(&mut (self.run)(store)));
    }
}

macro_rules! checks {
    ($($name:ident,)+) => {
        &[$(Check { name: stringify!($name), run: |store| Box::pin($name(store)) },)+]
    };
}

/// Every check.
pub const CHECKS: &[Check] = checks![
    get_returns_the_last_set,
    empty_binary_and_large_values_are_returned_unchanged,
    keys_with_special_characters_are_distinct,
    an_empty_key_is_refused,
    conditional_writes_check_for_an_entry,
    a_delete_says_whether_there_was_an_entry,
    compare_and_set_compares,
    append_appends,
    counters_count,
    an_increment_of_a_non_number_is_refused,
    entries_expire,
    an_increment_keeps_the_remaining_time,
    ttl_returns_the_remaining_time,
    an_invalid_ttl_is_refused,
    batch_results_are_in_key_order,
    an_invalid_key_fails_alone,
    a_batch_keeps_the_order_on_a_key,
    an_invalid_operation_fails_alone,
    a_settle_stores_under_its_own_lease_only,
    no_increment_is_lost,
    one_of_many_compare_and_sets_wins,
    one_of_many_adds_wins,
    a_dropped_future_disturbs_no_other,
    clear_removes_what_starts_with_the_prefix,
    reset_and_reconnect_leave_the_store_usable,
];

/// Runs every check, one after the other, [inline](Check::run_inline) on this thread.
///
/// # Panics
///
/// If a promise is broken.
pub fn check_all(store: &dyn CacheStore) {
    for check in CHECKS {
        check.run_inline(store);
    }
}
