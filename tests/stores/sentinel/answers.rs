//! The replies of sentinels: invalid, missing, refused, and right.

use prefork_cache::ErrorKind;

use super::{Client, WAYS, url, url_of};
use support::certificates::{Authority, Validity};
use support::fake_sentinel::{FakeSentinel, Reaction};
use support::sentinels::{Group, Sentinel};
use support::servers::{Encryption, Kind, Server};

/// The breaker is never open for long. The timeouts are long enough for a busy machine.
const EAGER: &str = "retry_after=1ms&timeout=20s&connect_timeout=10s";

/// A port on which no test server listens, since the kernel never assigns it as a free port.
const CLOSED_PORT: u16 = 1;

/// Returns replies that do not lead to the master.
fn useless() -> Vec<Reaction> {
    let mut useless = vec![
        Reaction::Silence,
        Reaction::Disconnect,
        Reaction::unknown(),
        Reaction::address("", 6379),
        Reaction::address("127.0.0.1", 0),
        Reaction::address("127.0.0.1", 70_000),
        Reaction::address("127.0.0.1", "six"),
        Reaction::address("-no.such.host.invalid", 6379),
        Reaction::address("two words", 6379),
        Reaction::address(&"long".repeat(100), 6379),
        Reaction::port(CLOSED_PORT),
        Reaction::Bytes(vec![b'$'; 10]),
        Reaction::Bytes(b"*2\r\n$9\r\n127.0.0.1\r\n".to_vec()),
        Reaction::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        Reaction::Bytes(b"-LOADING not yet\r\n".to_vec()),
        Reaction::Bytes(b"-NOAUTH Authentication required.\r\n".to_vec()),
        Reaction::Bytes(b":7\r\n".to_vec()),
        Reaction::Bytes([&b"$300000000\r\n"[..], &vec![b'x'; 1 << 20]].concat()),
    ];
    let mut two = b"*2\r\n$9\r\n127.0.0.1\r\n$4\r\n6379\r\n".to_vec();
    two.extend_from_slice(b"+surplus\r\n");
    useless.push(Reaction::Bytes(two));
    useless
}

#[test]
fn after_a_useless_reply_the_next_sentinel_is_asked() {
    let server = Server::start(Kind::Redis);
    let good = FakeSentinel::start(Reaction::port(server.port()));
    for reaction in useless() {
        for way in WAYS {
            let useless = FakeSentinel::start(reaction.clone());
            let client = Client::new(way, &url(&[&useless, &good], EAGER));
            client.set("k", "v").unwrap_or_else(|error| panic!("{reaction:?} {way:?}: {error:#}"));
            assert_eq!(client.address(), format!("127.0.0.1:{}", server.port()));
            assert_eq!(useless.asked(), 1);
            let asked = good.asked();
            client.cache.reset();
            assert_eq!(client.get("k").unwrap().as_deref(), Some("v"));
            assert_eq!(
                (useless.asked(), good.asked()),
                (1, asked + 1),
                "the sentinel that gave the right address is asked first: {reaction:?}"
            );
        }
    }
}

/// The error comes within a bounded time, has a bounded length, and names the sentinels and the master.
#[test]
fn if_all_replies_are_useless_the_call_fails() {
    for reaction in useless() {
        for way in WAYS {
            let sentinels = [reaction.clone(), reaction.clone()].map(FakeSentinel::start);
            let [one, other] = &sentinels;
            let client = Client::new(way, &url(&[one, other], "connect_timeout=200ms&failures=1000"));
            let error = client.get("k").unwrap_err();
            let text = format!("{error:#}");
            assert!(text.len() < 2_000, "{text}");
            assert!(
                error.is_transient() || reaction == Reaction::unknown() || text.contains("NOAUTH"),
                "{reaction:?}: {text}"
            );
            let names_a_server = matches!(&reaction, Reaction::Bytes(bytes) if bytes.ends_with(b"$1\r\n1\r\n"))
                || text.contains("no.such.host");
            if !names_a_server && one.asked() > 0 {
                for sentinel in &sentinels {
                    assert!(text.contains(&format!("127.0.0.1:{}", sentinel.port())), "{reaction:?}: {text}");
                }
                assert!(text.contains("\"mymaster\""), "{reaction:?}: {text}");
            }
        }
    }
}

