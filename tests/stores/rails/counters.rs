//! Counters, created by a raw value or by an increment.

use super::{Everywhere, LONG, SHORT, everywhere, until_gone};
use crate::conformance::current_thread;

#[test]
fn a_counter_counts_up() {
    everywhere(|cache| {
        let blocking = cache.blocking();
        blocking.set_raw("k", "1", LONG).unwrap();
        assert_eq!(blocking.counter("k").unwrap(), Some(1));
        for sum in [2, 3] {
            assert_eq!(blocking.increment("k", 1, LONG).unwrap(), sum);
            assert_eq!(blocking.counter("k").unwrap(), Some(sum));
        }
        assert_eq!(current_thread().block_on(cache.increment("k", 1, LONG)).unwrap(), 4);
        assert_eq!(blocking.increment("missing", 1, LONG).unwrap(), 1);
        assert_eq!(blocking.increment("missing too", 100, LONG).unwrap(), 100);
    });
}

/// Memcached does not count below 0, with Rails as here.
#[test]
fn a_counter_counts_down() {
    everywhere(|cache| {
        let blocking = cache.blocking();
        blocking.set_raw("k", "3", LONG).unwrap();
        for sum in [2, 1] {
            assert_eq!(blocking.decrement("k", 1, LONG).unwrap(), sum);
            assert_eq!(blocking.counter("k").unwrap(), Some(sum));
        }
        assert_eq!(current_thread().block_on(cache.decrement("k", 1, LONG)).unwrap(), 0);
        let goes_below_zero = !format!("{cache:?}").contains("Memcached");
        for (key, by) in [("missing", 1), ("missing too", 100)] {
            let sum = if goes_below_zero { -by } else { 0 };
            assert_eq!(blocking.decrement(key, by, LONG).unwrap(), sum);
        }
    });
}

#[test]
fn counting_does_not_prolong_a_counters_life() {
    let everywhere = Everywhere::new();
    everywhere.each(|cache| {
        assert_eq!(cache.blocking().increment("k", 1, SHORT).unwrap(), 1);
        // If the machine stalled in between, this is a new counter with a long TTL.
        if cache.blocking().increment("k", 1, LONG).unwrap() == 1 {
            cache.blocking().delete("k").unwrap();
        }
    });
    everywhere.each(|cache| until_gone(cache, "k"));
}
