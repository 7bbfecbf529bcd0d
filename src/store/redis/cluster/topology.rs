//! The topology of a cluster, parsed from a node's reply to `CLUSTER SLOTS`, which every version of Redis Cluster
//! supports.

use redis::Value;

use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::store::hash_slot::SLOTS;

/// The maximum length of a host name, in bytes.
const MAX_HOST_LENGTH: usize = 255;

/// A range of slots and the nodes that have it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u16,
    pub(super) last: u16,
    /// `None` if the cluster does not know the master's address.
    pub(super) master: Option<Endpoint>,
    pub(super) replicas: Vec<Endpoint>,
}

/// The topology of a cluster as one node knows it.
#[derive(Debug)]
pub(super) struct View {
    /// Disjoint ranges.
    pub(super) ranges: Vec<Range>,
    /// The number of slots whose master has an address.
    pub(super) covered: usize,
}

impl View {
    /// Parses the reply of the node at `asked`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Protocol`], with what is wrong.
    pub(super) fn read(reply: &Value, asked: &Endpoint) -> Result<View> {
        let view = read(reply, asked);
        view.map_err(|what| Error::new(ErrorKind::Protocol, format!("{asked} sent an invalid topology: {what}")))
    }

    pub(super) fn is_complete(&self) -> bool {
        self.covered == SLOTS
    }
}

fn read(reply: &Value, asked: &Endpoint) -> Result<View, &'static str> {
    let listed = array(reply).ok_or("it is not a list")?;
    let mut view = View { ranges: Vec::new(), covered: 0 };
    let mut is_known = vec![false; SLOTS];
    for range in listed {
        let range = read_range(range, asked)?;
        let slots = usize::from(range.first)..=usize::from(range.last);
        if is_known[slots.clone()].contains(&true) {
            return Err("two nodes have the same slot");
        }
        is_known[slots.clone()].fill(true);
        view.covered += if range.master.is_some() { slots.count() } else { 0 };
        view.ranges.push(range);
    }
    Ok(view)
}

fn read_range(range: &Value, asked: &Endpoint) -> Result<Range, &'static str> {
    let [first, last, nodes @ ..] = array(range).ok_or("a range is not a list")? else {
        return Err("a range has no slots");
    };
    let slot = |number: &Value| match number {
        Value::Int(number) => u16::try_from(*number).ok().filter(|slot| usize::from(*slot) < SLOTS),
        _ => None,
    };
    let (Some(first), Some(last)) = (slot(first), slot(last)) else { return Err("a slot is out of range") };
    if first > last {
        return Err("a range ends before it begins");
    }
    let mut nodes = nodes.iter().map(|node| read_node(node, asked));
    let master = nodes.next().ok_or("a range has no owner")??;
    let replicas = nodes.filter_map(Result::transpose).collect::<Result<_, _>>()?;
    Ok(Range { first, last, master, replicas })
}

fn read_node(node: &Value, asked: &Endpoint) -> Result<Option<Endpoint>, &'static str> {
    let Some([host, port, ..]) = array(node) else { return Err("a node has no address") };
    let host = match host {
        Value::Nil => "",
        Value::BulkString(host) => std::str::from_utf8(host).map_err(|_| "a host name is not UTF-8")?,
        Value::SimpleString(host) => host,
        _ => return Err("a host has no name"),
    };
    let Value::Int(port) = port else { return Err("a node has no port") };
    let port = u16::try_from(*port).ok().filter(|port| *port != 0).ok_or("a port is out of range")?;
    // An unknown host name.
    if host == "?" {
        return Ok(None);
    }
    endpoint(host, port, asked).map(Some).ok_or("a host name is invalid")
}

