//! Generates the headers from the sources and compares them with the committed ones; `UPDATE=1` writes them.

use std::fs;
use std::path::Path;

use cbindgen::{Builder, Config, DocumentationStyle, EnumConfig, Language};

const INTRODUCTION: &str = r#"/*
 * prefork-cache: a cache that survives fork(). The C interface.
 *
 * - Strings and values are bytes with a length. Keys, names and URLs are UTF-8. PFC_LITERAL("x") gives both for a
 *   literal.
 * - Threads: any thread may call any function at any time, but only one thread at a time may use a pfc_call, a
 *   pfc_claim or a pfc_value.
 * - Processes: everything may be used before a fork and after it, in the parent and in its children, without a hook,
 *   with every kind of fork. A child makes its own connections, and never uses one of its parent's.
 * - Locks: none is held while the caller's loader runs. A child never waits for a lock of a thread that exists only in
 *   its parent. A host language releases its own lock around calls that may wait (those with an argument `call`).
 * - Signals: an interrupted call continues, with or without SA_RESTART. Do not call any function in a signal handler.
 * - Threads and runtimes: the library starts none.
 * - Unloading: from its first use on, the library stays loaded.
 *
 * This file is generated from the sources of prefork-cache-capi.
 */"#;

const LITERAL: &str = r#"
/** The two arguments for a string literal: pfc_delete(cache, PFC_LITERAL("motd"), NULL). */
#define PFC_LITERAL(text) ("" text), (sizeof(text) - 1)"#;

/// The source files, in the order of the header.
const SOURCES: &str =
    "status errors background_errors value handle call entries counters many expiry claims fetch reports lifecycle";

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn source(name: &str) -> std::path::PathBuf {
    package().join("src").join(name).with_extension("rs")
}

fn generated(config: Config) -> String {
    let config = Config {
        language: Language::C,
        usize_is_size_t: true,
        enumeration: EnumConfig { prefix_with_name: false, ..EnumConfig::default() },
        ..config
    };
    let builder = SOURCES.split(' ').fold(Builder::new(), |builder, name| builder.with_src(source(name)));
    let mut text = Vec::new();
    builder.with_config(config).generate().expect("the sources can be read").write(&mut text);
    String::from_utf8(text).expect("it is text")
}

fn header() -> String {
    generated(Config {
        cpp_compat: true,
        header: Some(INTRODUCTION.to_owned()),
        include_guard: Some("PREFORK_CACHE_H".to_owned()),
        no_includes: true,
        sys_includes: ["stddef.h", "stdint.h"].map(str::to_owned).to_vec(),
        after_includes: Some(LITERAL.to_owned()),
        documentation_style: DocumentationStyle::Doxy,
        line_length: 120,
        ..Config::default()
    })
}

/// Returns only the declarations, for FFI parsers without a preprocessor: PHP's, which reads the first two lines, and
/// LuaJIT's.
fn ffi() -> String {
    let declarations =
        generated(Config { no_includes: true, documentation: false, line_length: 120, ..Config::default() });
    let mut text = String::from("#define FFI_SCOPE \"prefork_cache\"\n#define FFI_LIB \"libprefork_cache.so.0\"\n");
    let mut is_for_later_c = false;
    for line in declarations.lines() {
        match line {
            "" => {}
            line if line.starts_with('#') => is_for_later_c = line.starts_with("#if __STDC_VERSION__"),
            _ if is_for_later_c => {}
            line => text.extend([line, "\n"]),
        }
    }
    text
}

/// Compares a file with its expected content; with `UPDATE=1` writes it first.
fn is_up_to_date(name: &str, text: &str) -> bool {
    let path = package().join("include").join(name);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, text).expect("it can be written");
    }
    fs::read_to_string(path).is_ok_and(|committed| committed == text)
}

#[test]
fn the_headers_are_up_to_date() {
    let header = header();
    for (name, text) in [("prefork_cache.h", &header), ("prefork_cache.ffi.h", &ffi())] {
        assert!(
            is_up_to_date(name, text),
            "include/{name} is out of date: UPDATE=1 cargo test -p prefork-cache-capi header"
        );
    }
}

#[test]
fn every_function_is_in_the_header() {
    let header = header();
    let mut functions = 0;
    for file in fs::read_dir(package().join("src")).expect("there are sources") {
        let text = fs::read_to_string(file.expect("a file").path()).expect("text");
        for (_, rest) in text.match_indices("#[unsafe(no_mangle)]\n").map(|(at, found)| text.split_at(at + found.len()))
        {
            let name = rest.split_once("fn ").expect("a function").1.split('(').next().expect("a name");
            assert!(header.contains(&format!("{name}(")), "{name} is not in the header");
            functions += 1;
        }
    }
    assert!(functions > 25, "{functions}");
}
