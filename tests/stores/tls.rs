//! Servers over TLS, through both APIs: what works, and errors that give the reason.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::Duration;

use prefork_cache::stores::from_url;
use prefork_cache::{Cache, Error, ErrorKind};

use crate::conformance::{current_thread, multi_thread};
use support::certificates::{Authority, Identity, LOCAL, Validity};
use support::proxy::Proxy;
use support::servers::{Encryption, Kind, Server};
use support::wait::until;

const TTL: Duration = Duration::from_secs(60);

fn cache(url: &str) -> Cache {
    Cache::builder(from_url(url).unwrap()).build()
}

fn url(kind: Kind, port: u16, options: &str) -> String {
    format!("{}s://127.0.0.1:{port}?{options}", kind.name())
}

fn trusting(authority: &Authority) -> String {
    format!("tls_ca={}", authority.ca().display())
}

fn presenting(identity: &Identity) -> String {
    format!("tls_cert={}&tls_key={}", identity.certificate.display(), identity.key.display())
}

fn encryption(authority: &Authority, identity: Identity) -> Encryption {
    Encryption { identity, ca: authority.ca().to_owned(), wants_certificate: false }
}

fn assert_works(url: &str) {
    let cache = cache(url);
    for (way, runtime) in [("blocking", None), ("tokio", Some(current_thread()))] {
        match runtime {
            None => cache.blocking().set("k", &way, TTL).unwrap(),
            Some(runtime) => runtime.block_on(cache.set("k", &way, TTL)).unwrap(),
        }
        assert_eq!(cache.blocking().get::<String>("k").unwrap().as_deref(), Some(way), "{url}");
    }
}

/// The errors of a first use, through each API.
fn failures(url: &str) -> [Error; 2] {
    let blocking = cache(url).blocking().get::<String>("k").unwrap_err();
    let asynchronous = current_thread().block_on(cache(url).get::<String>("k")).unwrap_err();
    [blocking, asynchronous]
}

fn assert_refused(url: &str, kind: ErrorKind, text: &str) {
    for error in failures(url) {
        assert_eq!(error.kind(), kind, "{url}: {error:#}");
        assert!(error.to_string().contains(text), "{url}: {error:#}");
    }
}

#[test]
fn a_certificate_for_another_name() {
    let authority = Authority::new();
    let other = encryption(&authority, authority.issue("other", &["cache.example"], Validity::Now));
    for kind in Kind::BOTH {
        let server = Server::encrypted(kind, &other, &[]);
        let text = "the server's certificate is not for the name \"127.0.0.1\" (tls_server_name)";
        assert_refused(&server.url(""), ErrorKind::Tls, text);
        assert_works(&server.url("tls_server_name=cache.example"));
    }
}

#[test]
fn a_certificate_that_has_expired() {
    let authority = Authority::new();
    let expired = encryption(&authority, authority.issue("old", &LOCAL, Validity::Past));
    for kind in Kind::BOTH {
        let server = Server::encrypted(kind, &expired, &[]);
        assert_refused(&server.url(""), ErrorKind::Tls, "the server's certificate has expired");
    }
}

#[test]
fn a_certificate_of_an_unknown_authority() {
    let (authority, other) = (Authority::new(), Authority::new());
    for kind in Kind::BOTH {
        let server = Server::encrypted(kind, &Encryption::by(&authority), &[]);
        let text = "the server's certificate is not from an authority that is trusted here (tls_ca)";
        assert_refused(&url(kind, server.port(), &trusting(&other)), ErrorKind::Tls, text);
    }
}

#[test]
fn client_certificates() {
    let (authority, other) = (Authority::new(), Authority::new());
    let wanting = Encryption { wants_certificate: true, ..Encryption::by(&authority) };
    let own = authority.issue("own", &["worker"], Validity::Now);
    let foreign = other.issue("foreign", &["worker"], Validity::Now);
    let expired = authority.issue("expired", &["worker"], Validity::Past);
    for kind in Kind::BOTH {
        let server = Server::encrypted(kind, &wanting, &[]);
        assert_works(&server.url(&presenting(&own)));
        assert_refused(&server.url(""), ErrorKind::Tls, "the server wants a certificate (tls_cert, tls_key)");
        assert_refused(&server.url(&presenting(&foreign)), ErrorKind::Tls, "of our certificate (tls_cert)");
        assert_refused(&server.url(&presenting(&expired)), ErrorKind::Tls, "our certificate has expired (tls_cert)");
    }
}

