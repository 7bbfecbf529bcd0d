//! Runs each scenario in a process of its own.
//!
//! The test binary runs itself again with [`FLAG`] and the scenario's name. That process has an alarm as its watchdog
//! and a directory for its files; what it prints is shown if it fails, and under `STRESS=1`.

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

/// Comes before a scenario's name.
const FLAG: &str = "--scenario";

/// The exit status of a scenario that cannot run here.
const SKIPPED: i32 = 77;

/// How many scenarios run at once, unless the command line says otherwise.
const AT_ONCE: usize = 4;

/// How long a scenario may take.
const TIME: Duration = Duration::from_secs(120);
const STRESS_TIME: Duration = Duration::from_secs(1800);

/// By what a scenario may take longer over TLS: a handshake costs a thousand times what an exchange does.
const OVER_TLS_LONGER: u32 = 3;

/// How a cache is called.
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
    /// The server that it has, and so is run in other settings as well.
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

/// The scenarios of one promise, under its name.
pub(crate) fn promise(name: &str, scenarios: Vec<Scenario>) -> impl Iterator<Item = Scenario> {
    scenarios.into_iter().map(move |scenario| Scenario { name: format!("{name}::{}", scenario.name), ..scenario })
}

pub(crate) fn scenario(name: &str, run: fn()) -> Scenario {
    Scenario { name: name.to_owned(), server: None, run: Box::new(run) }
}

pub(crate) fn with_each_server(name: &str, run: fn(Kind)) -> Vec<Scenario> {
    let one = |kind: Kind| {
        let name = format!("{name}::{}", kind.name());
        Scenario { name, server: Some(kind), run: Box::new(move || run(kind)) }
    };
    Kind::BOTH.map(one).into()
}

pub(crate) fn with_each_server_and_mode(name: &str, run: fn(Kind, Mode)) -> Vec<Scenario> {
    let one = |kind: Kind, mode: Mode| {
        let name = format!("{name}::{}::{}", kind.name(), mode.name());
        Scenario { name, server: Some(kind), run: Box::new(move || run(kind, mode)) }
    };
    Kind::BOTH.into_iter().flat_map(|kind| Mode::BOTH.map(|mode| one(kind, mode))).collect()
}

/// Ends the scenario: it cannot run here. Said aloud by the harness.
pub(crate) fn skip(why: &str) -> ! {
    println!("skipped: {why}");
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
    let trial = |name: String| Trial::test(name.clone(), move || run_in_a_process_of_its_own(&name));
    libtest_mimic::run(&arguments, names.map(trial).collect()).exit_code()
}

fn time(name: &str) -> Duration {
    let time = if is_stress() { STRESS_TIME } else { TIME };
    if name.ends_with("over_tls") { time * OVER_TLS_LONGER } else { time }
}

fn run_in_a_process_of_its_own(name: &str) -> Result<(), Failed> {
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

/// Runs the scenario, for a little longer than its own watchdog lets it.
fn run(name: &str, directory: &Directory) -> Result<(ExitStatus, String), Failed> {
    let (output, theirs) = std::io::pipe()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args([FLAG, name]).env("TMPDIR", &directory.0).env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stdout(theirs.try_clone()?).stderr(theirs);
    let mut process = command.spawn()?;
    // Its own ends of the pipe would keep it from ending.
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

/// For a scenario's files, also if it is killed.
struct Directory(PathBuf);

impl Directory {
    fn make(name: &str) -> std::io::Result<Directory> {
        // Short: the path of a Unix socket has some hundred characters.
        let number = name.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let path = std::env::temp_dir().join(format!("promise-{}-{number:x}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left is a few empty files, in the system's place for such.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
