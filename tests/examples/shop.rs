//! A running `widgets` example, and its pages.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout};

use nix::errno::Errno;
use nix::sys::signal::{self, Signal, killpg};
use nix::unistd::Pid;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::run::{command, end, spawn};
use support::wait::{PATIENCE, until};

pub(crate) struct Shop {
    /// The master, in its own process group. `None` after it was reaped.
    master: Option<Child>,
    /// Kept open, so that the workers can print.
    _stdout: BufReader<ChildStdout>,
    port: u16,
    workers: HashSet<u32>,
    printed: String,
}

impl Shop {
    /// Starts the example on a free port, and waits until its workers are forked.
    pub(crate) fn start(arguments: &[&str]) -> Shop {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--port", "0"]).collect();
        let mut master = spawn(command("widgets", &arguments).process_group(0));
        let mut stdout = BufReader::new(master.stdout.take().expect("a pipe"));
        let (mut port, mut workers, mut printed) = (None, None, String::new());
        while port.is_none() || workers.is_none() {
            let begin = printed.len();
            assert_ne!(stdout.read_line(&mut printed).expect("text"), 0, "widgets has ended early: {printed}");
            let line = &printed[begin..];
            if line.starts_with("http://") {
                port = between(line, "http://127.0.0.1:", "/").parse().ok();
            }
            if line.starts_with("master ") {
                let pids = line.trim().split_once(", workers ").expect("a list of workers").1;
                workers = Some(pids.split(' ').map(|pid| pid.parse().expect("a process id")).collect());
            }
        }
        let (port, workers) = (port.expect("a port"), workers.expect("a list of workers"));
        Shop { master: Some(master), _stdout: stdout, port, workers, printed }
    }

    /// Returns the first workers.
    pub(crate) fn workers(&self) -> HashSet<u32> {
        self.workers.clone()
    }

    /// Returns the output at the start.
    pub(crate) fn printed(&self) -> &str {
        &self.printed
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        let mut stream = self.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n").expect("a request is taken");
        Response::read(stream)
    }

    pub(crate) fn post(&self, form: &[(&str, &str)]) -> Response {
        self.begin_post(form).finish()
    }

    /// Changes a text, and returns the worker that saved it.
    pub(crate) fn save(&self, language: &str, key: &str, word: &str) -> u32 {
        let response = self.post(&[("lang", language), ("key", key), ("word", word)]);
        assert_eq!(response.status, 303, "{}", response.body);
        let location = between(&response.head, "location: ", "\r\n");
        location.rsplit_once("&by=").expect("the author").1.parse().expect("a process id")
    }

    /// Begins to post a form: a worker has the head and waits for the body.
    pub(crate) fn begin_post(&self, form: &[(&str, &str)]) -> Post {
        let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        let fields: Vec<_> = form.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let body = fields.join("&");
        let mut stream = self.connect();
        write!(
            stream,
            "POST / HTTP/1.1\r\nHost: shop\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
            body.len()
        )
        .expect("a head is taken");
        let mut received = vec![0; CONTINUE.len()];
        stream.read_exact(&mut received).expect("an interim response");
        Post { stream, body, is_awaited: received == CONTINUE, received }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).expect("widgets listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    pub(crate) fn signal(&self, signal: Signal) {
        signal::kill(self.pid(), signal).expect("the master is not reaped yet");
    }

    /// Sends a signal to the master, waits for its end, and returns its stderr.
    pub(crate) fn stop(self, signal: Signal) -> String {
        self.signal(signal);
        self.wait()
    }

    /// Sends a signal to the master and to all workers.
    pub(crate) fn stop_group(self, signal: Signal) {
        killpg(self.pid(), signal).expect("the master is not reaped yet");
        self.wait();
    }

    /// Waits for exit status 0, and checks that no process is left. Returns stderr.
    pub(crate) fn wait(mut self) -> String {
        let group = self.pid();
        let ended = end(self.master.take().expect("a master"));
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        assert_eq!(killpg(group, None), Err(Errno::ESRCH), "a process was left behind");
        ended.stderr
    }

    fn pid(&self) -> Pid {
        let master = self.master.as_ref().expect("a master");
        Pid::from_raw(master.id().try_into().expect("a process id"))
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        if let Some(mut master) = self.master.take() {
            // It may have ended already; its workers end with it.
            let _ = master.kill();
            master.wait().expect("the child is not reaped yet");
        }
    }
}

/// Returns whether a process is running; a zombie is not.
pub(crate) fn is_running(worker: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{worker}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

pub(crate) fn kill(worker: u32) {
    signal::kill(Pid::from_raw(worker.try_into().expect("a process id")), Signal::SIGKILL).expect("a running worker");
    until("the worker has ended", || !is_running(worker));
}

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

pub(crate) struct Post {
    stream: TcpStream,
    body: String,
    /// Whether the worker has asked for the body; otherwise it has begun its response.
    is_awaited: bool,
    received: Vec<u8>,
}

impl Post {
    pub(crate) fn finish(mut self) -> Response {
        if self.is_awaited {
            // The worker may refuse a body that is too large before it is complete.
            let _ = self.stream.write_all(self.body.as_bytes());
            self.received.clear();
        }
        Response::read(self.received.chain(self.stream))
    }
}

/// A response of a worker.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Response {
    /// Reads until the connection ends: each response closes it.
    fn read(mut stream: impl Read) -> Response {
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("a response");
        let (head, body) = response.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response, but {response:?}"));
        let status = between(head, "HTTP/1.1 ", " ").parse().expect("a status");
        Response { status, head: head.to_owned() + "\r\n", body: body.to_owned() }
    }

    pub(crate) fn worker(&self) -> u32 {
        between(&self.body, "<td colspan=2>", "<").parse().expect("a process id")
    }

    pub(crate) fn title(&self) -> String {
        unescaped(between(&self.body, "<h1>", "</h1>"))
    }

    /// Returns the customer's own text, from its form.
    pub(crate) fn word(&self, key: &str) -> String {
        unescaped(between(&self.body, &format!("<input id=\"{key}\" name=word value=\""), "\""))
    }

    pub(crate) fn count(&self, name: &str) -> u64 {
        between(&self.body, &format!("<th scope=row>{name}</th><td>"), "<").parse().expect("a number")
    }
}

fn between<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
    let found = text.split_once(begin).and_then(|(_, rest)| rest.split_once(end));
    found.unwrap_or_else(|| panic!("nothing between {begin:?} and {end:?} in {text}")).0
}

fn unescaped(html: &str) -> String {
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
    entities.iter().fold(html.to_owned(), |text, (entity, char)| text.replace(entity, char))
}