#[test]
fn client_certificates_over_tls_1_2() {
    let authority = Authority::new();
    let only = ["--tls-protocols", "TLSv1.2"];
    let server = Server::encrypted(Kind::Redis, &Encryption::by(&authority), &only);
    assert_works(&server.url(""));
    let wanting = Encryption { wants_certificate: true, ..Encryption::by(&authority) };
    let server = Server::encrypted(Kind::Redis, &wanting, &only);
    assert_refused(&server.url(""), ErrorKind::Tls, "it may want a certificate (tls_cert, tls_key)");
}

/// Certificates are unchecked only if that is configured.
#[test]
fn any_certificate_is_accepted_only_if_configured() {
    let authority = Authority::new();
    let expired = encryption(&authority, authority.issue("old", &["cache.example"], Validity::Past));
    for kind in Kind::BOTH {
        let server = Server::encrypted(kind, &expired, &[]);
        assert_works(&url(kind, server.port(), "tls_accept_any_certificate=true"));
        let trusting = trusting(&authority);
        assert_refused(
            &url(kind, server.port(), &format!("tls_accept_any_certificate=false&{trusting}")),
            ErrorKind::Tls,
            "the server's certificate",
        );
        let shown = format!("{:?}", from_url(&url(kind, server.port(), "tls_accept_any_certificate=true")).unwrap());
        assert!(shown.contains("any_certificate"), "{shown}");
    }
}

/// A server without TLS keeps reading the supposed command, or sends something else.
#[test]
fn a_server_without_tls() {
    let authority = Authority::new();
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let options = format!("{}&connect_timeout=300ms", trusting(&authority));
        for error in failures(&url(kind, server.port(), &options)) {
            let text = error.to_string();
            assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Tls | ErrorKind::Connect), "{error:#}");
            assert!(text.starts_with("the TLS handshake with 127.0.0.1:"), "{error:#}");
        }
    }
    let port = reply_with(b"HTTP/1.1 400 Bad Request\r\n\r\n", true);
    let url_of_reply = url(Kind::Redis, port, &trusting(&authority));
    assert_refused(&url_of_reply, ErrorKind::Tls, "what the server answered is not TLS");
}

#[test]
fn a_server_that_stops_in_the_middle_of_the_handshake() {
    /// The header of a record that is longer than the bytes that follow.
    const TRUNCATED_RECORD: &[u8] = b"\x16\x03\x03\x00\x7a\x02\x00\x00";
    let authority = Authority::new();
    let options = format!("{}&connect_timeout=200ms&timeout=60m", trusting(&authority));
    for kind in Kind::BOTH {
        for bytes in [b"", TRUNCATED_RECORD] {
            let silent = url(kind, reply_with(bytes, true), &options);
            assert_refused(&silent, ErrorKind::Timeout, "no answer in time (does the server speak TLS at this port?)");
            let closing = url(kind, reply_with(bytes, false), &options);
            assert_refused(&closing, ErrorKind::Connect, "the server closed the connection");
        }
    }
}

/// Starts a server that replies to the first bytes with `reply`, and then is silent or disconnects.
fn reply_with(reply: &'static [u8], stays_open: bool) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(reply);
            if stays_open {
                open.push(stream);
            }
        }
    });
    port
}

