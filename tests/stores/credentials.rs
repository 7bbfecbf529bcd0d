//! Logins: passwords that change under load, and passwords that must not be shown.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use prefork_cache::stores::{Credentials, MemcachedStore, RedisStore, from_url};
use prefork_cache::{Cache, CacheStore, ErrorKind};

use crate::conformance::{current_thread, multi_thread};
use support::certificates::Authority;
use support::recorder::recorded;
use support::servers::{Kind, Server, free_port};
use support::wait::{SetOnDrop, until};

const TTL: Duration = Duration::from_secs(60);
const PATIENT: &str = "timeout=20s&connect_timeout=20s&failures=1000";

/// A server whose user `worker` has a password, which may change.
struct LoginServer {
    server: Server,
    /// Memcached's file of logins.
    logins: PathBuf,
    /// Owns the directory of the files.
    _directory: Authority,
}

impl LoginServer {
    fn start(kind: Kind, password: &str) -> LoginServer {
        let directory = Authority::new();
        let logins = directory.ca().with_file_name("logins");
        fs::write(&logins, "admin:admin\n").unwrap();
        let server = match kind {
            Kind::Redis => Server::start(kind),
            Kind::Memcached => Server::with_logins(None, &logins, "admin admin"),
        };
        let server = LoginServer { server, logins, _directory: directory };
        server.set_passwords(&[password]);
        server
    }

    /// Makes the server accept exactly these passwords.
    fn set_passwords(&self, passwords: &[&str]) {
        match self.server.kind() {
            Kind::Redis => {
                let passwords: String = passwords.iter().map(|password| format!(" >{password}")).collect();
                let command = format!("ACL SETUSER worker reset on ~* +@all{passwords}");
                assert!(self.server.ask(&command).starts_with("+OK"));
            }
            Kind::Memcached => {
                let lines: String = passwords.iter().map(|password| format!("worker:{password}\n")).collect();
                fs::write(&self.logins, format!("admin:admin\n{lines}")).unwrap();
                self.server.reload();
            }
        }
        let accepts = |password: &str| self.cache_of("worker", password).blocking().exists("k").is_ok();
        until("the server accepts the passwords", || passwords.iter().all(|password| accepts(password)));
    }

    fn cache_of(&self, username: &str, password: &str) -> Cache {
        let url = self.server.url(PATIENT).replace("://", &format!("://{username}:{password}@"));
        Cache::builder(from_url(&url).unwrap()).build()
    }

    /// Makes every client dial again.
    fn disconnect(&self, caches: &[&Cache]) {
        match self.server.kind() {
            Kind::Redis => assert!(self.server.ask("CLIENT KILL USER worker").starts_with(':')),
            Kind::Memcached => caches.iter().for_each(|cache| cache.blocking().reset()),
        }
    }
}

fn built(kind: Kind, url: &str, with: Source) -> Cache {
    match kind {
        Kind::Redis => Cache::builder(with.redis(url)).build(),
        Kind::Memcached => Cache::builder(with.memcached(url)).build(),
    }
}

/// The source of a cache's password.
enum Source {
    File(PathBuf),
    Callback(Arc<Mutex<String>>),
}

impl Source {
    fn redis(self, url: &str) -> RedisStore {
        let builder = RedisStore::builder(url);
        match self {
            Source::File(path) => builder.username("worker").password_file(path),
            Source::Callback(token) => builder.credentials(move || Ok(current(&token))),
        }
        .build()
        .unwrap()
    }

    fn memcached(self, url: &str) -> MemcachedStore {
        let builder = MemcachedStore::builder(url);
        match self {
            Source::File(path) => builder.username("worker").password_file(path),
            Source::Callback(token) => builder.credentials(move || Ok(current(&token))),
        }
        .build()
        .unwrap()
    }
}

fn current(token: &Mutex<String>) -> Credentials {
    Credentials::new("worker", token.lock().unwrap().clone())
}

/// Replaces the file by a rename, as a program does whose file others read.
fn replace(path: &Path, password: &str) {
    let new = path.with_extension("new");
    fs::write(&new, format!("{password}\n")).unwrap();
    fs::rename(&new, path).unwrap();
}

