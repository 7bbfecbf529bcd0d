//! The cost of detecting a fork: the check before each operation, the child's handler, and `after_fork()`.

use std::hint::black_box;
use std::io::Read;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe, write};
use prefork_cache::stores::RedisStore;
use prefork_cache::{Cache, lifecycle};

use crate::measure::{candidate, compare, median, show};
use support::servers::{Kind, Server};

const FORKS: usize = 41;

pub(crate) fn run() {
    compare(
        "fork check (the difference is its cost)",
        10_000_000,
        vec![
            candidate("generation()", || {
                black_box(lifecycle::generation());
            }),
            candidate("an empty loop", || {
                black_box(1_u64);
            }),
        ],
    );
    let server = Server::start(Kind::Redis);
    let mut caches = Vec::new();
    println!("\nin a forked child, median of {FORKS} forks, one pooled connection per store");
    for stores in [1, 10, 100] {
        while caches.len() < stores {
            let url = server.url("");
            let name = format!("store-{}", caches.len());
            let cache = Cache::builder(RedisStore::new(&url).expect("a valid URL")).name(&name).register();
            cache.blocking().exists("anything").expect("redis responds");
            caches.push(cache);
        }
        // `_Fork` bypasses the handler, so that the first check in the child does its work, and is measured.
        let handler = in_children(ForkKind::WithoutHandlers, || {
            assert_eq!(lifecycle::generation(), 2);
        });
        let refreshed = in_children(ForkKind::WithHandlers, || {
            assert!(lifecycle::after_fork().forked());
        });
        println!("  {stores:3} stores   the child handler {}   after_fork() {}", show(handler), show(refreshed));
    }
    let plain = forks_in_parent();
    println!("  fork() and wait, {} stores: {}", caches.len(), show(plain));
}

#[derive(Clone, Copy)]
enum ForkKind {
    /// `fork`
    WithHandlers,
    /// `_Fork`
    WithoutHandlers,
}

impl ForkKind {
    fn fork(self) -> nix::Result<ForkResult> {
        unsafe extern "C" {
            fn _Fork() -> nix::libc::pid_t;
        }
        // SAFETY: this process has a single thread; the child measures, writes and exits.
        unsafe {
            match self {
                ForkKind::WithHandlers => fork(),
                ForkKind::WithoutHandlers => Errno::result(_Fork()).map(|process| match process {
                    0 => ForkResult::Child,
                    process => ForkResult::Parent { child: Pid::from_raw(process) },
                }),
            }
        }
    }
}

/// Returns the median time of `work` as the first action of a forked child.
fn in_children(kind: ForkKind, work: impl Fn()) -> f64 {
    median((0..FORKS).map(|_| in_child(kind, &work)))
}

fn in_child(kind: ForkKind, work: &impl Fn()) -> f64 {
    let (reader, writer) = pipe().expect("a pipe");
    match kind.fork().expect("a fork") {
        ForkResult::Child => {
            let started = Instant::now();
            work();
            let took = started.elapsed().as_nanos() as u64;
            let _ = write(&writer, &took.to_le_bytes());
            // SAFETY: ends this process without running the parent's exit handlers.
            unsafe { nix::libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut took = [0; 8];
            std::fs::File::from(reader).read_exact(&mut took).expect("the child's time");
            waitpid(child, None).expect("the child");
            u64::from_le_bytes(took) as f64
        }
    }
}

fn forks_in_parent() -> f64 {
    median((0..FORKS).map(|_| {
        let started = Instant::now();
        in_child(ForkKind::WithHandlers, &|| {});
        let took: Duration = started.elapsed();
        took.as_secs_f64() * 1e9
    }))
}
