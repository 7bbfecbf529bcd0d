//! `replicas=prefer`: the list of conformance checks that it is exempt from.

use std::panic::{AssertUnwindSafe, catch_unwind};

use prefork_cache::conformance::{CHECKS, Check};
use prefork_cache::stores::RedisStore;

use crate::conformance::{current_thread, multi_thread};
use support::cluster::Cluster;

/// The checks that read by `get` or `get_many` what was changed immediately before, as [`prefork_cache::conformance`]
/// lists them.
const EXEMPT: [&str; 16] = [
    "get_returns_the_last_set",
    "empty_binary_and_large_values_are_returned_unchanged",
    "keys_with_special_characters_are_distinct",
    "conditional_writes_check_for_an_entry",
    "compare_and_set_compares",
    "append_appends",
    "counters_count",
    "an_increment_of_a_non_number_is_refused",
    "entries_expire",
    "an_increment_keeps_the_remaining_time",
    "batch_results_are_in_key_order",
    "an_invalid_key_fails_alone",
    "one_of_many_compare_and_sets_wins",
    "a_dropped_future_disturbs_no_other",
    "clear_removes_what_starts_with_the_prefix",
    "reset_and_reconnect_leave_the_store_usable",
];

fn is_exempt(check: &Check) -> bool {
    EXEMPT.contains(&check.name())
}

#[test]
fn checks_that_are_not_exempt_pass() {
    let cluster = Cluster::start();
    let store = RedisStore::new(&cluster.url("replicas=prefer&timeout=20s&connect_timeout=20s")).unwrap();
    let required = || CHECKS.iter().filter(|check| !is_exempt(check));
    required().for_each(|check| check.run_inline(&store));
    for runtime in [current_thread(), multi_thread()] {
        runtime.block_on(async {
            for check in required() {
                check.run(&store).await;
            }
        });
    }
}

/// The replicas have lost their masters. Exactly the checks on the list fail.
#[test]
fn checks_that_are_exempt_fail_on_outdated_replicas() {
    let cluster = Cluster::start();
    for replica in 3..cluster.nodes().len() {
        cluster.disconnect_replica(replica);
    }
    let store = RedisStore::new(&cluster.url("replicas=prefer&timeout=20s&connect_timeout=20s")).unwrap();
    let fails = |check: &&Check| catch_unwind(AssertUnwindSafe(|| check.run_inline(&store))).is_err();
    let failed: Vec<&str> = CHECKS.iter().filter(fails).map(Check::name).collect();
    assert_eq!(failed, EXEMPT);
}
