//! Load: 32 clients, each with one request in flight, which compare every reply with the expected one.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::protocols::{Connection, Endpoint, Fault, Reply};

const CLIENTS: usize = 32;

/// The requests of one part of a run.
#[derive(Debug)]
pub(crate) struct Load<'a> {
    endpoint: Endpoint<'a>,
    /// The name of the part, which its keys and values contain.
    part: &'a str,
    next: AtomicUsize,
    limit: usize,
    is_over: AtomicBool,
    /// The workers that have responded to a request, by store.
    workers: [Mutex<BTreeSet<u32>>; 2],
}

const STORES: [&str; 2] = ["redis", "memcached"];

/// The counts of a load's results.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) requests: usize,
    pub(crate) wrong: usize,
    pub(crate) failed: usize,
    /// The first fault.
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
    /// Creates a load of the requests with these numbers; it may end before all are sent.
    pub(crate) fn new(endpoint: Endpoint<'a>, part: &'a str, numbers: Range<usize>) -> Load<'a> {
        let (next, is_over) = (AtomicUsize::new(numbers.start), AtomicBool::new(false));
        Load { endpoint, part, next, limit: numbers.end, is_over, workers: Default::default() }
    }

    /// Sends requests until all are sent, [`end`](Load::end) is called or one fails.
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

    /// Returns the workers that have used both stores so far.
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
            match request(&mut connection, self.endpoint, &path) {
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

    /// Returns the value of a request: unique, and from 40 to 500 bytes long.
    fn value(&self, number: usize) -> String {
        let filling = "0123456789abcdefghijklmnopqrstuvwxyz".repeat(1 + number % 13);
        format!("{}-{number}-{filling}", self.part)
    }
}

/// Returns the worker that sent a reply, if the reply is its process id and the value.
fn worker(body: &[u8], value: &[u8]) -> Option<u32> {
    let number = body.strip_suffix(value)?.strip_suffix(b" ")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// Sends a request on the open connection or on a new one. A host may close an idle connection at any time: if it has
/// not begun to reply, the request is sent again, once and on a new connection (RFC 9112, section 9.3.1).
fn request<'a>(connection: &mut Option<Connection<'a>>, endpoint: Endpoint<'a>, path: &str) -> Result<Reply, String> {
    loop {
        let mut open = match connection.take() {
            Some(open) => open,
            None => Connection::open(endpoint).map_err(|error| format!("connecting: {error}"))?,
        };
        let was_fresh = open.is_fresh;
        match open.request(path) {
            Ok(reply) => {
                *connection = reply.keeps_alive.then_some(open);
                return Ok(reply);
            }
            Err(Fault::Closed) if !was_fresh => {}
            Err(Fault::Closed) => return Err("the connection was closed without a reply".to_owned()),
            Err(Fault::Broken(message)) => return Err(message),
        }
    }
}
