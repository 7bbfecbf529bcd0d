//! Promise 4: whatever a child does, the parent's next operation succeeds on the same server connection.

use std::pin::pin;

use prefork_cache::{Cache, lifecycle};

use crate::callers::{Caller, MINUTE, PATIENT, cache_at, cache_on, current_thread_runtime, until_held};
use crate::harness::{Mode, Scenario, with_each_server, with_each_server_and_mode};
use support::forks::{Child, End, Way, exit_now, fork, fork_by};
use support::identity::own_connections;
use support::proxy::Proxy;
use support::servers::{Kind, Server};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(with_each_server_and_mode("whatever_its_child_does", whatever_its_child_does));
    all.extend(with_each_server("while_it_awaits_a_reply", while_it_awaits_a_reply));
    all
}

/// What a child does with a cache that it has inherited.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Nothing,
    FirstUse,
    Drop,
    Reset,
    Reconnect,
    AfterFork,
    Exit,
    ExitAfterUse,
    UnderscoreExit,
    Panic,
}

const DEEDS: [Deed; 10] = [
    Deed::Nothing,
    Deed::FirstUse,
    Deed::Drop,
    Deed::Reset,
    Deed::Reconnect,
    Deed::AfterFork,
    Deed::Exit,
    Deed::ExitAfterUse,
    Deed::UnderscoreExit,
    Deed::Panic,
];

impl Deed {
    /// In the child. `mode` is how it uses the cache.
    fn perform(self, mode: Mode, cache: Cache) {
        match self {
            Deed::Nothing => {}
            Deed::FirstUse => Caller::new(mode, &cache).converse("child", 4),
            Deed::Drop => drop(cache),
            Deed::Reset => cache.reset(),
            Deed::Reconnect => Caller::new(mode, &cache).reconnect().expect("the server is there"),
            Deed::AfterFork => assert!(lifecycle::after_fork().forked()),
            // What C and Rust have registered for the end of a process is run.
            Deed::Exit => std::process::exit(0),
            Deed::ExitAfterUse => {
                Caller::new(mode, &cache).converse("child", 4);
                std::process::exit(0)
            }
            Deed::UnderscoreExit => exit_now(0),
            Deed::Panic => {
                let _unwound = cache;
                std::panic::resume_unwind(Box::new("as planned"))
            }
        }
    }

    fn assert_ended(self, child: Child<()>) {
        let expected = match self {
            Deed::Exit | Deed::ExitAfterUse | Deed::UnderscoreExit => End::Exited(0),
            Deed::Panic => End::Panicked("as planned".to_owned()),
            _ => End::Returned(()),
        };
        assert_eq!(child.end(), expected, "{self:?}");
    }
}

fn whatever_its_child_does(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    let caller = Caller::new(mode, &cache);
    caller.converse("parent before", 10);
    let before = own_connections(&server);
    for deed in DEEDS {
        for way in Way::COMMON {
            // The child's handle is a copy of the bits: to drop it there takes nothing from the parent.
            let copy = cache.clone();
            let child = fork_by(way, || deed.perform(mode, copy));
            deed.assert_ended(child);
            caller.converse("parent", 4);
            assert_eq!(own_connections(&server), before, "the parent's connections after {deed:?} by {way:?}");
        }
    }
}

/// The parent has sent a command on tokio and waits for the reply, which the proxy holds until the child has done its deed.
fn while_it_awaits_a_reply(kind: Kind) {
    let server = Server::start(kind);
    let proxy = Proxy::before(server.port());
    let cache = cache_at(kind, proxy.port(), PATIENT);
    let runtime = current_thread_runtime();
    runtime.block_on(async {
        cache.set_raw("key", "precious", MINUTE).await.expect("the server is there");
        for deed in DEEDS {
            proxy.hold_replies_with("precious");
            let mut awaited = pin!(cache.get_raw("key"));
            until_held(&proxy, 1, awaited.as_mut()).await;
            let connects = proxy.connects();
            let copy = cache.clone();
            // The child may not use the runtime that it is born in: it blocks.
            let child = fork(|| {
                deed.perform(Mode::Blocking, copy);
            });
            deed.assert_ended(child);
            let dialled_by_child = proxy.connects() - connects;
            proxy.release();
            let answer = awaited.await.unwrap_or_else(|error| panic!("after {deed:?}: {error:?}"));
            assert_eq!(answer.as_deref(), Some(&b"precious"[..]), "after {deed:?}");
            cache.get_raw("key").await.unwrap_or_else(|error| panic!("after {deed:?}: {error:?}"));
            assert_eq!(proxy.connects(), connects + dialled_by_child, "the parent did not dial again after {deed:?}");
        }
    });
}
