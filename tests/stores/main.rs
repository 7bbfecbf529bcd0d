//! The stores on real servers, and the cache on top of them.

mod backpressure;
mod bad_input;
mod cache;
mod cancellation;
mod conformance;
mod detached;
mod fetch;
mod fetch_faults;
mod fetch_many;
mod foreign_replies;
mod foreign_store;
mod frozen;
mod leases;
mod memcached;
mod odd_servers;
mod paused_clock;
mod rails;
mod redis;
mod removal;
mod restricted_account;
mod runtimes;
mod shared;
mod staleness;
mod tiered;
mod tracing;
