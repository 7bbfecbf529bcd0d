//! What a fetch must not do beside other operations: store a value that was deleted, keep a lease that cannot be
//! released, wait for itself, or wait without a bound.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use prefork_cache::stores::{MemoryStore, from_url};
use prefork_cache::{Cache, Error, ErrorKind, Loaded};

use crate::cache::everywhere;
use crate::conformance::current_thread;
use crate::staleness::{HOUR, STALE_FOR_AN_HOUR, make_stale};
use support::servers::{Kind, Server};
use support::wait::until;

#[test]
fn a_value_deleted_during_its_load_is_not_stored() {
    everywhere(|cache| {
        let cache = cache.blocking();
        make_stale(cache, "k", 1);
        let fetched = cache.fetch_many(&["k"], STALE_FOR_AN_HOUR, |_| {
            assert!(cache.delete("k").unwrap());
            vec![Ok::<u32, Infallible>(2)]
        });
        assert_eq!(fetched, [Ok(2)]);
        assert_eq!(cache.get::<u32>("k").unwrap(), None, "neither the old value nor the new one");
        make_stale(cache, "k", 1);
        let fetched = cache.fetch("k", STALE_FOR_AN_HOUR, || {
            assert!(cache.delete("k").unwrap());
            Ok::<u32, Infallible>(2)
        });
        assert_eq!(fetched, Ok(2));
        assert_eq!(cache.get::<u32>("k").unwrap(), None);
    });
}

#[test]
fn fetch_many_does_not_overwrite_a_value_set_meanwhile() {
    everywhere(|cache| {
        let cache = cache.blocking();
        let fetched = cache.fetch_many(&["a", "b"], HOUR, |_| {
            cache.set("a", &2, HOUR).unwrap();
            vec![Ok::<u32, Infallible>(1), Ok(1)]
        });
        assert_eq!(fetched, [Ok(1), Ok(1)]);
        assert_eq!((cache.get("a").unwrap(), cache.get("b").unwrap()), (Some(2), Some(1)));
    });
}

/// Two caches stand for two processes, with the same keys in opposite order. Each key is loaded by one, and the other
/// waits for it.
#[test]
fn many_keys_are_loaded_once_among_processes() {
    for kind in Kind::BOTH {
        let server = Server::start(kind);
        let process = || Cache::builder(from_url(&server.url("timeout=20s")).unwrap()).load_timeout(HOUR).build();
        let [one, other] = [process(), process()];
        let loads = AtomicUsize::new(0);
        for round in 0..20 {
            let keys: Vec<String> = (0..20).map(|n| format!("k{round}:{n}")).collect();
            let forwards: Vec<&str> = keys.iter().map(String::as_str).collect();
            let backwards: Vec<&str> = forwards.iter().rev().copied().collect();
            let load = |missing: &[&str]| {
                loads.fetch_add(missing.len(), Ordering::SeqCst);
                missing.iter().map(|key| Ok::<String, Infallible>((*key).to_owned())).collect()
            };
            std::thread::scope(|scope| {
                let fetching = scope.spawn(|| one.blocking().fetch_many(&forwards, HOUR, load));
                let fetched = other.blocking().fetch_many(&backwards, HOUR, load);
                assert_eq!(fetched, backwards.iter().map(|key| Ok((*key).to_owned())).collect::<Vec<_>>());
                assert_eq!(fetching.join().unwrap().len(), 20);
            });
            assert_eq!(loads.swap(0, Ordering::SeqCst), 20, "{kind:?}");
        }
    }
}

