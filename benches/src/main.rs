//! prefork-cache beside the crates that it stands on: `cargo run --release -p prefork-cache-benches [SECTION...]`.
//!
//! The ways of a section are taken in turn against the same servers. A ratio is the median of the rounds' ratios: below 1,
//! prefork-cache is the faster one.

mod batch;
mod forks;
mod measure;
mod memcached;
mod memory;
mod redis_server;

const SECTIONS: [(&str, fn()); 4] =
    [("fork", forks::run), ("memory", memory::run), ("redis", redis_server::run), ("memcached", memcached::run)];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
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
