//! Runs each scenario in a new process.
//!
//! The test binary runs itself again with [`FLAG`] and the scenario's name. That process has an alarm as its watchdog
//! and a directory for its files. Its output is shown if it fails, and under `STRESS=1`.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::unistd::alarm;

use support::forks::exit_now;
use support::sentinels::put_all_behind_sentinels;
use support::servers::{Kind, cluster_all, encrypt_all};
pub(crate) use support::stress::{count, is_stress};
use support::wait::readable;

/// The argument before a scenario's name.
const FLAG: &str = "--scenario";

/// The exit status of a scenario that cannot run here.
const SKIPPED: i32 = 77;

/// How many scenarios run at once, unless `--test-threads` is given.
const AT_ONCE: usize = 4;

/// The time limit of a scenario.
const TIME: Duration = Duration::from_secs(120);
const STRESS_TIME: Duration = Duration::from_secs(1800);

/// The factor by which the limit is longer over TLS: a handshake takes a thousand times as long as an exchange.
const TLS_TIME_FACTOR: u32 = 3;

/// Which API of a cache is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Blocking,
    Tokio,
}

impl Mode {
    pub(crate) const BOTH: [Mode; 2] = [Mode::Blocking, Mode::Tokio];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Blocking => "blocking",
            Mode::Tokio => "tokio",
        }
    }
}

pub(crate) struct Scenario {
    name: String,
    /// The scenario's server, if it has one. The scenario then runs in other settings as well.
    server: Option<Kind>,
    run: Box<dyn Fn() + Send>,
}

/// The suffix of a scenario with encrypted servers.
const OVER_TLS: &str = "::over_tls";

/// The suffix of a scenario whose Redis servers are found through a sentinel.
const BEHIND_SENTINELS: &str = "::behind_sentinels";

/// The suffix of a scenario whose Redis server is a cluster.
const ON_A_CLUSTER: &str = "::on_a_cluster";

/// The suffixes of the settings in which a scenario with this server also runs, each with the function that sets it up.
fn settings(server: Kind) -> Vec<(&'static str, fn())> {
    let over_tls = (OVER_TLS, encrypt_all as fn());
    match server {
        Kind::Redis => {
            vec![over_tls, (BEHIND_SENTINELS, put_all_behind_sentinels), (ON_A_CLUSTER, cluster_all)]
        }
        Kind::Memcached => vec![over_tls],
    }
}

/// Returns the scenarios of one promise, with its name as their prefix.
pub(crate) fn promise(name: &str, scenarios: Vec<Scenario>) -> impl Iterator<Item = Scenario> {
    scenarios.into_iter().map(move |scenario| Scenario { name: format!("{name}::{}", scenario.name), ..scenario })
}

pub(crate) fn scenario(name: &str, run: fn()) -> Scenario {
    Scenario { name: name.to_owned(), server: None, run: Box::new(run) }
}

pub(crate) fn with_each_server(name: &str, run: fn(Kind)) -> Vec<Scenario> {
    let create = |kind: Kind| {
        let name = format!("{name}::{}", kind.name());
        Scenario { name, server: Some(kind), run: Box::new(move || run(kind)) }
    };
    Kind::BOTH.map(create).into()
}

pub(crate) fn with_each_server_and_mode(name: &str, run: fn(Kind, Mode)) -> Vec<Scenario> {
    let create = |kind: Kind, mode: Mode| {
        let name = format!("{name}::{}::{}", kind.name(), mode.name());
        Scenario { name, server: Some(kind), run: Box::new(move || run(kind, mode)) }
    };
    Kind::BOTH.into_iter().flat_map(|kind| Mode::BOTH.map(|mode| create(kind, mode))).collect()
}

/// Ends the scenario, which cannot run here. The harness prints the reason.
pub(crate) fn skip(reason: &str) -> ! {
    println!("skipped: {reason}");
    exit_now(SKIPPED)
}

pub(crate) fn main(scenarios: Vec<Scenario>) -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(FLAG) {
        let name = arguments.next().expect("the name of a scenario");
        let wanted = scenarios.into_iter().find_map(|scenario| {
            let added = name.strip_prefix(&scenario.name)?;
            let mut settings = scenario.server.map_or_else(Vec::new, settings).into_iter();
            let set_up = if added.is_empty() { None } else { Some(settings.find(|(suffix, _)| *suffix == added)?.1) };
            Some((scenario, set_up))
        });
        let (scenario, set_up) = wanted.expect("a known scenario");
        alarm::set(u32::try_from(time(&name).as_secs()).expect("a short time"));
        set_up.into_iter().for_each(|set_up| set_up());
        (scenario.run)();
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let names = scenarios.iter().flat_map(|Scenario { name, server, .. }| {
        let settings = server.map_or_else(Vec::new, settings).into_iter().map(|(suffix, _)| suffix);
        std::iter::once("").chain(settings).map(move |suffix| format!("{name}{suffix}"))
    });
    let trial = |name: String| Trial::test(name.clone(), move || run_in_new_process(&name));
    libtest_mimic::run(&arguments, names.map(trial).collect()).exit_code()
}

fn time(name: &str) -> Duration {
    let time = if is_stress() { STRESS_TIME } else { TIME };
    if name.ends_with(OVER_TLS) { time * TLS_TIME_FACTOR } else { time }
}

fn run_in_new_process(name: &str) -> Result<(), Failed> {
    let directory = Directory::make(name)?;
    let (status, output) = run(name, &directory)?;
    match status.code() {
        Some(0) if is_stress() => eprintln!("{name}:\n{output}"),
        Some(0) => {}
        Some(SKIPPED) => eprintln!("{name}: {}", output.trim()),
        _ => return Err(format!("{name}: {status}\n{output}").into()),
    }
    Ok(())
}

/// Runs the scenario in a process, for a little longer than its own watchdog allows.
fn run(name: &str, directory: &Directory) -> Result<(ExitStatus, String), Failed> {
    let (output, write_end) = std::io::pipe()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args([FLAG, name]).env("TMPDIR", &directory.0).env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stdout(write_end.try_clone()?).stderr(write_end);
    let mut process = command.spawn()?;
    // The command holds write ends of the pipe, which would keep the loop below from ending.
    drop(command);
    let mut text = Vec::new();
    let patience = time(name) + Duration::from_secs(10);
    let mut output = output;
    while readable([output.as_fd()], patience) == [true] {
        let mut piece = [0; 4096];
        match output.read(&mut piece)? {
            0 => return Ok((process.wait()?, String::from_utf8_lossy(&text).into_owned())),
            length => text.extend_from_slice(&piece[..length]),
        }
    }
    process.kill()?;
    process.wait()?;
    Err(format!("{name}: still running after {patience:?}\n{}", String::from_utf8_lossy(&text)).into())
}

/// The directory of a scenario's files. It is removed even if the scenario is killed.
struct Directory(PathBuf);

impl Directory {
    fn make(name: &str) -> std::io::Result<Directory> {
        // Short, because the path of a Unix socket is limited to about a hundred characters.
        let number = name.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let path = std::env::temp_dir().join(format!("promise-{}-{number:x}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // A failure leaves only a few empty files in the temporary directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
