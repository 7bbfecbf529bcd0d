//! What happens to a connection that two processes share, and what happens to a cache: `cargo run --example the_bug`.
//!
//! A parent connects to Redis, forks, and both go on asking. With a plain connection some of the replies are the other's;
//! with a [`Cache`] none are, whether or not anybody calls the hook.
//!
//! It needs a Redis server: the one of `REDIS_URL`, or `redis-server` on the `PATH`, which is started and stopped again. It
//! ends with 0 if the plain connection went wrong and the cache did not, with 1 if not so, and with 2 if it could not ask.

#![expect(unsafe_code, reason = "fork() is unsafe")]

mod fork;
mod server;
mod tally;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use nix::unistd::alarm;
use prefork_cache::{Cache, lifecycle, stores::RedisStore};
use redis::{Commands, Connection};

use server::Server;
use tally::{Entries, Side, Tallies, Tally};

/// How many entries each side asks for.
const EACH: usize = 2000;
/// Chance decides who reads which reply, so the plain connection may be lucky.
const MOST_ROUNDS: usize = 10;
/// Bounds the wait of a side whose reply was read by the other.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Ends each process, if all else should fail.
const WATCHDOG_SECONDS: u32 = 120;
/// Entries expire, should this program be killed before it deletes them.
const TTL_SECONDS: u64 = 300;

fn main() -> ExitCode {
    alarm::set(WATCHDOG_SECONDS);
    let server = match Server::from_environment() {
        Ok(server) => server,
        Err(missing) => {
            eprintln!("the_bug: {missing}");
            return ExitCode::from(2);
        }
    };
    match compare(server.url()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the_bug: asking Redis: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether the plain connection went wrong, and the cache did not.
fn compare(url: &str) -> Result<bool, Box<dyn Error>> {
    let entries = Entries { run: std::process::id(), each: EACH };
    store(entries, &mut connect(url)?)?;
    let asked = ask_in_each_way(entries, url);
    delete(entries, &mut connect(url)?)?;
    let [plain, without_hook, with_hook] = asked?;

    print!(
        "\n{}",
        tally::table(&[
            ("redis::Connection, shared", &plain),
            ("Cache, nothing called", &without_hook),
            ("Cache, after_fork() in the child", &with_hook),
        ])
    );
    Ok(plain.any_foreign() && without_hook.all_right(entries) && with_hook.all_right(entries))
}

fn ask_in_each_way(entries: Entries, url: &str) -> Result<[Tallies; 3], Box<dyn Error>> {
    let plain = ask_until_it_goes_wrong(entries, url)?;
    plain.print_examples();

    // Connected before the fork, as in any application that has warmed its cache.
    let cache = Cache::register(RedisStore::new(url)?);
    cache.blocking().reconnect()?;
    let ask = |key: &str| match cache.blocking().get_raw(key) {
        Ok(found) => Ok(found.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) => Err(error.to_string()),
    };
    let without_hook = fork::both(|side| Tally::take(entries, side, ask))?;
    let with_hook = fork::both(|side| {
        if side == Side::Child {
            println!("\nafter_fork() in the child: {}", lifecycle::after_fork());
        }
        Tally::take(entries, side, ask)
    })?;
    Ok([plain, without_hook, with_hook])
}

fn ask_until_it_goes_wrong(entries: Entries, url: &str) -> Result<Tallies, Box<dyn Error>> {
    let mut round = 1;
    loop {
        let mut connection = connect(url)?;
        let mut is_stuck = false;
        let ask = |key: &str| {
            // Whoever has lost a reply to the other would wait in vain for each of the rest. They count as errors.
            if is_stuck {
                return Err("not asked any more".to_owned());
            }
            connection.get(key).map_err(|error| {
                is_stuck = error.is_timeout();
                error.to_string()
            })
        };
        let tallies = fork::both(|side| Tally::take(entries, side, ask))?;
        if tallies.any_foreign() || round == MOST_ROUNDS {
            return Ok(tallies);
        }
        round += 1;
    }
}

fn connect(url: &str) -> redis::RedisResult<Connection> {
    let connection = redis::Client::open(url)?.get_connection_with_timeout(TIMEOUT)?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    connection.set_write_timeout(Some(TIMEOUT))?;
    Ok(connection)
}

fn store(entries: Entries, connection: &mut Connection) -> redis::RedisResult<()> {
    let mut pipe = redis::pipe();
    for key in Side::BOTH.into_iter().flat_map(|side| entries.keys(side)) {
        pipe.set_ex(&key, Entries::value(&key), TTL_SECONDS).ignore();
    }
    pipe.query(connection)
}

fn delete(entries: Entries, connection: &mut Connection) -> redis::RedisResult<()> {
    connection.del(Side::BOTH.into_iter().flat_map(|side| entries.keys(side)).collect::<Vec<_>>())
}
