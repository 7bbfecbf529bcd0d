//! The hosts of `examples/hosts`: how each one is started, reloaded and stopped.

use std::time::Duration;

use nix::sys::signal::Signal;

/// A host. `sh` runs its commands in the directory of the example, whose README has the command that starts it.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: &'static str,
    /// The name in the README.
    pub(crate) title: &'static str,
    /// The directory in `examples/hosts`.
    pub(crate) directory: &'static str,
    /// The command that prints its version, possibly among other text.
    pub(crate) version: &'static str,
    /// The command to run once before the start.
    pub(crate) build: Option<&'static str>,
    /// The command that starts it.
    pub(crate) start: &'static str,
    /// The command of a web server in front of a host that does not serve HTTP itself. `BROKER_URL` is a Redis server
    /// for both.
    pub(crate) front: Option<&'static str>,
    /// The line that calls its hook, if it has a hook.
    pub(crate) hook: Option<HookLine>,
    /// The number of requests that a worker serves at the same time.
    pub(crate) threads: usize,
    /// Whether workers inherit pipes of other workers, and close them at a garbage collection.
    pub(crate) collects_pipes: bool,
    /// How it is reloaded.
    pub(crate) reload: Trigger,
    /// How a worker is removed, so that another one is forked.
    pub(crate) replace: Trigger,
    pub(crate) stop: Signal,
    pub(crate) protocol: Protocol,
}

/// The line of an example that calls `after_fork`.
#[derive(Debug)]
pub(crate) struct HookLine {
    /// A string that only this line contains.
    pub(crate) mark: &'static str,
    /// A string that the host logs when a worker calls the hook.
    pub(crate) logs: &'static str,
}

const MARKED: Option<HookLine> = Some(HookLine { mark: "the one line", logs: "forked (generation " });

