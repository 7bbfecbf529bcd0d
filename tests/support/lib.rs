//! What tests with real servers and real forks are made of.

pub mod allocator;
pub mod certificates;
pub mod cluster;
pub mod descriptors;
pub mod encryptor;
pub mod fake_sentinel;
pub mod forks;
pub mod frames;
pub mod identity;
pub mod memory;
pub mod proxy;
pub mod recorder;
pub mod sentinels;
pub mod servers;
pub mod signals;
pub mod stress;
pub mod tally;
pub mod trace;
pub mod wait;
