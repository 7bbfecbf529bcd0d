//! A batch over several servers, each of which has some of the keys: the common part of Memcached's ring and a Redis
//! cluster.
//!
//! A batch is split by server, sent to all of them at once, and the answers are put in order. The items that a server
//! rejects are sent in another round, to the servers that [`Fleet::send_on`] returns.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::net::{ExchangeGroup, join_all};

/// Several servers, and the way to send requests to them.
pub(super) trait Fleet: Sync {
    /// One operation of the batch.
    type Item: Sync;
    type Answer: Send;
    /// A server, and the way to send requests to it.
    type Member: Copy + Ord + Send + Sync;
    /// The state of a batch that its rounds share.
    type Course: Send + Sync;

    /// Returns the deadline of a round that begins now.
    fn deadline(&self, course: &Self::Course) -> Instant;

    /// Sends items to one server. Returns an answer for each, in order.
    fn ask(
        &self,
        member: Self::Member,
        items: &[&Self::Item],
        course: &Self::Course,
        group: Option<&ExchangeGroup>,
    ) -> impl Future<Output = Vec<Result<Self::Answer>>> + Send;

    /// Returns the items to send in another round, and their servers, after these answers. The batch is done when there
    /// are none.
    fn send_on<'i>(
        &self,
        course: &mut Self::Course,
        answered: &[Answered<'i, Self>],
    ) -> impl Future<Output = Vec<Route<'i, Self>>> + Send;
}

/// An item and the server that it is sent to.
pub(super) struct Route<'i, F: Fleet + ?Sized> {
    /// The index of the item in the batch.
    pub(super) place: usize,
    pub(super) item: &'i F::Item,
    pub(super) member: F::Member,
}

pub(super) struct Answered<'i, F: Fleet + ?Sized> {
    pub(super) route: Route<'i, F>,
    pub(super) answer: Result<F::Answer>,
}

/// Carries out a batch of `count` items. Returns the last answer to each item and the server that gave it; `None` for
/// an item that had no route.
pub(super) async fn carry_out<F: Fleet>(
    fleet: &F,
    count: usize,
    mut routes: Vec<Route<'_, F>>,
    course: &mut F::Course,
) -> Vec<Option<(F::Member, Result<F::Answer>)>> {
    let mut answers: Vec<_> = (0..count).map(|_| None).collect();
    while !routes.is_empty() {
        let answered = round(fleet, routes, course).await;
        routes = fleet.send_on(course, &answered).await;
        for Answered { route, answer } in answered {
            answers[route.place] = Some((route.member, answer));
        }
    }
    answers
}

/// The maximum size of one exchange with a server.
pub(super) struct Part {
    pub(super) items: usize,
    pub(super) bytes: usize,
}

/// Sends items to one server in several exchanges, each of at most `most`. Returns an answer for each item. If an
/// exchange fails, the remaining items are not sent, and `failed` returns their answers.
pub(super) async fn in_parts<'i, I, A, F>(
    items: &'i [&'i I],
    most: Part,
    size: impl Fn(&I) -> usize,
    exchange: impl Fn(&'i [&'i I]) -> F,
    failed: impl Fn(&I, &Error) -> Result<A>,
) -> Vec<Result<A>>
where
    F: Future<Output = Result<Vec<Result<A>>>>,
{
    let mut answers = Vec::with_capacity(items.len());
    while answers.len() < items.len() {
        let rest = &items[answers.len()..];
        let mut bytes = 0;
        let fits = |item: &&&I| {
            bytes += size(item);
            bytes <= most.bytes
        };
        let fitting = rest.iter().take(most.items).take_while(fits).count().max(1);
        match exchange(&rest[..fitting]).await {
            Ok(answered) => answers.extend(answered),
            Err(error) => answers.extend(rest.iter().map(|item| failed(item, &error))),
        }
    }
    answers
}

/// The items of one server in a round.
struct Share<'i, I> {
    indices: Vec<usize>,
    items: Vec<&'i I>,
}

/// Sends to all servers at once. Returns the answers grouped by server, in the order of each server's items.
async fn round<'i, F: Fleet>(fleet: &F, routes: Vec<Route<'i, F>>, course: &F::Course) -> Vec<Answered<'i, F>> {
    let mut shares: BTreeMap<F::Member, Share<'i, F::Item>> = BTreeMap::new();
    let count = routes.len();
    for Route { place, item, member } in routes {
        let share = shares.entry(member).or_insert_with(|| Share { indices: Vec::new(), items: Vec::new() });
        share.indices.push(place);
        share.items.push(item);
    }
    let group = (shares.len() > 1).then(|| ExchangeGroup::until(fleet.deadline(course)));
    let answers = {
        let mut asked = Vec::with_capacity(shares.len());
        for (member, share) in &shares {
            asked.push(fleet.ask(*member, &share.items, course, group.as_ref()));
        }
        match asked.len() {
            1 => vec![asked.remove(0).await],
            _ => join_all(asked).await,
        }
    };
    let mut answered = Vec::with_capacity(count);
    for ((member, share), answers) in shares.into_iter().zip(answers) {
        let routes = share.indices.into_iter().zip(share.items).map(|(place, item)| Route { place, item, member });
        answered.extend(routes.zip(answers).map(|(route, answer)| Answered { route, answer }));
    }
    answered
}
