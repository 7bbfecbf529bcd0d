//! A GET through the C interface, compared with `Cache`.

use std::ffi::c_char;
use std::hint::black_box;
use std::ptr;
use std::time::Duration;

use prefork_cache::Cache;
use prefork_cache_c::{pfc_cache, pfc_call, pfc_get, pfc_get_into, pfc_open, pfc_status, pfc_value, pfc_value_free};

use crate::measure::{Candidate, candidate, compare};
use support::servers::{Kind, Server};

const KEY: &str = "widget:7";

pub(crate) fn run() {
    for kind in [Kind::Redis, Kind::Memcached] {
        let server = Server::start(kind);
        get(kind.name(), &server.url(""), 3_000);
    }
    get("memory", "memory://", 300_000);
}

fn get(store: &str, url: &str, count: u32) {
    let handle = open(store, url);
    let cache = Cache::named(store).expect("it is open");
    cache.blocking().set_raw(KEY, vec![b'x'; 100], Duration::from_secs(3600)).expect("it stores");
    let raw = || {
        candidate("Cache, raw", || {
            black_box(cache.blocking().get_raw(KEY).expect("a hit"));
        })
    };
    let mut unfinished: *mut pfc_call = ptr::null_mut();
    let candidates: [(&str, Candidate<'_>); 3] = [
        ("", candidate("pfc_get_into", || into_a_buffer(handle, ptr::null_mut()))),
        (", in slices", candidate("pfc_get_into", || into_a_buffer(handle, &raw mut unfinished))),
        (", returned", candidate("pfc_get, pfc_value_free", || returned(handle))),
    ];
    for (how, through_c) in candidates {
        compare(&format!("{store} GET through C{how}"), count, vec![through_c, raw()]);
    }
}

#[expect(unsafe_code, reason = "calls the C interface")]
fn open(name: &str, url: &str) -> *const pfc_cache {
    let mut handle = ptr::null_mut();
    let (name_at, url_at) = (name.as_ptr().cast(), url.as_ptr().cast());
    // SAFETY: strings with their lengths, and a pointer to write the handle to.
    let opened = unsafe { pfc_open(name_at, name.len(), url_at, url.len(), ptr::null(), 0, &raw mut handle) };
    assert_eq!(opened, pfc_status::PFC_OK, "a valid URL");
    handle
}

fn key() -> (*const c_char, usize) {
    (black_box(KEY).as_ptr().cast(), KEY.len())
}

#[expect(unsafe_code, reason = "calls the C interface")]
fn into_a_buffer(handle: *const pfc_cache, call: *mut *mut pfc_call) {
    let (mut buffer, mut length) = ([0_u8; 256], 0);
    let ((key, key_length), at) = (key(), buffer.as_mut_ptr().cast());
    let mut found = pfc_status::PFC_AGAIN;
    // A server that shares its processor may not run for as long as a slice.
    while found == pfc_status::PFC_AGAIN {
        // SAFETY: a key and a buffer with their lengths, and an open handle.
        found = unsafe { pfc_get_into(handle, key, key_length, at, buffer.len(), &raw mut length, call) };
    }
    assert_eq!((found, length), (pfc_status::PFC_OK, 100));
    black_box(&buffer);
}

#[expect(unsafe_code, reason = "calls the C interface")]
fn returned(handle: *const pfc_cache) {
    let mut value = pfc_value { data: ptr::null(), length: 0, owner: ptr::null_mut() };
    let (key, key_length) = key();
    // SAFETY: a key with its length, an open handle, and a pointer to write the value to, which is freed once.
    let found = unsafe { pfc_get(handle, key, key_length, &raw mut value, ptr::null_mut()) };
    assert_eq!((found, value.length), (pfc_status::PFC_OK, 100));
    // SAFETY: as above.
    unsafe { pfc_value_free(&raw mut value) };
}
