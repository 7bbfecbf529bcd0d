//! Who logs in: passwords that change under load, and that nothing shows them.

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
struct Guarded {
    server: Server,
    /// Of Memcached.
    logins: PathBuf,
    /// Keeps the directory of the files.
    _directory: Authority,
}

impl Guarded {
    fn start(kind: Kind, password: &str) -> Guarded {
        let directory = Authority::new();
        let logins = directory.ca().with_file_name("logins");
        fs::write(&logins, "admin:admin\n").unwrap();
        let server = match kind {
            Kind::Redis => Server::start(kind),
            Kind::Memcached => Server::with_logins(None, &logins, "admin admin"),
        };
        let guarded = Guarded { server, logins, _directory: directory };
        guarded.admit(&[password]);
        guarded
    }

    /// Has the server let in who has one of these passwords, and nobody else.
    fn admit(&self, passwords: &[&str]) {
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
        let admits = |password: &str| self.cache_of("worker", password).blocking().exists("k").is_ok();
        until("the passwords are known", || passwords.iter().all(|password| admits(password)));
    }

    fn cache_of(&self, username: &str, password: &str) -> Cache {
        let url = self.server.url(PATIENT).replace("://", &format!("://{username}:{password}@"));
        Cache::builder(from_url(&url).unwrap()).build()
    }

