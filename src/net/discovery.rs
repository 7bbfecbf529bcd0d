//! Discovery: the address of a server is looked up in a directory when a connection is opened.
//!
//! The address is in a [`History`], an atomic pointer to an immutable value, which a child inherits. The time of the
//! next lookup is an atomic number. So no lock is held during a lookup, and a fork cannot interrupt an update. If a
//! fork ends the thread that was looking the address up, another caller does so in the next period.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::clock::{later, milliseconds};
use super::settings::Settings;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::Execution;
use crate::lifecycle::History;
use crate::telemetry;

/// The address of a server.
#[derive(Debug)]
pub(crate) enum Address {
    Fixed(Endpoint),
    LookedUp(Discovery),
}

impl Address {
    /// The last known endpoint.
    #[inline]
    pub(crate) fn endpoint(&self) -> &Endpoint {
        match self {
            Address::Fixed(endpoint) => endpoint,
            Address::LookedUp(discovery) => discovery.endpoint(),
        }
    }

    pub(crate) fn discovery(&self) -> Option<&Discovery> {
        match self {
            Address::Fixed(_) => None,
            Address::LookedUp(discovery) => Some(discovery),
        }
    }
}

/// A directory of addresses. It has several members, any of which may be down, out of date, or wrong.
#[async_trait]
pub(crate) trait Directory: Debug + Send + Sync + 'static {
    /// The number of members.
    fn members(&self) -> usize;

    /// Returns the address from the first member that responds. Leaves some of the time until `deadline` for a dial.
    async fn ask(&self, execution: Execution, deadline: Instant, settings: &Settings) -> Result<Endpoint>;

    /// Returns the address from the majority of the members that respond, or `None` if there is no majority.
    async fn ask_all(&self, execution: Execution, deadline: Instant, settings: &Settings) -> Option<Endpoint>;

    /// Records that the last address was wrong: another member is asked first next time.
    fn distrust(&self);
}

/// The lookup of one server's address, and the last result.
#[derive(Debug)]
pub(crate) struct Discovery {
    directory: Box<dyn Directory>,
    known: History<Endpoint>,
    /// How long an address is used without another lookup, while nothing fails.
    refresh: Duration,
    /// When all members are asked again, in milliseconds of the monotonic clock; 0 before the first lookup.
    refresh_at: AtomicU64,
    /// Whether something has failed since the server was found.
    is_doubtful: AtomicBool,
}

impl Discovery {
    /// `name` is the server's name in messages until its address is known.
    pub(crate) fn new(name: &str, directory: impl Directory, refresh: Duration) -> Discovery {
        Discovery {
            directory: Box::new(directory),
            known: History::new(Endpoint::Named(name.to_owned())),
            refresh,
            refresh_at: AtomicU64::new(0),
            is_doubtful: AtomicBool::new(true),
        }
    }

    /// The last known address, or the name if there is none.
    #[inline]
    pub(super) fn endpoint(&self) -> &Endpoint {
        self.known.current()
    }

    /// The last known address, if there is one.
    pub(super) fn found_last(&self) -> Option<&Endpoint> {
        Some(self.endpoint()).filter(|endpoint| !matches!(endpoint, Endpoint::Named(_)))
    }

    /// The number of members of the directory.
    pub(super) fn members(&self) -> usize {
        self.directory.members()
    }

    /// Returns whether the address is so recent, and nothing has failed since, that a dial needs no lookup.
    pub(super) fn is_recent(&self) -> bool {
        !self.is_doubtful.load(Ordering::Relaxed) && milliseconds() < self.refresh_at.load(Ordering::Relaxed)
    }

    /// Looks the address up for a dial. The greeting has yet to show that the server there is the right one.
    pub(super) async fn ask(&self, execution: Execution, deadline: Instant, settings: &Settings) -> Result<Endpoint> {
        let endpoint = self.directory.ask(execution, deadline, settings).await?;
        self.schedule_refresh();
        Ok(endpoint)
    }

    /// Records that a greeting has succeeded at this address.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Protocol`] if there have been too many addresses to record another one.
    pub(super) fn found(&self, endpoint: &Endpoint) -> Result<()> {
        self.is_doubtful.store(false, Ordering::Relaxed);
        self.learn(endpoint.clone())
    }

    /// Returns whether the caller must refresh the address now. Returns `true` to one caller, and to no other until the
    /// refresh, which may take `timeout`, is over.
    pub(super) fn is_due(&self, timeout: Duration) -> bool {
        let due = self.refresh_at.load(Ordering::Relaxed);
        let now = milliseconds();
        let next = later(now, self.refresh + timeout);
        let is_over = due != 0 && due <= now;
        is_over && self.refresh_at.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Looks the address up in all members. Returns whether the address is now known to be current. The result is
    /// ignored if the server was found at another address meanwhile.
    pub(super) async fn refresh(&self, execution: Execution, timeout: Duration, settings: &Settings) -> bool {
        let before = self.endpoint();
        let named = self.directory.ask_all(execution, Instant::now() + timeout, settings).await;
        self.schedule_refresh();
        named.is_some_and(|endpoint| before == self.endpoint() && self.learn(endpoint).is_ok())
    }

    /// Makes the next dial look the address up.
    pub(super) fn mark_doubtful(&self) {
        self.is_doubtful.store(true, Ordering::Relaxed);
    }

    /// Makes the next dial look the address up, and ask another member first.
    pub(super) fn distrust(&self) {
        self.mark_doubtful();
        self.directory.distrust();
    }

    fn learn(&self, endpoint: Endpoint) -> Result<()> {
        if *self.endpoint() == endpoint {
            return Ok(());
        }
        let is_first = matches!(self.endpoint(), Endpoint::Named(_));
        let learnt = self.known.learn(endpoint).map_err(|_| {
            let context = format!("{} has had too many addresses: no other one is accepted", self.endpoint());
            Error::new(ErrorKind::Protocol, context)
        })?;
        if !is_first {
            telemetry::moved(learnt);
        }
        Ok(())
    }

    fn schedule_refresh(&self) {
        self.refresh_at.store(later(milliseconds(), self.refresh), Ordering::Relaxed);
    }
}
