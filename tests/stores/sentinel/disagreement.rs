//! Sentinels that disagree, or often name another master.

use super::{Client, WAYS, url};
use support::fake_sentinel::{FakeSentinel, Reaction};
use support::servers::{Kind, Server};
use support::wait::until;

const EAGER: &str = "timeout=20s&connect_timeout=20s&retry_after=1ms&topology_refresh=1ms";

fn address(server: &Server) -> String {
    format!("127.0.0.1:{}", server.port())
}

/// The first sentinel that is asked is isolated together with the old master, which still accepts writes.
#[test]
fn an_isolated_sentinel_is_outvoted() {
    for way in WAYS {
        let [old, new] = [(); 2].map(|()| Server::start(Kind::Redis));
        let isolated = FakeSentinel::start(Reaction::port(old.port()));
        let others = [(); 2].map(|()| FakeSentinel::start(Reaction::port(new.port())));
        let client = Client::new(way, &url(&[&isolated, &others[0], &others[1]], EAGER));
        until("the new master is used", || client.set("k", "v").is_ok() && client.address() == address(&new));
        let patient = "timeout=20s&connect_timeout=20s&topology_refresh=1h";
        let client = Client::new(way, &url(&[&others[0], &others[1], &isolated], patient));
        let asked = isolated.asked();
        for _ in 0..20 {
            client.cache.reset();
            client.set("k", "v").unwrap();
        }
        assert_eq!((client.address(), isolated.asked()), (address(&new), asked), "{way:?}");
    }
}

/// After a reset the sentinels are asked again, so each change is followed. No change leaves connections behind.
#[test]
fn masters_that_alternate() {
    const CHANGES: usize = 300;
    for way in WAYS {
        let servers = [(); 2].map(|()| Server::start(Kind::Redis));
        let sentinels = [(); 3].map(|()| FakeSentinel::start(Reaction::port(servers[0].port())));
        let client = Client::new(way, &url(&[&sentinels[0], &sentinels[1], &sentinels[2]], EAGER));
        for change in 0..CHANGES {
            let master = &servers[change % 2];
            sentinels.iter().for_each(|sentinel| sentinel.set_reaction(Reaction::port(master.port())));
            client.cache.reset();
            until("the other master is used", || client.set("k", "v").is_ok() && client.address() == address(master));
        }
        until("no change leaves a connection behind", || client.cache.stats().servers[0].connections <= 2);
        for server in &servers {
            let few = || {
                server.ask("INFO clients").lines().any(|line| {
                    line.strip_prefix("connected_clients:")
                        .is_some_and(|count| count.trim().parse::<usize>().unwrap() < 8)
                })
            };
            until("the servers have few connections", few);
        }
    }
}
