//! Thirty-two clients, each with one request under way, and every reply compared with what it must be.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::protocols::{Connection, Endpoint, Fault, Reply};

const CLIENTS: usize = 32;

/// Requests of one part of a run.
#[derive(Debug)]
pub(crate) struct Load<'a> {
    endpoint: Endpoint<'a>,
    /// The part's name, which is in its keys and values.
    part: &'a str,
    next: AtomicUsize,
    limit: usize,
    is_over: AtomicBool,
    /// Those that have answered a request, by store.
    workers: [Mutex<BTreeSet<u32>>; 2],
}

const STORES: [&str; 2] = ["redis", "memcached"];

/// What became of requests.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) requests: usize,
    pub(crate) wrong: usize,
    pub(crate) failed: usize,
    /// What was seen first.
    pub(crate) fault: Option<String>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Tally) {
        self.requests += other.requests;
        self.wrong += other.wrong;
        self.failed += other.failed;
        self.fault = self.fault.take().or(other.fault);
    }
}

impl<'a> Load<'a> {
    /// Of requests with these numbers, or those of them that are sent until it ends.
    pub(crate) fn new(endpoint: Endpoint<'a>, part: &'a str, numbers: Range<usize>) -> Load<'a> {
        let (next, is_over) = (AtomicUsize::new(numbers.start), AtomicBool::new(false));
        Load { endpoint, part, next, limit: numbers.end, is_over, workers: Default::default() }
    }

    /// Sends the requests, until they are all sent, [`end`](Load::end) is called or one has gone wrong.
    pub(crate) fn drive(&self) -> Tally {
        let mut tally = Tally::default();
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| self.client())).collect();
            for client in clients {
                tally.add(client.join().expect("a client does not panic"));
            }
        });
        tally
    }

    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// The workers that have used both stores so far.
    pub(crate) fn workers(&self) -> BTreeSet<u32> {
        let [redis, memcached] =
            self.workers.each_ref().map(|workers| workers.lock().expect("a client does not panic"));
        redis.intersection(&memcached).copied().collect()
    }

    fn client(&self) -> Tally {
        let mut tally = Tally::default();
        let mut connection = None;
        while !self.is_over() {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.limit {
                break;
            }
            let store = number % STORES.len();
            let value = self.value(number);
            let path = format!("/{}/{}-{number}/{value}", STORES[store], self.part);
            tally.requests += 1;
            match ask(&mut connection, self.endpoint, &path) {
                Ok(reply) => match worker(&reply.body, value.as_bytes()) {
                    Some(worker) => {
                        self.workers[store].lock().expect("a client does not panic").insert(worker);
                        continue;
                    }
                    None => {
                        tally.wrong += 1;
                        tally.fault = Some(format!("{path}: {}", String::from_utf8_lossy(&reply.body)));
                    }
                },
                Err(fault) => {
                    tally.failed += 1;
                    tally.fault = Some(format!("{path}: {fault}"));
                }
            }
            self.end();
        }
        tally
    }

    /// Unique, and from 40 to 500 bytes long.
    fn value(&self, number: usize) -> String {
        let filling = "0123456789abcdefghijklmnopqrstuvwxyz".repeat(1 + number % 13);
        format!("{}-{number}-{filling}", self.part)
    }
}

/// The worker that has sent a reply, if that is its number and the value.
fn worker(body: &[u8], value: &[u8]) -> Option<u32> {
    let number = body.strip_suffix(value)?.strip_suffix(b" ")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// Asks on the connection that there is, or on a new one. A host may close one that is idle at any time: where it has
/// not begun to reply, the request is sent again, on a new one and once (RFC 9112, section 9.3.1).
fn ask<'a>(connection: &mut Option<Connection<'a>>, endpoint: Endpoint<'a>, path: &str) -> Result<Reply, String> {
    loop {
        let mut open = match connection.take() {
            Some(open) => open,
            None => Connection::open(endpoint).map_err(|error| format!("connecting: {error}"))?,
        };
        let was_fresh = open.is_fresh;
        match open.ask(path) {
            Ok(reply) => {
                *connection = reply.keeps_alive.then_some(open);
                return Ok(reply);
            }
            Err(Fault::Closed) if !was_fresh => {}
            Err(Fault::Closed) => return Err("the connection was closed without a reply".to_owned()),
            Err(Fault::Broken(what)) => return Err(what),
        }
    }
}