#[test]
fn files_are_read_when_the_store_is_built() {
    let authority = Authority::new();
    let identity = Encryption::by(&authority).identity;
    let (ca, certificate, key) = (authority.ca(), identity.certificate.as_path(), identity.key.as_path());
    let missing = Path::new("/nowhere/at-all.pem");
    let shown = |path: &Path| path.display().to_string();
    let refusals = [
        (format!("tls_ca={}", shown(missing)), "the option tls_ca: no certificate can be read from /nowhere"),
        (format!("tls_ca={}", shown(key)), "the option tls_ca: there is no certificate in "),
        (format!("tls_cert={}&tls_key={}", shown(certificate), shown(missing)), "the option tls_key: no key can be"),
        (format!("tls_cert={}&tls_key={}", shown(ca), shown(key)), "tls_cert and tls_key are not a certificate and"),
    ];
    for (options, text) in refusals {
        let error = from_url(&format!("rediss://localhost?{options}")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error:#}");
        assert!(error.to_string().contains(text), "{error:#}");
    }
    let server = Server::encrypted(Kind::Redis, &Encryption::by(&authority), &[]);
    let url = server.url("");
    let store = from_url(&url).unwrap();
    drop(authority);
    assert!(from_url(&url).is_err(), "the files are gone");
    Cache::builder(store).build().blocking().set("k", "v", TTL).unwrap();
}

/// Large values take many records in each direction, and more space than a socket buffer has.
#[test]
fn large_values_over_tls() {
    let authority = Authority::new();
    let server = Server::encrypted(Kind::Redis, &Encryption::by(&authority), &[]);
    let cache = cache(&server.url("timeout=20s"));
    for length in [1, 16 << 10, (16 << 10) + 1, 1 << 20, 20 << 20] {
        let value: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
        cache.blocking().set_raw("blocking", value.clone(), TTL).unwrap();
        assert!(cache.blocking().get_raw("blocking").unwrap().unwrap() == value, "{length}");
        multi_thread().block_on(async {
            cache.set_raw("tokio", value.clone(), TTL).await.unwrap();
            let read = async || cache.get_raw("tokio").await.unwrap().unwrap() == value;
            let (first, second, third) = tokio::join!(read(), read(), read());
            assert!(first && second && third, "{length}");
        });
    }
}

/// Both are in one write, so the end of the value and the commands after it share a record, or are split anywhere.
#[test]
fn small_commands_after_large_values() {
    let authority = Authority::new();
    for kind in Kind::BOTH {
        let server = Server::encrypted(kind, &Encryption::by(&authority), &[]);
        let cache = cache(&server.url(""));
        current_thread().block_on(async {
            for length in (1..=5).flat_map(|records| [records * 16_000, records * 16_384, records * 16_400]) {
                let value = vec![b'x'; length];
                let set = async |key: &str| cache.set_raw(key, value.clone(), TTL).await;
                let done = tokio::join!(set("a"), cache.set("small", &length, TTL), set("b"), cache.exists("small"));
                assert!(matches!(done, (Ok(()), Ok(()), Ok(()), Ok(true))), "{}: {length}: {done:?}", kind.name());
            }
        });
        let keys: Vec<String> = (0..5_000).map(|number| format!("key:{number}")).collect();
        for length in [10, 100, 101, 102, 103, 5_000] {
            let value = "x".repeat(length);
            let entries: Vec<_> = keys.iter().map(|key| (key.as_str(), value.as_str())).collect();
            let set = cache.blocking().set_many(&entries[..5_000.min(5_000_000 / length)], TTL);
            assert!(set.iter().all(Result::is_ok), "{}: values of {length}: {set:?}", kind.name());
        }
    }
}

/// TLS 1.3 session tickets are no replies: a connection on which only tickets have arrived is used again.
#[test]
fn a_connection_is_used_again_after_an_idle_time() {
    let authority = Authority::new();
    for kind in Kind::BOTH {
        let server = Server::encrypted(kind, &Encryption::by(&authority), &[]);
        let proxy = Proxy::before(server.port());
        let cache = cache(&url(kind, proxy.port(), &trusting(&authority)));
        let runtime = current_thread();
        for _ in 0..3 {
            cache.blocking().increment("blocking", 1, TTL).unwrap();
            runtime.block_on(cache.increment("tokio", 1, TTL)).unwrap();
            // Longer than the idle time after which a connection is checked before its use.
            thread::sleep(Duration::from_millis(15));
        }
        assert_eq!(proxy.connects(), 2, "one connection for each API");
    }
}

#[test]
fn a_restarted_server_is_used_again() {
    let authority = Authority::new();
    for kind in Kind::BOTH {
        let mut server = Server::encrypted(kind, &Encryption::by(&authority), &[]);
        let cache = cache(&server.url("failures=1000&timeout=20s"));
        let runtime = current_thread();
        for round in 0..3 {
            until("the server is back", || cache.blocking().set("k", &round, TTL).is_ok());
            until("the server is back", || runtime.block_on(cache.set("k", &round, TTL)).is_ok());
            server.restart();
        }
    }
}
