//! The promises, each with forked processes and real servers.
//!
//! A file here is a promise. A test is a *scenario*: it runs in a fresh process, which starts with one thread and with
//! nothing used yet, see [`harness`]. `STRESS=1` runs the long versions and shows what each scenario measured.

#![expect(unsafe_code, reason = "forks, signals and what a child may look at")]

#[path = "../support/mod.rs"]
mod support;

mod harness;

macro_rules! promises {
    ($($promise:ident),* $(,)?) => {
        $(mod $promise;)*

        fn main() -> std::process::ExitCode {
            let mut all = Vec::new();
            $(all.extend(harness::promise(stringify!($promise), $promise::scenarios()));)*
            harness::main(all)
        }
    };
}

promises! {
    no_vanished_thread_blocks_a_child,
    nobody_has_to_remember,
}
