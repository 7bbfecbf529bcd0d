//! The stores on real servers, and the cache on top of them.

mod bad_input;
mod cache;
mod conformance;
mod detached;
mod fetch;
mod fetch_faults;
mod fetch_many;
mod foreign_store;
mod leases;
mod memcached;
mod rails;
mod redis;
mod removal;
mod staleness;
mod tiered;
mod tracing;
