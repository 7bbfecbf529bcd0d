//! Runs hosts of `examples/hosts` with real servers: `prefork-cache-hosts PREFIX HOST...`. PREFIX is the prefix under
//! which `capi/install` installed the library. Prints a table, and fails if a check fails. The environment variable
//! `REQUESTS` is the number of requests that each run starts with.

mod hosts;
mod inspection;
mod load;
mod processes;
mod protocols;
mod readme;
mod run;
mod site;
mod table;

use std::process::ExitCode;

use crate::hosts::Host;
use crate::run::{Hook, run};
use crate::table::Table;

const REQUESTS: usize = 20_000;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let prefix = arguments.next().map(|prefix| std::path::absolute(prefix).expect("a directory"));
    let names: Vec<String> = arguments.collect();
    let chosen: Vec<Option<&'static Host>> =
        names.iter().map(|name| hosts::ALL.iter().find(|host| host.name == name)).collect();
    let (Some(prefix), Some(chosen)) = (prefix, chosen.into_iter().collect::<Option<Vec<_>>>()) else {
        let known: Vec<_> = hosts::ALL.iter().map(|host| host.name).collect();
        eprintln!("usage: prefork-cache-hosts PREFIX HOST...\nhosts: {}", known.join(" "));
        return ExitCode::from(2);
    };
    let requests = std::env::var("REQUESTS").map_or(REQUESTS, |number| number.parse().expect("REQUESTS is a number"));
    nix::sys::prctl::set_child_subreaper(true).expect("Linux 3.4 or later");

    let mut table = Table::default();
    for host in chosen {
        for &hook in Hook::of(host) {
            table.add(run(host, hook, &prefix, requests));
        }
    }
    table.print();
    if table.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
