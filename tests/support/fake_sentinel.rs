//! A fake sentinel whose replies a test chooses.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// The reaction of a fake sentinel to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Sends these bytes.
    Bytes(Vec<u8>),
    /// Sends nothing, and stays connected.
    Silence,
    /// Sends nothing, and disconnects.
    Disconnect,
}

impl Reaction {
    /// Returns the reply that the master is at this address.
    pub fn address(host: &str, port: impl ToString) -> Reaction {
        let port = port.to_string();
        Reaction::Bytes(format!("*2\r\n${}\r\n{host}\r\n${}\r\n{port}\r\n", host.len(), port.len()).into_bytes())
    }

    /// Returns the reply that the master is at this port of the loopback address.
    pub fn port(port: u16) -> Reaction {
        Reaction::address("127.0.0.1", port)
    }

    /// Returns the reply that the master's name is unknown.
    pub fn unknown() -> Reaction {
        Reaction::Bytes(b"*-1\r\n".to_vec())
    }
}

/// A fake sentinel, which listens on a free port until the process ends.
pub struct FakeSentinel {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    reaction: Mutex<Reaction>,
    asked: AtomicUsize,
    /// The clients that were sent no reply.
    waiting: Mutex<Vec<TcpStream>>,
}

impl FakeSentinel {
    pub fn start(reaction: Reaction) -> FakeSentinel {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let shared =
            Arc::new(Shared { reaction: Mutex::new(reaction), asked: AtomicUsize::new(0), waiting: Mutex::default() });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (serving, client) = (Arc::clone(&serving), client.expect("a client"));
                thread::spawn(move || serving.serve(client));
            }
        });
        FakeSentinel { port, shared }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sets the reaction to further requests.
    pub fn set_reaction(&self, reaction: Reaction) {
        *self.shared.reaction.lock().unwrap_or_else(PoisonError::into_inner) = reaction;
    }

    /// Disconnects the clients that were sent no reply.
    pub fn disconnect(&self) {
        for client in self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // The client may have disconnected itself.
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// Returns the number of requests so far.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn serve(&self, mut client: TcpStream) {
        let mut request = Vec::new();
        let mut piece = [0; 4096];
        // The request may arrive in parts, perhaps after an `AUTH`. It ends with the master's name.
        while !String::from_utf8_lossy(&request).contains("GET-MASTER-ADDR-BY-NAME") || !request.ends_with(b"\r\n") {
            match client.read(&mut piece) {
                Ok(length @ 1..) => request.extend_from_slice(&piece[..length]),
                _ => return,
            }
        }
        let reaction = self.reaction.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.asked.fetch_add(1, Ordering::SeqCst);
        match reaction {
            Reaction::Bytes(bytes) => {
                // The client may have disconnected.
                let _ = client.write_all(&bytes);
            }
            Reaction::Silence => {
                let waiting = client.try_clone().expect("a free descriptor");
                self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(waiting);
            }
            Reaction::Disconnect => _ = client.shutdown(Shutdown::Both),
        }
        while client.read(&mut piece).is_ok_and(|length| length > 0) {}
    }
}
