//! Compares a plain connection that two processes share with a cache: `cargo run --example the_bug`.
//!
//! A parent connects to Redis and forks, and both processes send requests. With a plain connection, each side reads
//! some replies that belong to the other; with a [`Cache`] none, with or without a call of the hook.
//!
//! It needs a Redis server: the one in `REDIS_URL`, or `redis-server` on the `PATH`, which it starts and stops. The
//! exit status is 0 if the plain connection mixed up replies and the cache did not, 1 otherwise, and 2 if Redis could
//! not be used.

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

/// The number of entries that each side reads.
const EACH: usize = 2000;
/// The most attempts with the plain connection: chance decides which side reads a reply, so one may show no mix-up.
const MOST_ROUNDS: usize = 10;
/// Bounds the wait of a side whose reply the other side has read.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Ends each process if it hangs.
const WATCHDOG_SECONDS: u32 = 120;
/// The time to live of the entries, in case this program is killed before it deletes them.
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
            eprintln!("the_bug: using Redis: {error}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether the plain connection mixed up replies and the cache did not.
fn compare(url: &str) -> Result<bool, Box<dyn Error>> {
    let entries = Entries { run: std::process::id(), each: EACH };
    store(entries, &mut connect(url)?)?;
    let results = run_each_case(entries, url);
    delete(entries, &mut connect(url)?)?;
    let [plain, without_hook, with_hook] = results?;

    print!(
        "\n{}",
        tally::table(&[
            ("redis::Connection, shared", &plain),
            ("Cache, without after_fork()", &without_hook),
            ("Cache, after_fork() in the child", &with_hook),
        ])
    );
    Ok(plain.any_foreign() && without_hook.all_right(entries) && with_hook.all_right(entries))
}

fn run_each_case(entries: Entries, url: &str) -> Result<[Tallies; 3], Box<dyn Error>> {
    let plain = read_until_mixed_up(entries, url)?;
    plain.print_examples();

    // Connected before the fork, as in an application that warms its cache.
    let cache = Cache::register(RedisStore::new(url)?);
    cache.blocking().reconnect()?;
    let read = |key: &str| match cache.blocking().get_raw(key) {
        Ok(found) => Ok(found.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) => Err(error.to_string()),
    };
    let without_hook = fork::both(|side| Tally::take(entries, side, read))?;
    let with_hook = fork::both(|side| {
        if side == Side::Child {
            println!("\nafter_fork() in the child: {}", lifecycle::after_fork());
        }
        Tally::take(entries, side, read)
    })?;
    Ok([plain, without_hook, with_hook])
}

fn read_until_mixed_up(entries: Entries, url: &str) -> Result<Tallies, Box<dyn Error>> {
    let mut round = 1;
    loop {
        let mut connection = connect(url)?;
        let mut has_timed_out = false;
        let read = |key: &str| {
            // After a reply was lost to the other side, each further read would time out. Those count as errors.
            if has_timed_out {
                return Err("not tried after a timeout".to_owned());
            }
            connection.get(key).map_err(|error| {
                has_timed_out = error.is_timeout();
                error.to_string()
            })
        };
        let tallies = fork::both(|side| Tally::take(entries, side, read))?;
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
