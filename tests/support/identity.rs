//! The server's view of connections.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::descriptors::connected_to;
use super::servers::{Kind, Server};

/// A connection, by its identity at both ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    pub local_port: u16,
    /// The client id on Redis; the descriptor on Memcached.
    pub server_side: String,
}

/// The identities of this process's connections to a server.
pub fn own_connections(server: &Server) -> BTreeSet<Identity> {
    let own: Vec<u16> = connected_to(server.port()).iter().map(|connected| connected.local_port).collect();
    let known = clients(server);
    let identity = |local_port: u16| {
        let server_side = known.get(&local_port)?.clone();
        Some(Identity { local_port, server_side })
    };
    own.into_iter().filter_map(identity).collect()
}

/// The server's clients: their port, and the server's name for them.
fn clients(server: &Server) -> BTreeMap<u16, String> {
    match server.kind() {
        Kind::Redis => server.ask("CLIENT LIST").lines().filter_map(redis_client).collect(),
        Kind::Memcached => server.ask("stats conns").lines().filter_map(memcached_client).collect(),
    }
}

/// Parses a line like `id=3 addr=127.0.0.1:51234 laddr=...`.
fn redis_client(line: &str) -> Option<(u16, String)> {
    let field = |name: &str| line.split(' ').find_map(|field| field.strip_prefix(name));
    Some((port(field("addr=")?)?, field("id=")?.to_owned()))
}

/// Parses a line like `STAT 27:addr tcp:127.0.0.1:51234`.
fn memcached_client(line: &str) -> Option<(u16, String)> {
    let (descriptor, address) = line.strip_prefix("STAT ")?.split_once(":addr ")?;
    Some((port(address)?, descriptor.to_owned()))
}

fn port(address: &str) -> Option<u16> {
    address.rsplit_once(':')?.1.trim().parse().ok()
}