/// The server accepts the new password, the sources return it, the server refuses the old one, and all connections are
/// closed. Operations that start after that succeed.
#[test]
fn a_password_is_replaced_under_load() {
    for kind in Kind::BOTH {
        let server = LoginServer::start(kind, "first-secret");
        let url = server.server.url(PATIENT);
        let path = server.logins.with_file_name("password");
        replace(&path, "first-secret");
        let token = Arc::new(Mutex::new("first-secret".to_owned()));
        let caches = [Source::File(path.clone()), Source::Callback(Arc::clone(&token))];
        let caches = caches.map(|source| built(kind, &url, source));
        // Odd while connections are being ended.
        let phase = AtomicUsize::new(0);
        let done = [(); 4].map(|()| AtomicUsize::new(0));
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let _over = SetOnDrop(&is_over);
            for (index, cache) in caches.iter().enumerate() {
                let (phase, is_over) = (&phase, &is_over);
                let [in_threads, in_tasks] = [&done[2 * index], &done[2 * index + 1]];
                scope.spawn(move || {
                    while !is_over.load(Ordering::Relaxed) {
                        let phase_at_start = phase.load(Ordering::SeqCst);
                        let outcome = cache.blocking().increment("counter", 1, TTL);
                        check(outcome, phase_at_start, phase);
                        in_threads.fetch_add(1, Ordering::Relaxed);
                    }
                });
                scope.spawn(move || {
                    multi_thread().block_on(async {
                        while !is_over.load(Ordering::Relaxed) {
                            let phase_at_start = phase.load(Ordering::SeqCst);
                            let outcome = cache.increment("counter", 1, TTL).await;
                            check(outcome, phase_at_start, phase);
                            in_tasks.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                });
            }
            let progress = || {
                let before = done.each_ref().map(|done| done.load(Ordering::Relaxed));
                until("every caller has made progress", || {
                    done.iter().zip(before).all(|(done, before)| done.load(Ordering::Relaxed) > before + 10)
                });
            };
            let mut old = "first-secret";
            for new in ["second-secret", "third-secret"] {
                progress();
                server.set_passwords(&[old, new]);
                replace(&path, new);
                new.clone_into(&mut token.lock().unwrap());
                server.set_passwords(&[new]);
                until("the old password is refused", || {
                    let refused = server.cache_of("worker", old).blocking().exists("k");
                    refused.is_err_and(|error| error.kind() == ErrorKind::Auth)
                });
                phase.fetch_add(1, Ordering::SeqCst);
                server.disconnect(&caches.each_ref());
                phase.fetch_add(1, Ordering::SeqCst);
                progress();
                old = new;
            }
        });
    }
}

/// Only an operation that was in flight when the connections were closed may fail.
fn check(outcome: prefork_cache::Result<i64>, phase_at_start: usize, phase: &AtomicUsize) {
    if let Err(error) = outcome {
        let was_in_flight = phase_at_start % 2 == 1 || phase.load(Ordering::SeqCst) != phase_at_start;
        assert!(was_in_flight && error.kind() == ErrorKind::Io, "begun in phase {phase_at_start}: {error:#}");
    }
}

#[test]
fn a_wrong_password_is_refused_and_not_shown() {
    for kind in Kind::BOTH {
        let server = LoginServer::start(kind, "right-secret");
        for (username, password) in [("worker", "wrong-secret"), ("nobody", "right-secret")] {
            let cache = server.cache_of(username, password);
            let blocking = cache.blocking().exists("k").unwrap_err();
            let asynchronous = current_thread().block_on(cache.exists("k")).unwrap_err();
            for error in [blocking, asynchronous] {
                assert_eq!(error.kind(), ErrorKind::Auth, "{error:#}");
                assert!(!format!("{error:#} {error:?} {cache:?}").contains("-secret"), "{error:#}");
            }
        }
    }
}

/// A Memcached server without logins stores a login as a value. The value must not stay where other clients can read
/// it.
#[test]
fn a_login_on_a_server_without_logins_stores_no_password() {
    let server = Server::start(Kind::Memcached);
    let url = server.url("").replace("://", "://worker:a-secret@");
    let store = MemcachedStore::new(&url).unwrap();
    current_thread().block_on(store.set("k", "v".into(), TTL.into(), prefork_cache::When::Always)).unwrap();
    assert!(!server.ask("get prefork-cache").contains("secret"));
    assert!(server.ask("get k").contains("VALUE k"));
}

#[test]
fn credentials_that_fail() {
    let server = LoginServer::start(Kind::Redis, "a-secret");
    let address = format!("127.0.0.1:{}", server.server.port());
    let stores = [
        (RedisStore::new(&format!("redis://worker@{address}?password_file=/nowhere")), "the password file /nowhere: "),
        (
            RedisStore::builder(&format!("redis://{address}")).credentials(|| Err("no token yet".into())).build(),
            "the callback for credentials has failed: no token yet",
        ),
        (
            RedisStore::builder(&format!("redis://{address}")).credentials(|| panic!("as planned")).build(),
            "the callback for credentials panicked",
        ),
    ];
    for (store, text) in stores {
        let cache = Cache::builder(store.unwrap()).build();
        let blocking = cache.blocking().exists("k").unwrap_err();
        let asynchronous = current_thread().block_on(cache.exists("k")).unwrap_err();
        for error in [blocking, asynchronous] {
            assert_eq!(error.kind(), ErrorKind::Auth, "{error:#}");
            assert!(format!("{error:#}").starts_with(text), "{error:#}");
        }
    }
}

/// The reply may contain any part of the login in any form.
#[test]
fn a_login_that_a_server_repeats_is_not_shown() {
    type Reply = fn(&[u8]) -> Vec<u8>;
    let replies: [Reply; 7] = [
        |request| request.to_vec(),
        |request| [b"-ERR you said ", without_line_ends(request).as_slice(), b"\r\n"].concat(),
        |request| [b"-", without_line_ends(request).as_slice(), b"\r\n"].concat(),
        |request| [b"+", without_line_ends(request).as_slice(), b"\r\n"].concat(),
        |request| [b"VA ", without_line_ends(request).as_slice(), b"\r\n"].concat(),
        |request| [b"CLIENT_ERROR ", without_line_ends(request).as_slice(), b"\r\n"].concat(),
        |request| [b"STORED ", &without_line_ends(request)[without_line_ends(request).len() / 2..], b"\r\n"].concat(),
    ];
    for kind in Kind::BOTH {
        for (number, reply) in replies.into_iter().enumerate() {
            let port = reply_with(reply);
            let url = format!("{}://worker:hunter2hunter2@127.0.0.1:{port}?timeout=300ms", kind.name());
            let cache = Cache::builder(from_url(&url).unwrap()).build();
            let (errors, records) = recorded(|| {
                let blocking = cache.blocking().exists("k").unwrap_err();
                [blocking, current_thread().block_on(cache.exists("k")).unwrap_err()]
            });
            for error in errors {
                let shown = format!("{error:#} {error:?} {cache:?} {records:?}");
                assert!(!shown.contains("hunter2"), "reply {number} of {}: {shown}", kind.name());
            }
        }
    }
}

fn without_line_ends(request: &[u8]) -> Vec<u8> {
    request.iter().map(|byte| if b"\r\n".contains(byte) { b' ' } else { *byte }).collect()
}

fn reply_with(reply: fn(&[u8]) -> Vec<u8>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            if let Ok(length) = stream.read(&mut request) {
                let _ = stream.write_all(&reply(&request[..length]));
            }
            thread::spawn(move || stream.read(&mut [0]));
        }
    });
    port
}

#[test]
fn a_password_is_never_shown() {
    let port = free_port();
    for kind in Kind::BOTH {
        let url = format!("{}://worker:hunter2@127.0.0.1:{port}?timeout=1s", kind.name());
        let expected = format!("{}://worker@127.0.0.1:{port}?timeout=1s", kind.name());
        let [shown, debug] = match kind {
            Kind::Redis => {
                let store = RedisStore::builder(&url).password("hunter2hunter2").build().unwrap();
                [store.to_string(), format!("{store:?}{:?}", RedisStore::builder(&url).password("hunter2"))]
            }
            Kind::Memcached => {
                let store = MemcachedStore::builder(&url).password("hunter2hunter2").build().unwrap();
                [store.to_string(), format!("{store:?}{:?}", MemcachedStore::builder(&url).password("hunter2"))]
            }
        };
        assert_eq!(shown, expected);
        assert!(!debug.contains("hunter2"), "{debug}");
    }
}
