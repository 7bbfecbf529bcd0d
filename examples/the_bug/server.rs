//! The Redis server of this example: the one in `REDIS_URL`, or a private one.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(20);

/// A Redis server. Dropping it stops a private server.
pub(crate) struct Server {
    url: String,
    _private: Option<Private>,
}

impl Server {
    /// Returns the server in `REDIS_URL`, or starts a private one.
    ///
    /// # Errors
    ///
    /// A one-line message that names the missing program.
    pub(crate) fn from_environment() -> Result<Server, String> {
        if let Ok(url) = env::var("REDIS_URL") {
            return Ok(Server { url, _private: None });
        }
        let private = Private::start().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "install redis-server, or set REDIS_URL to the URL of a server".to_owned(),
            _ => format!("starting redis-server: {error}"),
        })?;
        let url = format!("redis+unix://{}", private.socket().display());
        Ok(Server { url, _private: Some(private) })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

/// A private server on a Unix socket in a temporary directory.
struct Private {
    directory: PathBuf,
    process: Child,
}

impl Private {
    fn start() -> io::Result<Private> {
        let directory = env::temp_dir().join(format!("the-bug-{}", std::process::id()));
        fs::create_dir(&directory)?;
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--unixsocket"]).arg(directory.join("redis.sock"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: one system call, which is async-signal-safe.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        let process = command.spawn().inspect_err(|_| remove(&directory))?;
        let mut private = Private { directory, process };
        private.wait_until_it_listens()?;
        Ok(private)
    }

    fn wait_until_it_listens(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            if let Some(status) = self.process.try_wait()? {
                return Err(io::Error::other(format!("it ended with {status}")));
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("it does not listen after {PATIENCE:?}")));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("redis.sock")
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // Either fails only if the process has already ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
        remove(&self.directory);
    }
}

fn remove(directory: &PathBuf) {
    // If this fails, a socket stays behind in the system's temporary directory.
    let _ = fs::remove_dir_all(directory);
}
