//! Takes TLS off before whatever listens on a port: what stands behind it sees and changes what is said in plain.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};

use super::certificates::Identity;

/// What a server with this certificate needs.
pub fn server_config(identity: &Identity) -> Arc<ServerConfig> {
    let chain = CertificateDer::pem_file_iter(&identity.certificate).expect("a file with certificates");
    let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(&identity.key).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions that ring has");
    Arc::new(config.with_no_client_auth().with_single_cert(chain, key).expect("a certificate and its key"))
}

/// Listens on a port of its own until the process ends, and passes on to `port`.
pub fn before(port: u16, identity: &Identity) -> u16 {
    let config = server_config(identity);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let own_port = listener.local_addr().expect("a bound socket has an address").port();
    thread::spawn(move || {
        for client in listener.incoming() {
            serve(client.expect("a client"), port, &config);
        }
    });
    own_port
}

fn serve(client: TcpStream, port: u16, config: &Arc<ServerConfig>) {
    let Ok(server) = connect_as(&client, port) else {
        // Without a server there is nothing behind this door.
        let _ = client.shutdown(Shutdown::Both);
        return;
    };
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("a TCP socket");
    }
    let mut session = ServerConnection::new(Arc::clone(config)).expect("a session");
    session.set_buffer_limit(None);
    let session = Arc::new(Mutex::new(session));
    let [client_too, server_too] = [&client, &server].map(|stream| stream.try_clone().expect("a free descriptor"));
    let session_too = Arc::clone(&session);
    thread::spawn(move || pass_on(&client, &server, |bytes| decrypt(&session, bytes, &client)));
    thread::spawn(move || pass_on(&server_too, &client_too, |bytes| encrypt(&session_too, bytes)));
}

/// From where the client comes, which is how a sentinel is told from others.
fn connect_as(client: &TcpStream, port: u16) -> std::io::Result<TcpStream> {
    let IpAddr::V4(source) = client.peer_addr()?.ip() else { return Err(ErrorKind::AddrNotAvailable.into()) };
    let server = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(server.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))?;
    connect(server.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)))?;
    Ok(server.into())
}

/// Passes on until one side ends; then ends both, also for a child that has copies of the sockets.
fn pass_on(mut from: &TcpStream, mut to: &TcpStream, mut change: impl FnMut(&[u8]) -> Option<Vec<u8>>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let Some(changed) = change(&buffer[..length]) else { break };
        if to.write_all(&changed).is_err() {
            break;
        }
    }
    for stream in [from, to] {
        // It may have ended already.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Decrypts what the client says, and answers it as long as hands are being shaken.
fn decrypt(session: &Mutex<ServerConnection>, mut bytes: &[u8], mut client: &TcpStream) -> Option<Vec<u8>> {
    let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
    let mut plain = Vec::new();
    while !bytes.is_empty() {
        session.read_tls(&mut bytes).ok()?;
        let was_handshaking = session.is_handshaking();
        let state = session.process_new_packets().ok()?;
        while was_handshaking && session.wants_write() {
            session.write_tls(&mut client).ok()?;
        }
        let start = plain.len();
        plain.resize(start + state.plaintext_bytes_to_read(), 0);
        session.reader().read_exact(&mut plain[start..]).ok()?;
        if state.peer_has_closed() {
            return None;
        }
    }
    Some(plain)
}

fn encrypt(session: &Mutex<ServerConnection>, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
    session.writer().write_all(bytes).ok()?;
    let mut encrypted = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut encrypted).ok()?;
    }
    Some(encrypted)
}
