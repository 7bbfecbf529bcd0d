//! Settings for all servers of a process (TLS, clusters, sentinels), and the URLs that follow from them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

use super::certificates::{Authority, Identity, LOCAL, Validity};
use super::sentinels::url_behind_sentinels;
use super::servers::Kind;

/// The encryption of a server.
#[derive(Clone, Debug)]
pub struct Encryption {
    pub identity: Identity,
    /// The authority that issued its certificate, and that has to have issued those of clients.
    pub ca: PathBuf,
    pub wants_certificate: bool,
}

impl Encryption {
    /// A valid certificate of this authority.
    pub fn by(authority: &Authority) -> Encryption {
        let identity = authority.issue("server", &LOCAL, Validity::Now);
        Encryption { identity, ca: authority.ca().to_owned(), wants_certificate: false }
    }
}

/// Makes every server encrypt that this process starts on a port from now on.
pub fn encrypt_all() {
    ALL_ENCRYPTED.get_or_init(|| {
        let authority = Authority::new();
        AllEncrypted { encryption: Encryption::by(&authority), _authority: authority }
    });
}

/// The encryption of all servers in this process, if it is on.
pub fn encryption_of_all() -> Option<&'static Encryption> {
    ALL_ENCRYPTED.get().map(|all| &all.encryption)
}

static ALL_ENCRYPTED: OnceLock<AllEncrypted> = OnceLock::new();

/// The ports of encrypted servers, each with the server's plain port.
static PLAIN_PORTS: Mutex<Vec<(u16, u16)>> = Mutex::new(Vec::new());

/// Makes every Redis server that this process starts on a port from now on a cluster of one node, and its URL that of a
/// cluster.
pub fn cluster_all() {
    ALL_CLUSTERED.store(true, Ordering::SeqCst);
}

static ALL_CLUSTERED: AtomicBool = AtomicBool::new(false);

/// Returns whether [`cluster_all`] was called.
pub(crate) fn are_all_clustered() -> bool {
    ALL_CLUSTERED.load(Ordering::SeqCst)
}

/// The plain port of the server on a port.
pub fn plain_port(port: u16) -> u16 {
    let ports = PLAIN_PORTS.lock().expect("no holder panics");
    ports.iter().rev().find(|(encrypted, _)| *encrypted == port).map_or(port, |(_, plain)| *plain)
}

pub(crate) fn set_plain_port(encrypted: u16, plain: u16) {
    PLAIN_PORTS.lock().expect("no holder panics").push((encrypted, plain));
}

struct AllEncrypted {
    encryption: Encryption,
    _authority: Authority,
}

/// The URL of a store on a server (or a proxy to it) at `port`.
pub fn url_of(kind: Kind, port: u16, options: &str) -> String {
    url_of_hosts(kind, &format!("127.0.0.1:{port}"), options)
}

/// The URL of a store on the servers at `hosts`, each with its port.
pub fn url_of_hosts(kind: Kind, hosts: &str, options: &str) -> String {
    match encryption_of_all() {
        Some(encryption) => encrypted_url(kind, hosts, &encryption.ca, options),
        None => plain_url(kind, hosts, options),
    }
}

pub(crate) fn plain_url(kind: Kind, hosts: &str, options: &str) -> String {
    let (suffix, address) = address(kind, hosts);
    format!("{}{suffix}://{address}?{options}", kind.name())
}

pub(crate) fn encrypted_url(kind: Kind, hosts: &str, ca: &Path, options: &str) -> String {
    let (suffix, address) = address(kind, hosts);
    format!("{}s{suffix}://{address}?tls_ca={}&{options}", kind.name(), ca.display())
}

/// The suffix of the scheme for the servers at `hosts`, and what the URL has in the place of their hosts.
fn address(kind: Kind, hosts: &str) -> (&'static str, String) {
    match url_behind_sentinels(kind, hosts) {
        Some(address) => ("+sentinel", address),
        None if kind == Kind::Redis && are_all_clustered() => ("+cluster", hosts.to_owned()),
        None => ("", hosts.to_owned()),
    }
}
