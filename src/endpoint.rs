//! The address of a server.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Endpoint {
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
    /// A name whose address is not known yet.
    Named(String),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp { host, port } if matches!(host.parse(), Ok(IpAddr::V6(_))) => write!(f, "[{host}]:{port}"),
            Endpoint::Tcp { host, port } => write!(f, "{host}:{port}"),
            Endpoint::Unix(path) => write!(f, "{}", path.display()),
            Endpoint::Named(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Endpoint;

    #[test]
    fn an_ipv6_address_is_bracketed() {
        let shown = |host: &str| Endpoint::Tcp { host: host.to_owned(), port: 7 }.to_string();
        assert_eq!(shown("::1"), "[::1]:7");
        assert_eq!(shown("127.0.0.1"), "127.0.0.1:7");
        assert_eq!(shown("cache.example"), "cache.example:7");
    }
}
