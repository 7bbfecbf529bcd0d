//! The installed library, and helpers to compile and run programs with it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Returns the directory for all files of these tests.
fn scratch() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("programs-{}", std::process::id()))
}

pub(crate) fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Installs the library of this build with `capi/install`, once, and returns the prefix.
pub(crate) fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let prefix = scratch().join("prefix");
        let built = std::env::current_exe().expect("a program").parent().expect("a directory").to_owned();
        let mut install = Command::new(package().join("install"));
        succeed(install.arg("--prefix").arg(&prefix).env("TARGET", built));
        prefix
    })
}

pub(crate) fn library() -> PathBuf {
    prefix().join("lib/libprefork_cache.so.0")
}

/// Compiles a C program with the flags of the .pc file.
pub(crate) fn compile(source: &Path, flags: &[&str]) -> PathBuf {
    let program = scratch().join(source.file_stem().expect("a name"));
    let mut compiler = compiler(source, &program);
    succeed(compiler.args(flags).args(pkg_config(&["--libs"])));
    program
}

/// Compiles a C program with the static library.
pub(crate) fn compile_with_archive(source: &Path) -> PathBuf {
    let program = scratch().join(source.file_stem().expect("a name")).with_extension("static");
    let shared = "-lprefork_cache";
    let libraries = pkg_config(&["--static", "--libs"]).into_iter().filter(|flag| flag != shared);
    let mut compiler = compiler(source, &program);
    succeed(compiler.arg("-std=gnu11").arg(prefix().join("lib/libprefork_cache.a")).args(libraries));
    program
}

fn compiler(source: &Path, program: &Path) -> Command {
    let mut compiler = Command::new("gcc");
    compiler.args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]).args(pkg_config(&["--cflags"]));
    compiler.arg(source).arg("-o").arg(program);
    compiler
}

fn pkg_config(wanted: &[&str]) -> Vec<String> {
    let mut pkg_config = Command::new("pkg-config");
    pkg_config.args(wanted).arg("prefork_cache").env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig"));
    let flags = String::from_utf8(succeed(&mut pkg_config).stdout).expect("flags are text");
    flags.split_whitespace().map(str::to_owned).collect()
}

/// Returns a command that finds the installed library.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", prefix().join("lib"));
    command
}

/// Returns a command that runs a program under valgrind, which exits with status 99 after an error or a leak. Memory
/// that is reachable only by an interior pointer does not count as a leak: hash tables are held like that.
pub(crate) fn under_valgrind(program: &Path) -> Command {
    let mut valgrind = command("valgrind");
    valgrind.args(["--quiet", "--error-exitcode=99", "--leak-check=full", "--trace-children=no"]);
    valgrind.args(["--show-leak-kinds=definite", "--errors-for-leak-kinds=definite", "--num-callers=30"]).arg(program);
    valgrind
}

pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}: see capi/tests/run"));
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (shown(&output.stdout), shown(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    output
}

/// Copies a file under another name.
pub(crate) fn copied(from: &Path, name: &str) -> PathBuf {
    let copy = scratch().join(name);
    fs::copy(from, &copy).expect("there is room");
    copy
}
