//! Operations that are shared out to tasks, in both flavours of tokio's runtime.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

/// The numbers of tasks.
pub(crate) const TASKS: [u32; 4] = [1, 16, 64, 256];

/// The number of operations of a round, for all tasks together.
pub(crate) const OPERATIONS: u32 = 6_400;

/// The runtime of a preforking worker, and one with two worker threads.
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

/// Shares out `count` operations to `tasks` tasks, and returns how long they took.
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
