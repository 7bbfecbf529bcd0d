//! The servers' share of a batch: sends the same bytes, and receives the replies without parsing them.

use std::io::{Read, Write};
use std::net::TcpStream;

/// A node, its requests, and the length of their replies in bytes.
pub(crate) struct Node {
    stream: TcpStream,
    requests: Vec<u8>,
    answer: usize,
}

impl Node {
    pub(crate) fn new(port: u16, keys: &[&str]) -> Node {
        let mut requests = Vec::new();
        for key in keys {
            write!(requests, "*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()).expect("memory");
        }
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("a node listens");
        stream.set_nodelay(true).expect("a TCP stream");
        let answer = keys.len() * (b"$100\r\n\r\n".len() + 100);
        Node { stream, requests, answer }
    }
}

/// Sends to all nodes, then reads from each.
pub(crate) fn ask(nodes: &mut [Node], buffer: &mut [u8]) {
    for node in nodes.iter_mut() {
        node.stream.write_all(&node.requests).expect("the node reads");
    }
    for node in nodes {
        let mut left = node.answer;
        while left > 0 {
            let count = node.stream.read(buffer).expect("the node answers");
            assert!(count > 0, "the node has hung up");
            left -= count;
        }
    }
}
