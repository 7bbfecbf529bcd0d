//! Which pipeline a request goes through.

use std::sync::{Arc, MutexGuard};

use super::driver;
use super::large_reads::LargeReads;
use super::request_queue::Pipeline;
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::lifecycle::ProcessLocal;
use crate::lifecycle::runtime::RuntimeId;
use crate::net::connection::Protocol;
use crate::net::server::Server;
use crate::sync::Lock;

/// Over how many extra pipelines those are spread that were behind a large value.
const SPREAD: usize = 4;

/// The pipelines of this process to one server.
#[derive(Debug)]
pub(in crate::net) struct Pipelines<P: Protocol> {
    /// Those that take requests. Of each runtime, the primary one comes first.
    open: ProcessLocal<Lock<Vec<Arc<Pipeline<P>>>>>,
    /// How many a runtime may have.
    most: usize,
    large_reads: LargeReads,
}

impl<P: Protocol> Pipelines<P> {
    pub(in crate::net) fn new(most: usize) -> Pipelines<P> {
        Pipelines { open: ProcessLocal::new(), most: most.max(1), large_reads: LargeReads::new() }
    }

    pub(super) fn kind(&self, request: &P::Request) -> Kind {
        match P::is_read(request) {
            false => Kind::Change,
            true if self.large_reads.contain(P::key(request)) => Kind::LargeRead,
            true => Kind::Read,
        }
    }

    pub(super) fn remember_large(&self, request: &P::Request) {
        self.large_reads.remember(P::key(request));
    }

    /// The pipeline that a request of `runtime` goes through, which may have to be connected yet.
    pub(super) fn route(&self, server: &Arc<Server<P>>, runtime: RuntimeId, kind: Kind) -> Result<Route<P>> {
        let open = self.open.get_or_init(|| Lock::new("pipelines", Vec::new())).lock();
        let mut own = open.iter().filter(|pipeline| pipeline.runtime == runtime);
        let first = match kind {
            Kind::Change => own.next(),
            Kind::Read => own.find(|pipeline| !pipeline.is_behind_large_value()),
            Kind::EvadedRead | Kind::LargeRead => None,
        };
        if let Some(pipeline) = first {
            return Ok(Route { pipeline: Arc::clone(pipeline), may_evade: kind != Kind::Change });
        }
        self.open_or_share(server, runtime, kind, open)
    }

    /// Opens another pipeline, or takes the one with the fewest requests in flight where there are enough.
    fn open_or_share(
        &self,
        server: &Arc<Server<P>>,
        runtime: RuntimeId,
        kind: Kind,
        mut open: MutexGuard<'_, Vec<Arc<Pipeline<P>>>>,
    ) -> Result<Route<P>> {
        let own: Vec<_> = open.iter().filter(|pipeline| pipeline.runtime == runtime).collect();
        let candidates = own.iter().skip(usize::from(kind == Kind::LargeRead));
        let free = candidates.clone().filter(|pipeline| !pipeline.is_behind_large_value());
        let least = free.map(|pipeline| (pipeline.in_flight(), *pipeline)).min_by_key(|(in_flight, _)| *in_flight);
        let is_enough = match least {
            Some((in_flight, _)) => in_flight == 0 || own.len() > SPREAD,
            None => false,
        };
        let is_full = own.len() >= self.most;
        let shared = least.map(|(_, pipeline)| pipeline).or(own.first().copied());
        let admit = || server.admit().and_then(|admission| server.admit_dial(admission));
        let admissions = match shared {
            Some(_) if is_enough || is_full => None,
            Some(_) => admit().ok(),
            None => Some(admit()?),
        };
        let Some(admissions) = admissions else {
            let pipeline = Arc::clone(shared.expect("there is one unless a dial was admitted"));
            return Ok(Route { pipeline, may_evade: kind == Kind::EvadedRead && least.is_some() });
        };
        let pipeline = Arc::new(Pipeline::new(runtime, !own.is_empty())?);
        open.push(Arc::clone(&pipeline));
        drop(open);
        driver::spawn(server, &pipeline, admissions);
        Ok(Route { pipeline, may_evade: matches!(kind, Kind::Read | Kind::EvadedRead) })
    }

    /// Has the next request of each runtime dial. Requests in flight end as they would have.
    pub(in crate::net) fn reset(&self) {
        self.retire_if(|_| true);
    }

    /// Has the next request of each runtime dial, and those too that were appended and not sent; unless there is a
    /// connection to this server.
    pub(in crate::net) fn abandon(&self, unless: Option<&Endpoint>) {
        self.retire_if(|pipeline| pipeline.abandon(unless));
    }

    /// Has those pipelines take no more requests for which that is so.
    pub(in crate::net) fn retire_if(&self, mut is_retired: impl FnMut(&Pipeline<P>) -> bool) {
        let Some(open) = self.open.get() else { return };
        let retired: Vec<_> = open.lock().extract_if(.., |pipeline| is_retired(pipeline)).collect();
        for pipeline in &retired {
            pipeline.retire();
        }
    }

    /// How many pipelines there are, and how many requests are in flight on them.
    pub(in crate::net) fn count(&self) -> (usize, usize) {
        self.open.get().map_or((0, 0), |open| {
            let open = open.lock();
            (open.len(), open.iter().map(|pipeline| pipeline.in_flight()).sum())
        })
    }

    /// Has this pipeline take no more requests.
    pub(super) fn retire(&self, pipeline: &Arc<Pipeline<P>>) {
        if let Some(open) = self.open.get() {
            open.lock().retain(|other| !Arc::ptr_eq(other, pipeline));
        }
        pipeline.retire();
    }
}

/// What has to be known of a request to find its way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Change,
    Read,
    /// It was behind a large value.
    EvadedRead,
    /// It was answered with a large value last.
    LargeRead,
}

/// Where a request goes.
pub(super) struct Route<P: Protocol> {
    pub(super) pipeline: Arc<Pipeline<P>>,
    /// Whether it goes elsewhere if a large value comes before it: a read, if there is another way.
    pub(super) may_evade: bool,
}
