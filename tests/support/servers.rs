//! Private servers for tests: on a free port of the loopback or on a Unix socket, and always stopped.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

pub use super::directory::Directory;
pub use super::settings::{Encryption, cluster_all, encrypt_all, encryption_of_all, plain_port, url_of, url_of_hosts};
use super::settings::{are_all_clustered, encrypted_url, plain_url, set_plain_port};
use super::wait::{PATIENCE, until};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Redis,
    Memcached,
}

impl Kind {
    pub const BOTH: [Kind; 2] = [Kind::Redis, Kind::Memcached];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Redis => "redis",
            Kind::Memcached => "memcached",
        }
    }
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    kind: Kind,
    address: Address,
    encryption: Option<Encryption>,
    /// The login for a Memcached server that requires one.
    login: Option<String>,
    extra: Vec<String>,
    directory: Directory,
    running: Option<Child>,
    /// Whether it is a cluster of one node.
    has_all_slots: bool,
    /// The process that started it. A forked child that unwinds must not stop its parent's server.
    owner: u32,
}

#[derive(Clone, Debug)]
enum Address {
    Port(u16),
    /// An encrypted port, and a plain port for the commands of the test.
    Ports(u16, u16),
    Socket(PathBuf),
}

/// How many free ports are tried, because another process may take a port first.
pub(crate) const PORTS_TRIED: usize = 20;

impl Server {
    /// Starts a server on a free port.
    pub fn start(kind: Kind) -> Server {
        Server::with(kind, &[])
    }

    /// Starts a server on a free port, with extra arguments.
    pub fn with(kind: Kind, extra: &[&str]) -> Server {
        if kind == Kind::Redis && are_all_clustered() {
            // Without it the node gives the port where it does not encrypt.
            let tls: &[&str] = if encryption_of_all().is_some() { &["--tls-cluster", "yes"] } else { &[] };
            let mut server = Server::cluster_node(encryption_of_all(), &[extra, tls].concat());
            server.has_all_slots = true;
            assert!(server.ask("CLUSTER ADDSLOTSRANGE 0 16383").starts_with("+OK"), "the node has all slots");
            server.wait_until_healthy();
            return server;
        }
        match encryption_of_all() {
            Some(encryption) => Server::encrypted(kind, encryption, extra),
            None => Server::on_a_free_port(kind, None, None, || owned(extra)),
        }
    }

    /// Starts a server on a free port, over TLS.
    pub fn encrypted(kind: Kind, encryption: &Encryption, extra: &[&str]) -> Server {
        Server::on_a_free_port(kind, Some(encryption), None, || owned(extra))
    }

    /// Starts a Memcached server with the logins of a file, of which `login` is one.
    pub fn with_logins(encryption: Option<&Encryption>, file: &Path, login: &str) -> Server {
        let file = file.to_str().expect("a UTF-8 path");
        Server::on_a_free_port(Kind::Memcached, encryption, Some(login), || owned(&["-Y", file]))
    }

    /// Starts a Redis server as a node of a cluster, with these arguments and a free port for the cluster bus.
    pub(crate) fn cluster_node(encryption: Option<&Encryption>, extra: &[&str]) -> Server {
        Server::on_a_free_port(Kind::Redis, encryption, None, || {
            let bus = free_port().to_string();
            [owned(extra), owned(&["--cluster-enabled", "yes", "--cluster-port", &bus])].concat()
        })
    }

    fn on_a_free_port(
        kind: Kind,
        encryption: Option<&Encryption>,
        login: Option<&str>,
        extra: impl Fn() -> Vec<String>,
    ) -> Server {
        for _ in 0..PORTS_TRIED {
            let address = match encryption {
                Some(_) => Address::Ports(free_port(), free_port()),
                None => Address::Port(free_port()),
            };
            let mut server = Server::new(kind, address, extra(), Directory::make());
            server.encryption = encryption.cloned();
            server.login = login.map(str::to_owned);
            if server.run() {
                if let Address::Ports(encrypted, plain) = server.address {
                    set_plain_port(encrypted, plain);
                }
                return server;
            }
        }
        panic!("{} did not start on any of {PORTS_TRIED} free ports", kind.name());
    }

