//! The promises, tested with forked processes and real servers.
//!
//! Each file is a promise. A test is a *scenario*: it runs in a fresh process with one thread, before the crate was
//! used, see [`harness`]. `STRESS=1` runs the long versions and shows the measurements of each scenario.

#![expect(unsafe_code, reason = "forks, signals and what a child may look at")]

/// Some promises limit the memory in use.
#[global_allocator]
static ALLOCATOR: support::allocator::Counting = support::allocator::Counting;

mod callers;
mod harness;
mod loads;

macro_rules! promises {
    ($($promise:ident),* $(,)?) => {
        $(mod $promise;)*

        fn main() -> std::process::ExitCode {
            let mut all = Vec::new();
            $(all.extend(harness::promise(stringify!($promise), $promise::scenarios()));)*
            harness::main(all)
        }
    };
}

promises! {
    one_process_one_socket,
    a_hosts_descriptors_stay_its_own,
    closed_standard_streams_stay_closed,
    descriptors_stay_level,
    a_reply_answers_its_own_request,
    a_fork_in_mid_command_harms_nobody,
    a_fork_with_requests_in_flight_harms_nobody,
    no_vanished_thread_blocks_a_child,
    process_locals_belong_to_a_process,
    memory_comes_along,
    a_long_fork_costs_its_own_child_alone,
    signal_handlers_may_fork,
    memory_keeps_its_bound,
    generations_do_not_pile_up,
    frozen_memory_is_read_without_a_copy,
    the_parent_never_notices,
    nobody_has_to_remember,
    an_outage_is_not_an_outage,
    a_shortage_is_not_the_servers,
    a_failover_harms_nobody,
    large_values_hold_up_nobody,
    a_cluster_is_one_server,
    one_loads_for_all,
    no_lease_outlives_its_load,
    claims_belong_to_a_process,
    a_delete_is_final,
    the_master_needs_no_runtime,
    it_costs_little,
}
