use std::time::Duration;

use super::StoreUrl;
use crate::error::ErrorKind;
use crate::net::Settings;

fn refusal(url: &str) -> String {
    let error = StoreUrl::parse(url).and_then(|url| url.tcp_endpoints(1).map(|_| url)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidUrl);
    format!("{error} {error:?}")
}

fn hosts(text: &str) -> String {
    let endpoints = StoreUrl::parse(&format!("x://{text}")).unwrap().tcp_endpoints(7).unwrap();
    endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[test]
fn all_parts_are_parsed() {
    let mut url = StoreUrl::parse("Redis+TLS://me%40home:p%2Fa%3Ass@[::1]:1,b/3?timeout=2s&x=%26").unwrap();
    assert_eq!(url.scheme, "redis+tls");
    assert_eq!(url.username.as_deref(), Some("me@home"));
    assert_eq!(url.password.as_deref(), Some("p/a:ss"));
    assert_eq!(url.hosts, "[::1]:1,b");
    assert_eq!(url.path, "/3");
    assert_eq!(url.options.take_text("x").as_deref(), Some("&"));
}

#[test]
fn a_login_may_be_a_password_alone() {
    let url = StoreUrl::parse("redis://:secret@host").unwrap();
    assert_eq!((url.username, url.password.as_deref()), (None, Some("secret")));
}

#[test]
fn hosts_have_a_port_or_get_the_default_port() {
    assert_eq!(hosts("a"), "a:7");
    assert_eq!(hosts("a:1,10.0.0.1,[::1],[fe80::2]:65535,my-cache_1.example"), {
        "a:1 10.0.0.1:7 [::1]:7 [fe80::2]:65535 my-cache_1.example:7"
    });
}

#[test]
fn an_error_names_the_invalid_part() {
    assert!(refusal("x://a,,b").contains("empty"));
    assert!(refusal("x://").contains("empty"));
    assert!(refusal("x://a:70000").contains("70000"));
    assert!(refusal("x://a:0").contains("port 0"));
    assert!(refusal("x://a:").contains("\"a\""));
    assert!(refusal("x://a:1:2").contains("\"a\""));
    assert!(refusal("x://::1").contains("brackets"));
    assert!(refusal("x://[::1").contains("']'"));
    assert!(refusal("x://[::g]").contains("::g"));
    assert!(refusal("x://[::1]7x").contains("::1"));
    assert!(refusal("x://a b").contains("a b"));
    assert!(refusal("x://a?b=1&b=2").contains("\"b\""));
    assert!(refusal("x://a?b=%ff").contains("\"b\""));
    assert!(refusal("localhost:11211").contains("scheme"));
    assert!(refusal("://a").contains("scheme"));
}

#[test]
fn no_error_or_debug_output_contains_a_login() {
    let urls = [
        "x://user:hunter2@",
        "x://user:hun%fftunter2@host",
        "x://user:hunter2/x@host",
        "x://user:x?hunter2@host",
        "x://user:x#hunter2@host",
        "x://user:hunter2",
        "x://user:hunter2%40host",
        "x://user:hunter2@host:port",
        "x:user:hunter2@host",
        "user:hunter2://host",
    ];
    for url in urls {
        assert!(!refusal(url).contains("unter2"), "{url}");
    }
    let url = StoreUrl::parse("x://user:hunter2@host?token=hunter2").unwrap();
    let shown = format!("{url:?}");
    assert!(!shown.contains("unter2") && !shown.contains("user"), "{shown}");
    assert!(!url.options.finish().unwrap_err().to_string().contains("unter2"));
}

#[test]
fn socket_paths_are_absolute_and_at_most_107_bytes_long() {
    let sockets = |url: &str| StoreUrl::parse(url).unwrap().unix_endpoints();
    let shown: Vec<_> = sockets("x:///run/a.sock,/run/b%2Cc%3F").unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["/run/a.sock", "/run/b,c?"]);
    for refused in ["x://", "x:///", "x:///a,b", "x:///a,", "x:///a%00b", &format!("x:///{}", "a".repeat(107))] {
        assert_eq!(sockets(refused).unwrap_err().kind(), ErrorKind::InvalidUrl, "{refused}");
    }
    assert!(sockets("x://run/a.sock").unwrap_err().to_string().contains("three slashes"));
}

#[test]
fn durations_have_units() {
    let duration = |text: &str| StoreUrl::parse(&format!("x://a?t={text}")).unwrap().options.take_duration("t");
    for (text, milliseconds) in
        [("500ms", 500), ("2s", 2_000), ("1m", 60_000), ("3", 3_000), ("1440m", 86_400_000), ("24h", 86_400_000)]
    {
        assert_eq!(duration(text).unwrap(), Some(Duration::from_millis(milliseconds)));
    }
    for refused in
        ["", "0", "0ms", "-1s", "25h", "ms", "1.5s", "1 s", "86401s", "99999999999999999999", "999999999999999999m"]
    {
        assert!(duration(refused).unwrap_err().to_string().contains(&format!("t={refused:?}")), "{refused}");
    }
}

#[test]
fn settings_are_taken_and_unknown_options_are_refused() {
    let mut plain = StoreUrl::parse("x://a").unwrap().options;
    assert_eq!(plain.take_settings().unwrap(), Settings::default());
    plain.finish().unwrap();

    let query = "timeout=10ms&connect_timeout=2&pool_size=3&failures=4&retry_after=1m&failover=false&tiemout=1";
    let mut options = StoreUrl::parse(&format!("x://a?{query}")).unwrap().options;
    let settings = options.take_settings().unwrap();
    assert_eq!(settings.timeouts.exchange, Duration::from_millis(10));
    assert_eq!(settings.timeouts.connect, Duration::from_secs(2));
    assert_eq!((settings.pool_size, settings.failures), (3, 4));
    assert_eq!(settings.retry_after, Duration::from_secs(60));
    assert_eq!(options.take_bool("failover").unwrap(), Some(false));
    let unknown = options.finish().unwrap_err().to_string();
    assert!(unknown.contains("\"tiemout\"") && unknown.contains("connect_timeout, failover, failures"), "{unknown}");

    for refused in ["pool_size=0", "failures=x", "failures=-1", "pool_size="] {
        let mut options = StoreUrl::parse(&format!("x://a?{refused}")).unwrap().options;
        assert_eq!(options.take_settings().unwrap_err().kind(), ErrorKind::InvalidUrl);
    }
}
