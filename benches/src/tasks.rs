//! Many tasks that share operations, in both flavours of tokio's runtime.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

/// How many tasks there are.
pub(crate) const TASKS: [u32; 4] = [1, 16, 64, 256];

/// How many operations they share in a round.
pub(crate) const OPERATIONS: u32 = 6_400;

/// What a preforking worker has, and one with two workers.
pub(crate) const FLAVOURS: [Flavour; 2] = [Flavour::CurrentThread, Flavour::TwoWorkers];

#[derive(Clone, Copy)]
pub(crate) enum Flavour {
    CurrentThread,
    TwoWorkers,
}

impl Flavour {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Flavour::CurrentThread => "current thread",
            Flavour::TwoWorkers => "two workers",
        }
    }

    pub(crate) fn runtime(self) -> Runtime {
        let mut builder = match self {
            Flavour::CurrentThread => Builder::new_current_thread(),
            Flavour::TwoWorkers => Builder::new_multi_thread(),
        };
        builder.worker_threads(2).enable_all().build().expect("a runtime")
    }
}

/// Has `tasks` tasks share `count` operations, and says how long they took.
pub(crate) fn spread<W, F>(runtime: &Runtime, tasks: u32, count: u32, mut worker: impl FnMut() -> W) -> Duration
where
    W: FnOnce(u32) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    runtime.block_on(async {
        let started = Instant::now();
        let workers: Vec<_> = (0..tasks).map(|_| tokio::spawn(worker()(count / tasks))).collect();
        for worker in workers {
            worker.await.expect("a task");
        }
        started.elapsed()
    })
}
