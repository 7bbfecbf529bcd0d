//! Locks. Two stores on one server stand for two processes.

use std::time::Duration;

use prefork_cache::stores::{MemoryStore, from_url};
use prefork_cache::{Cache, ErrorKind, LockGuard};

use crate::cache::everywhere;
use crate::conformance::{current_thread, multi_thread};
use crate::staleness::HOUR;
use support::servers::{Kind, Server};
use support::wait::until;

fn acquired(lock: prefork_cache::Result<Option<LockGuard>>) -> LockGuard {
    lock.unwrap().expect("the lock is free")
}

#[test]
fn a_lock_is_held_until_its_release() {
    everywhere(|cache| {
        let handle = cache.blocking();
        let lock = acquired(handle.lock("report", HOUR));
        assert_eq!(lock.key(), "report");
        assert!(lock.time_left() > HOUR / 2);
        assert!(handle.lock("report", HOUR).unwrap().is_none());
        assert!(cache.namespace("other").blocking().lock("report", HOUR).unwrap().is_some(), "another key");
        handle.set("report", &1, HOUR).unwrap();
        assert!(handle.delete("report").unwrap(), "the entry is independent of the lock");
        assert!(handle.lock("report", HOUR).unwrap().is_none());
        assert!(lock.blocking_release().unwrap());
        drop(acquired(handle.lock("report", HOUR)));
        let lock = acquired(handle.lock("report", HOUR));
        handle.clear().unwrap();
        assert!(!lock.blocking_release().unwrap(), "the lock was lost");
    });
}

#[test]
fn a_lock_is_exclusive_among_processes_and_tasks() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let url = server.url("timeout=20s&connect_timeout=20s");
        let [one, other] = [(); 2].map(|()| Cache::builder(from_url(&url).unwrap()).build());
        multi_thread().block_on(async {
            let lock = acquired(one.lock("report", HOUR).await);
            assert!(other.lock("report", HOUR).await.unwrap().is_none());
            assert!(tokio::spawn(lock.release()).await.unwrap().unwrap());
            let tasks = (0..32).map(|n| {
                let cache = if n % 2 == 0 { one.clone() } else { other.clone() };
                tokio::spawn(async move { cache.lock("report", HOUR).await.unwrap() })
            });
            let mut locks = Vec::new();
            for task in tasks.collect::<Vec<_>>() {
                locks.extend(task.await.unwrap());
            }
            assert_eq!(locks.len(), 1);
            drop(locks);
            one.close(HOUR).await.unwrap();
            other.close(HOUR).await.unwrap();
            assert!(other.lock("report", HOUR).await.unwrap().is_some());
        });
    }
}

#[test]
fn a_lock_expires() {
    everywhere(|cache| {
        let lock = acquired(cache.blocking().lock("report", Duration::from_millis(900)));
        let mut next = None;
        until("the lock has expired", || {
            next = cache.blocking().lock("report", HOUR).unwrap();
            next.is_some()
        });
        assert!(!lock.blocking_release().unwrap());
        assert!(cache.blocking().lock("report", HOUR).unwrap().is_none(), "the next holder's lock is untouched");
        assert!(next.unwrap().blocking_release().unwrap());
    });
}

#[test]
fn invalid_locks_are_refused() {
    let cache = Cache::builder(MemoryStore::new()).build();
    let kind = |key, ttl| cache.blocking().lock(key, ttl).unwrap_err().kind();
    assert_eq!(kind("k", Duration::ZERO), ErrorKind::InvalidTtl);
    assert_eq!(kind("", HOUR), ErrorKind::InvalidKey);
    assert_eq!(cache.blocking().set("k:prefork-lock", &1, HOUR).unwrap_err().kind(), ErrorKind::InvalidKey);
    let server = Server::start(Kind::Redis);
    server.ask("ACL SETUSER default -@scripting");
    let without_scripts = Cache::builder(from_url(&server.url("")).unwrap()).build();
    assert_eq!(without_scripts.blocking().lock("k", HOUR).unwrap_err().kind(), ErrorKind::Unsupported);
    current_thread().block_on(async {
        assert_eq!(without_scripts.lock("k", HOUR).await.unwrap_err().kind(), ErrorKind::Unsupported);
    });
}
