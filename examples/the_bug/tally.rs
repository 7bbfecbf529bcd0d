//! The entries of each side, and the count of its right and wrong replies.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Parent,
    Child,
}

impl Side {
    pub(crate) const BOTH: [Side; 2] = [Side::Parent, Side::Child];

    fn name(self) -> &'static str {
        match self {
            Side::Parent => "parent",
            Side::Child => "child",
        }
    }
}

/// The entries of one run of this program. Each value names its key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entries {
    /// Distinguishes this run's entries from those of another run on the same server.
    pub(crate) run: u32,
    /// The number of entries for each side.
    pub(crate) each: usize,
}

impl Entries {
    pub(crate) fn keys(self, side: Side) -> impl Iterator<Item = String> {
        let (run, side) = (self.run, side.name());
        (0..self.each).map(move |number| format!("the-bug:{run}:{side}:{number}"))
    }

    pub(crate) fn value(key: &str) -> String {
        format!("the value of {key}")
    }
}

/// The counts of the replies that one side received.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Tally {
    right: usize,
    /// Replies to requests of the other side.
    foreign: usize,
    errors: usize,
    first_foreign: Option<String>,
    first_error: Option<String>,
}

impl Tally {
    /// Reads each of this side's entries.
    pub(crate) fn take(
        entries: Entries,
        side: Side,
        mut read: impl FnMut(&str) -> Result<Option<String>, String>,
    ) -> Tally {
        let mut tally = Tally::default();
        for key in entries.keys(side) {
            match read(&key) {
                Ok(Some(reply)) if reply == Entries::value(&key) => tally.right += 1,
                Ok(reply) => {
                    tally.foreign += 1;
                    let reply = reply.unwrap_or_else(|| "nothing".to_owned());
                    tally.first_foreign.get_or_insert_with(|| format!("read {key:?} and got {reply:?}"));
                }
                Err(error) => {
                    tally.errors += 1;
                    let error = error.split_whitespace().collect::<Vec<_>>().join(" ");
                    tally.first_error.get_or_insert_with(|| format!("read {key:?} and got an error: {error}"));
                }
            }
        }
        tally
    }
}

/// The tallies of both sides.
#[derive(Debug)]
pub(crate) struct Tallies {
    pub(crate) parent: Tally,
    pub(crate) child: Tally,
}

impl Tallies {
    pub(crate) fn any_foreign(&self) -> bool {
        self.parent.foreign + self.child.foreign > 0
    }

    pub(crate) fn all_right(&self, entries: Entries) -> bool {
        self.parent.right == entries.each && self.child.right == entries.each
    }

    /// Prints the first reply of each wrong kind, in full.
    pub(crate) fn print_examples(&self) {
        for (side, tally) in self.sides() {
            for example in tally.first_foreign.iter().chain(&tally.first_error) {
                println!("The {side} {example}");
            }
        }
    }

    fn sides(&self) -> [(&'static str, &Tally); 2] {
        [(Side::Parent.name(), &self.parent), (Side::Child.name(), &self.child)]
    }
}

/// Returns a table with a line for each side of each case.
pub(crate) fn table(cases: &[(&str, &Tallies)]) -> String {
    let width = cases.iter().map(|(case, _)| case.len()).max().unwrap_or_default();
    let mut table = format!("{:width$}  {:6}  {:>7}  {:>7}  {:>7}\n", "", "", "right", "foreign", "errors");
    for (case, tallies) in cases {
        for (side, Tally { right, foreign, errors, .. }) in tallies.sides() {
            writeln!(table, "{case:width$}  {side:6}  {right:7}  {foreign:7}  {errors:7}").expect("room in a string");
        }
    }
    table
}
