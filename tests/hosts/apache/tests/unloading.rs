//! A shared object that a host unloads stays, with its connections and its fork handlers, from its first use on.

#![expect(unsafe_code, reason = "loads, calls and unloads a shared object")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;

use nix::libc;
use support::descriptors::{connected_to, open};
use support::forks::fork;
use support::servers::{Kind, Server};

/// The shared object, loaded once more.
struct Loaded(*mut c_void);

impl Loaded {
    fn load() -> Loaded {
        let directory = std::env::current_exe().expect("a program").with_file_name("libprefork_cache_apache.so");
        let path = CString::new(directory.as_os_str().as_bytes()).expect("a path");
        // SAFETY: what runs when the object is loaded is Rust's standard library's, and does nothing.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "{path:?} cannot be loaded");
        Loaded(handle)
    }

    fn symbol(&self, name: &str) -> *mut c_void {
        let name = CString::new(name).expect("a name");
        // SAFETY: the handle is good.
        let symbol = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!symbol.is_null(), "{name:?} is not there");
        symbol
    }

    fn register(&self, url: &str) {
        let url = CString::new(url).expect("a URL");
        // SAFETY: this is the function's type.
        let register = unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const c_char) -> bool>(
                self.symbol("prefork_cache_register"),
            )
        };
        // SAFETY: a string that ends with a zero.
        assert!(unsafe { register(url.as_ptr()) }, "{url:?} is no store");
    }

    fn count(&self) -> i64 {
        // SAFETY: this is the function's type.
        let count = unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const c_char) -> i64>(
                self.symbol("prefork_cache_count"),
            )
        };
        // SAFETY: a string that ends with a zero.
        unsafe { count(c"loads".as_ptr()) }
    }

    fn unload(self) {
        // SAFETY: the handle is good, and nothing of the object's is used from here on.
        let closed: c_int = unsafe { libc::dlclose(self.0) };
        assert_eq!(closed, 0, "it can be unloaded as often as it was loaded");
    }
}

#[test]
fn unloading_leaves_no_orphans() {
    let server = Server::start(Kind::Redis);
    let url = server.url("timeout=20s&connect_timeout=20s");
    let mut early = None;
    for load in 1..=4 {
        let loaded = Loaded::load();
        loaded.register(&url);
        assert_eq!(loaded.count(), 2 * load - 1);
        loaded.unload();
        let now = open().len();
        assert_eq!(now, *early.get_or_insert(now), "descriptors after load {load}");
        let child = fork(|| {
            let inherited = connected_to(server.port()).len();
            (inherited, Loaded::load().count())
        });
        assert_eq!(child.join(), (0, 2 * load), "what a child inherits, and counts, after load {load}");
    }
}
