//! Processes, descriptors and sockets, from `/proc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Returns every process, with its parent and whether it is a zombie.
fn all() -> BTreeMap<u32, (u32, bool)> {
    let processes = fs::read_dir("/proc").expect("/proc is mounted");
    let processes = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes.filter_map(|process| Some((process, status(process)?))).collect()
}

fn status(process: u32) -> Option<(u32, bool)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The process name is in parentheses, and may contain any character.
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

/// Returns the living descendants of a process.
pub(crate) fn descendants(of: u32) -> BTreeSet<u32> {
    let all = all();
    let mut found = BTreeSet::new();
    let mut unvisited = vec![of];
    while let Some(ancestor) = unvisited.pop() {
        for (&child, (_, is_dead)) in all.iter().filter(|(_, (parent, _))| *parent == ancestor) {
            if !is_dead && found.insert(child) {
                unvisited.push(child);
            }
        }
    }
    found
}

/// Reaps the dead children of this process, except `kept`. As a subreaper, it inherits the children of a parent that
/// has ended, as init does otherwise.
pub(crate) fn reap_all_but(kept: &BTreeSet<u32>) {
    for (child, (parent, is_dead)) in all() {
        if parent == std::process::id() && is_dead && !kept.contains(&child) {
            let child = Pid::from_raw(child.try_into().expect("a process id"));
            // It is a zombie, and only this thread reaps children.
            let _ = waitpid(child, Some(WaitPidFlag::WNOHANG));
        }
    }
}

/// Returns the target of each descriptor of a process; an empty list if it has ended.
pub(crate) fn descriptors(of: u32) -> Vec<String> {
    let Ok(listed) = fs::read_dir(format!("/proc/{of}/fd")) else { return Vec::new() };
    let target = |entry: fs::DirEntry| fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok();
    listed.filter_map(|entry| target(entry.ok()?)).collect()
}

/// The ports of a TCP socket on this machine.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) local: u16,
    pub(crate) remote: u16,
}

/// Returns every open TCP socket except listeners, by inode.
pub(crate) fn sockets() -> BTreeMap<u64, Socket> {
    let table = fs::read_to_string("/proc/net/tcp").expect("/proc is mounted");
    let port = |address: &str| u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok();
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (inode, socket) = (fields[9].parse().ok()?, Socket { local: port(fields[1])?, remote: port(fields[2])? });
        (inode != 0 && socket.remote != 0).then_some((inode, socket))
    };
    // A socket may be listed twice, since the list changes while it is read; the map keeps one.
    table.lines().skip(1).filter_map(socket).collect()
}
