//! Failovers: another server becomes the master.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;

use prefork_cache::{Cache, Error, ErrorKind, stores};

use super::{Client, TTL, WAYS, Way, url};
use crate::conformance::current_thread;
use support::fake_sentinel::{FakeSentinel, Reaction};
use support::sentinels::Group;
use support::servers::{Kind, Server};
use support::wait::{SetOnDrop, until};

/// The timeouts are long enough for a busy machine.
const PATIENT: &str = "timeout=20s&connect_timeout=20s&retry_after=1ms";

/// Returns how many markers a server has received. A client sends one with each write; other servers send none.
fn writes(server: &Server) -> usize {
    let answer = server.ask("INFO commandstats");
    let count = answer.lines().find_map(|line| line.strip_prefix("cmdstat_echo:calls="));
    count.map_or(0, |count| count.split(',').next().and_then(|count| count.parse().ok()).expect("a number"))
}

/// The load of many callers, with counts of their calls.
struct Load {
    stop: AtomicBool,
    succeeded: AtomicUsize,
    failed: AtomicUsize,
    /// The maximum number of `READONLY` errors of one caller.
    most_refused: AtomicUsize,
}

const CALLERS: usize = 8;

impl Load {
    /// Runs the callers until `meanwhile` returns.
    fn run(way: Way, cache: &Cache, meanwhile: impl FnOnce(&Load)) -> Load {
        let load = Load {
            stop: AtomicBool::new(false),
            succeeded: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            most_refused: AtomicUsize::new(0),
        };
        thread::scope(|scope| {
            let stop = SetOnDrop(&load.stop);
            match way {
                Way::Blocking => {
                    for caller in 0..CALLERS {
                        let load = &load;
                        scope.spawn(move || {
                            let mut refused = 0;
                            for number in 0.. {
                                let (key, value) = (format!("{caller}:{number}"), format!("{number}"));
                                let done =
                                    cache.blocking().set(&key, &value, TTL).and_then(|()| cache.blocking().get(&key));
                                if !load.record(done, &value, &mut refused) {
                                    break;
                                }
                            }
                        });
                    }
                }
                Way::Tokio => {
                    let load = &load;
                    scope.spawn(move || current_thread().block_on(load.run_in_tokio(cache)));
                }
            }
            meanwhile(&load);
            drop(stop);
        });
        load
    }

    async fn run_in_tokio(&self, cache: &Cache) {
        let callers = (0..CALLERS).map(|caller| async move {
            let mut refused = 0;
            for number in 0.. {
                let (key, value) = (format!("{caller}:{number}"), format!("{number}"));
                let done = match cache.set(&key, &value, TTL).await {
                    Ok(()) => cache.get(&key).await,
                    Err(error) => Err(error),
                };
                if !self.record(done, &value, &mut refused) {
                    break;
                }
                tokio::task::yield_now().await;
            }
        });
        let mut callers: Vec<_> = callers.map(Box::pin).collect();
        std::future::poll_fn(|cx| {
            callers.retain_mut(|caller| caller.as_mut().poll(cx).is_pending());
            if callers.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Records the result of a call. Returns false if the caller has to stop.
    fn record(&self, done: Result<Option<String>, Error>, value: &str, refused: &mut usize) -> bool {
        match done {
            Ok(read) => {
                // If a failover has lost the write, the read is a miss.
                assert!(read.is_none() || read.as_deref() == Some(value), "{read:?} instead of {value}");
                self.succeeded.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::SeqCst);
                assert!(error.is_transient(), "{error:#}");
                *refused += usize::from(error.kind() == ErrorKind::Server && error.to_string().contains("READONLY"));
                self.most_refused.fetch_max(*refused, Ordering::SeqCst);
            }
        }
        !self.stop.load(Ordering::SeqCst)
    }

    /// Waits until `more` further calls have succeeded.
    fn until_succeeded(&self, more: usize) {
        let before = self.succeeded.load(Ordering::SeqCst);
        until("calls succeed", || self.succeeded.load(Ordering::SeqCst) >= before + more);
    }
}

/// The old master starts to refuse writes, and closes no connection.
#[test]
fn after_one_refusal_no_request_goes_to_the_old_master() {
    for way in WAYS {
        let [old, new] = [(); 2].map(|()| Server::start(Kind::Redis));
        let sentinel = FakeSentinel::start(Reaction::port(old.port()));
        // With this `retry_after` the age of a connection does not matter.
        let options = "timeout=20s&connect_timeout=20s&retry_after=1h&topology_refresh=1h";
        let client = Client::new(way, &url(&[&sentinel], options));
        let load = Load::run(way, &client.cache, |load| {
            load.until_succeeded(200);
            sentinel.set_reaction(Reaction::port(new.port()));
            old.ask(&format!("REPLICAOF 127.0.0.1 {}", new.port()));
            until("calls go to the new master", || writes(&new) > 100);
            let before = writes(&old);
            load.until_succeeded(500);
            assert_eq!(writes(&old), before, "{way:?}");
        });
        assert_eq!(load.most_refused.into_inner(), 1, "{way:?}");
        assert_eq!(client.address(), format!("127.0.0.1:{}", new.port()));
    }
}

/// Idle connections of the pool are closed too.
#[test]
fn one_refusal_closes_all_connections() {
    let [old, new] = [(); 2].map(|()| Server::start(Kind::Redis));
    let sentinel = FakeSentinel::start(Reaction::port(old.port()));
    let url = url(&[&sentinel], &format!("{PATIENT}&topology_refresh=1h"));
    let cache = Cache::builder(stores::from_url(&url).unwrap()).build();
    cache.blocking().set("k", &0, TTL).unwrap();
    let connections = || cache.stats().servers[0].connections;
    old.pause();
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let cache = &cache;
            scope.spawn(move || cache.blocking().set("k", &caller, TTL).unwrap());
        }
        until("each caller has a connection", || connections() == CALLERS);
        old.resume();
    });
    assert_eq!((connections(), sentinel.asked()), (CALLERS, 1), "the address is still valid");
    sentinel.set_reaction(Reaction::port(new.port()));
    old.ask(&format!("REPLICAOF 127.0.0.1 {}", new.port()));
    let before = writes(&old);
    let refused = cache.blocking().set("k", &1, TTL).unwrap_err();
    assert!(refused.is_transient() && refused.to_string().contains("READONLY"), "{refused:#}");
    for number in 0..100 {
        cache.blocking().set("k", &number, TTL).unwrap();
    }
    assert_eq!(writes(&old), before + 1);
    assert_eq!(sentinel.asked(), 2);
}

