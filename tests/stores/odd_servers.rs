//! Servers that send surplus replies, or refuse the marker for a while.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use prefork_cache::{Cache, stores};

use crate::conformance::current_thread;
use support::servers::{Kind, Server};

/// Starts a server that handles each command with `serve`.
fn fake(serve: impl Fn(&[String], &mut TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.set_nodelay(true).unwrap();
            let serve = Arc::clone(&serve);
            thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).unwrap_or(0) == 0 {
                        return;
                    }
                    let count: usize = line[1..].trim().parse().unwrap();
                    let mut command = Vec::new();
                    for _ in 0..count {
                        line.clear();
                        reader.read_line(&mut line).unwrap();
                        let length: usize = line[1..].trim().parse().unwrap();
                        let mut value = vec![0; length + 2];
                        reader.read_exact(&mut value).unwrap();
                        value.truncate(length);
                        command.push(String::from_utf8(value).unwrap());
                    }
                    serve(&command, &mut stream);
                }
            });
        }
    });
    port
}

/// A normal reply: each key's value is its name, or a long value where several keys are read.
fn normal_reply(command: &[String]) -> Vec<u8> {
    match command[0].as_str() {
        "HELLO" => b"%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n".to_vec(),
        "ECHO" | "PING" => format!("${}\r\n{}\r\n", command[1].len(), command[1]).into_bytes(),
        "GET" => format!("${}\r\n{}\r\n", command[1].len(), command[1]).into_bytes(),
        "MGET" => format!("*1\r\n$10000\r\n{}\r\n", "v".repeat(10_000)).into_bytes(),
        other => panic!("{other}"),
    }
}

fn cache(port: u16) -> Cache {
    Cache::builder(
        stores::from_url(&format!("redis://127.0.0.1:{port}?timeout=20s&failures=1000000&retry_after=1ms")).unwrap(),
    )
    .build()
}

#[test]
fn a_surplus_reply_in_the_greeting_is_an_error() {
    let port = fake(|command, stream| {
        if command[0] == "HELLO" {
            stream.write_all(b"+OK\r\n").unwrap();
        }
        // So that each reply arrives alone.
        thread::sleep(Duration::from_millis(5));
        // The client may have disconnected.
        let _ = stream.write_all(&normal_reply(command));
    });
    let blocking = cache(port).blocking().get_raw("mine");
    let tokio = current_thread().block_on(async { cache(port).get_raw("mine").await });
    for found in [blocking, tokio] {
        assert!(found.as_ref().is_err_and(|error| error.to_string().contains("another request")), "{found:?}");
    }
}

#[test]
fn a_push_after_a_reply_is_not_surplus() {
    let port =
        fake(|command, stream| stream.write_all(&[&normal_reply(command), &b">1\r\n+news\r\n"[..]].concat()).unwrap());
    let cache = cache(port);
    assert_eq!(cache.blocking().get_raw("mine").unwrap().as_deref(), Some(&b"mine"[..]));
    let tokio = current_thread().block_on(cache.get_raw("mine"));
    assert_eq!(tokio.unwrap().as_deref(), Some(&b"mine"[..]));
}

#[test]
fn a_large_push_does_not_count_as_the_next_reply() {
    let port = fake(|command, stream| {
        let push =
            if command[0] == "MGET" { format!(">1\r\n$20000\r\n{}\r\n", "x".repeat(20_000)) } else { String::new() };
        stream.write_all(&[push.as_bytes(), &normal_reply(command)].concat()).unwrap();
    });
    let cache = cache(port);
    let blocking = cache.blocking().get_many_raw(&["mine"]);
    let tokio = current_thread().block_on(cache.get_many_raw(&["mine"]));
    for mut found in [blocking, tokio] {
        let value = found.pop().unwrap().unwrap().unwrap();
        assert!(value.len() == 10_000 && value.iter().all(|byte| *byte == b'v'), "{} bytes", value.len());
    }
}

#[test]
fn replies_are_proven_on_a_connection_opened_while_the_server_was_busy() {
    let server = Server::start(Kind::Redis);
    assert!(server.ask("CONFIG SET busy-reply-threshold 1").starts_with("+OK"));
    let cache = cache(server.port());
    let runtime = current_thread();
    let mut busy = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    busy.write_all(b"EVAL \"while true do end\" 0\r\n").unwrap();
    thread::sleep(Duration::from_millis(100));
    assert!(cache.blocking().get_raw("a").unwrap_err().to_string().contains("BUSY"));
    assert!(runtime.block_on(cache.get_raw("a")).unwrap_err().to_string().contains("BUSY"));
    assert!(server.ask("SCRIPT KILL").starts_with("+OK"));
    let _ = busy.read(&mut [0; 100]);
    let echoes = || {
        let stats = server.ask("INFO commandstats");
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_echo:calls=")?.split(',').next());
        calls.map_or(0, |calls| calls.parse::<usize>().unwrap())
    };
    let before = echoes();
    for _ in 0..10 {
        assert_eq!(cache.blocking().get_raw("a").unwrap(), None);
        assert_eq!(runtime.block_on(cache.get_raw("a")).unwrap(), None);
    }
    assert!(echoes() >= before + 20, "{} proofs of 20 replies", echoes() - before);
}
