//! Stores on a cluster of real servers, and on fake nodes.

mod addresses;
mod cancellation;
mod clearing;
mod lies;
mod loading;
mod membership;
mod moves;
mod promotions;
mod replicas;
mod scripts;
mod views;
mod whole;

use crate::conformance::current_thread;
use crate::failures::{Way, outside_of_a_runtime};

fn run<T>(way: Way, work: impl Future<Output = T>) -> T {
    match way {
        Way::Blocking => outside_of_a_runtime(work),
        Way::Tokio => current_thread().block_on(work),
    }
}
