//! The name of the process that holds a lease, and whether that process is still alive.
//!
//! A process is named by the boot id of its machine, its pid namespace, its pid and its start time. A process with the
//! same boot id and namespace can check whether the holder is alive. Any other process relies on the heartbeat that the
//! holder writes into its lease.

use std::fs;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::lifecycle::ProcessLocal;

static OWN: ProcessLocal<String> = ProcessLocal::new();

/// Returns the name of this process. It is empty if `/proc` cannot be read.
pub(crate) fn own() -> &'static str {
    OWN.get_or_init(|| name_of_this_process().unwrap_or_default())
}

fn name_of_this_process() -> Option<String> {
    let pid = std::process::id();
    let (host, start) = (host()?, Status::of(pid).ok()?.start);
    Some(format!("{host} {pid} {start}"))
}

/// Returns the boot id and the pid namespace.
fn host() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), namespace.display()))
}

/// Returns whether a holder is known to have ended. `false` for a process on another host, and for one that this
/// process may not inspect.
pub(crate) fn has_ended(holder: &str) -> bool {
    has_ended_beside(own(), holder)
}

fn has_ended_beside(own: &str, holder: &str) -> bool {
    let (Some((own_host, _)), Some((host, (pid, start)))) = (parts(own), parts(holder)) else { return false };
    if own_host != host || own == holder {
        return false;
    }
    match Status::of(pid) {
        Ok(status) => status.start != start || status.has_ended,
        // The process may be hidden in `/proc`. Signal 0 only checks that the process exists.
        Err(_) => i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)),
    }
}

/// Splits a name into the host, and the pid and start time.
fn parts(name: &str) -> Option<(&str, (u32, u64))> {
    let (rest, start) = name.rsplit_once(' ')?;
    let (host, pid) = rest.rsplit_once(' ')?;
    Some((host, (pid.parse().ok()?, start.parse().ok()?)))
}

struct Status {
    /// The start time, in clock ticks since the boot.
    start: u64,
    /// Whether the process is a zombie without other threads.
    has_ended: bool,
}

impl Status {
    fn of(pid: u32) -> std::io::Result<Status> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let malformed = || std::io::Error::from(std::io::ErrorKind::InvalidData);
        // The program's name, in parentheses, may contain any characters.
        let (_, fields) = stat.rsplit_once(") ").ok_or_else(malformed)?;
        let fields: Vec<&str> = fields.split(' ').collect();
        let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).ok_or_else(malformed);
        let (state, threads, start) = (fields.first().copied(), number(17)?, number(19)?);
        Ok(Status { start, has_ended: matches!(state, Some("Z" | "X")) && threads <= 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::{has_ended, has_ended_beside, own, parts};

    #[test]
    fn a_running_process_has_not_ended() {
        let (host, (pid, start)) = parts(own()).expect("a name");
        assert_eq!(pid, std::process::id());
        assert!(!has_ended(own()));
        assert!(has_ended_beside(own(), &format!("{host} {pid} {}", start + 1)), "another process has its pid");
        assert!(!has_ended_beside(own(), &format!("elsewhere {host} {pid} {}", start + 1)));
        assert!(!has_ended("nobody") && !has_ended(""));
    }

    #[test]
    fn a_zombie_has_ended() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let (host, _) = parts(own()).unwrap();
        let start = super::Status::of(child.id()).unwrap().start;
        let name = format!("{host} {} {start}", child.id());
        assert!(!has_ended(&name));
        drop(child.stdin.take());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !has_ended(&name) {
            assert!(std::time::Instant::now() < deadline, "the zombie is not recognised");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(has_ended(&name), "a reaped process is not recognised");
    }
}
