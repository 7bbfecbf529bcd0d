//! What noticing a fork costs: the check before each operation, the child's handler, and `after_fork()`.

use std::hint::black_box;
use std::io::Read;
use std::time::{Duration, Instant};

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pipe, write};
use prefork_cache::stores::RedisStore;
use prefork_cache::{Cache, lifecycle};

use crate::measure::{compare, median, show, way};
use support::servers::{Kind, Server};

const FORKS: usize = 41;

pub(crate) fn run() {
    compare(
        "fork check (the difference is its cost)",
        10_000_000,
        vec![
            way("generation()", || {
                black_box(lifecycle::generation());
            }),
            way("an empty loop", || {
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
            cache.blocking().exists("anything").expect("redis answers");
            caches.push(cache);
        }
        let cut = in_children(|| {
            lifecycle::generation();
        });
        let refreshed = in_children(|| {
            assert!(lifecycle::after_fork().forked());
        });
        println!("  {stores:3} stores   first look {}   after_fork() {}", show(cut), show(refreshed));
    }
    let plain = forks_in_parent();
    println!("  fork() and wait, {} stores: {}", caches.len(), show(plain));
}

/// The median time that `work` takes as the first thing in a forked child.
fn in_children(work: impl Fn()) -> f64 {
    median((0..FORKS).map(|_| in_child(&work)))
}

fn in_child(work: &impl Fn()) -> f64 {
    let (reader, writer) = pipe().expect("a pipe");
    // SAFETY: this process has a single thread; the child measures, writes and leaves.
    match unsafe { fork() }.expect("a fork") {
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
            std::fs::File::from(reader).read_exact(&mut took).expect("the child's answer");
            waitpid(child, None).expect("the child");
            u64::from_le_bytes(took) as f64
        }
    }
}

fn forks_in_parent() -> f64 {
    median((0..FORKS).map(|_| {
        let started = Instant::now();
        in_child(&|| {});
        let took: Duration = started.elapsed();
        took.as_secs_f64() * 1e9
    }))
}