    /// Starts a server on a Unix socket.
    pub fn on_socket(kind: Kind) -> Server {
        let directory = Directory::make();
        let socket = directory.path().join("server.sock");
        let mut server = Server::new(kind, Address::Socket(socket), Vec::new(), directory);
        assert!(server.run(), "{} did not start on a socket", kind.name());
        server
    }

    fn new(kind: Kind, address: Address, extra: Vec<String>, directory: Directory) -> Server {
        let (encryption, login) = (None, None);
        Server {
            kind,
            address,
            encryption,
            login,
            extra,
            directory,
            running: None,
            has_all_slots: false,
            owner: std::process::id(),
        }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns whether its process has not been ended.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub fn port(&self) -> u16 {
        match &self.address {
            Address::Port(port) | Address::Ports(port, _) => *port,
            Address::Socket(path) => panic!("{} listens on {}, on no port", self.kind.name(), path.display()),
        }
    }

    /// The URL of a store. `options` is the URL's query, such as `timeout=5s&pool_size=2`, or empty.
    pub fn url(&self, options: &str) -> String {
        match &self.address {
            Address::Port(port) => plain_url(self.kind, &format!("127.0.0.1:{port}"), options),
            Address::Ports(port, _) => {
                let encryption = self.encryption.as_ref().expect("a server with two ports encrypts");
                encrypted_url(self.kind, &format!("127.0.0.1:{port}"), &encryption.ca, options)
            }
            Address::Socket(path) => format!("{}+unix://{}?{options}", self.kind.name(), path.display()),
        }
    }

    /// Kills it, like a crash.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.kill().expect("the child can be killed");
            running.wait().expect("the child can be waited for");
        }
    }

    /// Starts it again at the same address.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.run(), "{} did not start again at {:?}", self.kind.name(), self.address);
        if self.has_all_slots {
            self.wait_until_healthy();
        }
    }

    /// Waits until a cluster of one node is healthy. A node reports that after two seconds at the earliest.
    fn wait_until_healthy(&self) {
        until("the cluster of one node is healthy", || self.ask("CLUSTER INFO").contains("cluster_state:ok"));
    }

    /// Stops its process: the kernel accepts connections, and nothing responds.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
        let process = pid(self.running.as_ref().expect("a running server"));
        // Reported once the last of its threads has stopped. Until then a thread may still respond.
        let stopped = waitpid(process, Some(WaitPidFlag::WUNTRACED)).expect("the child can be waited for");
        assert!(matches!(stopped, WaitStatus::Stopped(..)), "the server has not stopped: {stopped:?}");
    }

    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Makes it read the file of logins again.
    pub fn reload(&self) {
        self.signal(Signal::SIGHUP);
    }

    fn signal(&self, signal: Signal) {
        let running = self.running.as_ref().expect("a running server");
        kill(pid(running), signal).expect("the child can be signalled");
    }

    /// Sends one command on a new connection, and returns the whole reply as a string.
    pub fn ask(&self, command: &str) -> String {
        self.try_ask(command).unwrap_or_else(|error| panic!("asking {} for {command:?}: {error}", self.kind.name()))
    }

    /// The number of commands to set an entry.
    pub fn sets(&self) -> usize {
        self.counted("cmdstat_set:calls=", "STAT cmd_set ")
    }

    /// The number of attempts to take a lease, among other conditional writes.
    pub fn claims(&self) -> usize {
        self.counted("cmdstat_eval:calls=", "STAT cmd_set ")
    }

    /// The number of commands to get an entry.
    pub fn gets(&self) -> usize {
        self.counted("cmdstat_get:calls=", "STAT cmd_get ")
    }

    fn counted(&self, redis: &str, memcached: &str) -> usize {
        let (command, line) = match self.kind {
            Kind::Redis => ("INFO commandstats", redis),
            Kind::Memcached => ("stats", memcached),
        };
        let reply = self.ask(command);
        let number = reply.lines().find_map(|reply_line| reply_line.strip_prefix(line)).unwrap_or("0");
        let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    }

    /// Like [`ask`](Server::ask), for a server that may disconnect.
    pub fn try_ask(&self, command: &str) -> std::io::Result<String> {
        match &self.address {
            Address::Port(port) | Address::Ports(_, port) => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, *port))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                self.exchange(stream, command)
            }
            Address::Socket(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                self.exchange(stream, command)
            }
        }
    }

    /// Sends a command followed by a quit, so that the reply ends with the connection.
    fn exchange(&self, mut stream: impl Read + Write, command: &str) -> std::io::Result<String> {
        if let Some(login) = &self.login {
            write!(stream, "set login 0 0 {}\r\n{login}\r\n", login.len())?;
        }
        let quit = match self.kind {
            Kind::Redis => "QUIT",
            Kind::Memcached => "quit",
        };
        stream.write_all(format!("{command}\r\n{quit}\r\n").as_bytes())?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply)?;
        Ok(String::from_utf8_lossy(&reply).into_owned())
    }

    /// Starts the process. Returns false if it ends early, because another process has its port.
    fn run(&mut self) -> bool {
        let mut child = self.command().spawn().unwrap_or_else(|error| panic!("{}: {error}", self.kind.name()));
        let deadline = Instant::now() + PATIENCE;
        let up = loop {
            if self.is_served_by(pid(&child)) {
                break true;
            }
            if child.try_wait().expect("the child can be waited for").is_some() {
                break false;
            }
            assert!(
                Instant::now() < deadline,
                "timed out waiting for {} at {:?} to respond",
                self.kind.name(),
                self.address
            );
            std::thread::sleep(Duration::from_millis(2));
        };
        if up {
            self.running = Some(child);
        }
        up
    }

    fn is_served_by(&self, process: Pid) -> bool {
        let (command, own) = match self.kind {
            Kind::Redis => ("INFO server", format!("process_id:{process}\r\n")),
            Kind::Memcached => ("stats", format!("STAT pid {process}\r\n")),
        };
        self.try_ask(command).is_ok_and(|reply| reply.contains(&own) || reply.starts_with("-NOAUTH"))
    }

    fn command(&self) -> Command {
        let mut command = match self.kind {
            Kind::Redis => {
                let mut command = Command::new("redis-server");
                command.args(["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir"]);
                command.arg(self.directory.path());
                if let Some(Encryption { identity, ca, wants_certificate }) = &self.encryption {
                    command.arg("--tls-cert-file").arg(&identity.certificate);
                    command.arg("--tls-key-file").arg(&identity.key);
                    command.arg("--tls-ca-cert-file").arg(ca);
                    command.args(["--tls-auth-clients", if *wants_certificate { "yes" } else { "no" }]);
                }
                match &self.address {
                    Address::Port(port) => command.args(["--port", &port.to_string()]),
                    Address::Ports(encrypted, plain) => {
                        command.args(["--port", &plain.to_string(), "--tls-port", &encrypted.to_string()])
                    }
                    Address::Socket(path) => command.args(["--port", "0", "--unixsocket"]).arg(path),
                };
                command
            }
            Kind::Memcached => {
                let mut command = Command::new("memcached");
                command.args(["-U", "0", "-m", "64", "-t", "2"]);
                if nix::unistd::Uid::current().is_root() {
                    command.args(["-u", "root"]);
                }
                if let Some(Encryption { identity, ca, wants_certificate }) = &self.encryption {
                    let (certificate, key, ca) = (identity.certificate.display(), identity.key.display(), ca.display());
                    let verify = if *wants_certificate { 2 } else { 0 };
                    let files = format!("ssl_chain_cert={certificate},ssl_key={key},ssl_ca_cert={ca}");
                    command.args(["-Z", "-o", &format!("{files},ssl_verify_mode={verify}")]);
                }
                match &self.address {
                    Address::Port(port) => command.args(["-l", "127.0.0.1", "-p", &port.to_string()]),
                    Address::Ports(encrypted, plain) => {
                        let plain = format!("notls:127.0.0.1:{plain}");
                        command.args(["-l", &format!("127.0.0.1:{encrypted}"), "-l", &plain])
                    }
                    Address::Socket(path) => command.arg("-s").arg(path),
                };
                command
            }
        };
        command.args(&self.extra).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: one system call, which is async-signal-safe.
        unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)) };
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::process::id() == self.owner {
            self.kill();
        }
    }
}

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|&argument| argument.to_owned()).collect()
}

/// A port on which no server listens at the moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

pub(crate) fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().expect("a process id"))
}

/// Waits until no server accepts connections on `port`.
pub fn until_nobody_listens(port: u16) {
    until("no server listens", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
}
