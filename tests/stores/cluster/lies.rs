//! Faulty clusters, with fake nodes: each fault ends in an error that describes it, within a bounded time.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use prefork_cache::stores::from_url;
use prefork_cache::{CacheStore, Error, ErrorKind, Op, Ttl, When};

use crate::failures::{WAYS, Way, read_on, serve};
use support::wait::{PATIENCE, until};

use super::run;

pub(super) const HOUR: Ttl = Ttl::After(Duration::from_secs(3_600));

/// Starts a fake RESP2 server and returns its port. `slots` is its reply to `CLUSTER SLOTS`, and `answer` to all
/// commands but those of a greeting. Both get the server's own port.
pub(super) fn node(
    slots: impl Fn(u16) -> String + Send + Sync + 'static,
    answer: impl Fn(&[String], u16) -> String + Send + Sync + 'static,
) -> u16 {
    let own: Arc<OnceLock<u16>> = Arc::default();
    let (known, slots, answer) = (Arc::clone(&own), Arc::new(slots), Arc::new(answer));
    let (port, _) = serve(move |stream| {
        let own = *known.wait();
        stream.set_nodelay(true).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut stream: TcpStream = stream;
        while let Some(command) = command(&mut reader) {
            let reply = match command[0].as_str() {
                "HELLO" => "-ERR unknown command 'HELLO'\r\n".to_owned(),
                "PING" if command.len() == 1 => "+PONG\r\n".to_owned(),
                "ECHO" | "PING" => bulk(&command[1]),
                "CLUSTER" => slots(own),
                "ASKING" => "+OK\r\n".to_owned(),
                _ => answer(&command, own),
            };
            if stream.write_all(reply.as_bytes()).is_err() {
                return;
            }
        }
    });
    own.set(port).expect("set once");
    port
}

fn command(reader: &mut impl BufRead) -> Option<Vec<String>> {
    let mut number = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        line.trim_end()[1..].parse::<usize>().ok()
    };
    let count = number()?;
    let mut words = Vec::with_capacity(count);
    for _ in 0..count {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        let mut word = vec![0; line.trim_end()[1..].parse::<usize>().ok()? + 2];
        reader.read_exact(&mut word).ok()?;
        word.truncate(word.len() - 2);
        words.push(String::from_utf8(word).ok()?);
    }
    Some(words)
}

pub(super) fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

/// Returns a reply to `CLUSTER SLOTS`: ranges, each with the host and port of its master.
pub(super) fn ranges(ranges: &[(i64, i64, &str, u16)]) -> String {
    let range = |(first, last, host, port): &(i64, i64, &str, u16)| {
        format!("*3\r\n:{first}\r\n:{last}\r\n*3\r\n{}:{port}\r\n{}", bulk(host), bulk("an id"))
    };
    format!("*{}\r\n{}", ranges.len(), ranges.iter().map(range).collect::<String>())
}

pub(super) fn all_slots(port: u16) -> String {
    ranges(&[(0, 16_383, "127.0.0.1", port)])
}

/// Returns the errors of a read, two changes and a batch, blocking and in tokio.
pub(super) fn failures(port: u16, options: &str) -> Vec<Error> {
    let mut failures = Vec::new();
    for way in WAYS {
        let store = from_url(&format!("redis+cluster://127.0.0.1:{port}?{options}")).unwrap();
        run(way, async {
            let begun = Instant::now();
            failures.push(store.get("key").await.unwrap_err());
            failures.push(store.set("key", "value".into(), HOUR, When::Always).await.unwrap_err());
            failures.push(store.increment("key", 1, HOUR).await.unwrap_err());
            failures.push(store.batch(&[Op::Delete { key: "key" }]).await.pop().unwrap().unwrap_err());
            assert!(begun.elapsed() < PATIENCE, "timed out waiting for four calls to end");
        });
    }
    failures
}

pub(super) fn assert_all(failures: &[Error], kind: ErrorKind, what: &str) {
    for error in failures {
        assert_eq!(error.kind(), kind, "{error:#}");
        assert!(format!("{error:#}").contains(what), "{error:#}");
    }
}

pub(super) const PATIENT: &str = "timeout=10s&connect_timeout=10s";

/// Redirects every command to the node at a port. In a transaction the queued commands are refused, and then EXEC.
pub(super) fn moved(command: &[String], to: u16) -> String {
    match command[0].as_str() {
        "MULTI" => "+OK\r\n".to_owned(),
        "EXEC" => "-EXECABORT Transaction discarded because of previous errors.\r\n".to_owned(),
        _ => format!("-MOVED 12539 127.0.0.1:{to}\r\n"),
    }
}

#[test]
fn a_node_that_redirects_to_itself() {
    let failures = failures(node(all_slots, moved), PATIENT);
    assert_all(&failures, ErrorKind::Server, "redirect slot 12539 to each other");
    assert!(failures.iter().all(Error::is_transient));
}

