//! What the linker is told of the shared library: its name for the loader, and that it exports the interface alone.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libprefork_cache.so.0");
    // What rustc does not export itself, such as the symbols of static C libraries that it links.
    println!("cargo:rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
}
