//! The master and its workers: who forks, who is told to stop, who reaps.
//!
//! The master has one thread and no runtime. It holds its signals back and takes them one at a time, so none comes between
//! a fork and its bookkeeping. A worker begins with the same signals held back, and lets SIGTERM through once it listens for
//! it; SIGINT, which a terminal sends to all of them, is the master's alone to answer.

use std::collections::HashSet;
use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use axum::Router;
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, alarm, getpid, getppid};
use prefork::{Prefork, Server};
use prefork_cache::lifecycle;
use tokio::signal::unix::{SignalKind, signal};

/// How long a worker finishes what is under way.
const GRACE: Duration = Duration::from_secs(5);
/// After so many seconds the master waits for its workers no longer.
const LAST_CALL: u32 = 8;
/// Replacements of workers that die keep this distance.
const BETWEEN_REPLACEMENTS: Duration = Duration::from_secs(1);

/// Forks the workers and stays until the last of them is reaped. Returns in each worker, too, when that has finished.
pub(crate) fn serve(
    listener: TcpListener,
    workers: u32,
    router: impl Fn() -> Router + 'static,
) -> Result<(), Box<dyn Error>> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGCHLD, Signal::SIGALRM].into_iter().collect();
    signals.thread_block()?;
    let master = getpid();
    let work = move |_, listener| work(listener, router(), master);
    let mut server = Prefork::from_resource(listener).with_tokio(work).server();

    let mut staff = HashSet::new();
    for _ in 0..workers {
        let Some(worker) = hire(&mut server)? else { return Ok(()) };
        staff.insert(worker);
    }
    say(format_args!("master {master}, workers {}", list(&staff)));
    oversee(server, staff, &signals)
}

/// One more worker. `None` in the worker itself, once it has finished.
fn hire(server: &mut Server<TcpListener>) -> Result<Option<Pid>, Box<dyn Error>> {
    Ok(server.fork()?.map(|worker| Pid::from_raw(worker.as_raw())))
}

fn oversee(mut server: Server<TcpListener>, mut staff: HashSet<Pid>, signals: &SigSet) -> Result<(), Box<dyn Error>> {
    let mut stopping = false;
    let mut last_replaced: Option<Instant> = None;
    while !staff.is_empty() {
        match signals.wait()? {
            Signal::SIGCHLD => {
                while let Some((worker, how)) = reap_one()? {
                    staff.remove(&worker);
                    if stopping {
                        continue;
                    }
                    eprintln!("widgets: worker {worker} {how}; starting another");
                    if let Some(last) = last_replaced.replace(Instant::now()) {
                        std::thread::sleep(BETWEEN_REPLACEMENTS.saturating_sub(last.elapsed()));
                    }
                    let Some(worker) = hire(&mut server)? else { return Ok(()) };
                    staff.insert(worker);
                }
            }
            Signal::SIGALRM => {
                eprintln!("widgets: {} did not finish in time", list(&staff));
                tell(&staff, Signal::SIGKILL)?;
            }
            _ => {
                stopping = true;
                tell(&staff, Signal::SIGTERM)?;
                alarm::set(LAST_CALL);
            }
        }
    }
    Ok(())
}

/// Prints a line. A server goes on where nobody reads what it says.
pub(crate) fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn tell(staff: &HashSet<Pid>, signal: Signal) -> nix::Result<()> {
    // One that has died is not reaped yet, so its number is still its own.
    staff.iter().try_for_each(|worker| kill(*worker, signal))
}

/// A worker that has ended, and how.
fn reap_one() -> nix::Result<Option<(Pid, String)>> {
    match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(worker, code)) => Ok(Some((worker, format!("ended with status {code}")))),
        Ok(WaitStatus::Signaled(worker, signal, _)) => Ok(Some((worker, format!("was ended by {signal}")))),
        Ok(_) | Err(Errno::ECHILD) => Ok(None),
        Err(error) => Err(error),
    }
}

fn list(staff: &HashSet<Pid>) -> String {
    let mut pids: Vec<_> = staff.iter().map(|pid| pid.as_raw()).collect();
    pids.sort_unstable();
    pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// The life of a worker.
async fn work(listener: TcpListener, router: Router, master: Pid) {
    let mut stop = signal(SignalKind::terminate()).expect("a handler for SIGTERM");
    let mut stopped = signal(SignalKind::terminate()).expect("a handler for SIGTERM");
    // Should the master be killed, nobody else would stop this worker.
    set_pdeathsig(Signal::SIGTERM).expect("a signal for the master's death");
    if getppid() != master {
        return;
    }
    SigSet::from(Signal::SIGTERM).thread_unblock().expect("SIGTERM let through");

    // The cache would work without; so the report comes now.
    say(format_args!("worker {}: {}", getpid(), lifecycle::after_fork()));

    let listener = tokio::net::TcpListener::from_std(listener).expect("an inherited listener");
    let serving = axum::serve(listener, router).with_graceful_shutdown(async move {
        stop.recv().await;
    });
    tokio::select! {
        served = serving => served.expect("a server that ends when it is told to"),
        () = async {
            stopped.recv().await;
            tokio::time::sleep(GRACE).await;
        } => {}
    }
}
