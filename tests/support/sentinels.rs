//! Sentinels, and the masters and replicas that they monitor.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};

use super::servers::{Directory, Encryption, Kind, PORTS_TRIED, Server, encryption_of_all, free_port, pid};
use super::wait::{PATIENCE, until};

/// The name of the master of a [`Group`].
pub const MASTER: &str = "mymaster";

/// The source address of the sentinel for all of a process's servers, so that a test can tell its connections from
/// others.
pub const SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Makes the URLs of all Redis servers in this process name a sentinel from now on. The sentinel uses TLS if the
/// servers do at the time of the call.
pub fn put_all_behind_sentinels() {
    let lines = format!("bind-source-addr {SOURCE}\nsentinel resolve-hostnames yes\nsentinel announce-hostnames yes\n");
    FOR_ALL.get_or_init(|| Sentinel::start(encryption_of_all(), None, &lines));
}

static FOR_ALL: OnceLock<Sentinel> = OnceLock::new();

/// Returns the part of a server's URL that names the sentinel and the master, if [`put_all_behind_sentinels`] was
/// called.
pub(crate) fn url_behind_sentinels(kind: Kind, server: &str) -> Option<String> {
    let sentinel = FOR_ALL.get().filter(|_| kind == Kind::Redis)?;
    let (host, port) = server.rsplit_once(':').expect("a host and a port");
    let reply = sentinel.ask(&format!("SENTINEL MONITOR {host}-{port} {host} {port} 1"));
    // It may be monitored already, by this process or by another.
    let is_monitored = reply.starts_with("+OK") || reply.contains("Duplicate master name");
    assert!(is_monitored, "monitoring {server}: {reply}");
    Some(format!("127.0.0.1:{}/{host}-{port}", sentinel.port()))
}

/// A running sentinel. Dropping it stops it.
#[derive(Debug)]
pub struct Sentinel {
    port: u16,
    plain_port: u16,
    password: Option<String>,
    running: Option<Child>,
    /// It rewrites its configuration file when it learns of servers.
    _directory: Directory,
    owner: u32,
}

impl Sentinel {
    /// Starts a sentinel with these lines in its configuration. With `encryption` it uses TLS, also to the monitored
    /// servers.
    pub fn start(encryption: Option<&Encryption>, password: Option<&str>, lines: &str) -> Sentinel {
        for _ in 0..PORTS_TRIED {
            let directory = Directory::make();
            let (plain_port, tls_port) = (free_port(), free_port());
            let path = directory.path().join("sentinel.conf");
            let mut configuration = format!(
                "port {plain_port}\nbind 127.0.0.1\ndir {}\nloglevel warning\n{lines}\n",
                directory.path().display()
            );
            if let Some(Encryption { identity, ca, .. }) = encryption {
                configuration += &format!(
                    "tls-port {tls_port}\ntls-replication yes\ntls-auth-clients no\ntls-cert-file {}\ntls-key-file {}\n\
                     tls-ca-cert-file {}\n",
                    identity.certificate.display(),
                    identity.key.display(),
                    ca.display()
                );
            }
            if let Some(password) = password {
                configuration += &format!("requirepass {password}\n");
            }
            std::fs::write(&path, configuration).expect("room for a file");
            let mut command = Command::new("redis-server");
            command.arg(&path).arg("--sentinel").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            // SAFETY: one system call, which is async-signal-safe.
            unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
            let mut sentinel = Sentinel {
                port: if encryption.is_some() { tls_port } else { plain_port },
                plain_port,
                password: password.map(str::to_owned),
                running: Some(command.spawn().expect("redis-server can be started")),
                _directory: directory,
                owner: std::process::id(),
            };
            if sentinel.starts() {
                return sentinel;
            }
        }
        panic!("no sentinel started on any of {PORTS_TRIED} free ports");
    }

    /// Waits for the sentinel. Returns false if another process has its port.
    fn starts(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let process = self.process();
        loop {
            if self.try_ask("INFO server").is_ok_and(|reply| reply.contains(&format!("process_id:{process}\r\n"))) {
                return true;
            }
            let running = self.running.as_mut().expect("it was started");
            if running.try_wait().expect("the child can be waited for").is_some() {
                return false;
            }
            assert!(Instant::now() < deadline, "timed out waiting for a sentinel to respond");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sends one command, and returns the whole reply as a string.
    pub fn ask(&self, command: &str) -> String {
        self.try_ask(command).unwrap_or_else(|error| panic!("asking a sentinel for {command:?}: {error}"))
    }

    fn try_ask(&self, command: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.plain_port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        if let Some(password) = &self.password {
            write!(stream, "AUTH {password}\r\n")?;
        }
        write!(stream, "{command}\r\n")?;
        // A sentinel has no QUIT.
        stream.shutdown(Shutdown::Write)?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply)?;
        Ok(String::from_utf8_lossy(&reply).into_owned())
    }

    /// Returns the master's port according to this sentinel.
    pub fn master_port(&self) -> u16 {
        let reply = self.ask(&format!("SENTINEL GET-MASTER-ADDR-BY-NAME {MASTER}"));
        reply.lines().nth(4).and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("an address, not {reply}"))
    }

