//! The status of a call.

use std::ffi::{CStr, c_char};

use prefork_cache::ErrorKind;

/// The status of a call. The numbers are stable; new ones may be added.
///
/// 0 and above are outcomes. Below 0 are errors; pfc_error_message() and pfc_error_is_transient() give the details.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum pfc_status {
    /// Done: there is a value or an entry, or the value was stored.
    PFC_OK = 0,
    /// Done: there is no value or entry, or the value was not stored.
    PFC_MISS = 1,
    /// There is a stale value, and another caller reloads it.
    PFC_STALE = 2,
    /// There is no value, or one that has to be refreshed: this caller loads it.
    PFC_CLAIM = 3,
    /// The call is not finished after 100 ms: call again with the same arguments.
    PFC_AGAIN = 4,
    /// The value is larger than the buffer.
    PFC_TOO_SMALL = 5,

    /// The URL has a scheme, host, port, database or option that is invalid or unknown.
    PFC_BAD_URL = -1,
    /// A setting is out of range, or a file that it names cannot be used.
    PFC_BAD_CONFIG = -2,
    /// The key is empty, is not UTF-8, or is longer than the store can hold.
    PFC_BAD_KEY = -3,
    /// The time to live is zero, negative, or further away than the store can express.
    PFC_BAD_TTL = -4,
    /// The value is larger than the server, or the store, accepts.
    PFC_VALUE_TOO_LARGE = -5,
    /// The value could not be encoded.
    PFC_ENCODE = -6,
    /// A value was read that cannot be decoded. Only pfc_take_errors() reports it.
    PFC_DECODE = -7,
    /// The entry is not a number, or the result is out of range.
    PFC_NOT_A_NUMBER = -8,
    /// Other writers kept changing the entry, until the attempts ran out.
    PFC_CONTENDED = -9,
    /// The server, or its configuration, does not support the operation.
    PFC_UNSUPPORTED = -10,
    /// The server refused the user name or password.
    PFC_AUTH = -11,
    /// No connection could be made.
    PFC_CONNECT = -12,
    /// The server has failed, and is not dialled again yet.
    PFC_UNAVAILABLE = -13,
    /// The limit of requests in flight to the server is reached.
    PFC_FULL = -14,
    /// The operation timed out.
    PFC_TIMEOUT = -15,
    /// A connection broke in the middle of an exchange.
    PFC_IO = -16,
    /// The server sent bytes that are not a reply to the request.
    PFC_PROTOCOL = -17,
    /// The server responded with an error.
    PFC_SERVER = -18,
    /// A parent process began this call, before a fork.
    PFC_FORKED = -19,
    /// Waiting would block the thread that has to do the work.
    PFC_WOULD_DEADLOCK = -20,
    /// The loader failed.
    PFC_LOADER = -21,
    /// Another failure.
    PFC_OTHER = -22,
    /// This process, or its machine, has run out of descriptors, ports or memory.
    PFC_OUT_OF_RESOURCES = -23,
    /// A TLS session with the server could not be established.
    PFC_TLS = -24,

    /// The cache is already open with another URL or namespace.
    PFC_CONFLICT = -100,
    /// An argument is invalid: a null pointer, or a string that is not UTF-8.
    PFC_BAD_ARGUMENT = -101,
    /// A bug in this library. The call may have taken effect; the cache can still be used.
    PFC_PANIC = -102,
}

use pfc_status::*;

/// The status of each error kind, in the order of [`ErrorKind::number`].
const ERROR_KINDS: [pfc_status; 24] = [
    PFC_BAD_URL,
    PFC_BAD_CONFIG,
    PFC_BAD_KEY,
    PFC_BAD_TTL,
    PFC_VALUE_TOO_LARGE,
    PFC_ENCODE,
    PFC_DECODE,
    PFC_NOT_A_NUMBER,
    PFC_CONTENDED,
    PFC_UNSUPPORTED,
    PFC_AUTH,
    PFC_CONNECT,
    PFC_UNAVAILABLE,
    PFC_FULL,
    PFC_TIMEOUT,
    PFC_IO,
    PFC_PROTOCOL,
    PFC_SERVER,
    PFC_FORKED,
    PFC_WOULD_DEADLOCK,
    PFC_LOADER,
    PFC_OTHER,
    PFC_OUT_OF_RESOURCES,
    PFC_TLS,
];

