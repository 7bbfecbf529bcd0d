//! The table of results.

use std::collections::BTreeSet;

use crate::hosts::Host;
use crate::inspection::{Holdings, Inspection};
use crate::load::Tally;
use crate::run::Hook;

#[derive(Debug)]
pub(crate) struct Row {
    host: &'static Host,
    hook: Hook,
    pub(crate) version: String,
    pub(crate) tally: Tally,
    /// All workers that have responded.
    pub(crate) workers: BTreeSet<u32>,
    /// The least and the most connections of a worker to a server.
    connections: Option<(usize, usize)>,
    /// The descriptors of masters and of workers after each reload.
    reloads: Vec<[Vec<Holdings>; 2]>,
    /// The failed check.
    pub(crate) fault: Option<String>,
}

impl Row {
    pub(crate) fn new(host: &'static Host, hook: Hook) -> Row {
        let (version, tally, workers) = (String::new(), Tally::default(), BTreeSet::new());
        Row { host, hook, version, tally, workers, connections: None, reloads: Vec::new(), fault: None }
    }

    /// Records the numbers of the workers' connections.
    pub(crate) fn record_connections(&mut self, inspection: &Inspection) {
        for held in inspection.workers.values().flat_map(|held| [held.redis, held.memcached]) {
            let (least, most) = self.connections.unwrap_or((held, held));
            self.connections = Some((least.min(held), most.max(held)));
        }
    }

    /// Records the descriptors after a reload. Panics if their number differs from that after the first reload.
    pub(crate) fn record_reload(&mut self, inspection: Inspection) {
        let held = [inspection.masters, inspection.workers].map(|held| held.into_values().collect::<Vec<_>>());
        self.reloads.push(held);
        let [first, now] = [&self.reloads[0], &self.reloads[self.reloads.len() - 1]].map(|held| self.fixed(held));
        assert_eq!(now, first, "the number of descriptors changed after reload {}", self.reloads.len());
    }

    /// Returns, in order, the numbers of descriptors that must not change, of masters and of workers. These are all
    /// except connections, whose number varies in a worker with threads, and pipes if a garbage collection closes
    /// them.
    fn fixed(&self, held: &[Vec<Holdings>; 2]) -> [Vec<usize>; 2] {
        held.each_ref().map(|held| {
            let pipes = |held: &Holdings| if self.host.collects_pipes { held.pipes } else { 0 };
            let fixed = |held: &Holdings| held.descriptors - held.redis - held.memcached - pipes(held);
            let mut fixed: Vec<usize> = held.iter().map(fixed).collect();
            fixed.sort_unstable();
            fixed
        })
    }

    fn cells(&self) -> [String; 9] {
        let most = |which: usize| {
            let most = |held: &[Vec<Holdings>; 2]| held[which].iter().map(|held| held.descriptors).max().unwrap_or(0);
            self.reloads.iter().map(|held| most(held).to_string()).collect::<Vec<_>>().join(" ")
        };
        let hook = match self.hook {
            Hook::With => "yes",
            Hook::Without => "no",
            Hook::Absent => "no hook",
        };
        let connections = match self.connections {
            Some((least, most)) if least == most => least.to_string(),
            Some((least, most)) => format!("{least} to {most}"),
            None => String::new(),
        };
        let (requests, wrong, failed) = (self.tally.requests, self.tally.wrong, self.tally.failed);
        [
            self.host.name.to_owned(),
            self.version.clone(),
            hook.to_owned(),
            requests.to_string(),
            wrong.to_string(),
            failed.to_string(),
            connections,
            most(0),
            most(1),
        ]
    }
}

#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    pub(crate) fn add(&mut self, row: Row) {
        self.0.push(row);
    }

    pub(crate) fn is_good(&self) -> bool {
        self.0.iter().all(|row| row.fault.is_none())
    }

    pub(crate) fn print(&self) {
        let head = [
            "host",
            "version",
            "hook line",
            "requests",
            "wrong",
            "failed",
            "connections of a worker to each server",
            "descriptors of the master after reloads 1, 2, 3",
            "of a worker",
        ];
        println!("| {} |", head.join(" | "));
        println!("|{}", " --- |".repeat(head.len()));
        for row in &self.0 {
            println!("| {} |", row.cells().join(" | "));
        }
        for row in &self.0 {
            if let Some(fault) = &row.fault {
                println!("{}, hook line {:?}: {fault}", row.host.name, row.hook);
            }
        }
    }
}
