//! Programs in C, some of them under valgrind.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use support::servers::{Kind, Server};

use crate::host::{command, compile, compile_with_archive, copied, library, package, succeed, under_valgrind};

const PATIENT: &str = "timeout=20s&connect_timeout=20s";

fn program(name: &str) -> PathBuf {
    compile(&package().join("tests/c").join(name).with_extension("c"), &["-std=gnu11", "-D_GNU_SOURCE"])
}

fn on_each_store(run: impl Fn(&str)) {
    for kind in [Kind::Redis, Kind::Memcached] {
        run(&Server::start(kind).url(PATIENT));
    }
    run("memory://");
}

#[test]
fn the_quickstart_builds_and_runs_without_leaks() {
    let source = package().join("examples/quickstart.c");
    let shared = compile(&source, &["-std=c11", "-pedantic", "-D_POSIX_C_SOURCE=200809L"]);
    let server = Server::start(Kind::Redis);
    let printed = succeed(under_valgrind(&shared).arg(server.url(PATIENT))).stdout;
    let visits = |numbers: [u32; 3]| numbers.map(|number| format!("visit {number}: <h1>hello, world</h1>\n")).concat();
    assert_eq!(String::from_utf8(printed).unwrap(), visits([1, 2, 3]));
    let failed = command(&shared).arg("gopher://").output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    assert!(failed.stderr.starts_with(b"opening the cache: PFC_BAD_URL: "));

    let alone = compile_with_archive(&source);
    let printed = succeed(Command::new(&alone).arg(server.url(PATIENT))).stdout;
    assert_eq!(String::from_utf8(printed).unwrap(), visits([4, 5, 6]));
}

#[test]
fn every_operation_works_as_documented() {
    let verbs = program("verbs");
    on_each_store(|url| _ = succeed(command(&verbs).arg(url)));
    let server = Server::start(Kind::Redis);
    succeed(under_valgrind(&verbs).arg(server.url(PATIENT)));
}

#[test]
fn invalid_arguments_are_refused_with_a_message() {
    let mistakes = program("mistakes");
    let server = Server::start(Kind::Redis);
    succeed(under_valgrind(&mistakes).arg(server.url(PATIENT)));
}

#[test]
fn a_fetch_loads_once_and_its_claim_belongs_to_a_process() {
    let fetches = program("fetches");
    on_each_store(|url| _ = succeed(command(&fetches).arg(url)));
    let server = Server::start(Kind::Redis);
    succeed(under_valgrind(&fetches).arg(server.url(PATIENT)));
}

#[test]
fn a_call_that_waits_returns_in_slices_and_can_be_continued() {
    let slices = program("slices");
    for kind in [Kind::Redis, Kind::Memcached] {
        let server = Server::start(kind);
        let mut run = command(&slices);
        let mut run =
            run.arg(server.url("timeout=60s")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut lines = BufReader::new(run.stdout.take().expect("a pipe")).lines();
        let mut stdin = run.stdin.take().expect("a pipe");
        assert_eq!(lines.next().expect("a line").unwrap(), "stop");
        server.pause();
        stdin.write_all(b"stopped\n").unwrap();
        let waits = lines.next().map(Result::unwrap);
        server.resume();
        assert_eq!(waits.as_deref(), Some("continue"));
        stdin.write_all(b"resumed\n").unwrap();
        assert!(run.wait().unwrap().success());
    }
}

#[test]
fn forks_while_threads_use_the_cache_are_safe() {
    let forks = program("forks");
    on_each_store(|url| _ = succeed(command(&forks).args([url, "200"])));
}

#[test]
fn interrupted_system_calls_cause_no_errors() {
    let signals = program("signals");
    for kind in [Kind::Redis, Kind::Memcached] {
        let server = Server::start(kind);
        // By name, so that the resolver is interrupted too.
        let url = server.url(PATIENT).replace("127.0.0.1", "localhost");
        let handled = succeed(command(&signals).args([&url, "300"])).stdout;
        let handled: u32 = String::from_utf8(handled).unwrap().trim().parse().expect("a number");
        assert!(handled > 50, "{handled} signals");
    }
}

#[test]
fn two_copies_are_loaded_and_unloaded() {
    let copies = program("copies");
    let server = Server::start(Kind::Redis);
    let copy = copied(&library(), "another-name.so");
    succeed(command(&copies).arg(server.url(PATIENT)).arg(library()).arg(copy));
}
