//! Entries on a cluster of real servers.

mod lies;
mod moves;
mod whole;
