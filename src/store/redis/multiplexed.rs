//! The way of a request inside a tokio runtime: the redis crate's multiplexed connection, over a socket of ours.
//!
//! Each runtime has one, dialled by whoever comes first. The crate's driver matches replies with requests in their order, so
//! a request that is dropped half-way has its reply read and thrown away, and a reply too many breaks the connection (see
//! [`Counted`]). A connection that let a request run into its
//! timeout is *retired*: new requests dial anew, those still under way on it go on, and with the last of them it is closed.

use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, RedisConnectionInfo, RedisError, Value};
use tokio::sync::OnceCell;
use tokio::task::AbortHandle;
use tokio::time::timeout_at;

use super::blocking::{Resp, knows_only_resp2};
use super::commands::Request;
use super::config::Login;
use super::counted::{Counted, SURPLUS};
use super::reply::greeting_error;
use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::runtime::RuntimeId;
use crate::lifecycle::{ProcessLocal, generation};
use crate::net::{Endpoint, Link, Probe, Retry, timed_out};
use crate::sync::Lock;

/// How many requests may wait for the driver. Few enough for the server to answer some while others are being packed: with
/// room for all of them, both sides take turns (64 tasks took 1.3 times as long).
const QUEUE: usize = 32;

#[derive(Debug)]
pub(super) struct Multiplexed {
    login: Login,
    slots: ProcessLocal<Lock<Vec<Slot>>>,
}

/// A runtime's connection, or the dial for it.
#[derive(Clone, Debug)]
struct Slot {
    runtime: RuntimeId,
    connection: Arc<OnceCell<Connection>>,
}

#[derive(Debug)]
struct Connection {
    generation: u64,
    probe: Probe,
    /// Taken only by the drop.
    parts: Option<(MultiplexedConnection, AbortHandle)>,
}

/// Why an exchange came to nothing, and whether the connection had died of it before the server said a word.
struct Failure {
    error: Error,
    dead: bool,
}

impl Multiplexed {
    pub(super) fn new(login: Login) -> Multiplexed {
        Multiplexed { login, slots: ProcessLocal::new() }
    }

    /// One exchange, over this runtime's connection.
    pub(super) async fn call(
        &self,
        link: &Link<Resp>,
        runtime: RuntimeId,
        request: &Request,
        retry: Retry,
    ) -> Result<Vec<Value>> {
        let (slot, reused) = self.connected(link, runtime, retry).await?;
        let outcome = match self.exchange(link, &slot, request).await {
            Err(failure) if failure.dead && reused && retry == Retry::Idempotent => {
                Box::pin(self.last_attempt(link, runtime, request)).await?
            }
            outcome => outcome,
        };
        match outcome {
            Ok(replies) => {
                link.succeeded();
                Ok(replies)
            }
            Err(failure) => Err(link.failed(failure.error)),
        }
    }

    async fn last_attempt(
        &self,
        link: &Link<Resp>,
        runtime: RuntimeId,
        request: &Request,
    ) -> Result<Result<Vec<Value>, Failure>> {
        let (slot, _) = self.connected(link, runtime, Retry::Never).await?;
        Ok(self.exchange(link, &slot, request).await)
    }

    /// Forgets every connection. Requests under way end as they would have.
    pub(super) fn reset(&self) {
        if let Some(slots) = self.slots.get() {
            let forgotten = mem::take(&mut *slots.lock());
            drop(forgotten);
        }
    }

    /// A slot with a connection that is believed to be alive, and whether it has served before. For a request that may not be
    /// sent twice it is looked at: the driver learns of its end only when the runtime gets round to it.
    async fn connected(&self, link: &Link<Resp>, runtime: RuntimeId, retry: Retry) -> Result<(Slot, bool)> {
        loop {
            let slot = self.slot(runtime);
            let reused = match slot.connection.get() {
                Some(connection) if connection.is_dead() || (retry == Retry::Never && connection.probe.has_ended()) => {
                    self.retire(&slot);
                    continue;
                }
                Some(_) => true,
                None => {
                    Box::pin(self.wait_for_dial(link, &slot)).await?;
                    false
                }
            };
            return Ok((slot, reused));
        }
    }

    /// Dials, or waits for whoever is dialling. If that one gives up, the next one dials.
    async fn wait_for_dial(&self, link: &Link<Resp>, slot: &Slot) -> Result<()> {
        let timeouts = link.timeouts();
        let deadline = Instant::now() + timeouts.connect + timeouts.exchange;
        let dialled = slot.connection.get_or_try_init(|| self.dial(link));
        match timeout_at(deadline.into(), dialled).await {
            Ok(dialled) => dialled.map(|_| ()),
            Err(_) => Err(link.failed(timed_out("greeting", link.endpoint()))),
        }
    }

    /// The one place where the breaker is asked: whoever it lets through to try must not be asked again on the way, and who
    /// waited while others failed must be.
    async fn dial(&self, link: &Link<Resp>) -> Result<Connection> {
        link.admit()?;
        link.admit_at_door()?;
        let opened = match self.open(link, ProtocolVersion::RESP3).await {
            Err(Refusal::KnowsOnlyResp2) => self.open(link, ProtocolVersion::RESP2).await,
            opened => opened,
        };
        if opened.is_ok() {
            link.welcomed();
        }
        opened.map_err(|refusal| {
            link.turned_away(match refusal {
                Refusal::KnowsOnlyResp2 => {
                    let context = format!("{} speaks neither RESP3 nor RESP2", link.endpoint());
                    Error::new(ErrorKind::Protocol, context)
                }
                Refusal::Error(error) => error,
            })
        })
    }

