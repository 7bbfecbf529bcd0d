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

/// How the servers of a scenario are set up that has a server.
struct Setting {
    /// Behind the scenario's name.
    suffix: &'static str,
    set_up: fn(),
    /// The promises that are tried in it every day, if not all are: under `STRESS=1` they are.
    daily: Option<&'static [&'static str]>,
}

const OVER_TLS: Setting = Setting { suffix: "::over_tls", set_up: encrypt_all, daily: None };

const BEHIND_SENTINELS: Setting =
    Setting { suffix: "::behind_sentinels", set_up: put_all_behind_sentinels, daily: None };

const ON_A_CLUSTER: Setting = Setting { suffix: "::on_a_cluster", set_up: cluster_all, daily: None };

/// What is about both: connections that are dialled again elsewhere, and those that a child has inherited.
const DAILY_IN_BOTH: &[&str] =
    &["one_process_one_socket", "a_fork_in_mid_command_harms_nobody", "the_parent_never_notices"];

const BEHIND_SENTINELS_OVER_TLS: Setting = Setting {
    suffix: "::behind_sentinels_over_tls",
    set_up: || {
        encrypt_all();
        put_all_behind_sentinels();
    },
    daily: Some(DAILY_IN_BOTH),
};

const ON_A_CLUSTER_OVER_TLS: Setting = Setting {
    suffix: "::on_a_cluster_over_tls",
    set_up: || {
        encrypt_all();
        cluster_all();
    },
    daily: Some(DAILY_IN_BOTH),
};

/// The settings of a scenario with this server, besides a plain one.
fn settings(server: Option<Kind>) -> &'static [Setting] {
    match server {
        Some(Kind::Redis) => {
            &[OVER_TLS, BEHIND_SENTINELS, ON_A_CLUSTER, BEHIND_SENTINELS_OVER_TLS, ON_A_CLUSTER_OVER_TLS]
        }
        Some(Kind::Memcached) => &[OVER_TLS],
        None => &[],
    }
}

impl Setting {
    fn is_for(&self, scenario: &str) -> bool {
        let is_of = |promise: &&str| scenario.starts_with(&format!("{promise}::"));
        is_stress() || self.daily.is_none_or(|daily| daily.iter().any(is_of))
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
            let mut settings = settings(scenario.server).iter();
            let set_up =
                if added.is_empty() { None } else { Some(settings.find(|setting| setting.suffix == added)?.set_up) };
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
        let settings = settings(*server).iter().filter(move |setting| setting.is_for(name));
        let suffixes = std::iter::once("").chain(settings.map(|setting| setting.suffix));
        suffixes.map(move |suffix| format!("{name}{suffix}"))
    });
    let trial = |name: String| Trial::test(name.clone(), move || run_in_new_process(&name));
    libtest_mimic::run(&arguments, names.map(trial).collect()).exit_code()
}

fn time(name: &str) -> Duration {
    let time = if is_stress() { STRESS_TIME } else { TIME };
    if name.ends_with("over_tls") { time * TLS_TIME_FACTOR } else { time }
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
