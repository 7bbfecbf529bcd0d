//! The C interface of [`prefork_cache`].
//!
//! The header for C programs, `include/prefork_cache.h`, is generated from these sources: the comments on public
//! functions and types are written for C programmers. `README.md` is the introduction.
//!
//! Each function runs inside [`entry`](entry::entry), which catches panics. Functions that may wait for a server run
//! through [`call`], which waits until they are finished, or in slices.

#![expect(non_camel_case_types, reason = "the names are C's")]
#![expect(unsafe_code, reason = "pointers from C")]
#![expect(clippy::missing_safety_doc, reason = "the comments are for C, and state the requirements of each argument")]

mod background_errors;
mod call;
mod claims;
mod counters;
mod entries;
mod entry;
mod errors;
mod expiry;
mod fetch;
mod handle;
mod lifecycle;
mod many;
mod reports;
mod status;
mod value;

pub use background_errors::pfc_take_errors;
pub use call::{pfc_call, pfc_call_cancel};
pub use claims::{pfc_claim, pfc_fetch_begin, pfc_fetch_complete, pfc_fetch_fail};
pub use counters::{pfc_counter, pfc_increment};
pub use entries::{
    pfc_add, pfc_clear, pfc_delete, pfc_exists, pfc_expires_in, pfc_get, pfc_get_into, pfc_replace, pfc_set, pfc_touch,
};
pub use errors::{pfc_error_is_transient, pfc_error_message};
pub use expiry::{PFC_NEVER, pfc_expiry};
pub use fetch::{pfc_fetch, pfc_load, pfc_load_give, pfc_loader};
pub use handle::{pfc_cache, pfc_open};
pub use lifecycle::{PFC_ABI_VERSION, pfc_abi_version, pfc_after_fork, pfc_generation, prefork_cache_after_fork};
pub use many::{pfc_delete_many, pfc_get_many, pfc_key};
pub use reports::{pfc_prometheus, pfc_stats};
pub use status::{pfc_status, pfc_status_name};
pub use value::{pfc_value, pfc_value_free};
