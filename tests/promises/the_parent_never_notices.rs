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
    all.extend(with_each_server_and_mode("after_each_action_of_a_child", after_each_action_of_a_child));
    all.extend(with_each_server("while_it_awaits_a_reply", while_it_awaits_a_reply));
    all
}

/// An action of a child with an inherited cache.
#[derive(Clone, Copy, Debug)]
enum Action {
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

const ACTIONS: [Action; 10] = [
    Action::Nothing,
    Action::FirstUse,
    Action::Drop,
    Action::Reset,
    Action::Reconnect,
    Action::AfterFork,
    Action::Exit,
    Action::ExitAfterUse,
    Action::UnderscoreExit,
    Action::Panic,
];

impl Action {
    /// Runs in the child. `mode` is how it uses the cache.
    fn perform(self, mode: Mode, cache: Cache) {
        match self {
            Action::Nothing => {}
            Action::FirstUse => Caller::new(mode, &cache).converse("child", 4),
            Action::Drop => drop(cache),
            Action::Reset => cache.reset(),
            Action::Reconnect => Caller::new(mode, &cache).reconnect().expect("the server is running"),
            Action::AfterFork => assert!(lifecycle::after_fork().forked()),
            // Runs the exit handlers of C and Rust.
            Action::Exit => std::process::exit(0),
            Action::ExitAfterUse => {
                Caller::new(mode, &cache).converse("child", 4);
                std::process::exit(0)
            }
            Action::UnderscoreExit => exit_now(0),
            Action::Panic => {
                let _unwound = cache;
                std::panic::resume_unwind(Box::new("as planned"))
            }
        }
    }

    fn assert_ended(self, child: Child<()>) {
        let expected = match self {
            Action::Exit | Action::ExitAfterUse | Action::UnderscoreExit => End::Exited(0),
            Action::Panic => End::Panicked("as planned".to_owned()),
            _ => End::Returned(()),
        };
        assert_eq!(child.end(), expected, "{self:?}");
    }
}

fn after_each_action_of_a_child(kind: Kind, mode: Mode) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    let caller = Caller::new(mode, &cache);
    caller.converse("parent before", 10);
    let before = own_connections(&server);
    for action in ACTIONS {
        for way in Way::COMMON {
            // The child's handle is a bitwise copy: dropping it there does not affect the parent.
            let copy = cache.clone();
            let child = fork_by(way, || action.perform(mode, copy));
            action.assert_ended(child);
            caller.converse("parent", 4);
            assert_eq!(own_connections(&server), before, "the parent's connections after {action:?} by {way:?}");
        }
    }
}

/// The parent has sent a command on tokio and waits for the reply, which the proxy holds until the child's action is
/// done.
fn while_it_awaits_a_reply(kind: Kind) {
    let server = Server::start(kind);
    let proxy = Proxy::before(server.port());
    let cache = cache_at(kind, proxy.port(), PATIENT);
    let runtime = current_thread_runtime();
    runtime.block_on(async {
        cache.set_raw("key", "precious", MINUTE).await.expect("the server is running");
        for action in ACTIONS {
            proxy.hold_replies_with("precious");
            let mut awaited = pin!(cache.get_raw("key"));
            until_held(&proxy, 1, awaited.as_mut()).await;
            let connects = proxy.connects();
            let copy = cache.clone();
            // The child may not use the runtime that it was forked in, so it uses the blocking API.
            let child = fork(|| {
                action.perform(Mode::Blocking, copy);
            });
            action.assert_ended(child);
            let dialled_by_child = proxy.connects() - connects;
            proxy.release();
            let answer = awaited.await.unwrap_or_else(|error| panic!("after {action:?}: {error:?}"));
            assert_eq!(answer.as_deref(), Some(&b"precious"[..]), "after {action:?}");
            cache.get_raw("key").await.unwrap_or_else(|error| panic!("after {action:?}: {error:?}"));
            assert_eq!(proxy.connects(), connects + dialled_by_child, "the parent did not dial again after {action:?}");
        }
    });
}
