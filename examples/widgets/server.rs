//! The master and its workers: forking, signals, reaping.
//!
//! The master has one thread and no runtime. It blocks its signals and waits for them one at a time, so none arrives
//! between a fork and its bookkeeping. A worker starts with the same signals blocked, and unblocks SIGTERM once it
//! has a handler. A terminal sends SIGINT to all processes; only the master handles it.

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

/// How long a worker may take to finish its requests.
const GRACE: Duration = Duration::from_secs(5);
/// The number of seconds after which the master kills the remaining workers.
const KILL_AFTER_SECONDS: u32 = 8;
/// The least time between two replacements of dead workers.
const REPLACEMENT_INTERVAL: Duration = Duration::from_secs(1);

/// Forks the workers and returns when the last of them is reaped. Also returns in each worker when it has finished.
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

    let mut running = HashSet::new();
    for _ in 0..workers {
        let Some(worker) = fork_worker(&mut server)? else { return Ok(()) };
        running.insert(worker);
    }
    print_line(format_args!("master {master}, workers {}", list(&running)));
    supervise(server, running, &signals)
}

/// Forks a worker. Returns `None` in the worker itself, when it has finished.
fn fork_worker(server: &mut Server<TcpListener>) -> Result<Option<Pid>, Box<dyn Error>> {
    Ok(server.fork()?.map(|worker| Pid::from_raw(worker.as_raw())))
}

fn supervise(
    mut server: Server<TcpListener>,
    mut running: HashSet<Pid>,
    signals: &SigSet,
) -> Result<(), Box<dyn Error>> {
    let mut stopping = false;
    let mut last_replaced: Option<Instant> = None;
    while !running.is_empty() {
        match signals.wait()? {
            Signal::SIGCHLD => {
                while let Some((worker, how)) = reap_one()? {
                    running.remove(&worker);
                    if stopping {
                        continue;
                    }
                    eprintln!("widgets: worker {worker} {how}; starting another");
                    if let Some(last) = last_replaced.replace(Instant::now()) {
                        std::thread::sleep(REPLACEMENT_INTERVAL.saturating_sub(last.elapsed()));
                    }
                    let Some(worker) = fork_worker(&mut server)? else { return Ok(()) };
                    running.insert(worker);
                }
            }
            Signal::SIGALRM => {
                eprintln!("widgets: {} did not finish in time", list(&running));
                signal_all(&running, Signal::SIGKILL)?;
            }
            _ => {
                stopping = true;
                signal_all(&running, Signal::SIGTERM)?;
                alarm::set(KILL_AFTER_SECONDS);
            }
        }
    }
    Ok(())
}

/// Prints a line. The server continues if stdout is closed.
pub(crate) fn print_line(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn signal_all(running: &HashSet<Pid>, signal: Signal) -> nix::Result<()> {
    // A dead worker in this set is not reaped yet, so its process id is not reused.
    running.iter().try_for_each(|worker| kill(*worker, signal))
}

/// Reaps an ended worker. Returns its process id and how it ended.
fn reap_one() -> nix::Result<Option<(Pid, String)>> {
    match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(worker, code)) => Ok(Some((worker, format!("ended with status {code}")))),
        Ok(WaitStatus::Signaled(worker, signal, _)) => Ok(Some((worker, format!("was killed by {signal}")))),
        Ok(_) | Err(Errno::ECHILD) => Ok(None),
        Err(error) => Err(error),
    }
}

fn list(running: &HashSet<Pid>) -> String {
    let mut pids: Vec<_> = running.iter().map(|pid| pid.as_raw()).collect();
    pids.sort_unstable();
    pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Runs a worker.
async fn work(listener: TcpListener, router: Router, master: Pid) {
    let mut stop = signal(SignalKind::terminate()).expect("a handler for SIGTERM");
    let mut grace = signal(SignalKind::terminate()).expect("a handler for SIGTERM");
    // Stops this worker if the master is killed.
    set_pdeathsig(Signal::SIGTERM).expect("a signal for the master's death");
    if getppid() != master {
        return;
    }
    SigSet::from(Signal::SIGTERM).thread_unblock().expect("SIGTERM can be unblocked");

    // Optional: refreshes the cache now instead of at its first use, and reports it.
    print_line(format_args!("worker {}: {}", getpid(), lifecycle::after_fork()));

    let listener = tokio::net::TcpListener::from_std(listener).expect("an inherited listener");
    let serving = axum::serve(listener, router).with_graceful_shutdown(async move {
        stop.recv().await;
    });
    tokio::select! {
        served = serving => served.expect("the server runs until it is stopped"),
        () = async {
            grace.recv().await;
            tokio::time::sleep(GRACE).await;
        } => {}
    }
}
