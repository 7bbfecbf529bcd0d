//! The options of a URL as methods of a builder, under the same names.
//!
//! A builder writes what it is given into the URL, so whatever reads a URL reads a builder too.

use std::path::Path;
use std::time::Duration;

use super::credentials::Callback;
use super::url::StoreUrl;
use crate::error::Result;

/// What a builder was given.
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

    /// The URL with the options in it, and the callback.
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

/// In whole milliseconds, rounded up.
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

/// Methods, each of which sets the option of its name.
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

/// The methods of every builder of a store with servers.
macro_rules! common_setters {
    ($builder:ident, $store:literal, $url:literal, $tls_url:literal) => {
        $crate::store::builder::setters! {
            $builder, $store, $url, COMMON:
            /// For a whole exchange, request and reply. Defaults to a second.
            timeout: std::time::Duration = $crate::store::builder::duration, "Duration::from_millis(250)";
            /// For making a connection, with the TLS handshake. Defaults to a second.
            connect_timeout: std::time::Duration = $crate::store::builder::duration, "Duration::from_millis(250)";
            /// The most connections to a server: blocking ones in a process, pipelined ones in a runtime. Defaults to
            /// 16.
            pool_size: usize = $crate::store::builder::text, "4";
            /// After how many failures in a row a server counts as down; that it does not let us in is one. Defaults
            /// to 2.
            failures: u32 = $crate::store::builder::text, "5";
            /// How long a server that is down is not tried again. Defaults to a second.
            retry_after: std::time::Duration = $crate::store::builder::duration, "Duration::from_secs(5)";
            /// After what time without traffic the kernel asks whether the server is still there; `None` for never.
            /// Defaults to a minute.
            keepalive: impl Into<Option<std::time::Duration>> = $crate::store::builder::duration_or_off,
                "Duration::from_secs(300)";
            /// How long a connection may be idle to be used again. Defaults to no limit.
            max_idle: std::time::Duration = $crate::store::builder::duration, "Duration::from_secs(300)";
            /// How old a connection may be to be used again. Defaults to no limit. Less than the life of a token, it
            /// keeps the server from cutting off what is in flight.
            max_age: std::time::Duration = $crate::store::builder::duration, "Duration::from_secs(600)";
            /// The largest value in bytes.
            max_value: usize = $crate::store::builder::text, "1 << 20";
            /// A file whose content is the password. It is read at each dial, so a password that is replaced in it
            /// serves from the next connection on. A line end behind it does not count.
            password_file: impl AsRef<std::path::Path> = $crate::store::builder::path, "\"/run/secrets/cache\"";
        }

        $crate::store::builder::setters! {
            $builder, $store, $tls_url, TLS:
            /// A file with the certificates (PEM) of the authorities that are trusted. Defaults to the system's.
            tls_ca: impl AsRef<std::path::Path> = $crate::store::builder::path, "\"/etc/cache/ca.pem\"";
            /// A file with this program's own certificate (PEM), and those between it and an authority's; together
            /// with `tls_key`.
            tls_cert: impl AsRef<std::path::Path> = $crate::store::builder::path, "\"/etc/cache/worker.pem\"";
            /// A file with the key (PEM) of the certificate of `tls_cert`.
            tls_key: impl AsRef<std::path::Path> = $crate::store::builder::path, "\"/etc/cache/worker.key\"";
            /// The name that the server's certificate must be for. Defaults to the host of the URL.
            tls_server_name: impl Into<String> = Into::into, "\"cache.internal\"";
            /// Accepts any certificate: who can get in between reads and changes everything, passwords too. Defaults
            /// to `false`.
            tls_accept_any_certificate: bool = $crate::store::builder::text, "true";
        }

        impl $builder {
            /// The user who logs in, instead of the one in the URL.
            #[doc = concat!(
                "\n```\nuse prefork_cache::stores::", $store, ";\n\nlet builder = ", $store, "::builder(\"", $url,
                "\").username(\"worker\").password(\"s3cret\");\n```"
            )]
            #[must_use]
            pub fn username(mut self, username: impl Into<String>) -> $builder {
                self.given.set_username(username.into());
                self
            }

            /// The password of who logs in, instead of the one in the URL; as it is, without percent-encoding.
            #[doc = concat!(
                "\n```\nuse prefork_cache::stores::", $store, ";\n\nlet builder = ", $store, "::builder(\"", $url,
                "\").username(\"worker\").password(\"s3cret\");\n```"
            )]
            #[must_use]
            pub fn password(mut self, password: impl Into<String>) -> $builder {
                self.given.set_password(password.into());
                self
            }

            /// Asks this callback who logs in, at each dial: for passwords that change and for tokens that expire.
            ///
            /// It runs on the thread that dials, inside a tokio runtime on a thread of that, so it has to be quick:
            /// have a task of your own fetch the token, and hand out the latest. No lock of this crate is held
            /// meanwhile. An error fails the dial, with
            #[doc = concat!("[`ErrorKind::Auth`](crate::ErrorKind::Auth), and so does a panic. Neither must hold the secret.")]
            ///
            /// A connection lives on with what it logged in with.
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
