//! Runs the examples as a user does, on real servers.

#![expect(unsafe_code, reason = "child processes are set to die with their parent")]

mod load;
mod run;
mod shop;

use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, TcpListener};

use nix::sys::signal::Signal;

use run::run;
use shop::Shop;
use support::cluster::Cluster;
use support::servers::{Kind, Server, free_port, url_of};
use support::wait::until;

#[test]
fn quickstart_shares_the_masters_entry() {
    let servers = Kind::BOTH.map(Server::start);
    let cluster = Cluster::without_replicas();
    let urls = servers.iter().map(|server| server.url("")).chain(["memory://".to_owned(), cluster.url("")]);
    for url in urls {
        let ended = run("quickstart", &[&url], &[]);
        assert_eq!(ended.code, 0, "{url}: {ended:?}");
        assert_eq!(ended.stdout.matches("motd:  loaded once, by the master\n").count(), 2, "{url}: {ended:?}");
    }
}

#[cfg(feature = "conformance")]
#[test]
fn custom_store_passes_every_conformance_check() {
    let ended = run("custom_store", &[], &[]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(ended.stdout.matches("passed: ").count(), prefork_cache::conformance::CHECKS.len(), "{ended:?}");
}

#[test]
fn the_bug_occurs_with_a_plain_connection_and_not_with_a_cache() {
    let server = Server::start(Kind::Redis);
    for redis_url in [Some(server.url("")), None] {
        let ended = run("the_bug", &[], &[("REDIS_URL", redis_url.as_deref())]);
        assert_eq!(ended.code, 0, "{ended:?}");
        for case in ["Cache, without after_fork()", "Cache, after_fork() in the child"] {
            for side in ["parent", "child"] {
                let row = format!("{case} {side} 2000 0 0");
                assert!(ended.stdout.lines().any(|line| single_spaced(line) == row), "{row}: {ended:?}");
            }
        }
    }
    assert!(server.ask("DBSIZE").starts_with(":0\r\n"), "entries were left behind");
}

#[test]
fn the_bug_reports_a_missing_server() {
    let url = url_of(Kind::Redis, free_port(), "");
    let ended = run("the_bug", &[], &[("REDIS_URL", Some(&url))]);
    assert_eq!((ended.code, ended.stderr.lines().count()), (2, 1), "{ended:?}");
    let ended = run("the_bug", &[], &[("REDIS_URL", None), ("PATH", Some("/nowhere"))]);
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.stderr.contains("install redis-server"), "{ended:?}");
}

#[test]
fn every_worker_has_the_masters_entries_in_memory() {
    let shop = Shop::start(&["--workers", "8"]);
    let mut first_pages = BTreeMap::new();
    until("each worker has responded", || {
        let page = shop.get("/?lang=de");
        first_pages.entry(page.worker()).or_insert(page);
        first_pages.len() == 8
    });
    assert_eq!(first_pages.keys().copied().collect::<HashSet<_>>(), shop.workers());
    for page in first_pages.values() {
        assert_eq!(page.title(), "Die Dingsbumse von acme");
        let counts = ["Treffer", "Geladen", "Neu verbunden", "Fehler"].map(|name| page.count(name));
        assert_eq!(counts, [3, 0, 0, 0], "{}", page.body);
    }
}

#[test]
fn every_worker_of_a_shared_store_shows_an_edit() {
    let (servers, cluster) = (Kind::BOTH.map(Server::start), Cluster::without_replicas());
    for url in servers.iter().map(|server| server.url("")).chain([cluster.url("")]) {
        let shop = Shop::start(&["--store", &url, "--workers", "4"]);
        assert_eq!(shop.get("/").count("Loads"), 0, "the master has loaded the widgets");
        shop.save("en", "widget.gear", "Pinion");
        let mut seen = HashSet::new();
        until("each worker has responded", || {
            let page = shop.get("/");
            assert_eq!(page.word("widget.gear"), "Pinion", "by {} of {seen:?}", page.worker());
            seen.insert(page.worker());
            seen.len() == 4
        });
    }
}

