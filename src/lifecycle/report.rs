//! The report of [`after_fork`](super::after_fork).

use std::fmt;

use super::{FIRST_GENERATION, HookId, Refresh};
use crate::error::Error;

/// The report of [`after_fork`](super::after_fork). It displays as one line, for a host's log.
///
/// ```
/// use prefork_cache::lifecycle;
///
/// let report = lifecycle::after_fork();
/// assert_eq!(report.to_string(), "not forked (generation 1): nothing to do");
///
/// for store in report.stores() {
///     if let Err(error) = store.outcome() {
///         eprintln!("{}: {error:#}", store.name());
///     }
/// }
/// for hook in report.failed_hooks() {
///     eprintln!("{:?}: {}", hook.id(), hook.message());
/// }
/// ```
#[derive(Clone, Debug)]
#[must_use = "it says whether a store or a hook failed"]
pub struct Report {
    generation: u64,
    pub(super) sockets_cut: usize,
    pub(super) stores: Vec<StoreReport>,
    pub(super) hooks_run: usize,
    pub(super) failed_hooks: Vec<FailedHook>,
}

/// The refresh of one registered store in this process.
#[derive(Clone, Debug)]
pub struct StoreReport {
    pub(super) name: String,
    pub(super) outcome: Result<Refresh, Error>,
}

/// A hook that panicked.
#[derive(Clone, Debug)]
pub struct FailedHook {
    pub(super) id: HookId,
    pub(super) message: String,
}

impl Report {
    pub(super) fn new(generation: u64) -> Report {
        Report { generation, sockets_cut: 0, stores: Vec::new(), hooks_run: 0, failed_hooks: Vec::new() }
    }

    /// Returns whether this process was forked since the crate was first used.
    pub fn forked(&self) -> bool {
        self.generation != FIRST_GENERATION
    }

    /// Returns this process's [`generation`](super::generation()).
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the inherited stores and how they were refreshed, by this call or at an earlier first use.
    pub fn stores(&self) -> &[StoreReport] {
        &self.stores
    }

    /// Returns how many inherited sockets this process has cut.
    pub fn sockets_cut(&self) -> usize {
        self.sockets_cut
    }

    /// Returns how many hooks this call ran without a panic; 0 if an earlier call in this process has run them.
    pub fn hooks_run(&self) -> usize {
        self.hooks_run
    }

    /// Returns the hooks that panicked in this call.
    pub fn failed_hooks(&self) -> &[FailedHook] {
        &self.failed_hooks
    }
}

impl StoreReport {
    /// Returns the name of the cache under which the store was registered.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns how the store was refreshed, or why that failed.
    pub fn outcome(&self) -> Result<&Refresh, &Error> {
        self.outcome.as_ref()
    }
}

impl FailedHook {
    /// Returns the id of the hook.
    pub fn id(&self) -> HookId {
        self.id
    }

    /// Returns the message of the panic.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.forked() {
            return write!(f, "not forked (generation {}): nothing to do", self.generation);
        }
        write!(f, "forked (generation {}): sockets cut: {}", self.generation, self.sockets_cut)?;
        for store in &self.stores {
            match &store.outcome {
                Ok(refresh) => write!(f, ", {} {refresh}", store.name)?,
                Err(error) => write!(f, ", {} failed: {error}", store.name)?,
            }
        }
        write!(f, ", hooks run: {}", self.hooks_run)?;
        for failed in &self.failed_hooks {
            write!(f, ", hook {} failed: {}", failed.id.0, failed.message)?;
        }
        Ok(())
    }
}
