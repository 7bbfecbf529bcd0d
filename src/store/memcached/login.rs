//! The login of the text protocol (`memcached -Y`): a `set` whose value is the user name and the password.

use crate::error::{Error, ErrorKind, Result};
use crate::net::{Connection, Protocol};
use crate::store::credentials::{Credentials, Login};

/// Logs in, if the store has credentials. Must be the first exchange of a connection.
pub(super) async fn log_in<P: Protocol>(protocol: &P, connection: &mut Connection<P>, login: &Login) -> Result<()> {
    let Some(credentials) = login.credentials()? else { return Ok(()) };
    let outcome = log_in_as(protocol, connection, &credentials).await;
    outcome.map_err(|error| credentials.hidden_in(protocol.endpoint(), error))
}

async fn log_in_as<P: Protocol>(protocol: &P, connection: &mut Connection<P>, credentials: &Credentials) -> Result<()> {
    let endpoint = protocol.endpoint();
    let login = format!("{} {}", credentials.username().unwrap_or_default(), credentials.secret());
    // A server without logins stores the value, which must not stay: a TTL of -1 makes it expire immediately.
    let command = format!("set prefork-cache 0 -1 {}\r\n{login}\r\n", login.len());
    match connection.ask_raw(command.as_bytes()).await?.as_slice() {
        b"STORED\r\n" => Ok(()),
        b"CLIENT_ERROR authentication failure\r\n" => {
            Err(Error::new(ErrorKind::Auth, format!("{endpoint} refused the user name or password")))
        }
        b"ERROR Too many open connections\r\n" => {
            Err(Error::new(ErrorKind::Server, format!("{endpoint} has too many open connections")))
        }
        // Any other reply may repeat the credentials.
        _ => Err(Error::new(ErrorKind::Auth, format!("{endpoint} did not accept the login"))),
    }
}
