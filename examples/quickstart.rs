//! A cache in a program that forks: `cargo run --example quickstart [URL of a store]`.

#![expect(unsafe_code, reason = "fork() is unsafe")]

use std::error::Error;
use std::time::Duration;

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use prefork_cache::{Cache, lifecycle, stores};

fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory://".to_owned());
    let cache = Cache::register(stores::from_url(&url)?);
    cache.blocking().set("motd", "loaded once, by the master", Duration::from_secs(60))?;

    // SAFETY: this process has a single thread.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => drop(waitpid(child, None)?),
        ForkResult::Child => println!("{}", lifecycle::after_fork()),
    }
    let load = || Ok::<_, Box<dyn Error>>("loaded by process ".to_owned() + &std::process::id().to_string());
    println!("motd:  {}", cache.blocking().fetch("motd", Duration::from_secs(60), load)?);
    println!("other: {}", cache.blocking().fetch("other", Duration::from_secs(60), load)?);
    Ok(())
}
