//! A proxy between a cache and its server that damages replies as networks do.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::encryptor;
use super::frames::Frames;
use super::sentinels::SOURCE;
use super::servers::{Kind, Server};
use super::settings::{are_all_clustered, encryption_of_all, plain_port};
use super::wait::until;

/// What happens to a piece of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The piece waits until [`Proxy::release`].
    Hold,
    Delay(Duration),
    /// The first bytes of the piece arrive, this many, and then the connection is cut.
    Cut(usize),
    /// The byte at this index is changed: a damaged frame.
    Garble(usize),
    /// The piece and everything after it are lost: a stream may end anywhere, but has no holes.
    Swallow,
}

/// A change that is made once to the frames of a piece. A surplus reply is sent in one write with the piece, unless
/// stated otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameFault {
    /// A surplus reply after the last whole frame.
    Between(&'static [u8]),
    /// A surplus reply before the last whole frame; between two frames that came together, if such a piece comes soon.
    Within(&'static [u8]),
    /// Like `Within`, and the frames after the surplus reply are written [`LATER`].
    Apart(&'static [u8]),
    /// One whole frame is lost.
    Lose,
}

/// Long enough for a reader to treat the first write as complete.
const LATER: Duration = Duration::from_millis(5);

/// How many pieces with a single frame are passed over in favour of one with several.
const SINGLE_FRAMES: usize = 20;

/// Chooses a fault by the running number of a piece and its bytes.
type Plan = dyn Fn(usize, &[u8]) -> Fault + Send + Sync;

/// A proxy that listens on a new port until the process ends.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    /// The server's port.
    server: AtomicU16,
    /// The port that replaces the server's own port in the replies of a cluster.
    announced: Option<u16>,
    connects: AtomicUsize,
    /// Connections with a lower number are silent.
    silenced: AtomicUsize,
    pieces: AtomicUsize,
    /// The protocol of the server, if frames are to be told apart.
    kind: Option<Kind>,
    injected: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    plan: Arc<Plan>,
    held: usize,
    releases: usize,
    /// The next frame fault, and how many pieces were passed over for a better one.
    frame_fault: Option<(FrameFault, usize)>,
    /// The client sockets of the open connections, by number.
    clients: Vec<(usize, TcpStream)>,
}

impl Proxy {
    /// Starts a proxy to a server on `port`, which need not be running.
    pub fn before(port: u16) -> Proxy {
        Proxy::new(port, None)
    }

    /// Starts a proxy that follows the frames of the replies: for [`Proxy::inject`].
    pub fn with_frames(server: &Server) -> Proxy {
        Proxy::new(server.port(), Some(server.kind()))
    }

    fn new(port: u16, kind: Option<Kind>) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let own_port = listener.local_addr().expect("a bound socket has an address").port();
        // The proxy works on the plain side of TLS, so that it can tell replies apart.
        let (port, own_port) = match encryption_of_all() {
            Some(all) => (plain_port(port), encryptor::before(own_port, &all.identity)),
            None => (port, own_port),
        };
        let shared = Arc::new(Shared {
            server: AtomicU16::new(port),
            announced: are_all_clustered().then_some(own_port),
            connects: AtomicUsize::new(0),
            silenced: AtomicUsize::new(0),
            pieces: AtomicUsize::new(0),
            kind,
            injected: AtomicUsize::new(0),
            state: Mutex::new(State {
                plan: Arc::new(|_, _| Fault::None),
                held: 0,
                releases: 0,
                frame_fault: None,
                clients: Vec::new(),
            }),
            changed: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.expect("a client");
                if is_sentinel(&client) {
                    accepting.pass_on(client);
                    continue;
                }
                let number = accepting.connects.fetch_add(1, Ordering::SeqCst);
                accepting.serve(number, client);
            }
        });
        Proxy { port: own_port, shared }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The number of connections so far.
    pub fn connects(&self) -> usize {
        self.shared.connects.load(Ordering::SeqCst)
    }

    /// Holds every reply that contains this text, from now on.
    pub fn hold_replies_with(&self, text: &'static str) {
        let found = |piece: &[u8]| piece.windows(text.len()).any(|window| window == text.as_bytes());
        self.plan(move |_, piece| if found(piece) { Fault::Hold } else { Fault::None });
    }

    /// Applies the fault that `plan` returns for the number and bytes of each piece, from now on.
    pub fn plan(&self, plan: impl Fn(usize, &[u8]) -> Fault + Send + Sync + 'static) {
        self.shared.state().plan = Arc::new(plan);
    }

    /// Applies this fault to the next suitable piece of any connection.
    pub fn inject(&self, fault: FrameFault) {
        assert!(self.shared.kind.is_some(), "made by with_frames");
        self.shared.state().frame_fault = Some((fault, 0));
    }

    /// The number of frame faults that were applied.
    pub fn injected(&self) -> usize {
        self.shared.injected.load(Ordering::SeqCst)
    }

    /// Returns a function like [`injected`](Proxy::injected), for a task.
    pub fn watch(&self) -> impl Fn() -> usize + Clone + Send + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.injected.load(Ordering::SeqCst)
    }

    /// Makes every open connection go silent, like a firewall that has dropped its state: nothing arrives any more in
    /// either direction, and neither side is notified.
    pub fn silence(&self) {
        self.shared.silenced.store(self.connects(), Ordering::SeqCst);
    }

    /// Connects new clients to another server from now on.
    pub fn lead_to(&self, port: u16) {
        self.shared.server.store(port, Ordering::SeqCst);
    }

    /// Sends a surplus reply on every open connection. None may be in the middle of an exchange.
    pub fn send_surplus(&self, reply: &[u8]) {
        for (_, client) in &self.shared.state().clients {
            // It may be closed already.
            let mut client: &TcpStream = client;
            let _ = client.write_all(reply);
        }
    }

    /// Waits until this many replies are held.
    pub fn wait_until_held(&self, count: usize) {
        until(&format!("the proxy holds {count} replies"), || self.held() >= count);
    }

    /// The number of replies that are held.
    pub fn held(&self) -> usize {
        self.shared.state().held
    }

    /// Releases the held replies, and lets all later ones pass.
    pub fn release(&self) {
        let mut state = self.shared.state();
        state.plan = Arc::new(|_, _| Fault::None);
        state.releases += 1;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    /// Forwards both directions unchanged.
    fn pass_on(&self, client: TcpStream) {
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.server.load(Ordering::SeqCst))) else { return };
        let [client_copy, server_copy] =
            [&client, &server].map(|stream| stream.try_clone().expect("a free descriptor"));
        thread::spawn(move || forward(&client, &server, |piece, to| to.write_all(piece).is_ok()));
        thread::spawn(move || forward(&server_copy, &client_copy, |piece, to| to.write_all(piece).is_ok()));
    }

    fn serve(self: &Arc<Shared>, number: usize, client: TcpStream) {
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.server.load(Ordering::SeqCst))) else {
            // Without a server behind it, the connection is closed.
            let _ = client.shutdown(Shutdown::Both);
            return;
        };
        for stream in [&client, &server] {
            stream.set_nodelay(true).expect("a TCP socket");
        }
        let [client_copy, server_copy] =
            [&client, &server].map(|stream| stream.try_clone().expect("a free descriptor"));
        let requests = Arc::clone(self);
        let is_silent = move |shared: &Shared| number < shared.silenced.load(Ordering::SeqCst);
        thread::spawn(move || {
            forward(&client, &server, |piece, to| is_silent(&requests) || to.write_all(piece).is_ok());
        });
        self.state().clients.push((number, client_copy.try_clone().expect("a free descriptor")));
        let shared = Arc::clone(self);
        let mut is_swallowing = false;
        let mut frames = self.kind.map(Frames::of);
        thread::spawn(move || {
            forward(&server_copy, &client_copy, |piece, to| {
                if is_silent(&shared) {
                    return true;
                }
                let Some(parts) = frames.as_mut().and_then(|frames| shared.apply_frame_fault(frames, piece)) else {
                    return shared.reply(piece, to, &mut is_swallowing);
                };
                parts.into_iter().enumerate().all(|(number, mut part)| {
                    thread::sleep(LATER * u32::from(number > 0));
                    shared.reply(&mut part, to, &mut is_swallowing)
                })
            });
            shared.state().clients.retain(|(other, _)| *other != number);
        });
    }

    /// Applies the pending frame fault to a piece, if it is suitable. Returns the one or two pieces to send instead.
    fn apply_frame_fault(&self, frames: &mut Frames, piece: &[u8]) -> Option<Vec<Vec<u8>>> {
        let boundaries = frames.boundaries(piece);
        let mut state = self.state();
        let (fault, passed) = state.frame_fault.as_mut()?;
        // The ends of whole frames in this piece.
        let [.., before_last, last] = boundaries[..] else { return None };
        let is_single = boundaries.len() == 2;
        if matches!(fault, FrameFault::Within(_) | FrameFault::Apart(_)) && is_single && *passed < SINGLE_FRAMES {
            *passed += 1;
            return None;
        }
        let changed = match *fault {
            FrameFault::Between(surplus) => vec![[&piece[..last], surplus, &piece[last..]].concat()],
            FrameFault::Within(surplus) => vec![[&piece[..before_last], surplus, &piece[before_last..]].concat()],
            FrameFault::Apart(surplus) => {
                vec![[&piece[..before_last], surplus].concat(), piece[before_last..].to_vec()]
            }
            FrameFault::Lose => {
                let [start, end] = [0, 1].map(|next| boundaries[(boundaries.len() - 2) / 2 + next]);
                vec![[&piece[..start], &piece[end..]].concat()]
            }
        };
        state.frame_fault = None;
        self.injected.fetch_add(1, Ordering::SeqCst);
        Some(changed)
    }

    /// Sends a piece of a reply with the fault that the plan has for it. Returns whether the connection stays open.
    fn reply(&self, piece: &mut [u8], mut client: &TcpStream, is_swallowing: &mut bool) -> bool {
        if *is_swallowing {
            return true;
        }
        if let Some(announced) = self.announced {
            replace_port(piece, self.server.load(Ordering::SeqCst), announced);
        }
        let number = self.pieces.fetch_add(1, Ordering::SeqCst);
        let plan = Arc::clone(&self.state().plan);
        match plan(number, piece) {
            Fault::None => {}
            Fault::Hold => self.hold(),
            Fault::Delay(time) => thread::sleep(time),
            Fault::Cut(length) => {
                // The connection ends either way.
                let _ = client.write_all(&piece[..length.min(piece.len())]);
                return false;
            }
            Fault::Garble(index) => {
                let index = index.min(piece.len() - 1);
                piece[index] ^= 0x15;
            }
            Fault::Swallow => {
                *is_swallowing = true;
                return true;
            }
        }
        client.write_all(piece).is_ok()
    }

    fn hold(&self) {
        let mut state = self.state();
        state.held += 1;
        let releases = state.releases;
        while state.releases == releases {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.held -= 1;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether the client is a sentinel that monitors the server. Its replies are not damaged.
fn is_sentinel(client: &TcpStream) -> bool {
    client.peer_addr().is_ok_and(|address| address.ip() == SOURCE)
}

/// Replaces one port by another at the ends of lines.
fn replace_port(piece: &mut [u8], port: u16, announced: u16) {
    let (port, announced) = (format!(":{port}\r\n"), format!(":{announced}\r\n"));
    assert_eq!(port.len(), announced.len(), "ephemeral ports have five digits");
    while let Some(found) = piece.windows(port.len()).position(|window| window == port.as_bytes()) {
        piece[found..found + announced.len()].copy_from_slice(announced.as_bytes());
    }
}

/// Forwards pieces until one side ends or `pass` returns false. Then shuts both down, because a forked child may have
/// copies of the sockets.
fn forward(mut from: &TcpStream, to: &TcpStream, mut pass: impl FnMut(&mut [u8], &mut &TcpStream) -> bool) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length) = from.read(&mut buffer) {
        if length == 0 || !pass(&mut buffer[..length], &mut &*to) {
            break;
        }
    }
    for stream in [from, to] {
        // It may be closed already.
        let _ = stream.shutdown(Shutdown::Both);
    }
}
