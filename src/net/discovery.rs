//! A server whose address changes: others know where it is, and are asked when a connection is opened.
//!
//! What they have named is in a [`History`]: an atomic pointer to an immutable address, which a child inherits. When to
//! ask again is a number. So no lock is held while an answer is awaited, and a fork finds nothing half done: where a
//! thread vanishes while it asks, another caller asks in the next period.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::clock::{later, milliseconds};
use super::server::Settings;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::Execution;
use crate::lifecycle::History;
use crate::telemetry;

/// Where a server is.
#[derive(Debug)]
pub(crate) enum Address {
    Fixed(Endpoint),
    LookedUp(Discovery),
}

impl Address {
    /// Where it is as far as is known.
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

/// Who knows where a server is: several, of whom any may be down, behind the times, or wrong.
#[async_trait]
pub(crate) trait Directory: Debug + Send + Sync + 'static {
    /// How many there are.
    fn members(&self) -> usize;

    /// What the first of them says that answers. Some of the time until `deadline` is left for a dial.
    async fn ask(&self, execution: Execution, deadline: Instant, settings: &Settings) -> Result<Endpoint>;

    /// What most of those say that answer, or nothing if they do not agree.
    async fn ask_all(&self, execution: Execution, deadline: Instant, settings: &Settings) -> Option<Endpoint>;

    /// What was said last is of no use: another one is asked first next time.
    fn distrust(&self);
}

#[derive(Debug)]
pub(crate) struct Discovery {
    directory: Box<dyn Directory>,
    known: History<Endpoint>,
    /// For how long an answer counts while nothing fails.
    refresh: Duration,
    /// When all are asked again, in milliseconds of the monotonic clock; 0 before anything is known.
    refresh_at: AtomicU64,
    /// Whether something has failed since the server was found.
    is_doubted: AtomicBool,
}

impl Discovery {
    /// `name` is what the server is called until its address is known.
    pub(crate) fn new(name: &str, directory: impl Directory, refresh: Duration) -> Discovery {
        Discovery {
            directory: Box::new(directory),
            known: History::new(Endpoint::Named(name.to_owned())),
            refresh,
            refresh_at: AtomicU64::new(0),
            is_doubted: AtomicBool::new(true),
        }
    }

    #[inline]
    pub(super) fn endpoint(&self) -> &Endpoint {
        self.known.current()
    }

    /// Where the server was found last, if it ever was.
    pub(super) fn found_last(&self) -> Option<&Endpoint> {
        Some(self.endpoint()).filter(|endpoint| !matches!(endpoint, Endpoint::Named(_)))
    }

    /// How many can be asked.
    pub(super) fn members(&self) -> usize {
        self.directory.members()
    }

    /// Whether the address was named so recently that a dial need not ask.
    pub(super) fn is_recent(&self) -> bool {
        !self.is_doubted.load(Ordering::Relaxed) && milliseconds() < self.refresh_at.load(Ordering::Relaxed)
    }

    /// Asks, for a dial: what is there has yet to say that it is the server.
    pub(super) async fn ask(&self, execution: Execution, deadline: Instant, settings: &Settings) -> Result<Endpoint> {
        let endpoint = self.directory.ask(execution, deadline, settings).await?;
        self.note_asked();
        Ok(endpoint)
    }

    /// The server was found there.
    pub(super) fn found(&self, endpoint: &Endpoint) -> Result<()> {
        self.is_doubted.store(false, Ordering::Relaxed);
        self.learn(endpoint.clone())
    }

    /// Whether it is time to ask again: for one caller, and for no other one while that may still be asking.
    pub(super) fn is_due(&self, patience: Duration) -> bool {
        let due = self.refresh_at.load(Ordering::Relaxed);
        let now = milliseconds();
        let next = later(now, self.refresh + patience);
        let is_over = due != 0 && due <= now;
        is_over && self.refresh_at.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Asks again. Returns whether there was an answer; where the server was found elsewhere meanwhile it comes too late.
    pub(super) async fn refresh(&self, execution: Execution, patience: Duration, settings: &Settings) -> bool {
        let before = self.endpoint();
        let named = self.directory.ask_all(execution, Instant::now() + patience, settings).await;
        self.note_asked();
        named.is_some_and(|endpoint| before == self.endpoint() && self.learn(endpoint).is_ok())
    }

    /// The next dial asks.
    pub(super) fn doubt(&self) {
        self.is_doubted.store(true, Ordering::Relaxed);
    }

    /// The next dial asks, and another one first.
    pub(super) fn distrust(&self) {
        self.doubt();
        self.directory.distrust();
    }

    fn learn(&self, endpoint: Endpoint) -> Result<()> {
        if *self.endpoint() == endpoint {
            return Ok(());
        }
        let is_first = matches!(self.endpoint(), Endpoint::Named(_));
        let learnt = self.known.learn(endpoint).map_err(|_| {
            let context = format!("{} has had so many addresses that no other one is taken", self.endpoint());
            Error::new(ErrorKind::Protocol, context)
        })?;
        if !is_first {
            telemetry::moved(learnt);
        }
        Ok(())
    }

    fn note_asked(&self) {
        self.refresh_at.store(later(milliseconds(), self.refresh), Ordering::Relaxed);
    }
}
