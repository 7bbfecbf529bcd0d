//! Refreshing each registered store in a new process, once.
//!
//! The refresh of a store is the build of a [`ProcessLocal`]. The first caller in a process runs it, either
//! [`after_fork`](super::after_fork) or a cache's first operation. Others wait for it, so that no caller uses a store
//! that still has its parent's connections. A refresh that panics is reported and tried again.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::generation::generation;
use super::process_local::ProcessLocal;
use super::registry::Registry;
use super::report::StoreReport;
use super::{FIRST_GENERATION, ledger, panic_message};
use crate::error::{Error, ErrorKind, Result};
use crate::telemetry;

/// How a store was refreshed in a forked process.
///
/// ```
/// use prefork_cache::lifecycle::Refresh;
///
/// assert_eq!(Refresh::Reset.to_string(), "reset");
/// assert_eq!(Refresh::Cold { reason: "it was asked to" }.to_string(), "cold: it was asked to");
///
/// let tiered = Refresh::Tiered { near: Refresh::Warm.into(), far: Refresh::Reset.into() };
/// assert_eq!(tiered.to_string(), "tiered (near warm, far reset)");
/// assert!(tiered.has_reset());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refresh {
    /// It discarded its connections. The next use dials.
    Reset,
    /// It has the entries that the parent had in memory at the fork.
    Warm,
    /// It keeps entries in memory, and starts empty in this process.
    Cold {
        /// Why the parent's entries were not kept.
        reason: &'static str,
    },
    /// It consists of two stores, each refreshed in its own way.
    Tiered {
        /// The one that is read first.
        near: Box<Refresh>,
        /// The one that has the truth.
        far: Box<Refresh>,
    },
}

impl Refresh {
    /// Returns whether connections were discarded, by the store itself or by one that it consists of.
    ///
    /// ```
    /// use prefork_cache::lifecycle::Refresh;
    ///
    /// assert!(Refresh::Reset.has_reset());
    /// assert!(!Refresh::Warm.has_reset());
    /// ```
    pub fn has_reset(&self) -> bool {
        match self {
            Refresh::Reset => true,
            Refresh::Warm | Refresh::Cold { .. } => false,
            Refresh::Tiered { near, far } => near.has_reset() || far.has_reset(),
        }
    }
}

impl fmt::Display for Refresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refresh::Reset => f.write_str("reset"),
            Refresh::Warm => f.write_str("warm"),
            Refresh::Cold { reason } => write!(f, "cold: {reason}"),
            Refresh::Tiered { near, far } => write!(f, "tiered (near {near}, far {far})"),
        }
    }
}

static STORES: Registry<Registered> = Registry::new();

struct Registered {
    name: String,
    refresh: Box<dyn Fn() -> Refresh + Send + Sync>,
    /// The last generation in which the store was ready.
    ready_in: AtomicU64,
    /// The refresh in this process; never built in the process that registered the store.
    refreshed: ProcessLocal<Refresh>,
    registered_in: u64,
}

/// The registration of a store, which is refreshed in each new process until this is dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    registered: Arc<Registered>,
}

impl Registration {
    /// Registers `refresh` to be called by [`after_fork`](super::after_fork), or by an earlier first use of the store.
    pub(crate) fn listed(name: &str, refresh: impl Fn() -> Refresh + Send + Sync + 'static) -> Registration {
        let registration = Registration::unlisted(name, refresh);
        STORES.insert(Arc::clone(&registration.registered));
        registration
    }

    /// Registers `refresh` to be called at the store's first use in a new process.
    pub(crate) fn unlisted(name: &str, refresh: impl Fn() -> Refresh + Send + Sync + 'static) -> Registration {
        let generation = generation();
        Registration {
            registered: Arc::new(Registered {
                name: name.to_owned(),
                refresh: Box::new(refresh),
                ready_in: AtomicU64::new(generation),
                refreshed: ProcessLocal::new(),
                registered_in: generation,
            }),
        }
    }

    /// Returns the name under which the store was registered.
    pub(crate) fn name(&self) -> &str {
        &self.registered.name
    }

    /// Returns how the store was refreshed in this process, if it was inherited and has been refreshed.
    pub(crate) fn refreshed(&self) -> Option<Refresh> {
        self.registered.refreshed.get().cloned()
    }

    /// Refreshes the store unless it is ready in this process. Costs a load and a compare once it is.
    ///
    /// # Errors
    ///
    /// If the refresh panics.
    #[inline]
    pub(crate) fn ensure_current(&self) -> Result<()> {
        if self.registered.ready_in.load(Ordering::Acquire) == generation() {
            return Ok(());
        }
        self.registered.refresh_once().map(|_| ())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        STORES.remove(|registered| Arc::ptr_eq(registered, &self.registered));
    }
}

impl Registered {
    #[cold]
    fn refresh_once(&self) -> Result<&Refresh> {
        // Read before the refresh: if a signal handler forks after it, the child has not been refreshed.
        let generation = generation();
        let mut is_first = false;
        let refreshed = self.refreshed.get_or_try_init(|| {
            is_first = true;
            catch_unwind(AssertUnwindSafe(|| (self.refresh)())).map_err(|panic| {
                let message = panic_message(&*panic);
                Error::new(ErrorKind::Other, format!("refreshing the store {:?} after a fork: {message}", self.name))
            })
        })?;
        self.ready_in.store(generation, Ordering::Release);
        if is_first {
            telemetry::refreshed(&self.name, refreshed, generation, ledger::cut_count());
        }
        Ok(refreshed)
    }
}

/// Refreshes every inherited store, and returns a report for each.
pub(super) fn refresh_all() -> Vec<StoreReport> {
    let generation = generation();
    debug_assert!(generation != FIRST_GENERATION, "only a forked process has something to refresh");
    let inherited = STORES.snapshot().into_iter().filter(|registered| registered.registered_in != generation);
    inherited
        .map(|registered| StoreReport { name: registered.name.clone(), outcome: registered.refresh_once().cloned() })
        .collect()
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered").field("name", &self.name).finish_non_exhaustive()
    }
}
