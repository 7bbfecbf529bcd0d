//! The servers, and which of them is asked for a key.
//!
//! A key is its owner's as long as that one is up. Where the owner is known to be down, or cannot be dialled, the
//! ring's next server is asked, in the same call; where it fails in the middle of an exchange, the call fails, since
//! nobody knows whether it took effect.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::BuildHasher;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};

use super::config::Config;
use super::crawler::{Crawler, crawl_settings};
use super::key::Key;
use super::meta::{Answer, Command, Meta, Request};
use super::refusals::refusal;
use super::ring::Ring;
use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::ProcessLocal;
use crate::net::{Company, Endpoint, Link, Retry, together};
use crate::telemetry;

/// The size of one exchange of a batch: less than what the kernels on both sides take from us while the server is busy
/// sending replies that we do not read yet. A larger command goes alone.
const EXCHANGE: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Servers {
    servers: Vec<Server>,
    ring: Ring,
    failover: bool,
    /// Of this process: siblings would go on from the same number.
    next_token: ProcessLocal<AtomicU64>,
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) link: Link<Meta>,
    pub(super) crawler: Link<Crawler>,
}

/// What one server is asked of a batch.
struct Share<'e> {
    server: usize,
    /// Where each entry stands in the batch.
    places: Vec<usize>,
    entries: Vec<&'e Entry<'e>>,
}

impl<'e> Share<'e> {
    fn of<'s>(shares: &'s mut BTreeMap<usize, Share<'e>>, server: usize) -> &'s mut Share<'e> {
        shares.entry(server).or_insert_with(|| Share { server, places: Vec::new(), entries: Vec::new() })
    }

    fn push(&mut self, place: usize, entry: &'e Entry<'e>) {
        self.places.push(place);
        self.entries.push(entry);
    }
}

/// A command on a key.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) key: Key<'a>,
    pub(super) command: Command,
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

    /// An answer for each entry, in their order. Those of one server go together, and the servers work at the same
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
        let placeholder = |entry: &Result<Entry<'_>>| (0, entry.as_ref().map(|_| Answer::Absent).map_err(Error::clone));
        let mut answers: Vec<_> = entries.iter().map(placeholder).collect();
        let mut down = Vec::new();
        let mut pending: Vec<_> =
            entries.iter().enumerate().filter_map(|(place, entry)| Some((place, entry.as_ref().ok()?))).collect();
        while !pending.is_empty() {
            let mut turned_away = Vec::new();
            let shares = self.shares(&pending, &down);
            for (share, answered) in shares.iter().zip(self.ask_all(&shares, retry).await) {
                let before = turned_away.len();
                for ((&place, &entry), answer) in share.places.iter().zip(&share.entries).zip(answered) {
                    if answer.as_ref().is_err_and(|error| self.leads_on(error)) {
                        turned_away.push((place, entry));
                    }
                    answers[place] = (share.server, answer);
                }
                if turned_away.len() > before {
                    down.push(share.server);
                }
            }
            pending = turned_away;
        }
        answers
    }

    /// An answer for each entry, from the server that it names and from no other.
    pub(super) async fn batch_on(&self, entries: &[(usize, Result<Entry<'_>>)], retry: Retry) -> Vec<Result<Answer>> {
        let placeholder = |(_, entry): &(usize, Result<Entry<'_>>)| match entry {
            Ok(_) => Ok(Answer::Absent),
            Err(error) => Err(error.clone()),
        };
        let mut answers: Vec<Result<Answer>> = entries.iter().map(placeholder).collect();
        let mut shares = BTreeMap::new();
        for (place, (server, entry)) in entries.iter().enumerate() {
            if let Ok(entry) = entry {
                Share::of(&mut shares, *server).push(place, entry);
            }
        }
        let shares: Vec<Share<'_>> = shares.into_values().collect();
        for (share, answered) in shares.iter().zip(self.ask_all(&shares, retry).await) {
            for (&place, answer) in share.places.iter().zip(answered) {
                answers[place] = answer;
            }
        }
        answers
    }

    async fn ask_all(&self, shares: &[Share<'_>], retry: Retry) -> Vec<Vec<Result<Answer>>> {
        if let [share] = shares {
            return vec![self.ask(&self.servers[share.server], &share.entries, retry, None).await];
        }
        let company = Company::default();
        let mut asked = Vec::with_capacity(shares.len());
        for share in shares {
            asked.push(self.ask(&self.servers[share.server], &share.entries, retry, Some(&company)));
        }
        together(asked).await
    }

    /// An answer for each entry from one server. Once it fails it is not asked for the rest.
    pub(super) async fn ask(
        &self,
        server: &Server,
        entries: &[&Entry<'_>],
        retry: Retry,
        company: Option<&Company>,
    ) -> Vec<Result<Answer>> {
        let mut answers = Vec::with_capacity(entries.len());
        while answers.len() < entries.len() {
            let rest = &entries[answers.len()..];
            match self.exchange(server, &rest[..fitting(rest)], retry, company).await {
                Ok(answered) => answers.extend(answered),
                Err(error) => answers.extend(rest.iter().map(|_| Err(error.clone()))),
            }
        }
        answers
    }

    async fn exchange(
        &self,
        server: &Server,
        entries: &[&Entry<'_>],
        retry: Retry,
        company: Option<&Company>,
    ) -> Result<Vec<Result<Answer>>> {
        let commands: Vec<_> = entries.iter().map(|entry| (&entry.key, &entry.command)).collect();
        let request = Request::of(&commands, self.tokens(commands.len()))?;
        let exchange = pin!(async {
            let answers = server.link.call(&request, retry, company).await?;
            let explained =
                entries.iter().zip(answers).map(|(entry, answer)| answer.map_err(|text| refused(server, entry, &text)));
            Ok(explained.collect::<Vec<Result<Answer>>>())
        });
        let failure =
            |answers: &Vec<Result<Answer>>| answers.iter().find_map(|answer| Some(answer.as_ref().err()?.kind()));
        told(server, || operation(entries), exchange, failure).await
    }

    /// The entries by the server that has them now; without those for which nobody is left to ask.
    fn shares<'e>(&self, entries: &[(usize, &'e Entry<'e>)], down: &[usize]) -> Vec<Share<'e>> {
        let mut shares = BTreeMap::new();
        for (place, entry) in entries {
            if let Some(server) = self.route(&entry.key, down) {
                Share::of(&mut shares, server).push(*place, entry);
            }
        }
        shares.into_values().collect()
    }

    fn route(&self, key: &Key<'_>, down: &[usize]) -> Option<usize> {
        self.ring.candidates(key.routed_by()).find(|server| !down.contains(server))
    }

    /// Whether the ring's next server is to be asked after this.
    fn leads_on(&self, error: &Error) -> bool {
        self.failover && matches!(error.kind(), ErrorKind::Connect | ErrorKind::Unavailable)
    }
}

/// An exchange that is told of.
pub(super) async fn told<T, F: Future<Output = Result<T>>>(
    server: &Server,
    operation: impl FnOnce() -> (String, usize),
    exchange: Pin<&mut F>,
    failure: impl FnOnce(&T) -> Option<ErrorKind>,
) -> Result<T> {
    telemetry::exchange("memcached", server.link.endpoint(), None, operation, exchange, failure).await
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

/// How many of these go in one exchange: at least one.
fn fitting(entries: &[&Entry<'_>]) -> usize {
    let mut size = 0;
    let fits = |entry: &&&Entry<'_>| {
        size += entry.key.wire().len() + entry.command.size();
        size <= EXCHANGE
    };
    entries.iter().take_while(fits).count().max(1)
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
