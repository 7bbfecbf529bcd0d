//! The options of a URL as builder methods of the same names.
//!
//! A builder writes its options into the URL, so both are parsed by the same code.

use std::path::Path;
use std::time::Duration;

use super::credentials::Callback;
use super::url::StoreUrl;
use crate::error::Result;

/// The URL and options that a builder was given.
pub(super) struct Given {
    url: String,
    username: Option<String>,
    password: Option<String>,
    credentials: Option<Callback>,
    options: Vec<(&'static str, String)>,
}

impl Given {
    pub(super) fn new(url: &str) -> Given {
        Given { url: url.to_owned(), username: None, password: None, credentials: None, options: Vec::new() }
    }

    pub(super) fn set(&mut self, name: &'static str, value: String) {
        self.options.push((name, value));
    }

    pub(super) fn set_username(&mut self, username: String) {
        self.username = Some(username);
    }

    pub(super) fn set_password(&mut self, password: String) {
        self.password = Some(password);
    }

    pub(super) fn set_credentials(&mut self, callback: Callback) {
        self.credentials = Some(callback);
    }

    #[cfg(feature = "redis")]
    pub(super) fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(given, _)| *given == name)
    }

    /// Returns the URL with the options in it, and the callback.
    pub(super) fn finish(self) -> Result<(StoreUrl, Option<Callback>)> {
        let mut url = StoreUrl::parse(&self.url)?;
        url.username = self.username.or(url.username);
        url.password = self.password.or(url.password);
        for (name, value) in self.options {
            url.options.set(name, value);
        }
        Ok((url, self.credentials))
    }
}

/// Formats a duration in whole milliseconds, rounded up.
pub(super) fn duration(value: Duration) -> String {
    format!("{}ms", value.as_nanos().div_ceil(1_000_000))
}

pub(super) fn duration_or_off(value: impl Into<Option<Duration>>) -> String {
    value.into().map_or_else(|| "off".to_owned(), duration)
}

pub(super) fn text(value: impl ToString) -> String {
    value.to_string()
}

pub(super) fn path(value: impl AsRef<Path>) -> String {
    value.as_ref().to_string_lossy().into_owned()
}

/// Defines methods, each of which sets the option of the same name.
macro_rules! setters {
    (
        $builder:ident, $store:literal, $url:literal, $names:ident:
        $($(#[doc = $doc:literal])* $name:ident: $kind:ty = $text:expr, $example:literal;)*
    ) => {
        impl $builder {
            #[cfg(all(test, feature = "memory", feature = "redis", feature = "memcached", feature = "tls"))]
            pub(super) const $names: &'static [&'static str] = &[$(stringify!($name)),*];

            $(
                $(#[doc = $doc])*
                #[doc = concat!(
                    "\n```\n# use std::time::Duration;\nuse prefork_cache::stores::", $store, ";\n\nlet builder = ",
                    $store, "::builder(\"", $url, "\").", stringify!($name), "(", $example, ");\n```"
                )]
                #[must_use]
                pub fn $name(mut self, value: $kind) -> $builder {
                    self.given.set(stringify!($name), $text(value));
                    self
                }
            )*
        }
    };
}

