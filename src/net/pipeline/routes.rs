//! The pipelines to a server, and the choice of one for a request.

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

/// The number of extra pipelines over which reads that avoid large values are spread.
const MAX_SPREAD: usize = 4;

/// The pipelines of this process to one server.
#[derive(Debug)]
pub(in crate::net) struct Pipelines<P: Protocol> {
    /// The pipelines that take requests. Of each runtime's, the primary one comes first.
    open: ProcessLocal<Lock<Vec<Arc<Pipeline<P>>>>>,
    /// The largest number of pipelines of one runtime.
    max_per_runtime: usize,
    large_reads: LargeReads,
}

impl<P: Protocol> Pipelines<P> {
    pub(in crate::net) fn new(max_per_runtime: usize) -> Pipelines<P> {
        let max_per_runtime = max_per_runtime.max(1);
        Pipelines { open: ProcessLocal::new(), max_per_runtime, large_reads: LargeReads::new() }
    }

    pub(super) fn kind(&self, request: &P::Request) -> Kind {
        match P::is_read(request) {
            false => Kind::Write,
            true if self.large_reads.contain(P::key(request)) => Kind::LargeRead,
            true => Kind::Read,
        }
    }

    pub(super) fn remember_large(&self, request: &P::Request) {
        self.large_reads.remember(P::key(request));
    }

    /// Chooses the pipeline of `runtime` for a request. It may not be connected yet.
    pub(super) fn route(&self, server: &Arc<Server<P>>, runtime: RuntimeId, kind: Kind) -> Result<Route<P>> {
        let open = self.open.get_or_init(|| Lock::new("pipelines", Vec::new())).lock();
        let mut own = open.iter().filter(|pipeline| pipeline.runtime == runtime);
        let first = match kind {
            Kind::Write => own.next(),
            Kind::Read => own.find(|pipeline| !pipeline.is_behind_large_value()),
            Kind::ReroutedRead | Kind::LargeRead => None,
        };
        if let Some(pipeline) = first {
            return Ok(Route { pipeline: Arc::clone(pipeline), may_reroute: kind != Kind::Write });
        }
        self.open_or_share(server, runtime, kind, open)
    }

    /// Opens another pipeline, or takes the one with the fewest requests in flight if there are enough.
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
            Some((in_flight, _)) => in_flight == 0 || own.len() > MAX_SPREAD,
            None => false,
        };
        let is_full = own.len() >= self.max_per_runtime;
        let shared = least.map(|(_, pipeline)| pipeline).or(own.first().copied());
        let admit = || server.admit().and_then(|admission| server.admit_dial(admission));
        let admissions = match shared {
            Some(_) if is_enough || is_full => None,
            Some(_) => admit().ok(),
            None => Some(admit()?),
        };
        let Some(admissions) = admissions else {
            let pipeline = Arc::clone(shared.expect("there is a pipeline to share unless a dial was admitted"));
            return Ok(Route { pipeline, may_reroute: kind == Kind::ReroutedRead && least.is_some() });
        };
        let pipeline = Arc::new(Pipeline::new(runtime, !own.is_empty())?);
        open.push(Arc::clone(&pipeline));
        drop(open);
        driver::spawn(server, &pipeline, admissions);
        Ok(Route { pipeline, may_reroute: matches!(kind, Kind::Read | Kind::ReroutedRead) })
    }

    /// Retires every pipeline, so that the next request of each runtime dials. Requests in flight go on.
    pub(in crate::net) fn reset(&self) {
        self.retire_if(|_| true);
    }

    /// Retires the pipelines that are connected elsewhere than to `unless`; all of them without one. Requests that were
    /// appended and not sent go to another pipeline.
    pub(in crate::net) fn abandon(&self, unless: Option<&Endpoint>) {
        self.retire_if(|pipeline| pipeline.abandon(unless));
    }

    /// Retires the pipelines for which `is_retired` returns `true`.
    pub(in crate::net) fn retire_if(&self, mut is_retired: impl FnMut(&Pipeline<P>) -> bool) {
        let Some(open) = self.open.get() else { return };
        let retired: Vec<_> = open.lock().extract_if(.., |pipeline| is_retired(pipeline)).collect();
        for pipeline in &retired {
            pipeline.retire();
        }
    }

    /// The number of open pipelines, and of requests in flight on them.
    pub(in crate::net) fn count(&self) -> (usize, usize) {
        self.open.get().map_or((0, 0), |open| {
            let open = open.lock();
            (open.len(), open.iter().map(|pipeline| pipeline.in_flight()).sum())
        })
    }

    /// Retires a pipeline: no new request is routed to it.
    pub(super) fn retire(&self, pipeline: &Arc<Pipeline<P>>) {
        if let Some(open) = self.open.get() {
            open.lock().retain(|other| !Arc::ptr_eq(other, pipeline));
        }
        pipeline.retire();
    }
}

/// The kind of a request, which determines its route.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Write,
    Read,
    /// A read that was behind a large value.
    ReroutedRead,
    /// A read whose last reply was a large value.
    LargeRead,
}

/// The pipeline of a request.
pub(super) struct Route<P: Protocol> {
    pub(super) pipeline: Arc<Pipeline<P>>,
    /// Whether the request is sent through another pipeline if a large value comes before it: only a read, and only if
    /// there is or may be another pipeline.
    pub(super) may_reroute: bool,
}
