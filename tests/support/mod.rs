//! What tests with real servers and real forks are made of.

pub(crate) mod descriptors;
pub(crate) mod forks;
pub(crate) mod identity;
pub(crate) mod proxy;
pub(crate) mod servers;
pub(crate) mod signals;
pub(crate) mod wait;
