//! Whether crossbeam's collector of garbage, which every moka of a process shares, still collects.
//!
//! It frees nothing that a pinned thread could still see. A thread that was pinned at the fork, moka's or a stranger's
//! (rayon's, say), does not exist in the child and never unpins: from then on nothing is freed, and memory grows without
//! bound. So a child has the collector run something before it relies on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Two rounds are enough where all threads are alive; the others are for threads of the child's that come and go meanwhile.
const ROUNDS: usize = 256;

pub(super) fn is_alive() -> bool {
    let collected = Arc::new(AtomicBool::new(false));
    let collect = Arc::clone(&collected);
    crossbeam_epoch::pin().defer(move || collect.store(true, Ordering::Release));
    for round in 0..ROUNDS {
        crossbeam_epoch::pin().flush();
        if collected.load(Ordering::Acquire) {
            return true;
        }
        if round > 8 {
            std::thread::yield_now();
        }
    }
    false
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_whose_threads_are_alive_collects() {
        assert!(super::is_alive());
    }
}
