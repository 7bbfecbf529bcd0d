//! What ActiveSupport's shared cache tests require of every store, reworded. The guide's page `rails_behaviours` lists
//! which of them became which test here, and which were left out and why.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use prefork_cache::stores::{MemoryStore, TieredStore, from_url};
use prefork_cache::{Cache, CacheStore};

use support::servers::{Kind, Server};
use support::wait::until;

mod compression;
mod counters;
mod encoded_keys;
mod expiry;
mod failure_safety;
mod fetch_many;
mod loading;
mod store;
mod version;

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(600);

/// Long enough for a busy machine to do everything before the wait.
const SHORT: Duration = Duration::from_secs(3);

/// Every store: memory, Redis, Memcached, and memory in front of Redis.
struct Everywhere {
    stores: Vec<Arc<dyn CacheStore>>,
    /// Stopped after the stores are gone.
    _servers: [Server; 2],
}

impl Everywhere {
    fn new() -> Everywhere {
        let [redis, memcached] = Kind::BOTH.map(Server::start);
        // Another database on the same server.
        let far = from_url(&format!("redis://127.0.0.1:{}/1", redis.port())).unwrap();
        let stores: Vec<Arc<dyn CacheStore>> = vec![
            Arc::new(MemoryStore::new()),
            from_url(&redis.url("")).unwrap(),
            from_url(&memcached.url("")).unwrap(),
            Arc::new(TieredStore::new(MemoryStore::new(), far)),
        ];
        Everywhere { stores, _servers: [redis, memcached] }
    }

    fn each_store(&self, test: impl Fn(&Arc<dyn CacheStore>)) {
        for store in &self.stores {
            // Printed if the test fails.
            println!("on {store:?}");
            test(store);
        }
    }

    fn each(&self, test: impl Fn(&Cache)) {
        self.each_store(|store| test(&Cache::builder(Arc::clone(store)).build()));
    }
}

fn everywhere(test: impl Fn(&Cache)) {
    Everywhere::new().each(test);
}

/// A loader that succeeds.
fn loads<T>(value: T) -> impl FnOnce() -> Result<T, Infallible> {
    move || Ok(value)
}

/// A loader that must not be called.
fn not_called<T>() -> Result<T, Infallible> {
    panic!("there was no need to load")
}

fn until_gone(cache: &Cache, key: &str) {
    until(&format!("{key} is gone from {cache:?}"), || !cache.blocking().exists(key).unwrap());
}

/// Waits until "k" is gone, and loads it again. No old value is read meanwhile.
fn assert_gone_and_loaded_again(cache: &Cache) {
    until_gone(cache, "k");
    let load = || {
        assert_eq!(text(cache, "k"), None);
        Ok::<_, Infallible>("baz".to_owned())
    };
    assert_eq!(cache.blocking().fetch("k", LONG, load).as_deref(), Ok("baz"));
    assert_eq!(text(cache, "k").as_deref(), Some("baz"));
}

fn text(cache: &Cache, key: &str) -> Option<String> {
    cache.blocking().get(key).unwrap()
}

/// Every test that the guide's page names exists.
#[test]
fn the_table_names_existing_tests() {
    macro_rules! files {
        ($($file:literal),+) => { [$(($file, include_str!(concat!($file, ".rs")))),+] };
    }
    let files = files!(
        "compression",
        "counters",
        "encoded_keys",
        "expiry",
        "failure_safety",
        "fetch_many",
        "loading",
        "store",
        "version"
    );
    let page = include_str!("../../../src/guide/rails_behaviours.md");
    // Long names may contain breaks.
    let page = page.replace("<wbr>", "").replace("<code>", "`").replace("</code>", "`");
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let named: Vec<&str> = rows.flat_map(|row| row.split('`')).filter(|part| is_a_test(part)).collect();
    assert!(named.len() > 80, "{} names", named.len());
    for name in named {
        let (file, test) = name.split_once("::").unwrap();
        let there = files.iter().any(|(name, text)| *name == file && text.contains(&format!("\nfn {test}() {{")));
        assert!(there, "there is no test {name}");
    }
}

/// Whether the text is `file::test`, not a method of a type.
fn is_a_test(part: &str) -> bool {
    part.split_once("::").is_some_and(|(file, test)| {
        let plain = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        plain(file) && plain(test)
    })
}
