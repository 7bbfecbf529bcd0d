//! What `/proc` tells of processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Every process, with its parent and whether it is dead and nobody has waited for it.
fn all() -> BTreeMap<u32, (u32, bool)> {
    let processes = fs::read_dir("/proc").expect("/proc is mounted");
    let processes = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes.filter_map(|process| Some((process, status(process)?))).collect()
}

fn status(process: u32) -> Option<(u32, bool)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Its name is in parentheses, and may have any letter.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let is_dead = matches!(fields.next()?, "Z" | "X");
    Some((fields.next()?.parse().ok()?, is_dead))
}

pub(crate) fn parent(process: u32) -> Option<u32> {
    status(process).map(|(parent, _)| parent)
}

pub(crate) fn is_alive(process: u32) -> bool {
    status(process).is_some_and(|(_, is_dead)| !is_dead)
}

/// The living processes that a process has forked, and those that these have.
pub(crate) fn descendants(of: u32) -> BTreeSet<u32> {
    let all = all();
    let mut found = BTreeSet::new();
    let mut looked_at = vec![of];
    while let Some(ancestor) = looked_at.pop() {
        for (&child, (_, is_dead)) in all.iter().filter(|(_, (parent, _))| *parent == ancestor) {
            if !is_dead && found.insert(child) {
                looked_at.push(child);
            }
        }
    }
    found
}

/// Waits for the dead children of this process but for some: those that were left to it by a parent that ended, as they
/// are to the first process otherwise.
pub(crate) fn reap_all_but(kept: &BTreeSet<u32>) {
    for (child, (parent, is_dead)) in all() {
        if parent == std::process::id() && is_dead && !kept.contains(&child) {
            let child = Pid::from_raw(child.try_into().expect("a process id"));
            // It is dead, and nobody else waits for it.
            let _ = waitpid(child, Some(WaitPidFlag::WNOHANG));
        }
    }
}

/// What each descriptor of a process stands for; empty if it has ended.
pub(crate) fn descriptors(of: u32) -> Vec<String> {
    let Ok(listed) = fs::read_dir(format!("/proc/{of}/fd")) else { return Vec::new() };
    let target = |entry: fs::DirEntry| fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok();
    listed.filter_map(|entry| target(entry.ok()?)).collect()
}

/// The ports of a TCP socket of this machine's.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) local: u16,
    pub(crate) remote: u16,
}

/// Every TCP socket that some process holds open, listeners not among them, by its inode.
pub(crate) fn sockets() -> BTreeMap<u64, Socket> {
    let table = fs::read_to_string("/proc/net/tcp").expect("/proc is mounted");
    let port = |address: &str| u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok();
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (inode, socket) = (fields[9].parse().ok()?, Socket { local: port(fields[1])?, remote: port(fields[2])? });
        (inode != 0 && socket.remote != 0).then_some((inode, socket))
    };
    // One that is listed twice, since others came and went meanwhile, is one.
    table.lines().skip(1).filter_map(socket).collect()
}
