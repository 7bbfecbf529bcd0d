//! The check that a server that sentinels have named is a master.

use redis::Value;

use super::commands::{Command, Expected};
use super::error_replies::classify;
use super::protocol::Resp;
use super::reply::{server_error, text, unexpected};
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::net::Connection;
use crate::store::error_reply::Persistence;

/// Checks that the server is a master. Returns false if the account may use neither `ROLE` nor `INFO`, so that the role
/// could not be checked.
///
/// # Errors
///
/// If the server has another role, or does not report its role.
pub(super) async fn expect_master(protocol: &Resp, connection: &mut Connection<Resp>) -> Result<bool> {
    let questions = [
        (Command::new("ROLE", Expected::Anything), in_role as fn(&Value) -> Option<&str>),
        (Command::new("INFO", Expected::Anything).with("replication"), in_info),
    ];
    for (question, role_in) in questions {
        match protocol.ask(connection, question).await? {
            Ok(answer) => {
                return match role_in(&answer) {
                    Some("master") => Ok(true),
                    Some(role) => Err(not_the_master(connection.endpoint(), role)),
                    None => Err(unexpected(connection.endpoint(), "a role")),
                };
            }
            Err(error) if classify(&error).closes_connection() || classify(&error).lasts == Persistence::Transient => {
                return Err(server_error(connection.endpoint(), &error));
            }
            Err(_) => {}
        }
    }
    Ok(false)
}

fn not_the_master(endpoint: &Endpoint, role: &str) -> Error {
    let role: String = role.chars().filter(char::is_ascii_graphic).take(20).collect();
    let context = format!("{endpoint} is not a master, although sentinels name it: its role is {role:?}");
    Error::from_reply(ErrorKind::Server, true, context)
}

fn in_role(answer: &Value) -> Option<&str> {
    let Value::Array(parts) = answer else { return None };
    text(parts.first()?)
}

fn in_info(answer: &Value) -> Option<&str> {
    text(answer)?.lines().find_map(|line| line.strip_prefix("role:"))
}
