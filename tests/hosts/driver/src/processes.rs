//! What `/proc` tells of processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Every process, with its parent; the dead that nobody has waited for are left out.
fn parents() -> BTreeMap<u32, u32> {
    let processes = fs::read_dir("/proc").expect("/proc is mounted");
    processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter_map(with_parent).collect()
}

fn with_parent(process: u32) -> Option<(u32, u32)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Its name is in parentheses, and may have any letter.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let is_dead = matches!(fields.next()?, "Z" | "X");
    (!is_dead).then_some((process, fields.next()?.parse().ok()?))
}

pub(crate) fn parent(process: u32) -> Option<u32> {
    with_parent(process).map(|(_, parent)| parent)
}

pub(crate) fn is_alive(process: u32) -> bool {
    with_parent(process).is_some()
}

/// The processes that a process has forked, and those that these have.
pub(crate) fn descendants(of: u32) -> BTreeSet<u32> {
    let parents = parents();
    let mut found = BTreeSet::new();
    let mut looked_at = vec![of];
    while let Some(ancestor) = looked_at.pop() {
        for (&child, _) in parents.iter().filter(|(_, parent)| **parent == ancestor) {
            if found.insert(child) {
                looked_at.push(child);
            }
        }
    }
    found
}

pub(crate) fn children(of: u32) -> BTreeSet<u32> {
    parents().into_iter().filter(|(_, parent)| *parent == of).map(|(child, _)| child).collect()
}

/// Waits for those that were left to this process by a parent that ended.
pub(crate) fn reap(orphans: &BTreeSet<u32>) {
    for &orphan in orphans {
        let orphan = Pid::from_raw(orphan.try_into().expect("a process id"));
        // Not a child of ours, or not dead yet.
        let _ = waitpid(orphan, Some(WaitPidFlag::WNOHANG));
    }
}

/// What each descriptor of a process stands for; empty if it has ended.
pub(crate) fn descriptors(of: u32) -> Vec<String> {
    let Ok(listed) = fs::read_dir(format!("/proc/{of}/fd")) else { return Vec::new() };
    let target = |entry: fs::DirEntry| fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok();
    listed.filter_map(|entry| target(entry.ok()?)).collect()
}

/// A TCP socket of this machine's.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) inode: u64,
    pub(crate) local: u16,
    pub(crate) remote: u16,
}

/// Every TCP socket that some process holds open, listeners not among them.
pub(crate) fn sockets() -> Vec<Socket> {
    let table = fs::read_to_string("/proc/net/tcp").expect("/proc is mounted");
    let port = |address: &str| u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok();
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let socket = Socket { inode: fields[9].parse().ok()?, local: port(fields[1])?, remote: port(fields[2])? };
        (socket.inode != 0 && socket.remote != 0).then_some(socket)
    };
    table.lines().skip(1).filter_map(socket).collect()
}