    async fn open(&self, link: &Link<Resp>, protocol: ProtocolVersion) -> Result<Connection, Refusal> {
        let socket = link.dial().await.map_err(Refusal::Error)?.into_tokio();
        let probe = socket.probe();
        let deadline = Instant::now() + link.timeouts().exchange;
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(QUEUE);
        let login = self.login.over(protocol);
        let greeting = MultiplexedConnection::new_with_config(&login, Counted::over(socket), config);
        let greeted = match timeout_at(deadline.into(), greeting).await {
            Ok(greeted) => greeted.map_err(|error| Refusal::of(link.endpoint(), &self.login, error))?,
            Err(_) => return Err(Refusal::Error(timed_out("greeting", link.endpoint()))),
        };
        let (connection, driver) = greeted;
        let driver = tokio::spawn(driver).abort_handle();
        Ok(Connection { generation: generation(), probe, parts: Some((connection, driver)) })
    }

    async fn exchange(&self, link: &Link<Resp>, slot: &Slot, request: &Request) -> Result<Vec<Value>, Failure> {
        let deadline = Instant::now() + link.timeouts().exchange;
        let mut connection = slot.connection.get().expect("the slot is connected").handle();
        let sent = pin!(async {
            match request {
                Request::Command(command) => connection.send_packed_command(command).await.map(|reply| vec![reply]),
                Request::Pipeline(pipeline) => {
                    Box::pin(connection.send_packed_commands(pipeline, 0, pipeline.len())).await
                }
            }
        });
        // By reference: moved into the timeout, it would be there twice.
        match timeout_at(deadline.into(), sent).await {
            Ok(Ok(replies)) => Ok(replies),
            Ok(Err(error)) => {
                self.retire(slot);
                let dead = error.is_connection_dropped();
                Err(Failure { error: broken(link.endpoint(), error), dead })
            }
            Err(_) => {
                self.retire(slot);
                Err(Failure { error: timed_out("waiting for", link.endpoint()), dead: false })
            }
        }
    }

    fn slot(&self, runtime: RuntimeId) -> Slot {
        let mut slots = self.slots.get_or_init(|| Lock::new("multiplexed", Vec::new())).lock();
        if let Some(slot) = slots.iter().find(|slot| slot.runtime == runtime) {
            return slot.clone();
        }
        let gone =
            slots.extract_if(.., |slot| slot.connection.get().is_some_and(Connection::is_dead)).collect::<Vec<_>>();
        let slot = Slot { runtime, connection: Arc::new(OnceCell::new()) };
        slots.push(slot.clone());
        drop(slots);
        drop(gone);
        slot
    }

    /// Has the next request of the slot's runtime dial.
    fn retire(&self, slot: &Slot) {
        if let Some(slots) = self.slots.get() {
            let same = |other: &mut Slot| Arc::ptr_eq(&other.connection, &slot.connection);
            let retired: Vec<Slot> = slots.lock().extract_if(.., same).collect();
            drop(retired);
        }
    }
}

impl Connection {
    fn handle(&self) -> MultiplexedConnection {
        self.parts.as_ref().expect("only the drop takes them").0.clone()
    }

    /// The driver has ended: the server closed the connection, or the runtime is gone.
    fn is_dead(&self) -> bool {
        self.parts.as_ref().is_none_or(|(_, driver)| driver.is_finished())
    }
}

/// Ends the driver, and with it the socket, also where replies are still awaited that will never come.
impl Drop for Connection {
    fn drop(&mut self) {
        let parts = self.parts.take();
        if self.generation == generation() {
            if let Some((_, driver)) = &parts {
                driver.abort();
            }
        } else {
            mem::forget(parts);
        }
    }
}

impl Login {
    fn over(&self, protocol: ProtocolVersion) -> RedisConnectionInfo {
        let mut info = RedisConnectionInfo::default().set_protocol(protocol).set_db(self.database.into());
        info = info.set_skip_set_lib_name();
        if let Some(username) = &self.username {
            info = info.set_username(username);
        }
        if let Some(password) = &self.password {
            info = info.set_password(password);
        }
        info
    }
}

/// Why a connection could not be opened.
enum Refusal {
    KnowsOnlyResp2,
    Error(Error),
}

impl Refusal {
    fn of(endpoint: &Endpoint, login: &Login, error: RedisError) -> Refusal {
        match error.kind() {
            redis::ErrorKind::RESP3NotSupported => Refusal::KnowsOnlyResp2,
            redis::ErrorKind::AuthenticationFailed => {
                Refusal::Error(Error::with_source(ErrorKind::Auth, format!("logging in to {endpoint}"), error))
            }
            _ => match error.clone().into_server_errors().and_then(|errors| errors.first().cloned()) {
                Some((_, said)) if knows_only_resp2(said.code(), said.details()) => Refusal::KnowsOnlyResp2,
                Some((_, said)) => Refusal::Error(greeting_error(endpoint, login, &said)),
                None => Refusal::Error(broken(endpoint, error)),
            },
        }
    }
}

fn broken(endpoint: &Endpoint, error: RedisError) -> Error {
    if error.to_string().contains(SURPLUS) {
        return Error::new(ErrorKind::Protocol, format!("{endpoint} sent {SURPLUS}"));
    }
    // A reply that the server did not finish is no malformed one, though the parser says so too.
    let is_malformed = error.kind() == redis::ErrorKind::Parse && !error.to_string().contains("end of input");
    let kind = if is_malformed { ErrorKind::Protocol } else { ErrorKind::Io };
    Error::with_source(kind, format!("talking to {endpoint}"), error)
}