#[test]
fn sentinels_that_have_crashed() {
    let mut group = Group::with(1, None, None);
    group.sentinels[0].kill();
    for way in WAYS {
        let client = Client::new(way, &group.url(EAGER));
        client.set("k", "v").unwrap();
        assert_eq!(client.get("k").unwrap().as_deref(), Some("v"));
    }
    let before = WAYS.map(|way| Client::new(way, &group.url("topology_refresh=1ms")));
    for client in &before {
        client.set("k", "v").unwrap();
    }
    group.sentinels.iter_mut().for_each(Sentinel::kill);
    for client in &before {
        assert_eq!(client.get("k").unwrap().as_deref(), Some("v"), "open connections stay in use");
    }
    for way in WAYS {
        let client = Client::new(way, &group.url(""));
        let failure = client.get("k").unwrap_err();
        assert_eq!((failure.kind(), failure.is_transient()), (ErrorKind::Connect, true), "{failure:#}");
        let failure = failure.to_string();
        assert!(failure.starts_with("no sentinel has named the master \"mymaster\": could not connect"), "{failure}");
        for sentinel in &group.sentinels {
            assert!(failure.contains(&sentinel.port().to_string()), "{failure}");
        }
        let _ = client.get("k").unwrap_err();
        let unavailable = client.get("k").unwrap_err();
        assert_eq!(unavailable.kind(), ErrorKind::Unavailable);
        let words = "mymaster was not found, or refused the login, and is not tried again before retry_after is over";
        assert_eq!(unavailable.to_string(), words);
    }
}

#[test]
fn a_sentinel_that_hangs() {
    let group = Group::with(1, None, None);
    group.sentinels[0].pause();
    for way in WAYS {
        let client = Client::new(way, &group.url("connect_timeout=2s"));
        client.set("k", "v").unwrap();
        assert_eq!(client.get("k").unwrap().as_deref(), Some("v"));
    }
}

#[test]
fn a_name_that_no_sentinel_knows() {
    let group = Group::with(0, None, None);
    let url = group.url("").replace("/mymaster", "/yourmaster");
    for way in WAYS {
        let error = Client::new(way, &url).get("k").unwrap_err();
        assert_eq!((error.kind(), error.is_transient()), (ErrorKind::Unsupported, false));
        let each: Vec<String> =
            group.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port())).collect();
        let [one, two, three] = each.try_into().unwrap();
        let unknown = |sentinel| format!("the sentinel {sentinel} does not know the master \"yourmaster\"");
        let expected = [one, two, three].map(unknown).join("; ");
        assert_eq!(error.to_string(), format!("no sentinel has named the master \"yourmaster\": {expected}"));
    }
}

#[test]
fn a_wrong_password_for_the_sentinels_is_not_shown() {
    let group = Group::with(0, None, Some("s3cret-of-sentinels"));
    let wrong = group.url("").replace("s3cret-of-sentinels", "wr0ng-of-sentinels");
    for way in WAYS {
        for url in [wrong.clone(), wrong.replace("?", "?sentinel_username=worker&")] {
            let client = Client::new(way, &url);
            let error = client.get("k").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Auth, "{error:#}");
            let shown = format!("{error:#} {error:?} {:?} {}", client.cache, stores_display(&url));
            assert!(!shown.contains("wr0ng"), "{shown}");
        }
        let without = group.url("").replace("&sentinel_password=s3cret-of-sentinels", "");
        assert_eq!(Client::new(way, &without).get("k").unwrap_err().kind(), ErrorKind::Auth);
        assert_eq!(Client::new(way, &group.url("")).get("k").unwrap(), None);
    }
}

fn stores_display(url: &str) -> String {
    let store = prefork_cache::stores::RedisStore::new(url).unwrap();
    format!("{store} {store:?}")
}

