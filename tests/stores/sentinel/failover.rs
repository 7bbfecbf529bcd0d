//! The master becomes another one.
