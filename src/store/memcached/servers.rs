//! The servers, and which of them is asked for a key.
//!
//! A key is its owner's as long as that one is up. Where the owner is known to be down, or cannot be dialled, the
//! ring's next server is asked, in the same call; where it fails in the middle of an exchange, the call fails, since
//! nobody knows whether it took effect.

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
use crate::store::scatter_gather::{self, Answered, Fleet, Part, Route};
use crate::store::wrong_count;
use crate::telemetry;

/// The size of one exchange of a batch: less than what the kernels on both sides take from us while the server is busy
/// sending replies that we do not read yet. A larger command goes alone.
const EXCHANGE: Part = Part { items: usize::MAX, bytes: 64 * 1024 };

#[derive(Debug)]
pub(super) struct Servers {
    servers: Vec<Server>,
    ring: Ring,
    failover: bool,
    timeouts: Timeouts,
    /// Of this process: siblings would go on from the same number.
    next_token: ProcessLocal<AtomicU64>,
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) link: Link<Meta>,
    pub(super) crawler: Link<Crawler>,
}

/// A batch of commands, each of which goes to one server.
struct Batch<'e> {
    servers: &'e Servers,
    retry: Retry,
    /// Whether what one server cannot be asked is asked of another one.
    leads_on: bool,
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

    /// The first of so many tokens that no other command has.
    pub(super) fn tokens(&self, count: usize) -> u64 {
        let next = self.next_token.get_or_init(|| AtomicU64::new(RandomState::new().hash_one(0_u8) >> 32));
        next.fetch_add(count as u64, Ordering::Relaxed)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Server> {
        self.servers.iter()
    }

    /// Asks whoever has the key now. Says which server that is, for whatever has to follow on the same one.
    pub(super) async fn call(&self, entry: &Entry<'_>, retry: Retry) -> Result<(&Server, Answer)> {
        let mut index = self.ring.owner(entry.key.routed_by());
        let mut down = Vec::new();
        loop {
            let server = &self.servers[index];
            match self.call_on(server, entry, retry).await {
                Err(error) if self.leads_on(&error) => {
                    down.push(index);
                    index = self.route(&entry.key, &down).ok_or(error)?;
                }
                outcome => return outcome.map(|answer| (server, answer)),
            }
        }
    }

    pub(super) async fn call_on(&self, server: &Server, entry: &Entry<'_>, retry: Retry) -> Result<Answer> {
        let mut answers = self.exchange(server, &[entry], retry, None).await?;
        answers.pop().expect("an exchange answers every command")
    }

    /// An answer for each entry, in their order. Those of one server go join_all, and the servers work at the same
    /// time.
    pub(super) async fn batch(&self, entries: &[Result<Entry<'_>>], retry: Retry) -> Vec<Result<Answer>> {
        self.batch_located(entries, retry).await.into_iter().map(|(_, answer)| answer).collect()
    }

    /// The same, with the server that has answered each, for whatever has to follow on that one.
    pub(super) async fn batch_located(
        &self,
        entries: &[Result<Entry<'_>>],
        retry: Retry,
    ) -> Vec<(usize, Result<Answer>)> {
        let owner = |entry: &Entry<'_>| self.ring.owner(entry.key.routed_by());
        let located =
            entries.iter().map(|entry| entry.as_ref().map(|entry| (owner(entry), entry)).map_err(Error::clone));
        self.carry_out(located.collect(), retry, self.failover).await
    }

    /// An answer for each entry, from the server that it names and from no other.
    pub(super) async fn batch_on(&self, entries: &[(usize, Result<Entry<'_>>)], retry: Retry) -> Vec<Result<Answer>> {
        let located = entries.iter().map(|(server, entry)| match entry {
            Ok(entry) => Ok((*server, entry)),
            Err(error) => Err(error.clone()),
        });
        self.carry_out(located.collect(), retry, false).await.into_iter().map(|(_, answer)| answer).collect()
    }

    async fn carry_out(
        &self,
        entries: Vec<Result<(usize, &Entry<'_>)>>,
        retry: Retry,
        leads_on: bool,
    ) -> Vec<(usize, Result<Answer>)> {
        let batch = Batch { servers: self, retry, leads_on };
        let in_order = entries.iter().enumerate().filter_map(|(place, entry)| Some((place, entry.as_ref().ok()?)));
        let routes = in_order.map(|(place, &(member, item))| Route { place, item, member }).collect();
        let answers = scatter_gather::carry_out(&batch, entries.len(), routes, &mut Vec::new()).await;
        let refused = |entry: Result<_>| (0, Err(entry.err().unwrap_or_else(wrong_count)));
        entries.into_iter().zip(answers).map(|(entry, answer)| answer.unwrap_or_else(|| refused(entry))).collect()
    }

    /// An answer for each entry from one server. Once it fails it is not asked for the rest.
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
        told(server, || operation(entries), exchange, failure).await
    }

    fn route(&self, key: &Key<'_>, down: &[usize]) -> Option<usize> {
        self.ring.candidates(key.routed_by()).find(|server| !down.contains(server))
    }

    /// Whether the ring's next server is to be asked after this.
    fn leads_on(&self, error: &Error) -> bool {
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

    async fn send_on<'i>(&self, down: &mut Vec<usize>, answered: &[Answered<'i, Self>]) -> Vec<Route<'i, Self>> {
        let leads_on = |answered: &&Answered<'i, Self>| {
            self.leads_on && answered.answer.as_ref().is_err_and(|error| self.servers.leads_on(error))
        };
        let turned_away: Vec<_> = answered.iter().filter(leads_on).map(|answered| &answered.route).collect();
        down.extend(turned_away.iter().map(|route| route.member));
        let next = |route: &&Route<'i, Self>| {
            let member = self.servers.route(&route.item.key, down)?;
            Some(Route { place: route.place, item: route.item, member })
        };
        turned_away.iter().filter_map(next).collect()
    }
}

/// An exchange that is told of.
pub(super) fn told<T: Send, F: Future<Output = Result<T>> + Send>(
    server: &Server,
    operation: impl FnOnce() -> (String, usize) + Send,
    exchange: F,
    failure: impl FnOnce(&T) -> Option<ErrorKind> + Send,
) -> impl Future<Output = Result<T>> + Send {
    telemetry::exchange("memcached", server.link.endpoint(), None, operation, exchange, failure)
}

/// What an exchange is called in a trace, and of how many commands it consists. All of them do the same.
fn operation(entries: &[&Entry<'_>]) -> (String, usize) {
    let verb = entries.first().map_or("", |entry| entry.command.verb());
    let name = if entries.len() > 1 { format!("BATCH {verb}") } else { verb.to_owned() };
    (name, entries.len())
}

/// What a server is called on the ring.
fn ring_name(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Tcp { host, port } => format!("{host}:{port}"),
        Endpoint::Unix(path) => path.display().to_string(),
        Endpoint::Named(name) => name.clone(),
    }
}

/// What an error reply to a command means.
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
