//! A proxy between a cache and its server that does to replies what networks do.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::encryptor;
use super::frames::Frames;
use super::sentinels::SOURCE;
use super::servers::{Kind, Server, are_all_clustered, encryption_of_all, plain_port};
use super::wait::until;

/// What becomes of a piece of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// It waits until [`Proxy::release`].
    Hold,
    Delay(Duration),
    /// This many bytes of it come through, and then the connection is cut.
    Cut(usize),
    /// The byte at this place becomes another: a damaged frame.
    Garble(usize),
    /// Neither it nor anything after it ever comes: a stream may end anywhere, but it has no holes.
    Swallow,
}

/// What is done, once, to the frames of a piece. A surplus reply goes out in one write with the piece, if not otherwise
/// said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// A surplus reply behind the last whole frame.
    Between(&'static [u8]),
    /// A surplus reply before the last whole frame, between two that came together if such a piece comes soon.
    Within(&'static [u8]),
    /// The same, and the frames behind it are written [`LATER`].
    Apart(&'static [u8]),
    /// One whole frame is lost.
    Lose,
}

/// Enough for a reader to have taken what was written first for all that there is.
const LATER: Duration = Duration::from_millis(5);

/// How many pieces with a single frame are let through for one with several.
const SINGLE_FRAMES: usize = 20;

/// Decides by the running number of a piece and by what is in it.
type Plan = dyn Fn(usize, &[u8]) -> Fault + Send + Sync;

/// Listens on a port of its own until the process ends.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    /// The server's port.
    server: AtomicU16,
    /// The port that a cluster is to say instead, as often as it says the server's.
    said: Option<u16>,
    connects: AtomicUsize,
    /// Connections with a lower number are silent.
    silenced: AtomicUsize,
    pieces: AtomicUsize,
    /// Whose protocol it is, if frames are to be told apart.
    kind: Option<Kind>,
    struck: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    plan: Arc<Plan>,
    held: usize,
    releases: usize,
    /// What is to be done next, and how many pieces were passed over for a better one.
    strike: Option<(Strike, usize)>,
    /// The clients' ends of the connections that are open, by number.
    clients: Vec<(usize, TcpStream)>,
}

impl Proxy {
    /// Before a server on `port`, which need not be there.
    pub fn before(port: u16) -> Proxy {
        Proxy::new(port, None)
    }

    /// Before a server, and follows the frames of its replies: for [`Proxy::strike`].
    pub fn with_frames(server: &Server) -> Proxy {
        Proxy::new(server.port(), Some(server.kind()))
    }

    fn new(port: u16, kind: Option<Kind>) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let own_port = listener.local_addr().expect("a bound socket has an address").port();
        // Its place is where nothing is encrypted, so that it can tell replies apart.
        let (port, own_port) = match encryption_of_all() {
            Some(all) => (plain_port(port), encryptor::before(own_port, &all.identity)),
            None => (port, own_port),
        };
        let shared = Arc::new(Shared {
            server: AtomicU16::new(port),
            said: are_all_clustered().then_some(own_port),
            connects: AtomicUsize::new(0),
            silenced: AtomicUsize::new(0),
            pieces: AtomicUsize::new(0),
            kind,
            struck: AtomicUsize::new(0),
            state: Mutex::new(State {
                plan: Arc::new(|_, _| Fault::None),
                held: 0,
                releases: 0,
                strike: None,
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

    /// How often it was connected to.
    pub fn connects(&self) -> usize {
        self.shared.connects.load(Ordering::SeqCst)
    }

    /// Holds every reply in which this text is found, from now on.
    pub fn hold_replies_with(&self, text: &'static str) {
        let found = |piece: &[u8]| piece.windows(text.len()).any(|window| window == text.as_bytes());
        self.plan(move |_, piece| if found(piece) { Fault::Hold } else { Fault::None });
    }

    /// Does to each piece of a reply what `plan` says of its running number and its bytes, from now on.
    pub fn plan(&self, plan: impl Fn(usize, &[u8]) -> Fault + Send + Sync + 'static) {
        self.shared.state().plan = Arc::new(plan);
    }

    /// Does this to the next piece, of whichever connection, that it can be done to.
    pub fn strike(&self, strike: Strike) {
        assert!(self.shared.kind.is_some(), "made by with_frames");
        self.shared.state().strike = Some((strike, 0));
    }

    /// How often it has struck.
    pub fn struck(&self) -> usize {
        self.shared.struck.load(Ordering::SeqCst)
    }

    /// The same, for a task of its own.
    pub fn watch(&self) -> impl Fn() -> usize + Clone + Send + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.struck.load(Ordering::SeqCst)
    }

    /// Has every connection that is open now go silent, as a firewall does that has forgotten them: nothing comes through
    /// any more, in either direction, and neither side hears of it.
    pub fn silence(&self) {
        self.shared.silenced.store(self.connects(), Ordering::SeqCst);
    }

    /// Has those that connect from now on meet another server.
    pub fn lead_to(&self, port: u16) {
        self.shared.server.store(port, Ordering::SeqCst);
    }

    /// Sends a surplus reply over every open connection. None of them may be in the middle of an exchange.
    pub fn send_unasked(&self, reply: &[u8]) {
        for (_, client) in &self.shared.state().clients {
            // It may have ended already.
            let mut client: &TcpStream = client;
            let _ = client.write_all(reply);
        }
    }

    /// Waits until this many replies are held.
    pub fn wait_until_held(&self, count: usize) {
        until(&format!("the proxy holds {count} replies"), || self.held() >= count);
    }

    /// How many replies are held.
    pub fn held(&self) -> usize {
        self.shared.state().held
    }

    /// Lets through what is held and what comes.
    pub fn release(&self) {
        let mut state = self.shared.state();
        state.plan = Arc::new(|_, _| Fault::None);
        state.releases += 1;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    /// Leaves what is said as it is, in both directions.
    fn pass_on(&self, client: TcpStream) {
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.server.load(Ordering::SeqCst))) else { return };
        let [client_too, server_too] = [&client, &server].map(|stream| stream.try_clone().expect("a free descriptor"));
        thread::spawn(move || forward(&client, &server, |piece, to| to.write_all(piece).is_ok()));
        thread::spawn(move || forward(&server_too, &client_too, |piece, to| to.write_all(piece).is_ok()));
    }

    fn serve(self: &Arc<Shared>, number: usize, client: TcpStream) {
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.server.load(Ordering::SeqCst))) else {
            // Without a server there is nothing behind this door.
            let _ = client.shutdown(Shutdown::Both);
            return;
        };
        for stream in [&client, &server] {
            stream.set_nodelay(true).expect("a TCP socket");
        }
        let [client_too, server_too] = [&client, &server].map(|stream| stream.try_clone().expect("a free descriptor"));
        let requests = Arc::clone(self);
        let is_silent = move |shared: &Shared| number < shared.silenced.load(Ordering::SeqCst);
        thread::spawn(move || {
            forward(&client, &server, |piece, to| is_silent(&requests) || to.write_all(piece).is_ok());
        });
        self.state().clients.push((number, client_too.try_clone().expect("a free descriptor")));
        let shared = Arc::clone(self);
        let mut is_swallowing = false;
        let mut frames = self.kind.map(Frames::of);
        thread::spawn(move || {
            forward(&server_too, &client_too, |piece, to| {
                if is_silent(&shared) {
                    return true;
                }
                let Some(parts) = frames.as_mut().and_then(|frames| shared.struck_piece(frames, piece)) else {
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

    /// What becomes of a piece that is struck: one piece or two.
    fn struck_piece(&self, frames: &mut Frames, piece: &[u8]) -> Option<Vec<Vec<u8>>> {
        let boundaries = frames.boundaries(piece);
        let mut state = self.state();
        let (strike, passed) = state.strike.as_mut()?;
        // Whole frames in this piece.
        let [.., before_last, last] = boundaries[..] else { return None };
        let is_single = boundaries.len() == 2;
        if matches!(strike, Strike::Within(_) | Strike::Apart(_)) && is_single && *passed < SINGLE_FRAMES {
            *passed += 1;
            return None;
        }
        let changed = match *strike {
            Strike::Between(surplus) => vec![[&piece[..last], surplus, &piece[last..]].concat()],
            Strike::Within(surplus) => vec![[&piece[..before_last], surplus, &piece[before_last..]].concat()],
            Strike::Apart(surplus) => vec![[&piece[..before_last], surplus].concat(), piece[before_last..].to_vec()],
            Strike::Lose => {
                let [start, end] = [0, 1].map(|next| boundaries[(boundaries.len() - 2) / 2 + next]);
                vec![[&piece[..start], &piece[end..]].concat()]
            }
        };
        state.strike = None;
        self.struck.fetch_add(1, Ordering::SeqCst);
        Some(changed)
    }

    /// Sends a piece of a reply on, in the way of the plan. Answers whether the connection lives on.
    fn reply(&self, piece: &mut [u8], mut client: &TcpStream, is_swallowing: &mut bool) -> bool {
        if *is_swallowing {
            return true;
        }
        if let Some(said) = self.said {
            say_instead(piece, self.server.load(Ordering::SeqCst), said);
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
            Fault::Garble(place) => {
                let place = place.min(piece.len() - 1);
                piece[place] ^= 0x15;
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

/// Whether it is a sentinel that looks after the server: nothing is done to what it is answered.
fn is_sentinel(client: &TcpStream) -> bool {
    client.peer_addr().is_ok_and(|address| address.ip() == SOURCE)
}

/// Puts one port in the place of another one at the end of lines.
fn say_instead(piece: &mut [u8], port: u16, said: u16) {
    let (port, said) = (format!(":{port}\r\n"), format!(":{said}\r\n"));
    assert_eq!(port.len(), said.len(), "ports that the system gives out have five digits");
    while let Some(found) = piece.windows(port.len()).position(|window| window == port.as_bytes()) {
        piece[found..found + said.len()].copy_from_slice(said.as_bytes());
    }
}

/// Passes pieces on until one side ends or `pass` says so; then ends both, also for a child that has copies of the
/// sockets.
fn forward(mut from: &TcpStream, to: &TcpStream, mut pass: impl FnMut(&mut [u8], &mut &TcpStream) -> bool) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length) = from.read(&mut buffer) {
        if length == 0 || !pass(&mut buffer[..length], &mut &*to) {
            break;
        }
    }
    for stream in [from, to] {
        // It may have ended already.
        let _ = stream.shutdown(Shutdown::Both);
    }
}
