//! The clients' protocols: the parts of HTTP/1.1 and FastCGI that the examples use.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;

use crate::hosts::{Protocol, RELOAD_PATIENCE};

/// The port and protocol of a host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endpoint<'a> {
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    /// The directory of the example.
    pub(crate) directory: &'a Path,
}

/// A connection to a host, for one request at a time.
#[derive(Debug)]
pub(crate) struct Connection<'a> {
    stream: BufReader<TcpStream>,
    endpoint: Endpoint<'a>,
    /// Whether no reply has arrived on it yet.
    pub(crate) is_fresh: bool,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) body: Vec<u8>,
    /// Whether another request may follow on the connection.
    pub(crate) keeps_alive: bool,
}

#[derive(Debug)]
pub(crate) enum Fault {
    /// The host closed the connection without beginning a reply.
    Closed,
    /// Any other fault.
    Broken(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        Fault::Broken(error.to_string())
    }
}

impl<'a> Connection<'a> {
    pub(crate) fn open(endpoint: Endpoint<'a>) -> io::Result<Connection<'a>> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, endpoint.port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(RELOAD_PATIENCE))?;
        stream.set_write_timeout(Some(RELOAD_PATIENCE))?;
        Ok(Connection { stream: BufReader::new(stream), endpoint, is_fresh: true })
    }

    /// Sends a request and reads its reply.
    pub(crate) fn request(&mut self, path: &str) -> Result<Reply, Fault> {
        let request = match self.endpoint.protocol {
            Protocol::Http => format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes(),
            Protocol::FastCgi => fast_cgi_request(&self.endpoint.directory.join("index.php"), path),
        };
        let written = self.stream.get_mut().write_all(&request);
        if written.and_then(|()| self.stream.fill_buf().map(<[u8]>::is_empty)).or_else(closed)? {
            return Err(Fault::Closed);
        }
        self.is_fresh = false;
        match self.endpoint.protocol {
            Protocol::Http => self.http_reply(),
            Protocol::FastCgi => self.fast_cgi_reply(),
        }
    }

    fn http_reply(&mut self) -> Result<Reply, Fault> {
        let status = self.line()?;
        let mut length = None;
        let mut keeps_alive = status.starts_with("HTTP/1.1");
        loop {
            let header = self.line()?.to_ascii_lowercase();
            match header.split_once(':').map(|(name, value)| (name, value.trim())) {
                Some(("content-length", value)) => length = value.parse().ok(),
                Some(("connection", value)) => keeps_alive = value == "keep-alive",
                Some(_) => {}
                None => break,
            }
        }
        let mut body = Vec::new();
        match length {
            Some(length) => {
                body.resize(length, 0);
                self.stream.read_exact(&mut body)?;
            }
            None => return Err(Fault::Broken(format!("{status}: a reply without a length"))),
        }
        if status.split(' ').nth(1) != Some("200") {
            return Err(Fault::Broken(format!("{status}: {}", String::from_utf8_lossy(&body))));
        }
        Ok(Reply { body, keeps_alive })
    }

    fn line(&mut self) -> Result<String, Fault> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        if line.ends_with('\n') {
            return Ok(line.trim_end().to_owned());
        }
        Err(Fault::Broken(format!("a reply that ends within {line:?}")))
    }

    fn fast_cgi_reply(&mut self) -> Result<Reply, Fault> {
        let mut output = Vec::new();
        let mut errors = Vec::new();
        loop {
            let mut header = [0; 8];
            self.stream.read_exact(&mut header)?;
            let mut content = vec![0; u16::from_be_bytes([header[4], header[5]]).into()];
            self.stream.read_exact(&mut content)?;
            let mut padding = vec![0; header[6].into()];
            self.stream.read_exact(&mut padding)?;
            match header[1] {
                fast_cgi::STDOUT => output.append(&mut content),
                fast_cgi::STDERR => errors.append(&mut content),
                fast_cgi::END_REQUEST => break,
                kind => return Err(Fault::Broken(format!("a FastCGI record of type {kind}"))),
            }
        }
        let at = output.windows(4).position(|end| end == b"\r\n\r\n");
        let headers = String::from_utf8_lossy(&output[..at.unwrap_or(output.len())]).into_owned();
        match at {
            Some(at) if errors.is_empty() && !headers.contains("Status:") => {
                Ok(Reply { body: output.split_off(at + 4), keeps_alive: true })
            }
            _ => Err(Fault::Broken(format!("{headers}: {}", String::from_utf8_lossy(&errors)))),
        }
    }
}

/// Returns `true` if an error means that the host closed the connection, and the error otherwise.
fn closed(error: io::Error) -> io::Result<bool> {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Ok(true),
        _ => Err(error),
    }
}

/// <https://fastcgi-archives.github.io/FastCGI_Specification.html>, section 8.
mod fast_cgi {
    pub(super) const BEGIN_REQUEST: u8 = 1;
    pub(super) const END_REQUEST: u8 = 3;
    pub(super) const PARAMS: u8 = 4;
    pub(super) const STDIN: u8 = 5;
    pub(super) const STDOUT: u8 = 6;
    pub(super) const STDERR: u8 = 7;
    pub(super) const RESPONDER: u8 = 1;
    pub(super) const KEEP_CONNECTION: u8 = 1;
}

fn fast_cgi_request(script: &Path, path: &str) -> Vec<u8> {
    let script = script.to_str().expect("a UTF-8 path");
    let mut parameters = Vec::new();
    for (name, value) in [("SCRIPT_FILENAME", script), ("REQUEST_METHOD", "GET"), ("REQUEST_URI", path)] {
        for length in [name.len(), value.len()] {
            let length = u32::try_from(length).expect("a short string") | 1 << 31;
            parameters.extend(length.to_be_bytes());
        }
        parameters.extend(name.bytes().chain(value.bytes()));
    }
    let begin = [0, fast_cgi::RESPONDER, fast_cgi::KEEP_CONNECTION, 0, 0, 0, 0, 0];
    let records: [(u8, &[u8]); 4] = [
        (fast_cgi::BEGIN_REQUEST, &begin),
        (fast_cgi::PARAMS, &parameters),
        (fast_cgi::PARAMS, &[]),
        (fast_cgi::STDIN, &[]),
    ];
    let mut request = Vec::new();
    for (kind, content) in records {
        let length = u16::try_from(content.len()).expect("a short request").to_be_bytes();
        request.extend([1, kind, 0, 1, length[0], length[1], 0, 0]);
        request.extend(content);
    }
    request
}
