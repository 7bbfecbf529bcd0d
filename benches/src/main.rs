//! Compares prefork-cache with the crates that it is based on and with alternatives:
//! `cargo run --release -p prefork-cache-benches -- [--pin CPU] [--plot FILE] [SECTION...]`.
//!
//! The candidates of a section take turns on the same servers. A ratio is the median of the rounds' ratios: below 1,
//! prefork-cache is faster. With `--pin 0` this process and the servers that it starts share processor 0, so that the
//! ratio compares the work and not its distribution over processors. `--plot` draws the ratios, in SVG.

use std::path::PathBuf;

use lexopt::prelude::*;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

mod batch;
mod capi;
mod forks;
mod measure;
mod memcached;
mod memory;
mod plot;
mod redis_cluster;
mod redis_server;
mod redis_tls;
mod server_share;
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
    let options = Options::parse().unwrap_or_else(|error| stop(&error.to_string()));
    if let Some(processor) = options.pin {
        pin(processor);
    }
    for (name, run) in SECTIONS {
        if options.sections.is_empty() || options.sections.iter().any(|section| section == name) {
            run();
        }
    }
    if let Some(path) = options.plot {
        let written = std::fs::write(&path, plot::svg(&measure::ratios()));
        written.unwrap_or_else(|error| stop(&format!("{}: {error}", path.display())));
    }
}

#[derive(Default)]
struct Options {
    pin: Option<usize>,
    plot: Option<PathBuf>,
    /// The sections to run; all of them if it is empty.
    sections: Vec<String>,
}

impl Options {
    fn parse() -> Result<Options, lexopt::Error> {
        let mut options = Options::default();
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("pin") => options.pin = Some(parser.value()?.parse()?),
                Long("plot") => options.plot = Some(parser.value()?.into()),
                Value(name) if SECTIONS.iter().any(|(section, _)| name == *section) => {
                    options.sections.push(name.string()?);
                }
                Value(name) => {
                    let known: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
                    return Err(format!("unknown section {name:?}: expected one of {}", known.join(", ")).into());
                }
                other => return Err(other.unexpected()),
            }
        }
        Ok(options)
    }
}

fn stop(reason: &str) -> ! {
    eprintln!("{reason}");
    std::process::exit(2);
}

/// Pins this process to a processor, before it starts threads and servers, which inherit that.
fn pin(processor: usize) {
    let mut only = CpuSet::new();
    let pinned = only.set(processor).and_then(|()| sched_setaffinity(Pid::from_raw(0), &only));
    if let Err(error) = pinned {
        stop(&format!("pinning to processor {processor}: {error}"));
    }
    println!("pinned to processor {processor}");
}