#[test]
fn a_password_for_the_sentinels_in_a_file_is_read_each_time() {
    let group = Group::with(0, None, Some("s3cret"));
    let file = std::env::temp_dir().join(format!("prefork-cache-sentinel-password-{}", std::process::id()));
    std::fs::write(&file, "wrong\n").unwrap();
    let given = format!("sentinel_password_file={}&retry_after=1ms", file.display());
    let url = group.url("").replace("sentinel_password=s3cret", &given);
    let clients = WAYS.map(|way| Client::new(way, &url));
    for client in &clients {
        assert_eq!(client.get("k").unwrap_err().kind(), ErrorKind::Auth);
    }
    std::fs::write(&file, "s3cret\n").unwrap();
    for client in &clients {
        support::wait::until("the new password is used", || client.get("k").is_ok());
    }
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn master_and_sentinels_have_different_users() {
    let server = Server::start(Kind::Redis);
    server.ask("ACL SETUSER worker on >s3cret ~* +@all");
    server.ask("ACL SETUSER default off");
    let lines = format!("sentinel monitor mymaster 127.0.0.1 {} 1\n", server.port());
    let sentinel = Sentinel::start(None, None, &lines);
    sentinel.ask("ACL SETUSER asker on >0ther +sentinel|get-master-addr-by-name");
    sentinel.ask("ACL SETUSER default off");
    for way in WAYS {
        let url = format!(
            "redis+sentinel://worker:s3cret@127.0.0.1:{}/mymaster/3?sentinel_username=asker&sentinel_password=0ther",
            sentinel.port()
        );
        let client = Client::new(way, &url);
        client.set("k", "v").unwrap();
        assert_eq!(client.get("k").unwrap().as_deref(), Some("v"));
    }
}

/// The certificate must be for the host that the sentinels announce.
#[test]
fn a_master_whose_certificate_is_for_another_name() {
    let authority = Authority::new();
    let good = Encryption::by(&authority);
    let identity = authority.issue("other", &["cache.example"], Validity::Now);
    let master = Server::encrypted(Kind::Redis, &Encryption { identity, ..good.clone() }, &[]);
    let sentinel =
        Sentinel::start(Some(&good), None, &format!("sentinel monitor mymaster 127.0.0.1 {} 1", master.port()));
    for way in WAYS {
        let url =
            format!("rediss+sentinel://127.0.0.1:{}/mymaster?tls_ca={}", sentinel.port(), authority.ca().display());
        let error = Client::new(way, &url).get("k").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Tls, "{error:#}");
        let address = format!("127.0.0.1:{}", master.port());
        let text = error.to_string();
        assert!(text.contains(&address) && text.contains("not for the name \"127.0.0.1\""), "{text}");
    }
}

/// An account that may use neither `ROLE` nor `INFO` is used without the check. A replica then refuses changes with
/// `READONLY`.
#[test]
fn an_account_that_may_not_ask_for_the_role() {
    for (denied, is_checked) in [("-role", true), ("-role -info", false)] {
        let master = Server::start(Kind::Redis);
        let replica = Server::with(Kind::Redis, &["--replicaof", "127.0.0.1", &master.port().to_string()]);
        for server in [&master, &replica] {
            server.ask(&format!("ACL SETUSER worker on >s3cret ~* +@all {denied}"));
        }
        for way in WAYS {
            let sentinel = FakeSentinel::start(Reaction::port(replica.port()));
            let url = url_of(&[sentinel.port()], EAGER).replace("://", "://worker:s3cret@");
            let client = Client::new(way, &url);
            let refused = client.set("k", "v").unwrap_err();
            assert_eq!((refused.kind(), refused.is_transient()), (ErrorKind::Server, true), "{refused:#}");
            let is_read_only = refused.to_string().contains("READONLY");
            assert_eq!(is_read_only, !is_checked, "{denied}: {refused}");
            sentinel.set_reaction(Reaction::port(master.port()));
            support::wait::until("the master is found", || client.set("k", "v").is_ok());
        }
    }
}

/// The sentinel and the master listen on IPv6 addresses.
#[test]
fn ipv6_addresses() {
    let server = Server::with(Kind::Redis, &["--bind", "127.0.0.1", "::1"]);
    let lines = format!("bind 127.0.0.1 ::1\nsentinel monitor mymaster ::1 {} 1\n", server.port());
    let sentinel = Sentinel::start(None, None, &lines);
    for way in WAYS {
        let client = Client::new(way, &format!("redis+sentinel://[::1]:{}/mymaster?{EAGER}", sentinel.port()));
        client.set("key", "value").unwrap();
        assert_eq!(client.get("key").unwrap().as_deref(), Some("value"), "{way:?}");
        assert_eq!(client.address(), format!("[::1]:{}", server.port()), "{way:?}");
    }
}
