//! The servers, and the choice of the server for a key.
//!
//! A key belongs to its owner on the ring as long as that server is up. If the owner is down or cannot be dialled, the
//! same call is sent to the ring's next server. If a server fails during an exchange, the call fails, since it is
//! unknown whether it took effect.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::config::Config;
use super::crawler::{Crawler, crawl_settings};
use super::error_replies::refusal;
use super::key::Key;
use super::meta::{Answer, Command, Meta, Request};
use super::ring::Ring;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::ProcessLocal;
use crate::net::{ExchangeGroup, Link, Retry, Timeouts};
use crate::store::scatter_gather::{self, Fleet, LastAnswer, Part, Round};
use crate::store::wrong_count;
use crate::telemetry;

/// The maximum size of one exchange of a batch. It is less than the kernels' socket buffers on both sides, which take
/// the commands while the server is still sending replies that this side does not read yet. A larger command is sent
/// alone.
const EXCHANGE: Part = Part { items: usize::MAX, bytes: 64 * 1024 };

#[derive(Debug)]
pub(super) struct Servers {
    servers: Vec<Server>,
    ring: Ring,
    failover: bool,
    timeouts: Timeouts,
    /// Process-local, since two processes would otherwise continue from the same number.
    next_token: ProcessLocal<AtomicU64>,
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) link: Link<Meta>,
    pub(super) crawler: Link<Crawler>,
}

/// A batch of commands, each for one server.
struct Batch<'e> {
    servers: &'e Servers,
    retry: Retry,
    /// Whether commands for a server that is down are sent to another one.
    fails_over: bool,
}

/// A command on a key.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) key: Key<'a>,
    pub(super) command: Command,
}

impl Entry<'_> {
    fn size(&self) -> usize {
        self.key.wire().len() + self.command.size()
    }
}

impl Servers {
    pub(super) fn new(config: &Config) -> Servers {
        let names: Vec<_> = config.servers.iter().map(|(endpoint, weight)| (ring_name(endpoint), *weight)).collect();
        let open = |endpoint: &Endpoint| Server {
            link: Link::new(Meta::new(endpoint.clone(), config.access.clone(), config.max_value), config.settings),
            crawler: Link::new(Crawler::new(endpoint.clone(), config.access.clone()), crawl_settings(config.settings)),
        };
        Servers {
            servers: config.servers.iter().map(|(endpoint, _)| open(endpoint)).collect(),
            ring: Ring::new(&names),
            failover: config.failover,
            timeouts: config.settings.timeouts,
            next_token: ProcessLocal::new(),
        }
    }

