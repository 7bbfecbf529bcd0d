//! A near store in front of a far one: which of them holds what, after which verb.

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

    fn holds(&self, near: Option<u32>, far: Option<u32>) {
        let held = [&self.near, &self.far].map(|tier| tier.blocking().get::<u32>("k").unwrap());
        assert_eq!(held, [near, far], "near and far");
    }
}

#[test]
fn each_verb_leaves_both_tiers_in_agreement() {
    let server = Server::start(Kind::Redis);
    let tiers = Tiers::new(from_url(&server.url("")).unwrap());
    let both = tiers.both.blocking();

    both.set("k", &1, TTL).unwrap();
    tiers.holds(Some(1), Some(1));
    both.delete("k").unwrap();
    tiers.holds(None, None);

    tiers.far.blocking().set("k", &2, TTL).unwrap();
    assert_eq!(both.get("k").unwrap(), Some(2));
    tiers.holds(Some(2), Some(2));
    assert!(!both.add("k", &3, TTL).unwrap());
    tiers.holds(None, Some(2));

    assert_eq!(
        both.get_many::<u32>(&["k", "other"]).into_iter().map(Result::unwrap).collect::<Vec<_>>(),
        [Some(2), None]
    );
    tiers.holds(Some(2), Some(2));
    assert!(both.replace("k", &4, TTL).unwrap());
    tiers.holds(None, Some(4));
    assert_eq!(both.update("k", TTL, |held: Option<u32>| held.map(|held| held + 1)).unwrap(), Some(5));
    tiers.holds(None, Some(5));

    both.set_many(&[("k", 6)], TTL).into_iter().for_each(Result::unwrap);
    tiers.holds(Some(6), Some(6));
    assert!(both.touch("k", TTL).unwrap());
    tiers.holds(None, Some(6));
    assert_eq!(both.get("k").unwrap(), Some(6));
    both.clear().unwrap();
    tiers.holds(None, None);
}

/// A fetch that is about to load asks the far store, where another process may have put the value meanwhile.
#[test]
fn the_latest_value_is_the_far_stores() {
    let server = Server::start(Kind::Redis);
    let tiers = Tiers::new(from_url(&server.url("")).unwrap());
    let both = tiers.both.blocking();
    both.set("k", &1, TTL).unwrap();
    both.expire("k").unwrap();
    assert_eq!(both.get("k").unwrap(), Some(1), "the near store has the stale value too");
    tiers.far.blocking().set("k", &2, TTL).unwrap();
    assert_eq!(both.fetch("k", TTL, || Err::<u32, _>("not asked")), Ok(2));
    tiers.holds(Some(2), Some(2));
    assert_eq!(both.stats().loads, 0);
}

#[test]
fn the_near_store_may_answer_for_as_long_as_one_likes() {
    let near: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let both = Cache::builder(TieredStore::new(Arc::clone(&near), MemoryStore::new()).near_ttl(Duration::MAX)).build();
    both.blocking().set("k", &1, Ttl::Never).unwrap();
    assert!(Cache::builder(near).build().blocking().exists("k").unwrap());
}

#[test]
fn both_tell_how_they_came_into_a_process() {
    let near = MemoryStore::builder().build();
    let far = TieredStore::new(MemoryStore::new(), from_url("redis://localhost").unwrap());
    let refreshed = TieredStore::new(near, far).refresh();
    assert_eq!(refreshed.to_string(), "tiered (near warm, far tiered (near warm, far reset))");
    assert!(refreshed.has_reset());
    assert!(!TieredStore::new(MemoryStore::new(), MemoryStore::new()).refresh().has_reset());
}

/// What the far store did not take, the near one does not show.
#[test]
fn a_write_that_fails_is_nowhere() {
    let dead = format!("redis://127.0.0.1:{}", free_port());
    let tiers = Tiers::new(from_url(&dead).unwrap());
    tiers.near.blocking().set("k", &1, TTL).unwrap();
    assert_eq!(tiers.both.blocking().get("k").unwrap(), Some(1), "the near store answers");
    let error = tiers.both.blocking().set("k", &2, TTL).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert_eq!(tiers.near.blocking().get::<u32>("k").unwrap(), None);
    let results = tiers.both.blocking().set_many(&[("k", 3)], TTL);
    assert!(results[0].is_err());
    assert_eq!(tiers.near.blocking().get::<u32>("k").unwrap(), None);
}