    /// Has everybody dial anew.
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

/// Where a cache has its password from.
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

/// As a program does that others read the file of.
fn replace(path: &Path, password: &str) {
    let new = path.with_extension("new");
    fs::write(&new, format!("{password}\n")).unwrap();
    fs::rename(&new, path).unwrap();
}

/// The new password is let in, then given out, then the old one is refused, and all connections are ended. What begins
/// after that succeeds.
#[test]
fn a_password_is_replaced_under_load() {
    for kind in Kind::BOTH {
        let guarded = Guarded::start(kind, "first-secret");
        let url = guarded.server.url(PATIENT);
        let path = guarded.logins.with_file_name("password");
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
            for (place, cache) in caches.iter().enumerate() {
                let (phase, is_over) = (&phase, &is_over);
                let [in_threads, in_tasks] = [&done[2 * place], &done[2 * place + 1]];
                scope.spawn(move || {
                    while !is_over.load(Ordering::Relaxed) {
                        let begun = phase.load(Ordering::SeqCst);
                        let outcome = cache.blocking().increment("counter", 1, TTL);
                        check(outcome, begun, phase);
                        in_threads.fetch_add(1, Ordering::Relaxed);
                    }
                });
                scope.spawn(move || {
                    multi_thread().block_on(async {
                        while !is_over.load(Ordering::Relaxed) {
                            let begun = phase.load(Ordering::SeqCst);
                            let outcome = cache.increment("counter", 1, TTL).await;
                            check(outcome, begun, phase);
                            in_tasks.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                });
            }
            let progress = || {
                let before = done.each_ref().map(|done| done.load(Ordering::Relaxed));
                until("everybody has gone on", || {
                    done.iter().zip(before).all(|(done, before)| done.load(Ordering::Relaxed) > before + 10)
                });
            };
            let mut old = "first-secret";
            for new in ["second-secret", "third-secret"] {
                progress();
                guarded.admit(&[old, new]);
                replace(&path, new);
                new.clone_into(&mut token.lock().unwrap());
                guarded.admit(&[new]);
                until("the old password is refused", || {
                    let refused = guarded.cache_of("worker", old).blocking().exists("k");
                    refused.is_err_and(|error| error.kind() == ErrorKind::Auth)
                });
                phase.fetch_add(1, Ordering::SeqCst);
                guarded.disconnect(&caches.each_ref());
                phase.fetch_add(1, Ordering::SeqCst);
                progress();
                old = new;
            }
        });
    }
}

/// What was in flight when the connections ended may have failed.
fn check(outcome: prefork_cache::Result<i64>, begun: usize, phase: &AtomicUsize) {
    if let Err(error) = outcome {
        let was_in_flight = begun % 2 == 1 || phase.load(Ordering::SeqCst) != begun;
        assert!(was_in_flight && error.kind() == ErrorKind::Io, "begun in phase {begun}: {error:#}");
    }
}

#[test]
fn a_wrong_password_is_refused_and_not_shown() {
    for kind in Kind::BOTH {
        let guarded = Guarded::start(kind, "right-secret");
        for (username, password) in [("worker", "wrong-secret"), ("nobody", "right-secret")] {
            let cache = guarded.cache_of(username, password);
            let blocking = cache.blocking().exists("k").unwrap_err();
            let asynchronous = current_thread().block_on(cache.exists("k")).unwrap_err();
            for error in [blocking, asynchronous] {
                assert_eq!(error.kind(), ErrorKind::Auth, "{error:#}");
                assert!(!format!("{error:#} {error:?} {cache:?}").contains("-secret"), "{error:#}");
            }
        }
    }
}

/// Memcached without logins takes one for a value, which must not stay where everybody can read it.
#[test]
fn a_login_on_a_server_that_wants_none_leaves_nothing_behind() {
    let server = Server::start(Kind::Memcached);
    let url = server.url("").replace("://", "://worker:a-secret@");
    let store = MemcachedStore::new(&url).unwrap();
    current_thread().block_on(store.set("k", "v".into(), TTL.into(), prefork_cache::When::Always)).unwrap();
    assert!(!server.ask("get prefork-cache").contains("secret"));
    assert!(server.ask("get k").contains("VALUE k"));
}

#[test]
fn a_source_of_credentials_that_fails() {
    let guarded = Guarded::start(Kind::Redis, "a-secret");
    let place = format!("127.0.0.1:{}", guarded.server.port());
    let stores = [
        (RedisStore::new(&format!("redis://worker@{place}?password_file=/nowhere")), "the password file /nowhere: "),
        (
            RedisStore::builder(&format!("redis://{place}")).credentials(|| Err("no token yet".into())).build(),
            "the callback for credentials has failed: no token yet",
        ),
        (
            RedisStore::builder(&format!("redis://{place}")).credentials(|| panic!("as planned")).build(),
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

/// Whatever it says, and however much of what it was sent is in it.
#[test]
fn a_server_that_repeats_a_login_does_not_make_us_show_it() {
    type Answer = fn(&[u8]) -> Vec<u8>;
    let answers: [Answer; 7] = [
        |sent| sent.to_vec(),
        |sent| [b"-ERR you said ", flat(sent).as_slice(), b"\r\n"].concat(),
        |sent| [b"-", flat(sent).as_slice(), b"\r\n"].concat(),
        |sent| [b"+", flat(sent).as_slice(), b"\r\n"].concat(),
        |sent| [b"VA ", flat(sent).as_slice(), b"\r\n"].concat(),
        |sent| [b"CLIENT_ERROR ", flat(sent).as_slice(), b"\r\n"].concat(),
        |sent| [b"STORED ", &flat(sent)[flat(sent).len() / 2..], b"\r\n"].concat(),
    ];
    for kind in Kind::BOTH {
        for (number, answer) in answers.into_iter().enumerate() {
            let port = repeating(answer);
            let url = format!("{}://worker:hunter2hunter2@127.0.0.1:{port}?timeout=300ms", kind.name());
            let cache = Cache::builder(from_url(&url).unwrap()).build();
            let (errors, records) = recorded(|| {
                let blocking = cache.blocking().exists("k").unwrap_err();
                [blocking, current_thread().block_on(cache.exists("k")).unwrap_err()]
            });
            for error in errors {
                let shown = format!("{error:#} {error:?} {cache:?} {records:?}");
                assert!(!shown.contains("hunter2"), "answer {number} of {}: {shown}", kind.name());
            }
        }
    }
}

fn flat(sent: &[u8]) -> Vec<u8> {
    sent.iter().map(|byte| if b"\r\n".contains(byte) { b' ' } else { *byte }).collect()
}

fn repeating(answer: fn(&[u8]) -> Vec<u8>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            if let Ok(length) = stream.read(&mut request) {
                let _ = stream.write_all(&answer(&request[..length]));
            }
            thread::spawn(move || stream.read(&mut [0]));
        }
    });
    port
}

#[test]
fn nothing_shows_a_password() {
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
