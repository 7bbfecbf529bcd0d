//! What a call has come to.

use std::ffi::{CStr, c_char};

use prefork_cache::ErrorKind;

/// What a call has come to. The numbers stay the same; new ones may be added.
///
/// From 0 on it is an outcome, below 0 an error, of which pfc_error_message() and pfc_error_is_transient() say more.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum pfc_status {
    /// Done; there is a value, it was stored, it was there.
    PFC_OK = 0,
    /// There is no value, it was not stored, it was not there.
    PFC_MISS = 1,
    /// There is a value, and it is stale: another caller loads it.
    PFC_STALE = 2,
    /// There is no value, or one that is to be refreshed: this caller loads it.
    PFC_CLAIM = 3,
    /// The call is not done after 100 ms: call again with the same arguments.
    PFC_AGAIN = 4,
    /// There is a value, and it is larger than the buffer.
    PFC_TOO_SMALL = 5,

    /// The URL has a scheme, host, port, database or option that is not understood.
    PFC_BAD_URL = -1,
    /// A setting is out of its range, or a file that it names cannot be used.
    PFC_BAD_CONFIG = -2,
    /// The key is empty, is not UTF-8, or is longer than the store can hold.
    PFC_BAD_KEY = -3,
    /// The time to live is zero, negative, or further away than the store can express.
    PFC_BAD_TTL = -4,
    /// The value is larger than the server, or the store, accepts.
    PFC_VALUE_TOO_LARGE = -5,
    /// The value could not be encoded.
    PFC_ENCODE = -6,
    /// A value was read that is none of this program's. Reported by pfc_take_errors() alone.
    PFC_DECODE = -7,
    /// The entry holds something that is not a number, or the result does not fit into one.
    PFC_NOT_A_NUMBER = -8,
    /// Other writers kept changing the entry, until the attempts ran out.
    PFC_CONTENDED = -9,
    /// The server, or its configuration, does not offer what was asked for.
    PFC_UNSUPPORTED = -10,
    /// The server refused the user name or password.
    PFC_AUTH = -11,
    /// No connection could be made.
    PFC_CONNECT = -12,
    /// The server has failed, and is not dialled again for the moment.
    PFC_UNAVAILABLE = -13,
    /// As many requests to the server are under way as there may be.
    PFC_FULL = -14,
    /// The time for the operation ran out.
    PFC_TIMEOUT = -15,
    /// A connection broke in the middle of an exchange.
    PFC_IO = -16,
    /// The server sent something that is not a reply to what it was asked.
    PFC_PROTOCOL = -17,
    /// The server answered with an error.
    PFC_SERVER = -18,
    /// A parent process began this call, before a fork.
    PFC_FORKED = -19,
    /// Waiting here would block the thread that has to do the work.
    PFC_WOULD_DEADLOCK = -20,
    /// The loader failed.
    PFC_LOADER = -21,
    /// Another failure.
    PFC_OTHER = -22,
    /// This process, or its machine, has run out of descriptors, ports or memory.
    PFC_OUT_OF_RESOURCES = -23,
    /// There is no TLS with the server.
    PFC_TLS = -24,

    /// The cache is open already, with another URL or namespace.
    PFC_CONFLICT = -100,
    /// An argument is not what it must be: a pointer that is null, a text that is not UTF-8.
    PFC_BAD_ARGUMENT = -101,
    /// There is a mistake in this library. The call has had an effect or not; the cache can be used on.
    PFC_PANIC = -102,
}

use pfc_status::*;

/// Every error that the library has a number for; see [`ErrorKind::number`].
const OF_KINDS: [pfc_status; 24] = [
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
        OF_KINDS.get(usize::from(kind.number()) - 1).copied().unwrap_or(PFC_OTHER)
    }

    /// Done or not.
    pub(crate) fn done(is_done: bool) -> pfc_status {
        if is_done { PFC_OK } else { PFC_MISS }
    }

    /// The same of a call that may not have come to its end.
    pub(crate) fn of_call(is_done: Option<bool>) -> pfc_status {
        is_done.map_or(PFC_AGAIN, pfc_status::done)
    }
}

/// The name of a status, such as "PFC_MISS": a string that stays. "unknown" for a number that is none.
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
    let in_list = |list: &[&'static CStr], at: i32| usize::try_from(at).ok().and_then(|at| list.get(at).copied());
    let own = in_list(&OWN, (-100_i32).saturating_sub(status));
    let error = in_list(&ERRORS, (-1_i32).saturating_sub(status));
    in_list(&OUTCOMES, status).or(error).or(own).unwrap_or(c"unknown")
}

#[cfg(test)]
mod tests {
    use super::{ErrorKind, OF_KINDS, name, pfc_status};

    #[test]
    fn a_kind_of_error_has_its_own_number() {
        for (index, status) in OF_KINDS.iter().enumerate() {
            assert_eq!(*status as i32, -(index as i32 + 1));
        }
        assert_eq!(pfc_status::of(ErrorKind::InvalidKey), pfc_status::PFC_BAD_KEY);
        assert_eq!(pfc_status::of(ErrorKind::Tls), pfc_status::PFC_TLS);
    }

    #[test]
    fn a_status_is_called_what_it_is_called_in_c() {
        let of_c = [pfc_status::PFC_CONFLICT, pfc_status::PFC_BAD_ARGUMENT, pfc_status::PFC_PANIC, pfc_status::PFC_OK];
        let others = [pfc_status::PFC_TOO_SMALL, pfc_status::PFC_AGAIN, pfc_status::PFC_CLAIM, pfc_status::PFC_STALE];
        for status in OF_KINDS.into_iter().chain(of_c).chain(others) {
            assert_eq!(name(status as i32).to_str().unwrap(), format!("{status:?}"));
        }
        for unknown in [6, -25, -99, -103, i32::MIN, i32::MAX] {
            assert_eq!(name(unknown), c"unknown");
        }
    }
}