#[test]
fn only_the_worker_with_the_edit_shows_it_if_each_has_its_own_memory() {
    let shop = Shop::start(&["--store", "memory", "--workers", "3"]);
    let saved_by = shop.save("en", "widget.gear", "Pinion");
    let mut seen = HashSet::new();
    until("each worker has responded", || {
        let page = shop.get(&format!("/?lang=en&saved=widget.gear&by={saved_by}"));
        let is_author = page.worker() == saved_by;
        assert_eq!(page.word("widget.gear"), if is_author { "Pinion" } else { "Cogwheel" });
        assert_eq!(page.body.contains("its own memory without this change"), !is_author);
        seen.insert(page.worker());
        seen.len() == 3
    });
}

#[test]
fn every_response_is_correct_under_load() {
    let servers = Kind::BOTH.map(Server::start);
    for server in &servers {
        let shop = Shop::start(&["--store", &server.url(""), "--workers", "8"]);
        load::edit_and_read(&shop, |_| 0);
        assert_eq!(shop.get("/").count("Errors"), 0);
        shop.stop(Signal::SIGTERM);
    }
    let shop = Shop::start(&["--store", "memory://", "--workers", "8"]);
    load::edit_and_read(&shop, |worker| worker);
    shop.stop(Signal::SIGTERM);
}

#[test]
fn texts_are_shown_unchanged_or_refused_with_a_reason() {
    let shop = Shop::start(&["--workers", "1"]);
    for word in ["<script>alert('x')</script>", "\"Größe\" & <b>Öl</b>", "%{name} {{x}} \\", "齿轮 ⚙"] {
        shop.save("en", "widget.gear", word);
        let page = shop.get("/");
        assert_eq!(page.word("widget.gear"), word);
        assert!(!page.body.contains("<script") && !page.body.contains("<b>Öl"), "{}", page.body);
    }
    for (key, word, status, reason) in [
        ("widget.gear", "ä".repeat(10_000), 422, "10000 characters"),
        ("widget.gear", "two\nlines".to_owned(), 422, "control character"),
        ("widget.<b>", "no such word".to_owned(), 422, "no text “widget.&lt;b&gt;”"),
        ("widget.gear", "a".repeat(1 << 20), 413, "cannot be read"),
    ] {
        let refused = shop.post(&[("lang", "en"), ("key", key), ("word", &word)]);
        assert_eq!(refused.status, status);
        assert!(refused.body.contains(reason), "{reason}: {}", refused.body);
        assert_eq!(shop.get("/").word("widget.gear"), "齿轮 ⚙");
    }
    shop.save("en", "widget.gear", " ");
    let page = shop.get("/");
    assert_eq!(page.word("widget.gear"), "");
    assert!(page.body.contains("<h3>Gear</h3>"), "the default is back: {}", page.body);
    assert_eq!(shop.get("/nowhere").status, 404);
}

#[test]
fn a_store_that_is_down_is_reported_and_the_default_texts_are_served() {
    for kind in Kind::BOTH {
        let mut server = Server::start(kind);
        server.kill();
        let shop = Shop::start(&["--store", &server.url("retry_after=10ms"), "--workers", "2"]);
        let page = shop.get("/");
        assert_eq!((page.status, page.title().as_str()), (200, "Widgets"));
        assert!(page.body.contains("The store cannot be reached"), "{}", page.body);
        let not_saved = shop.post(&[("lang", "en"), ("key", "shop.title"), ("word", "Nuts")]);
        assert_eq!(not_saved.status, 503);
        assert!(not_saved.body.contains("Not saved"), "{}", not_saved.body);

        server.restart();
        until("the store is reached", || !shop.get("/").body.contains("cannot be reached"));
        until("it stores texts", || {
            shop.post(&[("lang", "en"), ("key", "shop.title"), ("word", "Nuts")]).status == 303
        });
        until("both workers show the text", || shop.get("/").title() == "Nuts");

        server.kill();
        until("the outage is reported", || shop.get("/").body.contains("cannot be reached"));
        let stderr = shop.stop(Signal::SIGTERM);
        assert!(stderr.contains("the store cannot be reached"), "{stderr}");
    }
}