/// Converts an address that a node gives for itself or another node. An empty host is the host of the node that was
/// asked. Returns `None` if the host is not valid.
pub(super) fn endpoint(host: &str, port: u16, asked: &Endpoint) -> Option<Endpoint> {
    let host = match (host, asked) {
        ("", Endpoint::Tcp { host, .. }) => host,
        (host, _) => host,
    };
    let is_name = !host.is_empty()
        && host.len() <= MAX_HOST_LENGTH
        && host.chars().all(|char| char.is_ascii_alphanumeric() || "-._:%".contains(char));
    is_name.then(|| Endpoint::Tcp { host: host.to_owned(), port })
}

fn array(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::{Endpoint, Range, View};

    fn tcp(host: &str, port: u16) -> Endpoint {
        Endpoint::Tcp { host: host.to_owned(), port }
    }

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn node(host: Value, port: i64) -> Value {
        Value::Array(vec![host, Value::Int(port), text("an id")])
    }

    fn range(first: i64, last: i64, nodes: Vec<Value>) -> Value {
        Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
    }

    #[test]
    fn nodes_and_their_slots() {
        let replicas = [node(text("::1"), 7003), node(text("?"), 7004)];
        let masters = [node(text(""), 7000), node(Value::Nil, 7001), node(text("cache.internal"), 7002)];
        let [first, second, third] = masters;
        let reply = Value::Array(vec![
            range(0, 99, [vec![first], replicas.to_vec()].concat()),
            range(100, 100, vec![second]),
            range(101, 16_383, vec![third]),
        ]);
        let expected = [
            Range { first: 0, last: 99, master: Some(tcp("asked", 7000)), replicas: vec![tcp("::1", 7003)] },
            Range { first: 100, last: 100, master: Some(tcp("asked", 7001)), replicas: vec![] },
            Range { first: 101, last: 16_383, master: Some(tcp("cache.internal", 7002)), replicas: vec![] },
        ];
        let view = View::read(&reply, &tcp("asked", 1)).unwrap();
        assert_eq!(view.ranges, expected);
        assert!(view.is_complete());
    }

    #[test]
    fn slots_without_an_owner_are_not_covered() {
        let unknown = range(100, 199, vec![node(text("?"), 1)]);
        let reply = Value::Array(vec![range(0, 99, vec![node(text("a"), 1)]), unknown]);
        let view = View::read(&reply, &tcp("asked", 1)).unwrap();
        assert_eq!((view.covered, view.is_complete()), (100, false));
        let twice = Value::Array(vec![range(0, 99, vec![node(text("a"), 1)]), range(99, 99, vec![node(text("b"), 1)])]);
        let error = View::read(&twice, &tcp("asked", 1)).unwrap_err().to_string();
        assert!(error.contains("two nodes have the same slot"), "{error}");
    }

    #[test]
    fn invalid_topologies_are_refused() {
        let good = || node(text("a"), 1);
        for (range, what) in [
            (range(0, 16_384, vec![good()]), "a slot is out of range"),
            (range(-1, 5, vec![good()]), "a slot is out of range"),
            (range(5, 4, vec![good()]), "ends before it begins"),
            (range(0, 5, vec![]), "has no owner"),
            (range(0, 5, vec![node(text("a"), 0)]), "port"),
            (range(0, 5, vec![node(text("a"), 65_536)]), "port"),
            (range(0, 5, vec![node(text("a b"), 1)]), "name is invalid"),
            (range(0, 5, vec![node(text(&"a".repeat(256)), 1)]), "name is invalid"),
            (range(0, 5, vec![node(Value::Int(1), 1)]), "has no name"),
            (range(0, 5, vec![good(), Value::Nil]), "has no address"),
            (Value::Array(vec![Value::Int(0)]), "has no slots"),
            (Value::Int(0), "not a list"),
        ] {
            let error = View::read(&Value::Array(vec![range]), &tcp("asked", 1)).unwrap_err().to_string();
            assert!(error.starts_with("asked:1 sent an invalid topology") && error.contains(what), "{what}: {error}");
        }
        assert!(View::read(&Value::Okay, &tcp("asked", 1)).is_err());
    }
}