    /// Reserves `count` consecutive tokens that no other command has, and returns the first.
    pub(super) fn tokens(&self, count: usize) -> u64 {
        let next = self.next_token.get_or_init(|| AtomicU64::new(RandomState::new().hash_one(0_u8) >> 32));
        next.fetch_add(count as u64, Ordering::Relaxed)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Server> {
        self.servers.iter()
    }

    /// Sends a command to the server that has the key now. Returns the server too, for a command that has to follow on
    /// the same one.
    pub(super) async fn call(&self, entry: &Entry<'_>, retry: Retry) -> Result<(&Server, Answer)> {
        let mut index = self.ring.owner(entry.key.routed_by());
        let mut down = Vec::new();
        loop {
            let server = &self.servers[index];
            match self.call_on(server, entry, retry).await {
                Err(error) if self.fails_over(&error) => {
                    down.push(index);
                    index = self.route(&entry.key, &down).ok_or(error)?;
                }
                outcome => return outcome.map(|answer| (server, answer)),
            }
        }
    }

    pub(super) async fn call_on(&self, server: &Server, entry: &Entry<'_>, retry: Retry) -> Result<Answer> {
        let mut answers = self.exchange(server, &[entry], retry, None).await?;
        answers.pop().expect("an exchange has an answer for every command")
    }

    /// Sends the commands of each server together, to all servers at once. Returns an answer for each, in order.
    pub(super) async fn batch(&self, entries: &[Result<Entry<'_>>], retry: Retry) -> Vec<Result<Answer>> {
        self.batch_located(entries, retry).await.into_iter().map(|(_, answer)| answer).collect()
    }

    /// Does the same as [`batch`](Servers::batch), and returns the server of each answer too, for a command that has to
    /// follow on the same one.
    pub(super) async fn batch_located(
        &self,
        entries: &[Result<Entry<'_>>],
        retry: Retry,
    ) -> Vec<(usize, Result<Answer>)> {
        let located = entries.iter().map(|entry| match entry {
            Ok(entry) => Ok((self.ring.owner(entry.key.routed_by()), entry)),
            Err(error) => Err(error),
        });
        self.carry_out(located, retry, self.failover).await
    }

    /// Sends each command to the given server and to no other. Returns an answer for each, in order.
    pub(super) async fn batch_on(&self, entries: &[(usize, Result<Entry<'_>>)], retry: Retry) -> Vec<Result<Answer>> {
        let located = entries.iter().map(|(server, entry)| match entry {
            Ok(entry) => Ok((*server, entry)),
            Err(error) => Err(error),
        });
        self.carry_out(located, retry, false).await.into_iter().map(|(_, answer)| answer).collect()
    }

    async fn carry_out<'e>(
        &self,
        entries: impl ExactSizeIterator<Item = std::result::Result<(usize, &'e Entry<'e>), &'e Error>>,
        retry: Retry,
        fails_over: bool,
    ) -> Vec<(usize, Result<Answer>)> {
        let batch = Batch { servers: self, retry, fails_over };
        let count = entries.len();
        let (mut round, mut refused) = (Round::new(count), Vec::new());
        for (place, entry) in entries.enumerate() {
            match entry {
                Ok((server, entry)) => round.add(server, place, entry),
                Err(error) => refused.push((place, error)),
            }
        }
        let answers = scatter_gather::carry_out(&batch, count, round, &mut Vec::new()).await;
        let none = || (0, Err(wrong_count()));
        let mut answers: Vec<_> = answers.into_iter().map(|answer| answer.unwrap_or_else(none)).collect();
        for (place, error) in refused {
            answers[place] = (0, Err(error.clone()));
        }
        answers
    }

    /// Sends commands to one server, in several exchanges if they are large. Returns an answer for each. If an exchange
    /// fails, the remaining commands are not sent and get the same error.
    pub(super) async fn ask(
        &self,
        server: &Server,
        entries: &[&Entry<'_>],
        retry: Retry,
        group: Option<&ExchangeGroup>,
    ) -> Vec<Result<Answer>> {
        let exchange = |part| self.exchange(server, part, retry, group);
        scatter_gather::in_parts(entries, EXCHANGE, Entry::size, exchange, |_, error| Err(error.clone())).await
    }

    async fn exchange(
        &self,
        server: &Server,
        entries: &[&Entry<'_>],
        retry: Retry,
        group: Option<&ExchangeGroup>,
    ) -> Result<Vec<Result<Answer>>> {
        let commands: Vec<_> = entries.iter().map(|entry| (&entry.key, &entry.command)).collect();
        let request = Request::of(&commands, self.tokens(commands.len()))?;
        let exchange = async {
            let answers = server.link.call(&request, retry, group).await?;
            let explained =
                entries.iter().zip(answers).map(|(entry, answer)| answer.map_err(|text| refused(server, entry, &text)));
            Ok(explained.collect::<Vec<Result<Answer>>>())
        };
        let failure =
            |answers: &Vec<Result<Answer>>| answers.iter().find_map(|answer| Some(answer.as_ref().err()?.kind()));
        traced(server, || operation(entries), exchange, failure).await
    }

    fn route(&self, key: &Key<'_>, down: &[usize]) -> Option<usize> {
        self.ring.candidates(key.routed_by()).find(|server| !down.contains(server))
    }

    /// Returns whether the ring's next server is tried after this error.
    fn fails_over(&self, error: &Error) -> bool {
        self.failover && matches!(error.kind(), ErrorKind::Connect | ErrorKind::Unavailable)
    }
}

impl<'e> Fleet for Batch<'e> {
    type Item = Entry<'e>;
    type Answer = Answer;
    type Member = usize;
    /// The servers that are down.
    type Course = Vec<usize>;

    fn deadline(&self, _: &Vec<usize>) -> Instant {
        let Timeouts { connect, exchange } = self.servers.timeouts;
        Instant::now() + connect + exchange
    }

    async fn ask(
        &self,
        server: usize,
        entries: &[&Entry<'e>],
        _: &Vec<usize>,
        group: Option<&ExchangeGroup>,
    ) -> Vec<Result<Answer>> {
        self.servers.ask(&self.servers.servers[server], entries, self.retry, group).await
    }

    async fn send_on<'i>(
        &self,
        down: &mut Vec<usize>,
        sent: &Round<'i, Self>,
        answers: &[LastAnswer<Self>],
    ) -> Round<'i, Self> {
        let fails_over = |place: usize| match &answers[place] {
            Some((_, Err(error))) => self.fails_over && self.servers.fails_over(error),
            _ => false,
        };
        let rejected: Vec<_> = sent.items().filter(|(_, place, _)| fails_over(*place)).collect();
        for (server, ..) in &rejected {
            if !down.contains(server) {
                down.push(*server);
            }
        }
        let mut next = Round::new(rejected.len());
        for (_, place, entry) in rejected {
            if let Some(server) = self.servers.route(&entry.key, down) {
                next.add(server, place, entry);
            }
        }
        next
    }
}

/// Wraps an exchange in a telemetry span.
pub(super) fn traced<T: Send, F: Future<Output = Result<T>> + Send>(
    server: &Server,
    operation: impl FnOnce() -> (String, usize) + Send,
    exchange: F,
    failure: impl FnOnce(&T) -> Option<ErrorKind> + Send,
) -> impl Future<Output = Result<T>> + Send {
    telemetry::exchange("memcached", server.link.endpoint(), None, operation, exchange, failure)
}

/// Returns the name of an exchange in a trace, which has the first command's verb, and the number of its commands.
fn operation(entries: &[&Entry<'_>]) -> (String, usize) {
    let verb = entries.first().map_or("", |entry| entry.command.verb());
    let name = if entries.len() > 1 { format!("BATCH {verb}") } else { verb.to_owned() };
    (name, entries.len())
}

/// Returns the name of a server on the ring.
fn ring_name(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Tcp { host, port } => format!("{host}:{port}"),
        Endpoint::Unix(path) => path.display().to_string(),
        Endpoint::Named(name) => name.clone(),
    }
}

/// Returns the error that an error reply to a command means.
fn refused(server: &Server, entry: &Entry<'_>, text: &str) -> Error {
    let (key, endpoint) = (&entry.key, server.link.endpoint());
    let refusal = refusal(text);
    match (&entry.command, refusal.kind) {
        (Command::Set { value, .. } | Command::Append { value, .. }, ErrorKind::ValueTooLarge) => {
            refusal.error(format!("the value of {} bytes for {key} is too large for {endpoint}", value.len()))
        }
        (_, ErrorKind::NotANumber) => refusal.error(format!("the entry {key} is not a decimal number of 64 bits")),
        _ => refusal.error(format!("{endpoint} answered for {key}: {text}")),
    }
}
