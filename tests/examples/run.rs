//! Runs built examples as processes.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use support::wait::until;

/// The exit status and output of an example.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs an example to its end. A variable of `None` is removed from its environment.
pub(crate) fn run(example: &str, arguments: &[&str], environment: &[(&str, Option<&str>)]) -> Ended {
    let mut command = command(example, arguments);
    for (name, value) in environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    end(spawn(&mut command))
}

/// Waits for the end of a process.
pub(crate) fn end(mut process: Child) -> Ended {
    until("the example has ended", || process.try_wait().expect("the child is not reaped yet").is_some());
    let output = process.wait_with_output().expect("the child is not reaped yet");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("examples print UTF-8");
    let code = output.status.code().unwrap_or_else(|| panic!("the example ended with {}", output.status));
    Ended { code, stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Returns a command that writes to pipes, and whose process is killed when the thread that started it ends.
pub(crate) fn command(example: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(path(example));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: one system call, which is async-signal-safe.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
    command
}

pub(crate) fn spawn(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Returns the path of an example, relative to this test's, where cargo puts it.
fn path(example: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let profile = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
    let path = profile.join("examples").join(example);
    assert!(path.exists(), "{} does not exist: run `cargo build --examples` with the same features", path.display());
    path
}