    /// Returns a field of the sentinel's reply to `SENTINEL MASTER`.
    fn master_field(&self, field: &str) -> String {
        let reply = self.ask(&format!("SENTINEL MASTER {MASTER}"));
        let mut lines = reply.lines().skip_while(|line| *line != field);
        lines.nth(2).unwrap_or_default().to_owned()
    }

    /// Stops the sentinel's process: the kernel still accepts connections, but no request gets a reply.
    pub fn pause(&self) {
        kill(self.process(), Signal::SIGSTOP).expect("the child can be signalled");
    }

    /// Kills it, like a crash.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.kill().expect("the child can be killed");
            running.wait().expect("the child can be waited for");
        }
    }

    fn process(&self) -> nix::unistd::Pid {
        pid(self.running.as_ref().expect("a running sentinel"))
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        if std::process::id() == self.owner {
            self.kill();
        }
    }
}

/// A master, its replicas and three sentinels that agree on the master.
#[derive(Debug)]
pub struct Group {
    /// The first server is the original master.
    pub servers: Vec<Server>,
    pub sentinels: Vec<Sentinel>,
    encryption: Option<Encryption>,
    options: String,
}

/// The time without a response after which a sentinel considers a server down, in milliseconds. It is long, because a
/// machine may be busy, and shortened only when a server is killed.
const DOWN_AFTER: u32 = 60_000;
const DOWN_AFTER_A_KILL: u32 = 500;

impl Group {
    /// Starts a master with two replicas.
    pub fn start() -> Group {
        Group::with(2, None, None)
    }

    /// Starts a group whose sentinels have a password, if one is given.
    pub fn with(replicas: usize, encryption: Option<&Encryption>, password: Option<&str>) -> Group {
        let start = |extra: &[&str]| match encryption {
            Some(encryption) => Server::encrypted(Kind::Redis, encryption, extra),
            None => Server::with(Kind::Redis, extra),
        };
        let replication = if encryption.is_some() { "yes" } else { "no" };
        let common = ["--repl-diskless-sync-delay", "0", "--tls-replication", replication];
        let master = start(&common);
        let port = master.port().to_string();
        let mut servers = vec![master];
        servers.extend((0..replicas).map(|_| start(&[&common[..], &["--replicaof", "127.0.0.1", &port]].concat())));
        // A replica that a sentinel does not find in its first query is found ten seconds later.
        let all = format!("connected_slaves:{replicas}\r");
        until("the replicas are connected", || servers[0].ask("INFO replication").contains(&all));
        for replica in &servers[1..] {
            until("a replica has synchronised", || replica.ask("INFO replication").contains("master_link_status:up"));
        }
        let lines = format!(
            "sentinel monitor {MASTER} 127.0.0.1 {port} 2\nsentinel down-after-milliseconds {MASTER} {DOWN_AFTER}\n\
             sentinel failover-timeout {MASTER} 5000\nsentinel parallel-syncs {MASTER} 2\n"
        );
        let sentinels: Vec<Sentinel> = (0..3).map(|_| Sentinel::start(encryption, password, &lines)).collect();
        for sentinel in &sentinels {
            until("the sentinels know each other", || sentinel.master_field("num-other-sentinels") == "2");
            until("the sentinels know the replicas", || sentinel.master_field("num-slaves") == replicas.to_string());
            until("the master is up", || sentinel.master_field("flags") == "master");
        }
        let options = password.map(|password| format!("&sentinel_password={password}")).unwrap_or_default();
        Group { servers, sentinels, encryption: encryption.cloned(), options }
    }

    /// Returns the URL of a store. `options` is the URL's query.
    pub fn url(&self, options: &str) -> String {
        let hosts: Vec<String> =
            self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port())).collect();
        let (hosts, more) = (hosts.join(","), &self.options);
        match &self.encryption {
            None => format!("redis+sentinel://{hosts}/{MASTER}?{options}{more}"),
            Some(encryption) => {
                let ca = encryption.ca.display();
                format!("rediss+sentinel://{hosts}/{MASTER}?tls_ca={ca}&{options}{more}")
            }
        }
    }

    /// Kills the original master, and makes the sentinels notice it quickly.
    pub fn kill_master(&mut self) {
        self.servers[0].kill();
        self.set_down_after(DOWN_AFTER_A_KILL);
    }

    fn running(&self) -> impl Iterator<Item = &Sentinel> {
        self.sentinels.iter().filter(|sentinel| sentinel.running.is_some())
    }

    fn set_down_after(&self, milliseconds: u32) {
        for sentinel in self.running() {
            let reply = sentinel.ask(&format!("SENTINEL SET {MASTER} down-after-milliseconds {milliseconds}"));
            assert!(reply.starts_with("+OK"), "{reply}");
        }
    }

    /// Waits until all running sentinels agree on a new master, and returns it.
    pub fn new_master(&self) -> &Server {
        let old = self.servers[0].port();
        let mut named = old;
        until("the sentinels agree on another master", || {
            named = self.running().next().expect("a running sentinel").master_port();
            named != old && self.running().all(|sentinel| sentinel.master_port() == named)
        });
        self.set_down_after(DOWN_AFTER);
        self.servers.iter().find(|server| server.port() == named).expect("one of the servers")
    }
}