/// Defines the methods that every builder of a store with servers has.
macro_rules! common_setters {
    ($builder:ident, $store:literal, $url:literal, $tls_url:literal) => {
        $crate::store::builder::setters! {
            $builder, $store, $url, COMMON:
            /// Sets the timeout of a whole exchange, request and reply. Defaults to 1 s.
            timeout: std::time::Duration = $crate::store::builder::duration, "Duration::from_millis(250)";
            /// Sets the timeout of connecting, including the TLS handshake. Defaults to 1 s.
            connect_timeout: std::time::Duration = $crate::store::builder::duration, "Duration::from_millis(250)";
            /// Sets the maximum number of connections to a server: blocking connections in a process, pipelined ones in
            /// a runtime. Defaults to 16.
            pool_size: usize = $crate::store::builder::text, "4";
            /// Sets the number of consecutive failures after which a server counts as down. A refused login is a
            /// failure too. Defaults to 2.
            failures: u32 = $crate::store::builder::text, "5";
            /// Sets how long a server that is down is not dialled. Defaults to 1 s.
            retry_after: std::time::Duration = $crate::store::builder::duration, "Duration::from_secs(5)";
            /// Sets the time without traffic after which the kernel checks whether the server is still reachable;
            /// `None` turns the check off. Defaults to 60 s.
            keepalive: impl Into<Option<std::time::Duration>> = $crate::store::builder::duration_or_off,
                "Duration::from_secs(300)";
            /// Sets how long a connection may be idle and still be reused. Defaults to no limit.
            max_idle: std::time::Duration = $crate::store::builder::duration, "Duration::from_secs(300)";
            /// Sets how old a connection may be and still be reused. Defaults to no limit. Set it below the lifetime
            /// of a token, so that the server does not close a connection with requests in flight.
            max_age: std::time::Duration = $crate::store::builder::duration, "Duration::from_secs(600)";
            /// Sets the size of the largest value, in bytes.
            max_value: usize = $crate::store::builder::text, "1 << 20";
            /// Sets a file that contains the password. It is read for each new connection, so a changed password is
            /// used from the next connection on. A line end after the password is ignored.
            password_file: impl AsRef<std::path::Path> = $crate::store::builder::path, "\"/run/secrets/cache\"";
        }

        $crate::store::builder::setters! {
            $builder, $store, $tls_url, TLS:
            /// Sets a file with the certificates (PEM) of the trusted authorities. Defaults to those of the system.
            tls_ca: impl AsRef<std::path::Path> = $crate::store::builder::path, "\"/etc/cache/ca.pem\"";
            /// Sets a file with the client certificate (PEM) and its intermediate certificates. Requires `tls_key`.
            tls_cert: impl AsRef<std::path::Path> = $crate::store::builder::path, "\"/etc/cache/worker.pem\"";
            /// Sets a file with the private key (PEM) of the certificate in `tls_cert`.
            tls_key: impl AsRef<std::path::Path> = $crate::store::builder::path, "\"/etc/cache/worker.key\"";
            /// Sets the name that the server's certificate must be valid for. Defaults to the host of the URL.
            tls_server_name: impl Into<String> = Into::into, "\"cache.internal\"";
            /// Accepts any certificate of the server. An attacker between client and server can then read and change
            /// everything, including passwords. Defaults to `false`.
            tls_accept_any_certificate: bool = $crate::store::builder::text, "true";
        }

        impl $builder {
            /// Sets the user name of the login, instead of the one in the URL.
            #[doc = concat!(
                "\n```\nuse prefork_cache::stores::", $store, ";\n\nlet builder = ", $store, "::builder(\"", $url,
                "\").username(\"worker\").password(\"s3cret\");\n```"
            )]
            #[must_use]
            pub fn username(mut self, username: impl Into<String>) -> $builder {
                self.given.set_username(username.into());
                self
            }

            /// Sets the password of the login, instead of the one in the URL. It is not percent-encoded.
            #[doc = concat!(
                "\n```\nuse prefork_cache::stores::", $store, ";\n\nlet builder = ", $store, "::builder(\"", $url,
                "\").username(\"worker\").password(\"s3cret\");\n```"
            )]
            #[must_use]
            pub fn password(mut self, password: impl Into<String>) -> $builder {
                self.given.set_password(password.into());
                self
            }

            /// Sets a callback that returns the credentials for each new connection: for passwords that change and
            /// tokens that expire.
            ///
            /// It runs on the thread that dials, which inside a tokio runtime is a thread of the runtime, so it must
            /// return quickly: fetch the token in a task of your own, and return the latest one. No lock of this crate
            /// is held during the call. An error or a panic of the callback fails the dial with
            #[doc = concat!("[`ErrorKind::Auth`](crate::ErrorKind::Auth). Neither may contain the secret.")]
            ///
            /// An open connection stays open when the credentials change.
            #[doc = concat!(
                "\n```\nuse prefork_cache::stores::{Credentials, ", $store, "};\nuse std::sync::{Arc, RwLock};\n\n",
                "let token = Arc::new(RwLock::new(\"first\".to_owned()));\nlet latest = Arc::clone(&token);\n",
                "let builder = ", $store, "::builder(\"", $url, "\")\n    ",
                ".credentials(move || Ok(Credentials::new(\"worker\", latest.read().unwrap().clone())));\n```"
            )]
            #[must_use]
            pub fn credentials<F>(mut self, callback: F) -> $builder
            where
                F: Fn() -> Result<
                        $crate::stores::Credentials,
                        Box<dyn std::error::Error + Send + Sync>,
                    > + Send
                    + Sync
                    + 'static,
            {
                self.given.set_credentials(std::sync::Arc::new(callback));
                self
            }
        }
    };
}

pub(super) use {common_setters, setters};
