//! What every operation pays, counted in system calls: one to send and one to receive; none in memory, and none to know which
//! process this is.

use prefork_cache::{Cache, lifecycle, stores::MemoryStore};

use crate::callers::{MINUTE, PATIENT, cache_on};
use crate::harness::{Scenario, scenario, skip, with_each_server};
use support::servers::{Kind, Server};
use support::trace::system_calls;

const OPERATIONS: usize = 100;

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = with_each_server("a_blocking_get_is_two_system_calls", a_blocking_get_is_two_system_calls);
    all.push(scenario("a_hit_in_memory_is_none", a_hit_in_memory_is_none));
    all.push(scenario("which_process_this_is_takes_none", which_process_this_is_takes_none));
    all
}

/// The system calls of so many operations, in a child and after a first one.
fn system_calls_of(operation: impl Fn()) -> Vec<u64> {
    let calls = system_calls(&operation, || (0..OPERATIONS).for_each(|_| operation()));
    calls.unwrap_or_else(|error| skip(&format!("tracing is not permitted: {error}")))
}

fn a_blocking_get_is_two_system_calls(kind: Kind) {
    let server = Server::start(kind);
    let cache = cache_on(&server, PATIENT);
    cache.blocking().set_raw("key", "value", MINUTE).expect("the server is there");
    let get = || assert_eq!(cache.blocking().get_raw("key").expect("an answer").as_deref(), Some(&b"value"[..]));
    let [send, receive] = [nix::libc::SYS_sendto, nix::libc::SYS_recvfrom].map(i64::cast_unsigned);
    let calls = system_calls_of(get);
    // Under a tracer on a busy machine some operations come after a rest, and look at their connection before they send.
    let looks = calls.windows(2).filter(|pair| *pair == [receive, receive]).count();
    assert!(looks <= OPERATIONS / 10, "{looks} of {OPERATIONS} operations looked at their connection first");
    let sent = calls.iter().filter(|call| **call == send).count();
    assert_eq!((sent, calls.len()), (OPERATIONS, 2 * OPERATIONS + looks));
}

fn a_hit_in_memory_is_none() {
    let cache = Cache::builder(MemoryStore::new()).build();
    cache.blocking().set_raw("key", "value", MINUTE).expect("memory is there");
    let get = || assert!(cache.blocking().get_raw("key").expect("an answer").is_some());
    assert_eq!(system_calls_of(get), Vec::<u64>::new());
}

fn which_process_this_is_takes_none() {
    assert_eq!(lifecycle::generation(), 1);
    let look = || assert_eq!(lifecycle::generation(), 2);
    assert_eq!(system_calls_of(look), Vec::<u64>::new());
}
