//! The hosts: how each one of `examples/hosts` is started, reloaded and stopped.

use nix::sys::signal::Signal;

/// The commands are run by `sh` in the directory of the example. Its README has the one that starts it.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: &'static str,
    /// The directory in `examples/hosts`.
    pub(crate) directory: &'static str,
    /// Prints its version, among other things.
    pub(crate) version: &'static str,
    /// What has to be done once before it is started.
    pub(crate) build: Option<&'static str>,
    pub(crate) start: &'static str,
    /// Whether it offers a hook: then one line of the example is marked.
    pub(crate) has_hook: bool,
    /// Requests that a worker serves at a time.
    pub(crate) threads: usize,
    pub(crate) reload: Way,
    /// How a worker is got rid of, so that another one is forked.
    pub(crate) replace: Way,
    pub(crate) stop: Signal,
    pub(crate) protocol: Protocol,
}

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

/// How many workers each example has.
pub(crate) const WORKERS: usize = 4;

pub(crate) const ALL: [Host; 5] = [
    Host {
        name: "passenger",
        directory: "passenger",
        version: "passenger --version",
        build: None,
        start: "passenger start --port $PORT",
        has_hook: true,
        threads: 1,
        reload: Way::Command("passenger-config restart-app --ignore-passenger-not-running $PWD"),
        // A worker that is killed costs a request: Passenger notices when it has sent it one.
        replace: Way::Command("passenger-config detach-process $WORKER"),
        stop: Signal::SIGTERM,
        protocol: Protocol::Http,
    },
    Host {
        name: "puma",
        directory: "puma",
        version: "puma --version",
        build: None,
        start: "puma --config puma.rb",
        has_hook: true,
        threads: 4,
        reload: Way::Signal(Signal::SIGUSR2),
        replace: Way::Signal(Signal::SIGKILL),
        stop: Signal::SIGTERM,
        protocol: Protocol::Http,
    },
    Host {
        name: "gunicorn",
        directory: "gunicorn",
        version: "gunicorn --version",
        build: None,
        start: "PYTHONPATH=.. gunicorn --config gunicorn.conf.py app:application",
        has_hook: true,
        threads: 1,
        reload: Way::Signal(Signal::SIGHUP),
        replace: Way::Signal(Signal::SIGKILL),
        stop: Signal::SIGTERM,
        protocol: Protocol::Http,
    },
    Host {
        name: "php-fpm",
        directory: "php-fpm",
        version: "php-fpm8.2 --version",
        build: None,
        start: "php-fpm8.2 --nodaemonize --fpm-config php-fpm.conf --php-ini php.ini --prefix $PWD",
        has_hook: false,
        threads: 1,
        reload: Way::Signal(Signal::SIGUSR2),
        replace: Way::Signal(Signal::SIGKILL),
        stop: Signal::SIGTERM,
        protocol: Protocol::FastCgi,
    },
    Host {
        name: "apache",
        directory: "apache",
        version: "apache2 -v",
        build: Some("apxs -c $(pkg-config --cflags --libs prefork_cache) mod_widgets.c"),
        start: "apache2 -D FOREGROUND -d $PWD -f apache.conf",
        has_hook: true,
        threads: 1,
        reload: Way::Signal(Signal::SIGUSR1),
        replace: Way::Signal(Signal::SIGKILL),
        stop: Signal::SIGTERM,
        protocol: Protocol::Http,
    },
];