/// An account that may take a lease but not release it would block the key for as long as the lease lasts.
#[test]
fn without_scripts_loads_work_without_leases() {
    let server = Server::start(Kind::Redis);
    server.ask("ACL SETUSER default -@scripting");
    let reported = Arc::new(Mutex::new(Vec::new()));
    let process = || {
        let reported = Arc::clone(&reported);
        let report = move |error: &Error| reported.lock().unwrap().push((error.kind(), error.to_string()));
        Cache::builder(from_url(&server.url("")).unwrap()).load_timeout(HOUR).on_error(report).build()
    };
    let [one, other] = [process(), process()];
    for cache in [&one, &other] {
        let declined = || Ok::<_, Infallible>(Loaded::uncached(1));
        assert_eq!(cache.blocking().fetch_loaded("k", declined), Ok(1), "no lease is waited for");
    }
    for value in [2, 3] {
        assert_eq!(
            one.blocking().fetch("k", STALE_FOR_AN_HOUR, || Ok::<u32, Infallible>(value)),
            Ok(2),
            "the value is stored"
        );
    }
    let reported = std::mem::take(&mut *reported.lock().unwrap());
    let kinds: Vec<ErrorKind> = reported.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [ErrorKind::Unsupported; 2], "once in each process");
    assert!(reported[0].1.contains("+@scripting"), "{}", reported[0].1);
    let change = |_: Option<u32>| Some(4);
    let refused = [
        one.blocking().update("k", HOUR, change).unwrap_err(),
        one.blocking().touch("k", HOUR).unwrap_err(),
        one.blocking().expire("k").unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("EVALSHA (+@scripting)"), "{error}");
    }
}

/// The task can only run on this thread.
#[test]
fn a_blocking_fetch_does_not_wait_for_a_task_of_its_own_thread() {
    everywhere(|cache| {
        current_thread().block_on(async {
            let (begun, has_begun) = tokio::sync::oneshot::channel();
            let (release, released) = tokio::sync::oneshot::channel::<()>();
            let leading = cache.clone();
            let leader = tokio::spawn(async move {
                let load = async || {
                    begun.send(()).unwrap();
                    released.await.unwrap();
                    Ok::<u32, Infallible>(1)
                };
                leading.fetch("k", HOUR, load).await
            });
            has_begun.await.unwrap();
            assert_eq!(cache.blocking().fetch("k", HOUR, || Ok::<u32, Infallible>(2)), Ok(2));
            let many = cache.blocking().fetch_many(&["k"], HOUR, |_| vec![Ok::<u32, Infallible>(3)]);
            assert_eq!(many, [Ok(3)]);
            release.send(()).unwrap();
            assert_eq!(leader.await.unwrap(), Ok(1));
            assert_eq!(cache.get("k").await.unwrap(), Some(1));
        });
    });
}

/// Runs a future on its own thread, inside a runtime that another thread drives.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}

#[test]
fn a_detached_fetch_ends_with_its_runtime() {
    let cache = Cache::builder(MemoryStore::new()).build();
    for load_begins in [false, true] {
        let runtime = current_thread();
        let (begun, has_begun) = mpsc::channel();
        let handle = runtime.handle().clone();
        let ended = std::thread::scope(|scope| {
            let caller = scope.spawn(|| {
                let _entered = handle.enter();
                let load = move || async move {
                    begun.send(()).unwrap();
                    if load_begins {
                        std::future::pending::<()>().await;
                    }
                    Ok::<u32, Infallible>(1)
                };
                catch_unwind(AssertUnwindSafe(|| block_on(cache.fetch_detached("k", HOUR, load))))
            });
            if load_begins {
                while has_begun.try_recv().is_err() {
                    runtime.block_on(tokio::task::yield_now());
                }
            } else {
                // No thread drives the runtime.
                let tasks = || handle.metrics().num_alive_tasks();
                until("the load is spawned", || tasks() == 1);
            }
            drop(runtime);
            caller.join().unwrap()
        });
        match ended {
            Ok(fetched) => assert_eq!((fetched, load_begins), (Ok(1), false), "the caller has run its loader"),
            Err(panic) => {
                assert!(load_begins);
                let text = panic.downcast_ref::<&str>().expect("a message");
                assert!(text.contains("was shut down before the load had ended"), "{text}");
            }
        }
    }
}

