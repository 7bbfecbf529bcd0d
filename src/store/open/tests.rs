//! The tables of URLs and options in the guide agree with the code.

use std::collections::BTreeSet;

use super::{from_url, schemes};
use crate::stores::{MemcachedBuilder, RedisBuilder};

const GUIDE: &str = include_str!("../../guide/urls.md");
const STORES: [&str; 3] = ["memory", "redis", "memcached"];

/// Returns the cells of each row of the table with this head.
fn rows(head: &str) -> Vec<Vec<&'static str>> {
    let table = GUIDE.lines().skip_while(|line| *line != head).skip(2).take_while(|line| line.starts_with('|'));
    table.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect()).collect()
}

/// Returns the options of a store and their defaults, as documented.
fn documented(store: &str) -> Vec<(&'static str, &'static str)> {
    let rows = rows("| option | stores | default | meaning |");
    let of_store = rows.iter().filter(|row| row[1].split(", ").any(|named| named == store));
    of_store.map(|row| (row[0], row[2])).collect()
}

fn known(store: &str) -> BTreeSet<String> {
    let host = if store == "memory" { "" } else { "localhost" };
    let error = from_url(&format!("{store}://{host}?no_such_option=1")).unwrap_err().to_string();
    let known = error.split_once("known are ").expect("a list of the options").1;
    known.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_schemes_are_documented() {
    let documented = rows("| URL | store |").into_iter().map(|row| row[0].split_once("://").unwrap().0);
    assert_eq!(documented.collect::<Vec<_>>(), schemes());
}

#[test]
fn the_options_of_urls_are_documented() {
    for store in STORES {
        let documented: BTreeSet<_> = documented(store).into_iter().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(documented, known(store), "{store}");
    }
}

#[test]
fn the_options_of_builders_are_documented() {
    let builders = [("redis", RedisBuilder::options()), ("memcached", MemcachedBuilder::options())];
    for (store, methods) in builders {
        let documented = documented(store).into_iter().map(|(name, _)| name).filter(|name| *name != "db");
        let (documented, methods): (BTreeSet<_>, BTreeSet<_>) = (documented.collect(), methods.into_iter().collect());
        assert_eq!(documented, methods, "{store}");
    }
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    let redis = |url: &str| crate::store::redis::understood(url);
    let memcached = |url: &str| crate::store::memcached::understood(url);
    for (store, understood) in [("redis", &redis as &dyn Fn(&str) -> String), ("memcached", &memcached)] {
        for (name, default) in documented(store).into_iter().filter(|(_, default)| !default.is_empty()) {
            // Some options are accepted only by some schemes.
            let url = match name {
                "topology_refresh" => format!("{store}+sentinel://localhost/mymaster"),
                name if name.starts_with("tls_") => format!("{store}s://localhost"),
                _ => format!("{store}://localhost"),
            };
            let given = understood(&format!("{url}?{name}={default}"));
            assert_eq!(given, understood(&url), "{name} of {store}");
        }
    }
    let memory = |options: &str| format!("{:?}", from_url(&format!("memory://{options}")).unwrap());
    for (name, default) in documented("memory").into_iter().filter(|(_, default)| !default.is_empty()) {
        assert_eq!(memory(&format!("?{name}={default}")), memory(""), "{name}");
    }
}