/// How to trigger an action of a host or a worker. For a command, `$WORKER` is the worker's process id.
#[derive(Debug)]
pub(crate) enum Trigger {
    Signal(Signal),
    Command(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Protocol {
    Http,
    FastCgi,
}

/// The longest time for a reload, and for a request during it. Celery's workers wait for up to 30 s before they end.
pub(crate) const RELOAD_PATIENCE: Duration = Duration::from_secs(120);

/// The number of workers of each example.
pub(crate) const WORKERS: usize = 4;

/// The defaults of the hosts.
const DEFAULT: Host = Host {
    name: "",
    title: "",
    directory: "",
    version: "",
    build: None,
    start: "",
    front: None,
    hook: MARKED,
    threads: 1,
    collects_pipes: false,
    reload: Trigger::Signal(Signal::SIGHUP),
    replace: Trigger::Signal(Signal::SIGKILL),
    stop: Signal::SIGTERM,
    protocol: Protocol::Http,
};

pub(crate) const ALL: [Host; 13] = [
    Host {
        name: "passenger",
        title: "Phusion Passenger",
        directory: "passenger",
        version: "passenger --version",
        start: "passenger start --port $PORT",
        reload: Trigger::Command("passenger-config restart-app --ignore-passenger-not-running $PWD"),
        // A killed worker costs a request: Passenger detects its death when it sends it one.
        replace: Trigger::Command("passenger-config detach-process $WORKER"),
        ..DEFAULT
    },
    Host {
        name: "puma",
        title: "Puma",
        directory: "puma",
        version: "puma --version",
        start: "puma --config puma.rb",
        threads: 4,
        reload: Trigger::Signal(Signal::SIGUSR2),
        ..DEFAULT
    },
    Host {
        name: "gunicorn",
        title: "gunicorn",
        directory: "gunicorn",
        version: "gunicorn --version",
        start: "PYTHONPATH=.. gunicorn --config gunicorn.conf.py app:application",
        ..DEFAULT
    },
    Host {
        name: "php-fpm",
        title: "PHP-FPM",
        directory: "php-fpm",
        version: "php-fpm8.2 --version",
        start: "php-fpm8.2 --nodaemonize --fpm-config php-fpm.conf --php-ini php.ini --prefix $PWD",
        hook: None,
        reload: Trigger::Signal(Signal::SIGUSR2),
        protocol: Protocol::FastCgi,
        ..DEFAULT
    },
    Host {
        name: "apache",
        title: "Apache",
        directory: "apache",
        version: "apache2 -v",
        build: Some("apxs -c $(pkg-config --cflags --libs prefork_cache) mod_widgets.c"),
        start: "apache2 -D FOREGROUND -d $PWD -f apache.conf",
        reload: Trigger::Signal(Signal::SIGUSR1),
        ..DEFAULT
    },
    Host {
        name: "unicorn",
        title: "Unicorn",
        directory: "unicorn",
        version: "unicorn --version",
        start: "unicorn --config-file unicorn.rb",
        collects_pipes: true,
        stop: Signal::SIGQUIT,
        ..DEFAULT
    },
    Host {
        name: "puma-fork-worker",
        title: "Puma",
        directory: "puma-fork-worker",
        version: "puma --version",
        start: "puma --config puma.rb",
        threads: 4,
        reload: Trigger::Signal(Signal::SIGUSR1),
        ..DEFAULT
    },
    Host {
        name: "uwsgi",
        title: "uWSGI",
        directory: "uwsgi",
        version: "uwsgi --version",
        start: "uwsgi --ini uwsgi.ini",
        ..DEFAULT
    },
    Host {
        name: "uwsgi-native",
        title: "uWSGI",
        directory: "uwsgi-native",
        version: "uwsgi --version",
        start: "LD_PRELOAD=libprefork_cache.so.0 uwsgi --ini uwsgi.ini",
        hook: Some(HookLine { mark: "hook-post-fork", logs: "running \"call:prefork_cache_after_fork\"" }),
        ..DEFAULT
    },
    Host {
        name: "nginx",
        title: "nginx",
        directory: "nginx",
        version: "nginx -v 2>&1",
        // Its configuration has no variables.
        build: Some("sed -i s/:8000/:$PORT/ nginx.conf"),
        start: "nginx -p $PWD -c nginx.conf",
        ..DEFAULT
    },
    Host {
        name: "celery",
        title: "Celery",
        directory: "celery",
        version: "celery --version",
        start: "PYTHONPATH=.. celery --app tasks worker --concurrency 4",
        front: Some("python3 front.py"),
        ..DEFAULT
    },
    Host {
        name: "postgresql",
        title: "PostgreSQL",
        directory: "postgresql",
        version: "pg_config --version",
        build: Some(
            "cc -shared -fPIC -I$(pg_config --includedir-server) -o widgets.so widgets.c \
               $(pkg-config --cflags --libs prefork_cache) && \
             PATH=$(pg_config --bindir):$PATH && initdb -D data --auth trust && \
             echo \"create function answer(text) returns text as '$PWD/widgets' language c strict\" | \
               postgres --single -D data postgres",
        ),
        start: "$(pg_config --bindir)/postgres -D data -k $PWD -c listen_addresses= \
                -c shared_preload_libraries=$PWD/widgets",
        front: Some("PGHOST=$PWD python3 front.py"),
        hook: None,
        // It does not replace its backends, which end with their connections.
        reload: Trigger::Command(
            "psql -h $PWD -d postgres -c \"select pg_reload_conf(), count(pg_terminate_backend(pid)) \
             from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()\"",
        ),
        // If one is killed, PostgreSQL ends all the others.
        replace: Trigger::Signal(Signal::SIGTERM),
        stop: Signal::SIGINT,
        ..DEFAULT
    },
    Host {
        name: "passenger-apache",
        title: "Phusion Passenger",
        directory: "passenger-apache",
        version: "passenger --version",
        start: "apache2 -D FOREGROUND -d $PWD -f apache.conf",
        reload: Trigger::Command(
            "PASSENGER_INSTANCE_REGISTRY_DIR=$PWD \
             passenger-config restart-app --ignore-passenger-not-running $PWD",
        ),
        // For the same reason as with Passenger Standalone.
        replace: Trigger::Command("PASSENGER_INSTANCE_REGISTRY_DIR=$PWD passenger-config detach-process $WORKER"),
        ..DEFAULT
    },
];
