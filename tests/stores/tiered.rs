//! A near store in front of a far one: which of them has which value after each operation.

use std::sync::Arc;
use std::time::Duration;

use prefork_cache::stores::{MemoryStore, TieredStore, from_url};
use prefork_cache::{Cache, CacheStore, ErrorKind, Ttl};

use support::servers::{Kind, Server, free_port};

const TTL: Duration = Duration::from_secs(600);

struct Tiers {
    near: Cache,
    far: Cache,
    both: Cache,
}

impl Tiers {
    fn new(far: Arc<dyn CacheStore>) -> Tiers {
        let near: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
        let tiered = TieredStore::new(Arc::clone(&near), Arc::clone(&far)).near_ttl(TTL);
        let [near, far] = [near, far].map(|store| Cache::builder(store).build());
        Tiers { near, far, both: Cache::builder(tiered).build() }
    }

    fn assert_tiers(&self, near: Option<u32>, far: Option<u32>) {
        let stored = [&self.near, &self.far].map(|tier| tier.blocking().get::<u32>("k").unwrap());
        assert_eq!(stored, [near, far], "near and far");
    }
}

#[test]
fn both_tiers_agree_after_each_operation() {
    let server = Server::start(Kind::Redis);
    let tiers = Tiers::new(from_url(&server.url("")).unwrap());
    let both = tiers.both.blocking();

    both.set("k", &1, TTL).unwrap();
    tiers.assert_tiers(Some(1), Some(1));
    both.delete("k").unwrap();
    tiers.assert_tiers(None, None);

    tiers.far.blocking().set("k", &2, TTL).unwrap();
    assert_eq!(both.get("k").unwrap(), Some(2));
    tiers.assert_tiers(Some(2), Some(2));
    assert!(!both.add("k", &3, TTL).unwrap());
    tiers.assert_tiers(None, Some(2));

    assert_eq!(
        both.get_many::<u32>(&["k", "other"]).into_iter().map(Result::unwrap).collect::<Vec<_>>(),
        [Some(2), None]
    );
    tiers.assert_tiers(Some(2), Some(2));
    assert!(both.replace("k", &4, TTL).unwrap());
    tiers.assert_tiers(None, Some(4));
    assert_eq!(both.update("k", TTL, |previous: Option<u32>| previous.map(|previous| previous + 1)).unwrap(), Some(5));
    tiers.assert_tiers(None, Some(5));

    both.set_many(&[("k", 6)], TTL).into_iter().for_each(Result::unwrap);
    tiers.assert_tiers(Some(6), Some(6));
    assert!(both.touch("k", TTL).unwrap());
    tiers.assert_tiers(None, Some(6));
    assert_eq!(both.get("k").unwrap(), Some(6));
    both.clear().unwrap();
    tiers.assert_tiers(None, None);
}

/// Before a load, a fetch reads the far store: another process may have stored the value there meanwhile.
#[test]
fn the_far_store_has_the_latest_value() {
    let server = Server::start(Kind::Redis);
    let tiers = Tiers::new(from_url(&server.url("")).unwrap());
    let both = tiers.both.blocking();
    both.set("k", &1, TTL).unwrap();
    both.expire("k").unwrap();
    assert_eq!(both.get("k").unwrap(), Some(1), "the near store has the stale value too");
    tiers.far.blocking().set("k", &2, TTL).unwrap();
    assert_eq!(both.fetch("k", TTL, || Err::<u32, _>("not called")), Ok(2));
    tiers.assert_tiers(Some(2), Some(2));
    assert_eq!(both.stats().loads, 0);
}

#[test]
fn the_longest_near_ttl_is_accepted() {
    let near: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let both = Cache::builder(TieredStore::new(Arc::clone(&near), MemoryStore::new()).near_ttl(Duration::MAX)).build();
    both.blocking().set("k", &1, Ttl::Never).unwrap();
    assert!(Cache::builder(near).build().blocking().exists("k").unwrap());
}

#[test]
fn a_refresh_reports_both_tiers() {
    let near = MemoryStore::builder().build();
    let far = TieredStore::new(MemoryStore::new(), from_url("redis://localhost").unwrap());
    let refreshed = TieredStore::new(near, far).refresh();
    assert_eq!(refreshed.to_string(), "tiered (near warm, far tiered (near warm, far reset))");
    assert!(refreshed.has_reset());
    assert!(!TieredStore::new(MemoryStore::new(), MemoryStore::new()).refresh().has_reset());
}

/// A value that the far store did not accept is not in the near store either.
#[test]
fn a_failed_write_is_in_neither_tier() {
    let dead = format!("redis://127.0.0.1:{}", free_port());
    let tiers = Tiers::new(from_url(&dead).unwrap());
    tiers.near.blocking().set("k", &1, TTL).unwrap();
    assert_eq!(tiers.both.blocking().get("k").unwrap(), Some(1), "the near store has the value");
    let error = tiers.both.blocking().set("k", &2, TTL).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert_eq!(tiers.near.blocking().get::<u32>("k").unwrap(), None);
    let results = tiers.both.blocking().set_many(&[("k", 3)], TTL);
    assert!(results[0].is_err());
    assert_eq!(tiers.near.blocking().get::<u32>("k").unwrap(), None);
}
