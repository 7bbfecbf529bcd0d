//! One run of a host: requests, a replaced worker, three reloads under load, and the end.

use std::any::Any;
use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::wait::{until, until_within};

use crate::hosts::{Host, RELOAD_PATIENCE, Trigger, WORKERS};
use crate::inspection::{Inspection, inspect};
use crate::load::{Load, Tally};
use crate::processes::{descendants, is_alive, parent, reap_all_but, sockets};
use crate::protocols::Connection;
use crate::readme;
use crate::site::Site;
use crate::table::Row;

/// Whether the example has the line that calls the hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    With,
    Without,
    /// The host has no hook.
    Absent,
}

impl Hook {
    /// Returns the variants in which a host is run.
    pub(crate) fn of(host: &Host) -> &'static [Hook] {
        if host.hook.is_some() { &[Hook::With, Hook::Without] } else { &[Hook::Absent] }
    }
}

/// Runs a host, starting with `requests` requests.
pub(crate) fn run(host: &'static Host, hook: Hook, prefix: &Path, requests: usize) -> Row {
    eprintln!("{}, hook line {hook:?} ...", host.name);
    let mut row = Row::new(host, hook);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut running = Running::start(host, hook, prefix);
        row.version = running.version.clone();
        let outcome = catch_unwind(AssertUnwindSafe(|| running.check(requests, &mut row)));
        if outcome.is_err() {
            eprintln!("{}", running.end_of_log());
        }
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }));
    row.fault = outcome.err().map(message);
    row
}

fn message(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast::<String>().map(|text| *text);
    text.unwrap_or_else(|panic| panic.downcast_ref::<&str>().copied().unwrap_or("a panic").to_owned())
}

/// A running host.
struct Running {
    host: &'static Host,
    hook: Hook,
    version: String,
    /// The children of this process that do not belong to the host.
    servers: BTreeSet<u32>,
    root: Child,
    front: Option<Child>,
    site: Site,
}

impl Running {
    fn start(host: &'static Host, hook: Hook, prefix: &Path) -> Running {
        let site = Site::new(host, hook == Hook::With, prefix);
        let version = site.command(host.version).output().expect("a shell");
        let version = first_number(&String::from_utf8_lossy(&version.stdout));
        let version = version.unwrap_or_else(|| panic!("{} does not print its version: is it installed?", host.name));
        readme::check(host, &version, site.hook_line.as_deref());
        if let Some(build) = host.build {
            site.run(build, 0);
        }
        let log = site.make_log();
        let servers = descendants(std::process::id());
        let start = |line: &str| {
            let (log, errors) = (log.try_clone().expect("a descriptor"), log.try_clone().expect("a descriptor"));
            let line = match line.split_once(' ') {
                Some((assignment, rest)) if assignment.contains('=') => format!("{assignment} exec {rest}"),
                _ => format!("exec {line}"),
            };
            site.command(&line).stdin(Stdio::null()).stdout(log).stderr(errors).spawn().expect("a shell")
        };
        let (root, front) = (start(host.start), host.front.map(start));
        Running { host, hook, version, servers, root, front, site }
    }

    fn check(&mut self, requests: usize, row: &mut Row) {
        self.wait_until_ready();
        let mut workers = self.drive("first", requests, row);
        until("all workers have responded", || {
            workers.len() >= WORKERS || {
                workers.extend(self.drive("rest", requests / 100, row));
                false
            }
        });
        row.record_connections(&self.inspect_idle(&workers));

        workers = self.drive_late(workers, requests / 10, row);
        row.record_connections(&self.inspect_idle(&workers));

        for reload in ["reload-1", "reload-2", "reload-3"] {
            workers = self.reload(reload, &workers, row);
            let inspection = self.inspect_idle(&workers);
            row.record_connections(&inspection);
            row.record_reload(inspection);
        }
        self.check_hook(row);
        self.stop();
    }

    fn wait_until_ready(&mut self) {
        let (root, endpoint) = (&mut self.root, self.site.endpoint());
        until("the host responds", || {
            let ended = root.try_wait().expect("the child is not reaped yet");
            assert!(ended.is_none(), "the host has ended: {}", ended.expect("it has"));
            let reply = Connection::open(endpoint).map(|mut connection| connection.request("/redis/start/start"));
            matches!(reply, Ok(Ok(_)))
        });
    }

    /// Sends requests, and returns the workers that have responded.
    fn drive(&self, part: &str, requests: usize, row: &mut Row) -> BTreeSet<u32> {
        let first = row.tally.requests;
        let load = Load::new(self.site.endpoint(), part, first..first + requests);
        self.count(part, load.drive(), row);
        row.workers.extend(load.workers());
        load.workers()
    }

    fn count(&self, part: &str, tally: Tally, row: &mut Row) {
        let fault = tally.fault.clone();
        row.tally.add(tally);
        if let Some(fault) = fault {
            panic!("{part}: {fault}");
        }
    }

