//! A subscriber that keeps all that `tracing` is told.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record as Values};
use tracing::{Event, Level, Metadata, Subscriber};

/// A span or an event.
#[derive(Clone, Debug)]
pub struct Record {
    pub is_span: bool,
    pub level: Level,
    /// A span's name, an event's message.
    pub name: String,
    /// The fields that have a value.
    pub fields: BTreeMap<String, String>,
    /// The place among the records of the span that it is in.
    pub within: Option<usize>,
}

/// What is told on this thread while `work` is done.
pub fn recorded<T>(work: impl FnOnce() -> T) -> (T, Vec<Record>) {
    let recorder = Recorder::default();
    let done = tracing::subscriber::with_default(recorder.clone(), work);
    let records = std::mem::take(&mut recorder.told().records);
    (done, records)
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    records: Vec<Record>,
    /// The places of the spans that are entered.
    entered: Vec<usize>,
}

impl Recorder {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    fn push(&mut self, is_span: bool, metadata: &Metadata<'_>, mut fields: Fields) -> usize {
        let name = fields.0.remove("message").unwrap_or_else(|| metadata.name().to_owned());
        let within = self.entered.last().copied();
        self.records.push(Record { is_span, level: *metadata.level(), name, fields: fields.0, within });
        self.records.len() - 1
    }
}

impl Subscriber for Recorder {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields = Fields::default();
        span.record(&mut fields);
        id(self.told().push(true, span.metadata(), fields))
    }

    fn record(&self, span: &Id, values: &Values<'_>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        for (name, value) in fields.0 {
            // Subscribers that print show a field as often as it is told.
            let before = self.told().records[place(span)].fields.insert(name.clone(), value);
            assert_eq!(before, None, "{name} is told twice");
        }
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        self.told().push(false, event.metadata(), fields);
    }

    fn enter(&self, span: &Id) {
        self.told().entered.push(place(span));
    }

    fn exit(&self, span: &Id) {
        let left = self.told().entered.pop();
        assert_eq!(left, Some(place(span)), "spans are left in the order that they were entered in");
    }
}

/// An id is never zero.
fn id(place: usize) -> Id {
    Id::from_u64(place as u64 + 1)
}

fn place(id: &Id) -> usize {
    usize::try_from(id.into_u64() - 1).expect("a place in memory")
}

#[derive(Default)]
struct Fields(BTreeMap<String, String>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
}
