//! The site of a host: a copy of its example, with or without the line that calls the hook, and its own servers.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Uid, User, chown};
use support::servers::{Directory, Kind, Server, free_port};

use crate::hosts::Host;
use crate::protocols::Endpoint;

#[derive(Debug)]
pub(crate) struct Site {
    host: &'static Host,
    /// The line that calls the hook, without the comment that marks it.
    pub(crate) hook_line: Option<String>,
    root: Directory,
    example: PathBuf,
    pub(crate) port: u16,
    pub(crate) redis: Server,
    pub(crate) memcached: Server,
    /// For the web server in front of the host.
    broker: Option<Server>,
    /// The user that the host runs as, if this process is root: Apache, PHP and PostgreSQL behave differently as root.
    user: Option<User>,
    /// The directory of the programs that are not from Debian.
    virtualenv: PathBuf,
}

impl Site {
    /// Copies the example, and starts the servers. `prefix` is where the library is installed.
    pub(crate) fn new(host: &'static Host, has_hook_line: bool, prefix: &Path) -> Site {
        let user =
            Uid::current().is_root().then(|| User::from_name("nobody").expect("readable").expect("a user nobody"));
        let root = Directory::make();
        let examples = Path::new("examples/hosts");
        let example = root.path().join(examples).join(host.directory);
        let [redis, memcached] = Kind::BOTH.map(Server::start);
        let broker = host.front.map(|_| Server::start(Kind::Redis));
        let mut site = Site {
            host,
            hook_line: None,
            root,
            example,
            port: free_port(),
            redis,
            memcached,
            broker,
            user,
            virtualenv: prefix.with_file_name("celery").join("bin"),
        };

        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
        let directories =
            [examples, &examples.join(host.directory), Path::new("bindings/php"), Path::new("bindings/lua")];
        for directory in directories {
            site.copy(&sources.join(directory), directory);
        }
        for part in ["lib", "lib/pkgconfig", "include"] {
            site.copy(&prefix.join(part), &Path::new("prefix").join(part));
        }
        site.give_to_user(site.root.path());
        site.hook_line = site.keep_hook_line(has_hook_line);
        site
    }

    /// Copies the files of a directory, without its subdirectories.
    fn copy(&self, from: &Path, to: &Path) {
        let to = self.root.path().join(to);
        fs::create_dir_all(&to).unwrap_or_else(|error| panic!("making {}: {error}", to.display()));
        self.give_to_user(&to);
        for file in fs::read_dir(from).unwrap_or_else(|error| panic!("reading {}: {error}", from.display())) {
            let file = file.expect("a readable directory").path();
            if file.is_file() {
                let copied = to.join(file.file_name().expect("a file has a name"));
                fs::copy(&file, &copied).unwrap_or_else(|error| panic!("copying {}: {error}", file.display()));
                self.give_to_user(&copied);
            }
        }
    }

    fn give_to_user(&self, path: &Path) {
        if let Some(user) = &self.user {
            chown(path, Some(user.uid), Some(user.gid)).expect("root may change the owner");
        }
    }

    /// Removes the line that calls the hook, unless `keeps`. Returns the line, if the host has a hook.
    fn keep_hook_line(&self, keeps: bool) -> Option<String> {
        let mut lines = Vec::new();
        for file in fs::read_dir(&self.example).expect("a readable directory") {
            let file = file.expect("a readable directory").path();
            let text = fs::read_to_string(&file).expect("an example is text");
            if file.extension().is_some_and(|extension| extension == "md") {
                assert!(text.contains(self.host.start), "{} does not have the driver's start command", file.display());
                continue;
            }
            let is_hook = |line: &&str| self.host.hook.as_ref().is_some_and(|hook| line.contains(hook.mark));
            lines.extend(text.lines().filter(is_hook).map(str::to_owned));
            if !keeps {
                let without: Vec<&str> = text.lines().filter(|line| !is_hook(line)).collect();
                fs::write(&file, without.join("\n") + "\n").expect("a writable file");
            }
        }
        let expected = usize::from(self.host.hook.is_some());
        assert_eq!(lines.len(), expected, "lines that call the hook of {}", self.host.name);
        let without_comment = |line: String| {
            let line = line.trim_end_matches("*/").trim_end().trim_end_matches(self.host.hook.as_ref()?.mark);
            Some(line.trim_end_matches(['#', '/', '*', ' ']).trim_start().to_owned())
        };
        lines.pop().and_then(without_comment)
    }

    /// Creates the host's log, owned by its user, since some hosts open `/dev/stderr`.
    pub(crate) fn make_log(&self) -> File {
        let log = File::create(self.log()).expect("a writable directory");
        self.give_to_user(&self.log());
        log
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.root.path().join("log")
    }

    pub(crate) fn endpoint(&self) -> Endpoint<'_> {
        Endpoint { port: self.port, protocol: self.host.protocol, directory: &self.example }
    }

    /// Returns a shell command in the directory of the example.
    pub(crate) fn command(&self, line: &str) -> Command {
        let prefix = self.root.path().join("prefix");
        let options = "timeout=20s&connect_timeout=20s";
        let mut command = Command::new("sh");
        command.args(["-c", line]).current_dir(&self.example).env_clear();
        let path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";
        command.env("PATH", format!("{}:{path}", self.virtualenv.display())).env("LANG", "C.UTF-8");
        command.env("HOME", self.root.path()).env("TMPDIR", self.root.path());
        command.env("LD_LIBRARY_PATH", prefix.join("lib"));
        command.env("PREFORK_CACHE_FFI_H", prefix.join("include/prefork_cache.ffi.h"));
        command.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
        command.env("PORT", self.port.to_string());
        command.env("REDIS_URL", self.redis.url(options)).env("MEMCACHED_URL", self.memcached.url(options));
        if let Some(broker) = &self.broker {
            command.env("BROKER_URL", broker.url(""));
        }
        if let Some(user) = &self.user {
            use std::os::unix::process::CommandExt;
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    /// Runs a shell command to its end, with a worker's process id in `$WORKER`.
    pub(crate) fn run(&self, line: &str, worker: u32) {
        let done = self.command(line).env("WORKER", worker.to_string()).output().expect("a shell");
        let printed = [done.stdout, done.stderr].map(|printed| String::from_utf8_lossy(&printed).into_owned());
        assert!(done.status.success(), "{line}: {}", printed.concat());
    }
}
