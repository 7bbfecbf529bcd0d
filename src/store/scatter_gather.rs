//! A batch over several servers, each of which has some of the keys: the common part of Memcached's ring and a Redis
//! cluster.
//!
//! A batch is split by server, sent to all of them at once, and the answers are put in order. The items that a server
//! rejects are sent in another round, to the servers that [`Fleet::send_on`] returns.

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

    /// Returns the items to send in another round, after the round `sent`. The batch is done when there are none.
    fn send_on<'i>(
        &self,
        course: &mut Self::Course,
        sent: &Round<'i, Self>,
        answers: &[LastAnswer<Self>],
    ) -> impl Future<Output = Round<'i, Self>> + Send;
}

/// The last answer to an item, and the server that gave it. `None` for an item that was not sent.
pub(super) type LastAnswer<F> = Option<(<F as Fleet>::Member, Result<<F as Fleet>::Answer>)>;

/// The items that are sent at once, by server. The servers are in their order.
pub(super) struct Round<'i, F: Fleet + ?Sized> {
    shares: Vec<Share<'i, F>>,
    /// The expected number of items.
    expected: usize,
}

/// The items of one server.
struct Share<'i, F: Fleet + ?Sized> {
    member: F::Member,
    /// The index of each item in the batch.
    places: Vec<usize>,
    items: Vec<&'i F::Item>,
}

impl<'i, F: Fleet + ?Sized> Round<'i, F> {
    /// Creates a round without items. `expected` is the number of items that will be added.
    pub(super) fn new(expected: usize) -> Round<'i, F> {
        Round { shares: Vec::new(), expected }
    }

    /// Adds an item, for a server. `place` is its index in the batch.
    #[inline]
    pub(super) fn add(&mut self, member: F::Member, place: usize, item: &'i F::Item) {
        let Round { shares, expected } = self;
        let index = shares.binary_search_by_key(&member, |share| share.member).unwrap_or_else(|index| {
            let capacity = *expected / (shares.len() + 1);
            let (places, items) = (Vec::with_capacity(capacity), Vec::with_capacity(capacity));
            shares.insert(index, Share { member, places, items });
            index
        });
        shares[index].places.push(place);
        shares[index].items.push(item);
    }

    /// Returns the items, each with its server and its index in the batch. Those of one server are in their order.
    pub(super) fn items(&self) -> impl Iterator<Item = (F::Member, usize, &'i F::Item)> {
        self.shares.iter().flat_map(|Share { member, places, items }| {
            places.iter().zip(items).map(|(place, item)| (*member, *place, *item))
        })
    }
}

/// Carries out a batch of `count` items. Returns the last answer to each.
pub(super) async fn carry_out<F: Fleet>(
    fleet: &F,
    count: usize,
    mut round: Round<'_, F>,
    course: &mut F::Course,
) -> Vec<LastAnswer<F>> {
    let mut answers: Vec<LastAnswer<F>> = (0..count).map(|_| None).collect();
    while !round.shares.is_empty() {
        let answered = ask_all(fleet, &round, course).await;
        for (Share { member, places, .. }, of_member) in round.shares.iter().zip(answered) {
            for (place, answer) in places.iter().zip(of_member) {
                answers[*place] = Some((*member, answer));
            }
        }
        round = fleet.send_on(course, &round, &answers).await;
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

/// Sends to all servers at once. Returns the answers of each.
async fn ask_all<F: Fleet>(fleet: &F, round: &Round<'_, F>, course: &F::Course) -> Vec<Vec<Result<F::Answer>>> {
    let Round { shares, .. } = round;
    let group = (shares.len() > 1).then(|| ExchangeGroup::until(fleet.deadline(course)));
    let mut asked = Vec::with_capacity(shares.len());
    for Share { member, items, .. } in shares {
        asked.push(fleet.ask(*member, items, course, group.as_ref()));
    }
    match asked.len() {
        1 => vec![asked.remove(0).await],
        _ => join_all(asked).await,
    }
}