#[test]
fn two_nodes_that_redirect_to_each_other() {
    let second: Arc<OnceLock<u16>> = Arc::default();
    let known = Arc::clone(&second);
    let first = node(all_slots, move |command, _| moved(command, *known.wait()));
    let back = node(all_slots, move |command, _| moved(command, first));
    second.set(back).unwrap();
    assert_all(&failures(first, PATIENT), ErrorKind::Server, "redirect slot 12539 to each other");
}

/// After `ASK`, the named node is asked once, and then the owner again.
#[test]
fn a_node_that_never_finishes_moving_a_slot() {
    let ask = |command: &[String], own: u16| moved(command, own).replace("MOVED", "ASK");
    assert_all(&failures(node(all_slots, ask), PATIENT), ErrorKind::Server, "redirect slot 12539 to each other");
}

#[test]
fn redirections_without_a_valid_address() {
    for to in [
        "12539",
        "12539 127.0.0.1",
        "12539 127.0.0.1:0",
        "12539 127.0.0.1:x",
        "12539 a b:1",
        "",
        "12539 127.0.0.1:70000",
    ] {
        let redirection = format!("-MOVED {to}\r\n");
        let answer =
            move |command: &[String], own| moved(command, own).replace(&moved(&["GET".to_owned()], own), &redirection);
        for error in failures(node(all_slots, answer), PATIENT) {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{to:?}: {error:#}");
        }
    }
}

/// The name of a new node spreads after its slots. Until then a node redirects to `?`.
#[test]
fn a_redirection_to_a_node_without_a_name_is_followed_once_it_has_one() {
    for code in ["MOVED", "ASK"] {
        for way in WAYS {
            let to = node(all_slots, |_, _| bulk("value"));
            let asked = AtomicUsize::new(0);
            let answer = move |_: &[String], _| match asked.fetch_add(1, Ordering::SeqCst) {
                0 | 1 => format!("-{code} 12539 ?:{to}\r\n"),
                _ => format!("-{code} 12539 127.0.0.1:{to}\r\n"),
            };
            let store = from_url(&format!("redis+cluster://127.0.0.1:{}?{PATIENT}", node(all_slots, answer))).unwrap();
            assert_eq!(run(way, store.get("key")).unwrap().as_deref(), Some(&b"value"[..]), "{way:?}, {code}");
        }
    }
    let nameless = |command: &[String], own| moved(command, own).replace("127.0.0.1", "?");
    let failures = failures(node(all_slots, nameless), PATIENT);
    assert_all(&failures, ErrorKind::Server, "MOVED 12539 ?");
    assert!(failures.iter().all(Error::is_transient));
}

/// A node that was demoted says so instead of redirecting.
#[test]
fn a_master_that_has_become_read_only() {
    for way in WAYS {
        let new = node(all_slots, |_, _| "+OK\r\n".to_owned());
        let is_known = AtomicBool::new(false);
        let slots = move |own| all_slots(if is_known.swap(true, Ordering::SeqCst) { new } else { own });
        let old = node(slots, |_, _| "-READONLY You can't write against a read only replica.\r\n".to_owned());
        let store = from_url(&format!("redis+cluster://127.0.0.1:{old}?{PATIENT}")).unwrap();
        assert!(run(way, store.set("key", "value".into(), HOUR, When::Always)).unwrap(), "{way:?}");
    }
    let read_only = |_: &[String], _| "-READONLY You can't write against a read only replica.\r\n".to_owned();
    let store = from_url(&format!("redis+cluster://127.0.0.1:{}?{PATIENT}", node(all_slots, read_only))).unwrap();
    let error = run(Way::Blocking, store.set("key", "value".into(), HOUR, When::Always)).unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("READONLY"), "{error:#}");
}

/// A node does not know the name of another one yet, which the store knows.
#[test]
fn a_known_owner_without_a_name_stays_the_owner() {
    for way in WAYS {
        let refreshed = Arc::new(AtomicUsize::new(0));
        let refreshes = {
            let refreshed = Arc::clone(&refreshed);
            move || refreshed.load(Ordering::SeqCst)
        };
        let slots = move |own| match refreshed.fetch_add(1, Ordering::SeqCst) {
            0 => all_slots(own),
            _ => ranges(&[(0, 100, "127.0.0.1", own), (101, 16_383, "?", own)]),
        };
        let asked = AtomicUsize::new(0);
        let answer = move |_: &[String], own| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => format!("-MOVED 12539 ?:{own}\r\n"),
            _ => bulk("value"),
        };
        let store = from_url(&format!("redis+cluster://127.0.0.1:{}?{PATIENT}", node(slots, answer))).unwrap();
        until("the topology is read again", || {
            assert_eq!(run(way, store.get("key")).unwrap().as_deref(), Some(&b"value"[..]), "{way:?}");
            refreshes() > 1
        });
        assert_eq!(run(way, store.get("key")).unwrap().as_deref(), Some(&b"value"[..]), "{way:?}");
    }
}

