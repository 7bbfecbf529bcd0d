//! `fetch_many`.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prefork_cache::Cache;
use prefork_cache::stores::{MemoryStore, from_url};

use crate::cache::everywhere;
use crate::conformance::current_thread;
use crate::staleness::{HOUR, make_stale};
use support::servers::{Kind, Server};

#[test]
fn many_keys_are_loaded_together() {
    everywhere(|cache| {
        let cache = cache.blocking();
        assert!(
            cache
                .fetch_many(&[""; 0], HOUR, |_| -> Vec<Result<u32, String>> { panic!("nothing is missing") })
                .is_empty()
        );
        cache.set("a", &1, HOUR).unwrap();
        make_stale(cache, "b", 2);
        make_stale(cache, "c", 3);
        let before = cache.stats();
        let fetched = cache.fetch_many(&["d", "a", "b", "d", "c", "", "e"], HOUR, |missing| {
            assert_eq!(missing, ["d", "b", "c", "", "e"]);
            vec![Ok(40), Ok(20), Err("c fails".to_owned()), Ok(50), Err("e fails".to_owned())]
        });
        let expected: [Result<u32, &str>; 7] = [Ok(40), Ok(1), Ok(20), Ok(40), Ok(3), Ok(50), Err("e fails")];
        assert_eq!(fetched, expected.map(|result| result.map_err(str::to_owned)));
        let stats = cache.stats();
        assert_eq!((stats.loads - before.loads, stats.failed_loads - before.failed_loads), (5, 2));
        assert_eq!(stats.errors - before.errors, 1, "for the empty key");
        let stored: Vec<Option<u32>> = cache.get_many(&["d", "b", "c", "e"]).into_iter().map(Result::unwrap).collect();
        assert_eq!(stored, [Some(40), Some(20), Some(3), None]);
        let none = |_: &[&str]| -> Vec<Result<u32, String>> { panic!("nothing is missing") };
        assert_eq!(cache.fetch_many(&["d", "b"], HOUR, none), [Ok(40), Ok(20)]);
    });
}

#[test]
#[should_panic = "the loader was asked for 2 keys, and has answered for 1"]
fn a_loader_returns_a_result_for_every_key() {
    let cache = Cache::builder(MemoryStore::new()).build();
    let _ = cache.blocking().fetch_many(&["a", "b"], HOUR, |_| vec![Ok::<u32, Infallible>(1)]);
}

/// Two callers that fetch the same keys in a different order do not deadlock.
#[test]
fn concurrent_batches_load_each_key_once() {
    let cache = Cache::builder(MemoryStore::new()).load_timeout(HOUR).build();
    current_thread().block_on(async {
        let loaded = std::sync::Mutex::new(Vec::new());
        let load = async |missing: Vec<&str>| {
            loaded.lock().unwrap().extend(missing.iter().map(|key| (*key).to_owned()));
            tokio::task::yield_now().await;
            missing.iter().map(|_| Ok::<u32, Infallible>(1)).collect()
        };
        let (one, other, third) = tokio::join!(
            cache.fetch_many(&["a", "b"], HOUR, load),
            cache.fetch_many(&["b", "c", "a"], HOUR, load),
            cache.fetch("b", HOUR, async || -> Result<u32, Infallible> { panic!("another caller loads") }),
        );
        assert_eq!((one, other, third), (vec![Ok(1); 2], vec![Ok(1); 3], Ok(1)));
        let mut loaded = loaded.into_inner().unwrap();
        loaded.sort();
        assert_eq!(loaded, ["a", "b", "c"]);
    });
}

/// The keys of the server that is down are loaded. The others come from their server.
#[test]
fn many_keys_are_fetched_while_a_server_is_down() {
    let mut servers = [(); 2].map(|()| Server::start(Kind::Memcached));
    let hosts = servers.each_ref().map(|server| format!("127.0.0.1:{}", server.port())).join(",");
    let url = format!("memcached://{hosts}?failover=false&timeout=20s&connect_timeout=20s");
    let reported = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&reported);
    let cache = Cache::builder(from_url(&url).unwrap()).on_error(move |_| _ = count.fetch_add(1, Ordering::SeqCst));
    let cache = cache.build();
    let cache = cache.blocking();
    let keys: Vec<String> = (0..20).map(|n| format!("k{n}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let load = |missing: &[&str]| -> Vec<Result<String, Infallible>> {
        missing.iter().map(|key| Ok((*key).to_owned())).collect()
    };
    cache.fetch_many(&keys, HOUR, load);
    servers[0].kill();
    let mut loaded = 0;
    let fetched = cache.fetch_many(&keys, HOUR, |missing| {
        loaded = missing.len();
        load(missing)
    });
    assert!((1..20).contains(&loaded), "{loaded} keys of the server that is down");
    assert_eq!(fetched, keys.iter().map(|key| Ok((*key).to_owned())).collect::<Vec<_>>());
    assert_eq!(reported.load(Ordering::SeqCst), loaded, "one failure for each key");
}
