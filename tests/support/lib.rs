//! Support for tests with real servers and real forks.

pub mod allocator;
pub mod certificates;
pub mod cluster;
pub mod descriptors;
pub mod directory;
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
pub mod settings;
pub mod signals;
pub mod stress;
pub mod tally;
pub mod trace;
pub mod wait;