#[test]
fn a_cluster_that_stays_down() {
    let down = |command: &[String], own: u16| match command[0].as_str() {
        "MULTI" | "EXEC" => moved(command, own),
        _ => "-CLUSTERDOWN The cluster is down\r\n".to_owned(),
    };
    let failures = failures(node(all_slots, down), PATIENT);
    assert_all(&failures, ErrorKind::Server, "CLUSTERDOWN");
    assert!(failures.iter().all(Error::is_transient));
}

#[test]
fn slots_without_an_owner() {
    let partial = |own| ranges(&[(0, 100, "127.0.0.1", own), (101, 16_383, "?", own)]);
    let failures = failures(node(partial, moved), PATIENT);
    assert_all(&failures, ErrorKind::Server, "no node of the cluster has slot 12539");
}

#[test]
fn invalid_topologies() {
    let many: String =
        (1..=5_000).map(|port| format!("*3\r\n:{port}\r\n:{port}\r\n*2\r\n{}:{port}\r\n", bulk("127.0.0.2"))).collect();
    for (slots, what) in [
        (ranges(&[(0, 16_384, "127.0.0.1", 1)]), "a slot is out of range"),
        (ranges(&[(9, 8, "127.0.0.1", 1)]), "ends before it begins"),
        (ranges(&[(0, 16_383, "127.0.0.1", 0)]), "port"),
        (ranges(&[(0, 16_383, "a\r\nSET x y", 1)]), "name is invalid"),
        ("+OK\r\n".to_owned(), "not a list"),
        (format!("*5000\r\n{many}"), "more than 4096 addresses"),
    ] {
        let failures = failures(node(move |_| slots.clone(), moved), PATIENT);
        assert_all(&failures, ErrorKind::Protocol, what);
    }
}

/// The announced length of a list is not trusted until its elements have arrived.
#[test]
fn a_topology_that_never_ends() {
    for slots in ["*2147483647\r\n", "*1\r\n*9\r\n:0\r\n"] {
        for error in failures(node(move |_| slots.to_owned(), moved), "timeout=200ms&connect_timeout=10s") {
            assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Protocol), "{slots:?}: {error:#}");
        }
    }
}

/// The name has an empty label, so no resolver is asked.
#[test]
fn a_host_that_does_not_resolve() {
    let elsewhere = |own| ranges(&[(0, 16_383, "no..such..host", own)]);
    let failures = failures(node(elsewhere, moved), &format!("{PATIENT}&failures=1000"));
    assert_all(&failures, ErrorKind::Connect, "no..such..host");
}

#[test]
fn an_empty_host_is_the_host_of_the_node_that_was_asked() {
    let nameless = |own| ranges(&[(0, 16_383, "", own)]);
    let port = node(nameless, |command, _| if command[0] == "GET" { bulk("value") } else { "+OK\r\n".to_owned() });
    for way in WAYS {
        let store = from_url(&format!("redis+cluster://localhost:{port}?{PATIENT}")).unwrap();
        assert_eq!(run(way, store.get("key")).unwrap().as_deref(), Some(&b"value"[..]));
        assert_eq!(store.servers()[0].address, format!("localhost:{port}"));
    }
}

/// The nodes accept connections and never respond. They cause one wait, not one each, and the keys on the other node
/// are read.
#[test]
fn unresponsive_nodes_cause_one_wait_together() {
    const SILENT: u16 = 16;
    let silent: Vec<u16> = (0..SILENT).map(|_| serve(read_on).0).collect();
    let share = 16_384 / (i64::from(SILENT) + 1);
    let slots = move |own| {
        let nodes = silent.iter().copied().chain([own]).enumerate();
        let nodes: Vec<_> = nodes
            .map(|(place, port)| {
                let first = i64::try_from(place).unwrap() * share;
                (first, if port == own { 16_383 } else { first + share - 1 }, "127.0.0.1", port)
            })
            .collect();
        ranges(&nodes)
    };
    let port = node(slots, |_, _| bulk("value"));
    for way in WAYS {
        let store = from_url(&format!("redis+cluster://127.0.0.1:{port}?timeout=3s&connect_timeout=3s")).unwrap();
        let keys: Vec<String> = (0..2_000).map(|number| format!("key:{number}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let begun = Instant::now();
        let found = run(way, store.get_many(&keys));
        assert!(
            begun.elapsed() < PATIENCE,
            "waited for {SILENT} unresponsive nodes, one after the other, for {:?}",
            begun.elapsed()
        );
        let answered = found.iter().filter(|found| found.is_ok()).count();
        assert!((50..400).contains(&answered), "{answered} keys of the node that responds");
        for failure in found.into_iter().filter_map(Result::err) {
            assert!(matches!(failure.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "{failure:#}");
        }
    }
}
