//! Programs in PHP, Lua, Python and Ruby.

use std::path::PathBuf;
use std::process::Command;

use support::servers::{Kind, Server};

use crate::host::{command, library, package, prefix, succeed};

const PATIENT: &str = "timeout=20s&connect_timeout=20s";

fn bindings() -> PathBuf {
    package().with_file_name("bindings")
}

fn script(language: &str, name: &str) -> PathBuf {
    package().join("tests").join(language).join(name)
}

fn assert_ok(program: &mut Command) {
    assert_eq!(String::from_utf8_lossy(&succeed(program).stdout), "ok\n", "{program:?}");
}

fn on_each_store(run: impl Fn(&str)) {
    for kind in [Kind::Redis, Kind::Memcached] {
        run(&Server::start(kind).url(PATIENT));
    }
    run("memory://");
}

#[test]
fn from_lua() {
    on_each_store(|url| {
        let mut lua = command("luajit");
        lua.env("LUA_PATH", bindings().join("lua/?.lua")).env("PREFORK_CACHE_FFI_H", header());
        assert_ok(lua.arg(script("lua", "cache.lua")).arg(url));
    });
}

#[test]
fn from_php() {
    on_each_store(|url| assert_ok(php(&["-d", "ffi.enable=1"]).arg(script("php", "cache.php")).arg(url)));
}

/// As in FPM: the master preloads the library and the class, and scripts may use only these of FFI.
#[test]
fn from_php_with_preloading() {
    let declarations = format!("ffi.preload={}", header().display());
    let class = format!("opcache.preload={}", bindings().join("php/prefork_cache.php").display());
    let settings = ["opcache.enable_cli=1", "opcache.preload_user=root", "ffi.enable=preload", &declarations, &class];
    on_each_store(|url| {
        let php = &mut php(&settings.map(|setting| ["-d", setting]).concat());
        assert_ok(
            php.env_remove("PREFORK_CACHE_PHP")
                .env_remove("PREFORK_CACHE_FFI_H")
                .arg(script("php", "cache.php"))
                .arg(url),
        );
    });
}

#[test]
fn from_python_with_every_way_to_create_a_process() {
    on_each_store(|url| assert_ok(command("python3").arg(script("python", "forks.py")).arg(url).arg(library())));
}

#[test]
fn from_ruby_with_every_way_to_create_a_process() {
    on_each_store(|url| assert_ok(command("ruby").arg(script("ruby", "forks.rb")).arg(url).arg(library())));
}

fn php(settings: &[&str]) -> Command {
    let mut php = command("php");
    php.args(settings)
        .env("PREFORK_CACHE_FFI_H", header())
        .env("PREFORK_CACHE_PHP", bindings().join("php/prefork_cache.php"));
    php
}

fn header() -> PathBuf {
    prefix().join("include/prefork_cache.ffi.h")
}
