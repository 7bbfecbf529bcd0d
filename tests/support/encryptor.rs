//! Terminates TLS in front of a plain port: what listens there sees the traffic without encryption, and may change it.

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

/// The configuration of a server with this certificate.
pub fn server_config(identity: &Identity) -> Arc<ServerConfig> {
    let chain = CertificateDer::pem_file_iter(&identity.certificate).expect("a file with certificates");
    let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(&identity.key).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions that ring has");
    Arc::new(config.with_no_client_auth().with_single_cert(chain, key).expect("a certificate and its key"))
}

/// Listens on a new port until the process ends, and forwards to `port`.
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
        // Without a server behind it, the connection is closed.
        let _ = client.shutdown(Shutdown::Both);
        return;
    };
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("a TCP socket");
    }
    let mut session = ServerConnection::new(Arc::clone(config)).expect("a session");
    session.set_buffer_limit(None);
    let session = Arc::new(Mutex::new(session));
    let [client_copy, server_copy] = [&client, &server].map(|stream| stream.try_clone().expect("a free descriptor"));
    let session_copy = Arc::clone(&session);
    thread::spawn(move || forward(&client, &server, |bytes| decrypt(&session, bytes, &client)));
    thread::spawn(move || forward(&server_copy, &client_copy, |bytes| encrypt(&session_copy, bytes)));
}

/// Connects from the client's source address, by which a test tells sentinels from others.
fn connect_as(client: &TcpStream, port: u16) -> std::io::Result<TcpStream> {
    let IpAddr::V4(source) = client.peer_addr()?.ip() else { return Err(ErrorKind::AddrNotAvailable.into()) };
    let server = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(server.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))?;
    connect(server.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)))?;
    Ok(server.into())
}

/// Forwards until one side ends. Then shuts both down, because a forked child may have copies of the sockets.
fn forward(mut from: &TcpStream, mut to: &TcpStream, mut change: impl FnMut(&[u8]) -> Option<Vec<u8>>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let Some(changed) = change(&buffer[..length]) else { break };
        if to.write_all(&changed).is_err() {
            break;
        }
    }
    for stream in [from, to] {
        // It may be closed already.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Decrypts the client's bytes, and responds to it during the handshake.
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
