//! prefork-cache beside the crates that it stands on and others that do the same:
//! `cargo run --release -p prefork-cache-benches -- [--pin CPU] [SECTION...]`.
//!
//! The ways of a section are taken in turn against the same servers. A ratio is the median of the rounds' ratios: below 1,
//! prefork-cache is the faster one. With `--pin 0` this process and the servers that it starts share processor 0: what
//! differs then is the work, and not how it happens to be spread over processors.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

mod bare;
mod batch;
mod capi;
mod forks;
mod measure;
mod memcached;
mod memory;
mod redis_cluster;
mod redis_server;
mod redis_tls;
mod tasks;

const SECTIONS: [(&str, fn()); 7] = [
    ("fork", forks::run),
    ("memory", memory::run),
    ("redis", redis_server::run),
    ("redis-tls", redis_tls::run),
    ("redis-cluster", redis_cluster::run),
    ("memcached", memcached::run),
    ("capi", capi::run),
];

fn main() {
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(position) = wanted.iter().position(|argument| argument == "--pin") {
        let mut taken = wanted.drain(position..wanted.len().min(position + 2)).skip(1);
        let Some(processor) = taken.next().and_then(|text| text.parse().ok()) else {
            eprintln!("--pin takes the number of a processor");
            std::process::exit(2);
        };
        pin(processor);
    }
    if let Some(unknown) = wanted.iter().find(|name| !SECTIONS.iter().any(|(section, _)| section == name)) {
        let known: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
        eprintln!("no section {unknown:?}: there are {}", known.join(", "));
        std::process::exit(2);
    }
    for (name, run) in SECTIONS {
        if wanted.is_empty() || wanted.iter().any(|section| section == name) {
            run();
        }
    }
}

/// Before there is another thread or a server: they inherit it.
fn pin(processor: usize) {
    let mut only = CpuSet::new();
    let pinned = only.set(processor).and_then(|()| sched_setaffinity(Pid::from_raw(0), &only));
    if let Err(error) = pinned {
        eprintln!("pinning to processor {processor}: {error}");
        std::process::exit(2);
    }
    println!("pinned to processor {processor}");
}
