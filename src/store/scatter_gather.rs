//! A batch over several servers, each of which has some of the keys: what a ring of Memcached servers and the slots of a
//! Redis cluster have in common.
//!
//! A batch is split by who has what, all of them are asked at once, and the answers are put in order. What a server
//! turns away is sent on in the next round, to whom the fleet says.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::net::{ExchangeGroup, join_all};

/// Several servers, and what is asked of them.
pub(super) trait Fleet: Sync {
    /// One thing that is asked.
    type Item: Sync;
    type Answer: Send;
    /// A server, and how it is asked.
    type Member: Copy + Ord + Send + Sync;
    /// What a batch has met with on its way.
    type Course: Send + Sync;

    /// When a round has to be over.
    fn deadline(&self, course: &Self::Course) -> Instant;

    /// An answer for each item, from one server.
    fn ask(
        &self,
        member: Self::Member,
        items: &[&Self::Item],
        course: &Self::Course,
        group: Option<&ExchangeGroup>,
    ) -> impl Future<Output = Vec<Result<Self::Answer>>> + Send;

    /// What is to be asked in another round, after these answers.
    fn send_on<'i>(
        &self,
        course: &mut Self::Course,
        answered: &[Answered<'i, Self>],
    ) -> impl Future<Output = Vec<Route<'i, Self>>> + Send;
}

/// Whom an item goes to.
pub(super) struct Route<'i, F: Fleet + ?Sized> {
    /// Where its answer stands among those of the batch.
    pub(super) place: usize,
    pub(super) item: &'i F::Item,
    pub(super) member: F::Member,
}

pub(super) struct Answered<'i, F: Fleet + ?Sized> {
    pub(super) route: Route<'i, F>,
    pub(super) answer: Result<F::Answer>,
}

/// The last answer to each item, and who has given it; `None` at the places of a batch that were never asked.
pub(super) async fn carry_out<F: Fleet>(
    fleet: &F,
    places: usize,
    mut routes: Vec<Route<'_, F>>,
    course: &mut F::Course,
) -> Vec<Option<(F::Member, Result<F::Answer>)>> {
    let mut answers: Vec<_> = (0..places).map(|_| None).collect();
    while !routes.is_empty() {
        let answered = round(fleet, routes, course).await;
        routes = fleet.send_on(course, &answered).await;
        for Answered { route, answer } in answered {
            answers[route.place] = Some((route.member, answer));
        }
    }
    answers
}

/// How much goes in one exchange with a server.
pub(super) struct Part {
    pub(super) items: usize,
    pub(super) bytes: usize,
}

/// An answer for each item from one server, which is asked for a part at a time. Once it fails it is not asked for the
/// rest, and `failed` has their answers.
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

/// What one member is asked.
struct Share<'i, I> {
    places: Vec<usize>,
    items: Vec<&'i I>,
}

/// Asks all members at once. The answers are by member, and in the order of its items.
async fn round<'i, F: Fleet>(fleet: &F, routes: Vec<Route<'i, F>>, course: &F::Course) -> Vec<Answered<'i, F>> {
    let mut shares: BTreeMap<F::Member, Share<'i, F::Item>> = BTreeMap::new();
    let count = routes.len();
    for Route { place, item, member } in routes {
        let share = shares.entry(member).or_insert_with(|| Share { places: Vec::new(), items: Vec::new() });
        share.places.push(place);
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
        let routes = share.places.into_iter().zip(share.items).map(|(place, item)| Route { place, item, member });
        answered.extend(routes.zip(answers).map(|(route, answer)| Answered { route, answer }));
    }
    answered
}
