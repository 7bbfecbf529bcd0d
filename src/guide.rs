//! A guide beside the reference.
//!
//! - [Choosing an expiry](choosing_an_expiry): the life of an entry, and what each setting is for.

#[doc = include_str!("guide/choosing_an_expiry.md")]
pub mod choosing_an_expiry {}
