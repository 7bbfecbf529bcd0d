//! Inspects the descriptors and connections of a host's processes, while it is idle.

use std::collections::{BTreeMap, BTreeSet};

use support::wait::until;

use crate::processes::{descriptors, parent, sockets};
use crate::site::Site;

/// The open descriptors of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Holdings {
    /// All descriptors.
    pub(crate) descriptors: usize,
    /// Connections to the Redis server.
    pub(crate) redis: usize,
    /// Connections to the Memcached server.
    pub(crate) memcached: usize,
    /// Ends of pipes.
    pub(crate) pipes: usize,
}

#[derive(Debug)]
pub(crate) struct Inspection {
    /// The processes that have forked the workers.
    pub(crate) masters: BTreeMap<u32, Holdings>,
    pub(crate) workers: BTreeMap<u32, Holdings>,
}

/// Inspects `processes`, which include `workers`, and checks that
///
/// - no two processes hold the same connection to a server,
/// - the Redis server has no other connections,
/// - each worker has its own connections, at most one for each thread, and so has at least one master.
pub(crate) fn inspect(site: &Site, workers: &BTreeSet<u32>, processes: &BTreeSet<u32>, threads: usize) -> Inspection {
    let ports = [site.redis.port(), site.memcached.port()];
    let mut sockets = sockets();
    sockets.retain(|_, socket| ports.contains(&socket.remote));
    let mut holders: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    let mut holdings: BTreeMap<u32, Holdings> = BTreeMap::new();
    for &process in processes {
        let descriptors = descriptors(process);
        let held = holdings.entry(process).or_default();
        held.descriptors = descriptors.len();
        held.pipes = descriptors.iter().filter(|descriptor| descriptor.starts_with("pipe:")).count();
        for (inode, socket) in &sockets {
            if descriptors.contains(&format!("socket:[{inode}]")) {
                holders.entry(*inode).or_default().push(process);
                *(if socket.remote == ports[0] { &mut held.redis } else { &mut held.memcached }) += 1;
            }
        }
    }
    let shared: Vec<_> = holders.iter().filter(|(_, holders)| holders.len() > 1).collect();
    assert!(shared.is_empty(), "connections held by several processes: {shared:?}");

    let held: BTreeSet<u16> = sockets
        .iter()
        .filter(|(inode, socket)| socket.remote == ports[0] && holders.contains_key(inode))
        .map(|(_, socket)| socket.local)
        .collect();
    until("the server has only the connections of these processes", || clients(site) == held);

    let has_own = |held: &Holdings| (1..=threads).contains(&held.redis) && (1..=threads).contains(&held.memcached);
    let of = |chosen: &BTreeSet<u32>| -> BTreeMap<u32, Holdings> {
        chosen.iter().map(|process| (*process, holdings.get(process).cloned().unwrap_or_default())).collect()
    };
    let workers_hold = of(workers);
    assert!(workers_hold.values().all(has_own), "connections of the workers: {workers_hold:?}");
    let masters: BTreeSet<u32> = workers.iter().filter_map(|worker| parent(*worker)).collect();
    let masters_hold = of(&masters);
    assert!(masters_hold.values().any(has_own), "connections of the masters: {masters_hold:?}");
    Inspection { masters: masters_hold, workers: workers_hold }
}

/// Returns the ports of the Redis server's clients, except the one that lists them.
fn clients(site: &Site) -> BTreeSet<u16> {
    let list = site.redis.ask("CLIENT LIST");
    let others = list.lines().filter(|line| line.contains(" addr=") && !line.contains("cmd=client"));
    let port = |line: &str| line.split(" addr=").nth(1)?.split(' ').next()?.rsplit_once(':')?.1.parse().ok();
    others.map(|line| port(line).expect("an address with a port")).collect()
}
