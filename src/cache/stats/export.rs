//! Statistics as JSON and in the text format of Prometheus.

use std::fmt::Write;

use serde_json::json;

use super::Stats;
use crate::server_stats::ServerStats;

/// Returns the value of a metric.
type Of<T> = fn(&T) -> u64;

/// The metrics of a cache: name, help text and value.
const OF_CACHE: [(&str, &str, Of<Stats>); 10] = [
    ("hits", "Reads that found an entry.", |stats| stats.hits),
    ("misses", "Reads that found no entry.", |stats| stats.misses),
    ("undecodable", "Hits treated as misses, because they did not decode.", |stats| stats.undecodable),
    ("stale", "Reads that found a stale value.", |stats| stats.stale),
    ("loads", "Keys passed to loaders.", |stats| stats.loads),
    ("failed_loads", "Keys that loaders failed to load.", |stats| stats.failed_loads),
    ("coalesced", "Fetches that got a value from the load of another caller.", |stats| stats.coalesced),
    ("errors", "Operations that failed.", |stats| stats.errors),
    ("reconnects", "How often all connections were replaced.", |stats| stats.reconnects),
    ("sockets_cut", "Inherited sockets that were cut.", |stats| stats.sockets_cut),
];

/// The metrics of a server.
const OF_SERVER: [(&str, Kind, &str, Of<ServerStats>); 5] = [
    ("connections", Kind::Gauge, "Connections, idle or not.", |server| server.connections as u64),
    ("in_flight", Kind::Gauge, "Requests without a reply yet.", |server| server.in_flight as u64),
    ("dials", Kind::Counter, "Attempts to connect.", |server| server.dials),
    ("timeouts", Kind::Counter, "Dials and requests that took too long.", |server| server.timeouts),
    ("is_down", Kind::Gauge, "Whether the server is down and not dialled.", |server| u64::from(server.is_down)),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

impl Stats {
    /// Returns the statistics as a JSON object with the names of the fields. `servers` is an array of objects with the
    /// fields of [`ServerStats`].
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// assert!(cache.stats().to_json().starts_with(r#"{"coalesced":0,"errors":0,"failed_loads":0,"hits":0"#));
    /// ```
    pub fn to_json(&self) -> String {
        let server = |server: &ServerStats| {
            let ServerStats { address, connections, in_flight, dials, timeouts, is_down } = server;
            json!({ "address": address, "connections": connections, "in_flight": in_flight, "dials": dials,
                    "timeouts": timeouts, "is_down": is_down })
        };
        let mut object = json!({ "servers": self.servers.iter().map(server).collect::<Vec<_>>() });
        for (name, _, value) in OF_CACHE {
            object[name] = value(self).into();
        }
        object.to_string()
    }

    /// Returns the statistics of several caches, by name, in the
    /// [text format of Prometheus](https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format):
    /// `prefork_cache_hits_total{cache="default"}` and so on, and for each server
    /// `prefork_cache_server_connections{cache="default",server="127.0.0.1:6379"}`. They count this process only.
    /// Where a host has several workers, distinguish them by a label of the scrape.
    ///
    /// ```
    /// use prefork_cache::{Cache, Stats, stores::MemoryStore};
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let text = Stats::to_prometheus(&[("words", cache.stats())]);
    /// assert!(text.contains("\nprefork_cache_hits_total{cache=\"words\"} 0\n"));
    /// ```
    pub fn to_prometheus(caches: &[(&str, Stats)]) -> String {
        let mut text = String::new();
        for (name, what, value) in OF_CACHE {
            let samples = caches.iter().map(|(cache, stats)| (label("cache", cache), value(stats)));
            metric(&mut text, &format!("prefork_cache_{name}"), Kind::Counter, what, samples);
        }
        for (name, kind, what, value) in OF_SERVER {
            let of_cache = |(cache, stats): &(&str, Stats)| {
                let sample = |server: &ServerStats| {
                    (format!("{},{}", label("cache", cache), label("server", &server.address)), value(server))
                };
                stats.servers.iter().map(sample).collect::<Vec<_>>()
            };
            let samples = caches.iter().flat_map(of_cache);
            metric(&mut text, &format!("prefork_cache_server_{name}"), kind, what, samples);
        }
        text
    }
}

fn metric(text: &mut String, name: &str, kind: Kind, what: &str, samples: impl Iterator<Item = (String, u64)>) {
    let (name, kind) = match kind {
        Kind::Counter => (format!("{name}_total"), "counter"),
        Kind::Gauge => (name.to_owned(), "gauge"),
    };
    let mut line = |line: std::fmt::Arguments<'_>| text.write_fmt(line).expect("writing to a string succeeds");
    line(format_args!("# HELP {name} {what}\n# TYPE {name} {kind}\n"));
    for (labels, value) in samples {
        line(format_args!("{name}{{{labels}}} {value}\n"));
    }
}

/// Returns a label with its value escaped.
fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}

#[cfg(test)]
mod tests {
    use super::{ServerStats, Stats};

    fn stats() -> Stats {
        let server = ServerStats {
            address: "127.0.0.1:6379".to_owned(),
            connections: 2,
            in_flight: 1,
            dials: 3,
            timeouts: 0,
            is_down: true,
        };
        Stats { hits: 7, servers: vec![server], ..Stats::default() }
    }

    /// Other programs rely on these names.
    #[test]
    fn every_field_is_in_the_json() {
        assert_eq!(
            stats().to_json(),
            r#"{"coalesced":0,"errors":0,"failed_loads":0,"hits":7,"loads":0,"misses":0,"reconnects":0,"servers":[{"#
                .to_owned()
                + r#""address":"127.0.0.1:6379","connections":2,"dials":3,"in_flight":1,"is_down":true,"timeouts":0}],"#
                + r#""sockets_cut":0,"stale":0,"undecodable":0}"#
        );
    }

    #[test]
    fn each_metric_is_described_once_for_several_caches() {
        let text = Stats::to_prometheus(&[("a\"b", stats()), ("c", stats())]);
        assert_eq!(text.matches("# TYPE prefork_cache_hits_total counter\n").count(), 1);
        assert!(
            text.contains("prefork_cache_hits_total{cache=\"a\\\"b\"} 7\nprefork_cache_hits_total{cache=\"c\"} 7\n")
        );
        let server = "prefork_cache_server_is_down{cache=\"c\",server=\"127.0.0.1:6379\"} 1\n";
        assert!(text.ends_with(server), "{text}");
        assert_eq!(text.matches("# TYPE ").count(), 15);
    }
}