    /// Removes a worker, and sends requests until a worker that was forked after that has responded.
    fn drive_late(&self, mut workers: BTreeSet<u32>, requests: usize, row: &mut Row) -> BTreeSet<u32> {
        let masters: BTreeSet<u32> = workers.iter().filter_map(|worker| parent(*worker)).collect();
        let victim = *workers.difference(&masters).next().expect("a worker that has forked no other");
        self.trigger(&self.host.replace, victim);
        // Celery sends tasks to a dead worker, and loses them, until it has reaped it.
        until("the worker has been reaped", || {
            self.reap();
            parent(victim).is_none()
        });
        workers.remove(&victim);
        let before = workers.clone();
        until("a late worker has responded", || {
            workers.extend(self.drive("late", requests, row));
            workers.difference(&before).next().is_some() && workers.len() >= WORKERS
        });
        workers
    }

    /// Reloads under load, and returns the new workers.
    fn reload(&self, part: &str, before: &BTreeSet<u32>, row: &mut Row) -> BTreeSet<u32> {
        let load = Load::new(self.site.endpoint(), part, row.tally.requests..usize::MAX);
        let (fresh, tally) = std::thread::scope(|scope| {
            let driven = scope.spawn(|| load.drive());
            let end_on_drop = EndOnDrop(&load);
            until("there is load", || load.is_over() || load.workers().len() >= WORKERS);
            self.trigger(&self.host.reload, self.root.id());
            let fresh = || load.workers().difference(before).copied().filter(|worker| is_alive(*worker)).collect();
            let is_reloaded = || {
                let fresh: BTreeSet<u32> = fresh();
                before.iter().all(|worker| !is_alive(*worker)) && fresh.len() >= WORKERS
            };
            until_within(RELOAD_PATIENCE, "all workers are new", || {
                self.reap();
                load.is_over() || is_reloaded()
            });
            drop(end_on_drop);
            let tally = driven.join().expect("a load does not panic");
            (fresh(), tally)
        });
        row.workers.extend(load.workers());
        self.count(part, tally, row);
        fresh
    }

    fn trigger(&self, trigger: &Trigger, process: u32) {
        match trigger {
            Trigger::Signal(signal) => send(process, *signal),
            Trigger::Command(line) => self.site.run(line, process),
        }
    }

    /// Waits until the host is idle, and inspects it.
    fn inspect_idle(&self, workers: &BTreeSet<u32>) -> Inspection {
        until("the host has closed its clients' connections", || {
            sockets().values().all(|socket| socket.local != self.site.port)
        });
        inspect(&self.site, workers, &self.processes(), self.host.threads)
    }

    fn processes(&self) -> BTreeSet<u32> {
        let mut processes = descendants(std::process::id());
        processes.retain(|process| !self.servers.contains(process));
        processes
    }

    /// Checks that each worker has called the hook if the example has the line, and that none has otherwise.
    fn check_hook(&self, row: &Row) {
        let Some(line) = &self.host.hook else { return };
        let log = fs::read_to_string(self.site.log()).expect("a log");
        let (calls, workers) = (log.matches(line.logs).count(), row.workers.len());
        let is_as_expected = if self.hook == Hook::With { calls >= workers } else { calls == 0 };
        assert!(is_as_expected, "{calls} calls of the hook by {workers} workers, hook line {:?}", self.hook);
    }

    /// Stops the host as its users do, and waits until all of its processes have ended.
    fn stop(&mut self) {
        self.stop_front();
        send(self.root.id(), self.host.stop);
        until("the host has ended", || {
            self.reap();
            self.root.try_wait().expect("the child is not reaped yet").is_some()
        });
        until("its processes have ended", || {
            self.reap();
            self.processes().is_empty()
        });
    }

    fn stop_front(&mut self) {
        if let Some(mut front) = self.front.take() {
            front.kill().expect("the child is not reaped yet");
            front.wait().expect("the child is not reaped yet");
        }
    }

    fn reap(&self) {
        let mut kept = self.servers.clone();
        kept.extend([&self.root].into_iter().chain(&self.front).map(Child::id));
        reap_all_but(&kept);
    }

    fn end_of_log(&self) -> String {
        let log = fs::read_to_string(self.site.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for process in self.processes() {
            // It fails if the process has ended in the meantime.
            let _ = kill(pid(process), Signal::SIGKILL);
        }
        let _ = self.root.wait();
        self.stop_front();
        self.reap();
    }
}

/// Ends a load when it is dropped, also by a panic.
struct EndOnDrop<'a>(&'a Load<'a>);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn pid(process: u32) -> Pid {
    Pid::from_raw(process.try_into().expect("a process id"))
}

fn send(process: u32, signal: Signal) {
    kill(pid(process), signal).unwrap_or_else(|error| panic!("{signal} to {process}: {error}"));
}

/// Returns the first number with a point: `8.2.36` in `PHP 8.2.36 (fpm-fcgi)`.
fn first_number(text: &str) -> Option<String> {
    let mut pieces = text.split(|letter: char| !letter.is_ascii_digit() && letter != '.');
    pieces.find(|piece| piece.len() > 2 && piece.contains('.')).map(str::to_owned)
}