#[test]
fn a_signal_stops_every_worker() {
    // A terminal sends SIGINT to the workers too.
    Shop::start(&["--workers", "8"]).stop_group(Signal::SIGINT);
    Shop::start(&["--workers", "8"]).stop(Signal::SIGINT);
    Shop::start(&["--workers", "8"]).stop(Signal::SIGTERM);
    let stderr = Shop::start(&["--workers", "1"]).stop(Signal::SIGTERM);
    assert_eq!(stderr, "");
}

#[test]
fn a_request_under_way_is_finished_before_shutdown() {
    let shop = Shop::start(&["--workers", "2"]);
    let workers = shop.workers();
    let post = shop.begin_post(&[("lang", "en"), ("key", "shop.title"), ("word", "Nuts")]);
    shop.signal(Signal::SIGTERM);
    until("the idle worker has ended", || workers.iter().any(|&worker| !shop::is_running(worker)));
    assert_eq!(post.finish().status, 303);
    shop.wait();
}

#[test]
fn no_worker_outlives_a_killed_master() {
    let shop = Shop::start(&["--workers", "3"]);
    let workers = shop.workers();
    shop.signal(Signal::SIGKILL);
    until("each worker has ended", || !workers.iter().any(|&worker| shop::is_running(worker)));
}

#[test]
fn a_worker_that_dies_is_replaced() {
    let shop = Shop::start(&["--workers", "2"]);
    let workers = shop.workers();
    let victim = shop.get("/").worker();
    shop::kill(victim);
    until("a new worker responds", || !workers.contains(&shop.get("/").worker()));
    let stderr = shop.stop(Signal::SIGTERM);
    assert!(stderr.contains(&format!("worker {victim} was killed by SIGKILL; starting another")), "{stderr}");
}

#[test]
fn a_port_in_use_is_reported() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("a bound socket has an address").port();
    let ended = run("widgets", &["--port", &port.to_string()], &[]);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains(&format!("port {port} is in use")), "{ended:?}");
}

#[test]
fn invalid_arguments_are_named_and_no_password_is_shown() {
    for (arguments, named) in [
        (&["--prot", "80"][..], "\"--prot\""),
        (&["redis://:geheim@localhost"], "\"redis...\""),
        (&["--port", "70000"], "\"70000\""),
        (&["--port=redis://:geheim@localhost"], "--port"),
        (&["--workers", "0"], "\"0\""),
        (&["--workers"], "--workers needs a value"),
        (&["--customer", "a:b"], "--customer"),
        (&["--customer="], "--customer"),
        (&["--store", "gopher://:geheim@localhost"], "\"gopher\""),
        (&["--store", "redis://user:geheim@localhost:x"], "\"localhost\""),
        (&["--store", "redis://user:geheim@localhost/x"], "\"x\""),
        (&["--store", "memory://?max_entires=1"], "\"max_entires\""),
    ] {
        let ended = run("widgets", arguments, &[]);
        assert_eq!((ended.code, ended.stderr.lines().count()), (2, 1), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains(named) && !ended.stderr.contains("geheim"), "{arguments:?}: {ended:?}");
    }
    let ended = run("widgets", &["--help"], &[]);
    assert!(ended.code == 0 && ended.stdout.contains("--store URL"), "{ended:?}");
}

#[test]
fn no_password_is_shown_anywhere() {
    let url = format!("redis://user:geheim@127.0.0.1:{}/3", free_port());
    let shop = Shop::start(&["--store", &url, "--workers", "1"]);
    let page = shop.get("/");
    assert!(page.body.contains("<td colspan=2>redis://127.0.0.1:"), "{}", page.body);
    assert!(!page.body.contains("geheim"), "{}", page.body);
    let printed = shop.printed().to_owned();
    assert!(!printed.contains("geheim"), "{printed}");
    assert!(!shop.stop(Signal::SIGTERM).contains("geheim"));
}

/// Replaces each run of white space by one space.
fn single_spaced(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}
