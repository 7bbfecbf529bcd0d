//! Stores behind sentinels: which sentinels are asked, which replies are used, and what happens to the connections to a
//! former master.

mod answers;
mod disagreement;
mod failover;

use prefork_cache::{Cache, Result, stores};
use std::time::Duration;

use crate::conformance::current_thread;
use support::fake_sentinel::FakeSentinel;

const TTL: Duration = Duration::from_secs(600);

/// The API for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Blocking,
    Tokio,
}

const WAYS: [Way; 2] = [Way::Blocking, Way::Tokio];

/// A cache behind sentinels, called through one API.
struct Client {
    cache: Cache,
    /// The runtime for `Way::Tokio`.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Client {
    fn new(way: Way, url: &str) -> Client {
        let cache = Cache::builder(stores::from_url(url).unwrap()).build();
        Client { cache, runtime: (way == Way::Tokio).then(current_thread) }
    }

    fn get(&self, key: &str) -> Result<Option<String>> {
        match &self.runtime {
            None => self.cache.blocking().get(key),
            Some(runtime) => runtime.block_on(self.cache.get(key)),
        }
    }

    fn set(&self, key: &str, value: &str) -> Result<()> {
        match &self.runtime {
            None => self.cache.blocking().set(key, &value, TTL),
            Some(runtime) => runtime.block_on(self.cache.set(key, &value, TTL)),
        }
    }

    fn address(&self) -> String {
        self.cache.stats().servers[0].address.clone()
    }
}

fn url(sentinels: &[&FakeSentinel], options: &str) -> String {
    url_of(&sentinels.iter().map(|sentinel| sentinel.port()).collect::<Vec<_>>(), options)
}

fn url_of(ports: &[u16], options: &str) -> String {
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("redis+sentinel://{}/mymaster?{options}", hosts.join(","))
}
