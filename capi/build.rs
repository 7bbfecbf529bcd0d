//! Linker arguments of the shared library: its soname, and that it exports only the interface.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libprefork_cache.so.0");
    // rustc hides its own symbols; this hides those of the static C libraries that it links.
    println!("cargo:rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
}
