//! The hosts: how each one of `examples/hosts` is started, reloaded and stopped.

use std::time::Duration;

use nix::sys::signal::Signal;

/// The commands are run by `sh` in the directory of the example. Its README has the one that starts it.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: &'static str,
    /// What the README calls it.
    pub(crate) title: &'static str,
    /// The directory in `examples/hosts`.
    pub(crate) directory: &'static str,
    /// Prints its version, among other things.
    pub(crate) version: &'static str,
    /// What has to be done once before it is started.
    pub(crate) build: Option<&'static str>,
    pub(crate) start: &'static str,
    /// What runs beside it and serves HTTP for it, if it does not itself. `BROKER_URL` is a Redis server for the two.
    pub(crate) front: Option<&'static str>,
    /// If it offers a hook.
    pub(crate) hook: Option<HookLine>,
    /// Requests that a worker serves at a time.
    pub(crate) threads: usize,
    /// Whether workers inherit pipes of others, and close them when their garbage is collected.
    pub(crate) collects_pipes: bool,
    pub(crate) reload: Way,
    /// How a worker is got rid of, so that another one is forked.
    pub(crate) replace: Way,
    pub(crate) stop: Signal,
    pub(crate) protocol: Protocol,
}

/// The one line of an example that calls `after_fork`.
#[derive(Debug)]
pub(crate) struct HookLine {
    /// What is in that line and no other.
    pub(crate) mark: &'static str,
    /// What the host logs when a worker calls it.
    pub(crate) logs: &'static str,
}

const MARKED: Option<HookLine> = Some(HookLine { mark: "the one line", logs: "forked (generation " });

/// How something is asked of a host, or of a worker: a command finds its number in `$WORKER`.
#[derive(Debug)]
pub(crate) enum Way {
    Signal(Signal),
    Command(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Protocol {
    Http,
    FastCgi,
}

/// How long a reload may take, and a request meanwhile. Celery's workers wait for up to 30 s before they end.
pub(crate) const RELOAD_PATIENCE: Duration = Duration::from_secs(120);

/// How many workers each example has.
pub(crate) const WORKERS: usize = 4;

/// What is the same for most of them.
const MOST: Host = Host {
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
    reload: Way::Signal(Signal::SIGHUP),
    replace: Way::Signal(Signal::SIGKILL),
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
        reload: Way::Command("passenger-config restart-app --ignore-passenger-not-running $PWD"),
        // A worker that is killed costs a request: Passenger notices when it has sent it one.
        replace: Way::Command("passenger-config detach-process $WORKER"),
        ..MOST
    },
    Host {
        name: "puma",
        title: "Puma",
        directory: "puma",
        version: "puma --version",
        start: "puma --config puma.rb",
        threads: 4,
        reload: Way::Signal(Signal::SIGUSR2),
        ..MOST
    },
    Host {
        name: "gunicorn",
        title: "gunicorn",
        directory: "gunicorn",
        version: "gunicorn --version",
        start: "PYTHONPATH=.. gunicorn --config gunicorn.conf.py app:application",
        ..MOST
    },
    Host {
        name: "php-fpm",
        title: "PHP-FPM",
        directory: "php-fpm",
        version: "php-fpm8.2 --version",
        start: "php-fpm8.2 --nodaemonize --fpm-config php-fpm.conf --php-ini php.ini --prefix $PWD",
        hook: None,
        reload: Way::Signal(Signal::SIGUSR2),
        protocol: Protocol::FastCgi,
        ..MOST
    },
    Host {
        name: "apache",
        title: "Apache",
        directory: "apache",
        version: "apache2 -v",
        build: Some("apxs -c $(pkg-config --cflags --libs prefork_cache) mod_widgets.c"),
        start: "apache2 -D FOREGROUND -d $PWD -f apache.conf",
        reload: Way::Signal(Signal::SIGUSR1),
        ..MOST
    },
    Host {
        name: "unicorn",
        title: "Unicorn",
        directory: "unicorn",
        version: "unicorn --version",
        start: "unicorn --config-file unicorn.rb",
        collects_pipes: true,
        stop: Signal::SIGQUIT,
        ..MOST
    },
    Host {
        name: "puma-fork-worker",
        title: "Puma",
        directory: "puma-fork-worker",
        version: "puma --version",
        start: "puma --config puma.rb",
        threads: 4,
        reload: Way::Signal(Signal::SIGUSR1),
        ..MOST
    },
    Host {
        name: "uwsgi",
        title: "uWSGI",
        directory: "uwsgi",
        version: "uwsgi --version",
        start: "uwsgi --ini uwsgi.ini",
        ..MOST
    },
    Host {
        name: "uwsgi-native",
        title: "uWSGI",
        directory: "uwsgi-native",
        version: "uwsgi --version",
        start: "LD_PRELOAD=libprefork_cache.so.0 uwsgi --ini uwsgi.ini",
        hook: Some(HookLine { mark: "hook-post-fork", logs: "running \"call:prefork_cache_after_fork\"" }),
        ..MOST
    },
    Host {
        name: "nginx",
        title: "nginx",
        directory: "nginx",
        version: "nginx -v 2>&1",
        // It has no variables.
        build: Some("sed -i s/:8000/:$PORT/ nginx.conf"),
        start: "nginx -p $PWD -c nginx.conf",
        ..MOST
    },
    Host {
        name: "celery",
        title: "Celery",
        directory: "celery",
        version: "celery --version",
        start: "PYTHONPATH=.. celery --app tasks worker --concurrency 4",
        front: Some("python3 front.py"),
        ..MOST
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
        // It never forks its backends again: they end with their connections.
        reload: Way::Command(
            "psql -h $PWD -d postgres -c \"select pg_reload_conf(), count(pg_terminate_backend(pid)) \
             from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()\"",
        ),
        // One that is killed takes all the others with it.
        replace: Way::Signal(Signal::SIGTERM),
        stop: Signal::SIGINT,
        ..MOST
    },
    Host {
        name: "passenger-apache",
        title: "Phusion Passenger",
        directory: "passenger-apache",
        version: "passenger --version",
        start: "apache2 -D FOREGROUND -d $PWD -f apache.conf",
        reload: Way::Command(
            "PASSENGER_INSTANCE_REGISTRY_DIR=$PWD \
             passenger-config restart-app --ignore-passenger-not-running $PWD",
        ),
        // As with Passenger Standalone.
        replace: Way::Command("PASSENGER_INSTANCE_REGISTRY_DIR=$PWD passenger-config detach-process $WORKER"),
        ..MOST
    },
];
