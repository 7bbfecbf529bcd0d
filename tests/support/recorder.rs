//! A `tracing` subscriber that keeps all records.

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
    /// A span's name or an event's message.
    pub name: String,
    /// The fields that have a value.
    pub fields: BTreeMap<String, String>,
    /// The index of the enclosing span's record.
    pub within: Option<usize>,
}

/// Returns the records of this thread while `work` runs.
pub fn recorded<T>(work: impl FnOnce() -> T) -> (T, Vec<Record>) {
    let recorder = Recorder::default();
    let done = tracing::subscriber::with_default(recorder.clone(), work);
    let records = std::mem::take(&mut recorder.state().records);
    (done, records)
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    records: Vec<Record>,
    /// The indexes of the spans that are entered.
    entered: Vec<usize>,
}

impl Recorder {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
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
        id(self.state().push(true, span.metadata(), fields))
    }

    fn record(&self, span: &Id, values: &Values<'_>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        for (name, value) in fields.0 {
            // Subscribers that print show a field each time it is recorded.
            let before = self.state().records[index(span)].fields.insert(name.clone(), value);
            assert_eq!(before, None, "{name} is recorded twice");
        }
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        self.state().push(false, event.metadata(), fields);
    }

    fn enter(&self, span: &Id) {
        self.state().entered.push(index(span));
    }

    fn exit(&self, span: &Id) {
        let exited = self.state().entered.pop();
        assert_eq!(exited, Some(index(span)), "spans are exited in reverse order");
    }
}

/// The span id of a record. An id is never zero.
fn id(index: usize) -> Id {
    Id::from_u64(index as u64 + 1)
}

fn index(id: &Id) -> usize {
    usize::try_from(id.into_u64() - 1).expect("an index")
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
