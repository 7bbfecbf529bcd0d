//! The exported symbols and the soname of the shared library.

use std::process::Command;

use crate::host::{library, package, prefix, succeed};

#[test]
fn only_the_interface_is_exported() {
    let symbols = succeed(Command::new("nm").args(["-D", "--defined-only", "--format=posix"]).arg(library())).stdout;
    let symbols = String::from_utf8(symbols).unwrap();
    let header = std::fs::read_to_string(package().join("include/prefork_cache.h")).unwrap();
    let mut exported = 0;
    for name in symbols.lines().filter_map(|line| line.split(' ').next()) {
        assert!(header.contains(&format!("{name}(")), "{name} is exported but not in the header");
        exported += 1;
    }
    assert!(exported > 25, "{exported}");
}

#[test]
fn the_soname_has_the_major_version() {
    let dynamic = succeed(Command::new("readelf").arg("--dynamic").arg(library())).stdout;
    let dynamic = String::from_utf8(dynamic).unwrap();
    assert!(dynamic.contains("[libprefork_cache.so.0]"), "{dynamic}");
    for name in
        ["libprefork_cache.so", "libprefork_cache.so.0", "libprefork_cache.so.0.1.0", "pkgconfig/prefork_cache.pc"]
    {
        assert!(prefix().join("lib").join(name).exists(), "{name}");
    }
}