impl pfc_status {
    pub(crate) fn of(kind: ErrorKind) -> pfc_status {
        ERROR_KINDS.get(usize::from(kind.number()) - 1).copied().unwrap_or(PFC_OTHER)
    }

    /// Returns `PFC_OK` for a call that had an effect or found an entry, `PFC_MISS` otherwise.
    pub(crate) fn done(is_done: bool) -> pfc_status {
        if is_done { PFC_OK } else { PFC_MISS }
    }

    /// Returns the same for a call, or `PFC_AGAIN` if it is not finished.
    pub(crate) fn of_call(is_done: Option<bool>) -> pfc_status {
        is_done.map_or(PFC_AGAIN, pfc_status::done)
    }
}

/// Returns the name of a status, such as "PFC_MISS", or "unknown": a string that is never freed.
#[unsafe(no_mangle)]
pub extern "C" fn pfc_status_name(status: i32) -> *const c_char {
    name(status).as_ptr()
}

pub(crate) fn name(status: i32) -> &'static CStr {
    const OUTCOMES: [&CStr; 6] = [c"PFC_OK", c"PFC_MISS", c"PFC_STALE", c"PFC_CLAIM", c"PFC_AGAIN", c"PFC_TOO_SMALL"];
    const ERRORS: [&CStr; 24] = [
        c"PFC_BAD_URL",
        c"PFC_BAD_CONFIG",
        c"PFC_BAD_KEY",
        c"PFC_BAD_TTL",
        c"PFC_VALUE_TOO_LARGE",
        c"PFC_ENCODE",
        c"PFC_DECODE",
        c"PFC_NOT_A_NUMBER",
        c"PFC_CONTENDED",
        c"PFC_UNSUPPORTED",
        c"PFC_AUTH",
        c"PFC_CONNECT",
        c"PFC_UNAVAILABLE",
        c"PFC_FULL",
        c"PFC_TIMEOUT",
        c"PFC_IO",
        c"PFC_PROTOCOL",
        c"PFC_SERVER",
        c"PFC_FORKED",
        c"PFC_WOULD_DEADLOCK",
        c"PFC_LOADER",
        c"PFC_OTHER",
        c"PFC_OUT_OF_RESOURCES",
        c"PFC_TLS",
    ];
    const OWN: [&CStr; 3] = [c"PFC_CONFLICT", c"PFC_BAD_ARGUMENT", c"PFC_PANIC"];
    let in_list =
        |list: &[&'static CStr], index: i32| usize::try_from(index).ok().and_then(|index| list.get(index).copied());
    let own = in_list(&OWN, (-100_i32).saturating_sub(status));
    let error = in_list(&ERRORS, (-1_i32).saturating_sub(status));
    in_list(&OUTCOMES, status).or(error).or(own).unwrap_or(c"unknown")
}

#[cfg(test)]
mod tests {
    use super::{ERROR_KINDS, ErrorKind, name, pfc_status};

    #[test]
    fn each_error_kind_has_its_own_number() {
        for (index, status) in ERROR_KINDS.iter().enumerate() {
            assert_eq!(*status as i32, -(index as i32 + 1));
        }
        assert_eq!(pfc_status::of(ErrorKind::InvalidKey), pfc_status::PFC_BAD_KEY);
        assert_eq!(pfc_status::of(ErrorKind::Tls), pfc_status::PFC_TLS);
    }

    #[test]
    fn a_status_has_its_name_in_c() {
        let of_c = [pfc_status::PFC_CONFLICT, pfc_status::PFC_BAD_ARGUMENT, pfc_status::PFC_PANIC, pfc_status::PFC_OK];
        let others = [pfc_status::PFC_TOO_SMALL, pfc_status::PFC_AGAIN, pfc_status::PFC_CLAIM, pfc_status::PFC_STALE];
        for status in ERROR_KINDS.into_iter().chain(of_c).chain(others) {
            assert_eq!(name(status as i32).to_str().unwrap(), format!("{status:?}"));
        }
        for unknown in [6, -25, -99, -103, i32::MIN, i32::MAX] {
            assert_eq!(name(unknown), c"unknown");
        }
    }
}