/// A request that was appended to a pipeline before the refusal, but not sent, goes to the new master.
#[test]
fn unsent_requests_go_to_the_new_master() {
    let [old, new] = [(); 2].map(|()| Server::start(Kind::Redis));
    let sentinel = FakeSentinel::start(Reaction::port(old.port()));
    let url = url(&[&sentinel], &format!("{PATIENT}&topology_refresh=1h"));
    let cache = Cache::builder(stores::from_url(&url).unwrap()).build();
    let runtime = current_thread();
    runtime.block_on(cache.set("k", &"old", TTL)).unwrap();
    cache.blocking().set("k", &"old", TTL).unwrap();
    sentinel.set_reaction(Reaction::port(new.port()));
    old.ask(&format!("REPLICAOF 127.0.0.1 {}", new.port()));
    let before = writes(&old);
    let mut appended = Box::pin(cache.set("k", &"new", TTL));
    {
        // The driver, which would send it, is not polled.
        let _inside = runtime.enter();
        assert!(appended.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    assert!(cache.blocking().set("k", &"refused", TTL).unwrap_err().to_string().contains("READONLY"));
    runtime.block_on(appended).unwrap();
    assert_eq!(writes(&old), before + 1);
    assert_eq!(cache.blocking().get::<String>("k").unwrap().as_deref(), Some("new"));
}

#[test]
fn a_planned_failover() {
    for way in WAYS {
        let group = Group::start();
        let old = &group.servers[0];
        let client = Client::new(way, &group.url(PATIENT));
        let load = Load::run(way, &client.cache, |load| {
            load.until_succeeded(200);
            let answer = group.sentinels[1].ask("SENTINEL FAILOVER mymaster");
            assert!(answer.starts_with("+OK"), "{answer}");
            let new = group.new_master();
            // A server that becomes a replica closes all connections.
            until("the old master is a replica", || old.try_ask("ROLE").is_ok_and(|role| role.contains("slave")));
            until("calls go to the new master", || writes(new) > 100);
            load.until_succeeded(100);
            let before = writes(old);
            load.until_succeeded(500);
            assert_eq!(writes(old), before, "{way:?}");
        });
        assert!(load.most_refused.into_inner() <= 1, "{way:?}");
    }
}

/// The old master still accepts writes, and the sentinels have elected another one.
#[test]
fn an_isolated_master_is_abandoned() {
    for way in WAYS {
        let [old, new] = [(); 2].map(|()| Server::start(Kind::Redis));
        let sentinels = [(); 3].map(|()| FakeSentinel::start(Reaction::port(old.port())));
        let [one, two, three] = &sentinels;
        let client = Client::new(way, &url(&[one, two, three], &format!("{PATIENT}&topology_refresh=1ms")));
        client.set("k", "old").unwrap();
        // A single sentinel may be outdated or isolated itself.
        one.set_reaction(Reaction::port(new.port()));
        let asked = one.asked();
        until("it was asked again and again", || {
            assert_eq!(client.get("k").unwrap().as_deref(), Some("old"), "{way:?}");
            one.asked() > asked + 10
        });
        two.set_reaction(Reaction::port(new.port()));
        until("the new master is used", || client.get("k").unwrap().is_none());
        assert_eq!(client.address(), format!("127.0.0.1:{}", new.port()));
        let before = writes(&old);
        client.set("k", "new").unwrap();
        let asked = one.asked();
        until("it was asked again and again", || {
            assert_eq!(client.get("k").unwrap().as_deref(), Some("new"), "{way:?}");
            one.asked() > asked + 10
        });
        assert_eq!(writes(&old), before, "{way:?}");
    }
}

/// A dial that finds a new master closes the connections to the old one.
#[test]
fn connections_to_another_server_than_that_of_the_last_dial_are_closed() {
    for first in WAYS {
        let [old, new] = [(); 2].map(|()| Server::start(Kind::Redis));
        let sentinel = FakeSentinel::start(Reaction::port(old.port()));
        let url = url(&[&sentinel], &format!("{PATIENT}&topology_refresh=1ms"));
        let client = Client::new(Way::Tokio, &url);
        let blocking = |value: &str| client.cache.blocking().set("k", &value, TTL).unwrap();
        let tokio = |value: &str| client.set("k", value).unwrap();
        let [before, after]: [&dyn Fn(&str); 2] =
            if first == Way::Blocking { [&blocking, &tokio] } else { [&tokio, &blocking] };
        before("old");
        sentinel.set_reaction(Reaction::port(new.port()));
        let new_address = format!("127.0.0.1:{}", new.port());
        until("the new master is found", || {
            after("new");
            client.address() == new_address
        });
        after("new");
        let writes_before = writes(&old);
        before("newer");
        after("newest");
        assert_eq!((writes(&old), client.address()), (writes_before, new_address), "{first:?}");
    }
}

/// Unresponsive sentinels delay the caller that asks them by a part of the time for a dial, and no other caller.
#[test]
fn one_caller_per_period_asks_the_sentinels() {
    for way in WAYS {
        let server = Server::start(Kind::Redis);
        let sentinels = [(); 3].map(|()| FakeSentinel::start(Reaction::port(server.port())));
        let [one, two, three] = &sentinels;
        let client = Client::new(way, &url(&[one, two, three], "topology_refresh=1h&timeout=20s&connect_timeout=20s"));
        Load::run(way, &client.cache, |load| load.until_succeeded(2_000));
        assert_eq!([one.asked(), two.asked(), three.asked()], [1, 0, 0], "{way:?}");

        let hurried = "topology_refresh=1ms&connect_timeout=200ms&timeout=20s&pool_size=1";
        let hurried = Client::new(way, &url(&[one, two, three], hurried));
        let dials = || hurried.cache.stats().servers[0].dials;
        let load = Load::run(way, &hurried.cache, |load| {
            load.until_succeeded(10);
            sentinels.iter().for_each(|sentinel| sentinel.set_reaction(Reaction::Silence));
            let before = dials();
            load.until_succeeded(2_000);
            assert_eq!(dials(), before, "no connection is closed: {way:?}");
        });
        assert_eq!(load.failed.into_inner(), 0, "{way:?}");
    }
}

/// An open breaker stops dials, and queries of the sentinels too.
#[test]
fn sentinels_are_not_asked_on_every_call_while_the_master_is_down() {
    for way in WAYS {
        let mut server = Server::start(Kind::Redis);
        let sentinels = [(); 3].map(|()| FakeSentinel::start(Reaction::port(server.port())));
        let [one, two, three] = &sentinels;
        let options = "failures=2&retry_after=1h&topology_refresh=1h&timeout=20s&connect_timeout=20s";
        let client = Client::new(way, &url(&[one, two, three], options));
        client.set("k", "v").unwrap();
        server.kill();
        let asked = || one.asked() + two.asked() + three.asked();
        let Load { failed, .. } = Load::run(way, &client.cache, |load| {
            until("many calls fail", || load.failed.load(Ordering::SeqCst) > 2_000);
        });
        assert!(failed.into_inner() > 2_000);
        // The first dial has asked one sentinel. Each caller that loses its connection may dial once before the breaker
        // opens, and ask all sentinels.
        assert!(asked() <= 1 + 3 * CALLERS, "{way:?}: {}", asked());
        let error = client.get("k").unwrap_err();
        let words =
            format!("127.0.0.1:{} has failed, and is not tried again before retry_after is over", server.port());
        assert_eq!((error.kind(), error.to_string()), (ErrorKind::Unavailable, words));
    }
}

#[test]
fn a_replica_is_not_used() {
    for way in WAYS {
        let master = Server::start(Kind::Redis);
        let replica = Server::with(Kind::Redis, &["--replicaof", "127.0.0.1", &master.port().to_string()]);
        let [wrong, right] = [&replica, &master].map(|server| FakeSentinel::start(Reaction::port(server.port())));
        let client = Client::new(way, &url(&[&wrong, &right], PATIENT));
        client.set("k", "v").unwrap();
        assert_eq!((wrong.asked(), right.asked()), (1, 1));

        let client = Client::new(way, &url(&[&wrong], PATIENT));
        let error = client.get("k").unwrap_err();
        assert_eq!((error.kind(), error.is_transient()), (ErrorKind::Server, true));
        let expected =
            format!("127.0.0.1:{} is not a master, although sentinels name it: its role is \"slave\"", replica.port());
        assert_eq!(error.to_string(), expected);
        replica.ask("REPLICAOF NO ONE");
        until("the replica has become a master", || client.set("k", "v").is_ok());
    }
}