/// One of the callers whose wait has timed out loads, and the others wait for it.
#[test]
fn callers_that_time_out_do_not_all_load() {
    let cache = Cache::builder(MemoryStore::new()).load_timeout(Duration::from_millis(500)).build();
    let loads = AtomicUsize::new(0);
    let (begun, has_begun) = mpsc::channel();
    let (release, released) = mpsc::channel();
    std::thread::scope(|scope| {
        let stuck = scope.spawn(|| {
            let (begun, released) = (begun, released);
            let load = || {
                begun.send(()).unwrap();
                released.recv().unwrap();
                Ok::<u32, Infallible>(1)
            };
            cache.blocking().fetch("k", HOUR, load)
        });
        has_begun.recv().unwrap();
        let waiting: Vec<_> = (0..50)
            .map(|_| {
                scope.spawn(|| {
                    let load = || {
                        loads.fetch_add(1, Ordering::SeqCst);
                        Ok::<u32, Infallible>(2)
                    };
                    cache.blocking().fetch("k", HOUR, load)
                })
            })
            .collect();
        waiting.into_iter().for_each(|waiting| assert_eq!(waiting.join().unwrap(), Ok(2)));
        release.send(()).unwrap();
        assert_eq!(stuck.join().unwrap(), Ok(1));
    });
    assert_eq!(loads.into_inner(), 1);
}

/// Loads a key while the server evicts other entries. `change` runs at the end of the load.
fn load_under_pressure([loading, other]: [&Cache; 2], key: &str, fillers: usize, change: impl FnOnce()) {
    let load = || {
        for n in 0..fillers {
            other.blocking().set_raw(&format!("filler for {key}, {n}"), vec![0_u8; FILLER], HOUR).unwrap();
        }
        change();
        Ok::<String, Infallible>(key.to_owned())
    };
    assert_eq!(loading.blocking().fetch(key, 10 * HOUR, load).as_deref(), Ok(key));
}

const FILLER: usize = 20 << 10;

/// Loads many keys, and deletes as many during their loads: the loaded values are kept, the deleted ones are not.
fn loads_are_kept(server: &Server, policy: &str, fillers: usize) {
    const ROUNDS: usize = 200;
    let process = || Cache::builder(from_url(&server.url("timeout=20s")).unwrap()).build();
    let (loading, other) = (process(), process());
    let both = [&loading, &other];
    let mut kept = 0;
    for round in 0..ROUNDS {
        let key = format!("k{round}");
        load_under_pressure(both, &key, fillers, || ());
        kept += usize::from(other.blocking().get(&key).unwrap() == Some(key));
        let key = format!("deleted {round}");
        load_under_pressure(both, &key, fillers, || assert!(!other.blocking().delete(&key).unwrap()));
        assert_eq!(other.blocking().get::<String>(&key).unwrap(), None, "{policy}: a value from before the delete");
    }
    println!("{policy}: {kept} of {ROUNDS} kept");
    assert!(100 * kept >= 99 * ROUNDS, "{policy}: {kept} of {ROUNDS} kept");
    assert!(!server.ask("INFO stats").contains("evicted_keys:0\r"), "entries were evicted");
}

/// The policy evicts the entries with the shortest TTL first. A lease has a long TTL, so it stays.
#[test]
fn loads_are_kept_while_the_server_evicts_by_ttl() {
    let server = Server::with(Kind::Redis, &["--maxmemory", "6mb", "--maxmemory-policy", "volatile-ttl"]);
    loads_are_kept(&server, "volatile-ttl", 80);
}

/// Taking a lease counts as a use. Redis measures idle time in seconds, so the entries to be evicted first have to be
/// older than that, as on a server whose memory lasts for longer than a load.
#[test]
fn loads_are_kept_while_the_server_evicts_by_last_use() {
    let limits = ["--maxmemory", "48mb", "--maxmemory-policy", "allkeys-lru", "--maxmemory-samples", "10"];
    let server = Server::with(Kind::Redis, &limits);
    let cache = Cache::builder(from_url(&server.url("timeout=20s")).unwrap()).build();
    let mut old = 0;
    while server.ask("INFO stats").contains("evicted_keys:0\r") {
        for _ in 0..50 {
            cache.blocking().set_raw(&format!("old-{old}"), vec![0_u8; FILLER], HOUR).unwrap();
            old += 1;
        }
    }
    // The newest entry: it is unlikely to be evicted yet.
    let idle = format!("OBJECT IDLETIME old-{}", old - 1);
    until("the entries are some seconds old", || {
        let reply = server.ask(&idle);
        reply.trim_start_matches(':').lines().next().and_then(|seconds| seconds.parse().ok()).unwrap_or(2) >= 2
    });
    loads_are_kept(&server, "allkeys-lru", 2);
}
