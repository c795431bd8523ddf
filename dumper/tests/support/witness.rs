//! Reads what the victim `busy` wrote and says whether one copy ran at a time and none lost anything.

use std::fmt::Write;
use std::path::Path;

/// One line of `busy.log`; the fields are described in `victims/busy.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub count: u64,
    pub realtime_ns: u64,
    pub boottime_ns: u64,
    pub namespace: u64,
    pub pages_written: u64,
    pub pages_wrong: u64,
}

/// The log of one victim and all its copies, in the order in which it was written.
#[derive(Clone, Debug)]
pub struct Witness {
    pub records: Vec<Record>,
}

/// A time in which one namespace wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub namespace: u64,
    pub first: Record,
    pub last: Record,
}

impl Witness {
    /// Reads `busy.log` in a victim's directory.
    ///
    /// # Errors
    /// A line that is not a record. A last line without an end is being written, and is left out.
    pub fn read(dir: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(dir.join("busy.log")).map_err(|error| error.to_string())?;
        Self::parse(&text)
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let records = whole
            .lines()
            .enumerate()
            .map(|(n, line)| parse_record(line).ok_or(format!("line {}: {line:?}", n + 1)));
        Ok(Self { records: records.collect::<Result<_, _>>()? })
    }

    /// The stretches, in the order of the log. One copy that moved once makes two.
    pub fn stretches(&self) -> Vec<Stretch> {
        let mut stretches: Vec<Stretch> = Vec::new();
        for &record in &self.records {
            match stretches.last_mut() {
                Some(last) if last.namespace == record.namespace => last.last = record,
                _ => stretches.push(Stretch { namespace: record.namespace, first: record, last: record }),
            }
        }
        stretches
    }

    /// All that is wrong with the log; empty when exactly one copy ran at every instant, each went on where
    /// the one before it stopped, and no page was found that is older than it should be.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for pair in self.records.windows(2) {
            let [before, after] = [pair[0], pair[1]];
            if after.count != before.count + 1 {
                faults.push(format!("count {} follows {}", after.count, before.count));
            }
            if after.realtime_ns < before.realtime_ns {
                faults.push(format!("count {} is earlier than {}", after.count, before.count));
            }
            if after.pages_written < before.pages_written {
                faults.push(format!("memory at count {} is older than at {}", after.count, before.count));
            }
        }
        if let Some(first) = self.records.iter().find(|record| record.pages_wrong > 0) {
            faults.push(format!("{} wrong pages at count {}", first.pages_wrong, first.count));
        }
        let stretches = self.stretches();
        for (n, stretch) in stretches.iter().enumerate() {
            if stretches[..n].iter().any(|earlier| earlier.namespace == stretch.namespace) {
                faults.push(format!(
                    "namespace {} wrote again at count {}",
                    stretch.namespace, stretch.first.count
                ));
            }
        }
        faults.truncate(20);
        faults
    }

    /// # Panics
    /// With the faults and the stretches, when there are faults.
    #[track_caller]
    pub fn expect_one_life(&self) {
        let faults = self.faults();
        assert!(faults.is_empty(), "the log shows: {faults:#?}\n{}", self.describe());
    }

    /// The pause between the last record of one stretch and the first of the next, in milliseconds.
    pub fn pauses_ms(&self) -> Vec<u64> {
        let stretches = self.stretches();
        stretches
            .windows(2)
            .map(|pair| (pair[1].first.realtime_ns - pair[0].last.realtime_ns) / 1_000_000)
            .collect()
    }

    pub fn describe(&self) -> String {
        let mut text = String::new();
        for Stretch { namespace, first, last } in self.stretches() {
            let _ = writeln!(
                text,
                "namespace {namespace}: count {}..{}, {} ms, {} pages written",
                first.count,
                last.count,
                (last.realtime_ns - first.realtime_ns) / 1_000_000,
                last.pages_written - first.pages_written
            );
        }
        text
    }
}

fn parse_record(line: &str) -> Option<Record> {
    let fields: Vec<u64> = line.split(' ').map(|field| field.parse().ok()).collect::<Option<_>>()?;
    let [count, realtime_ns, boottime_ns, namespace, pages_written, pages_wrong] = fields.try_into().ok()?;
    Some(Record { count, realtime_ns, boottime_ns, namespace, pages_written, pages_wrong })
}

/// What the witness must not miss. In one test program only (`handover_crash`), since each includes this file.
pub fn self_test() {
    let line = |count: u64, time: u64, namespace: u64, written: u64, wrong: u64| {
        format!("{count} {time} {time} {namespace} {written} {wrong}\n")
    };
    let good = [line(0, 10, 1, 5, 0), line(1, 20, 1, 6, 0), line(2, 30, 2, 6, 0)].concat();
    assert_eq!(Witness::parse(&good).unwrap().faults(), Vec::<String>::new());
    assert_eq!(Witness::parse(&good).unwrap().stretches().len(), 2);
    let bad = [
        // Both ran: the source wrote once more after the copy.
        [line(0, 10, 1, 5, 0), line(1, 20, 2, 6, 0), line(2, 30, 1, 6, 0)].concat(),
        // The copy began from an old state.
        [line(0, 10, 1, 5, 0), line(1, 20, 1, 6, 0), line(1, 30, 2, 6, 0)].concat(),
        [line(0, 10, 1, 5, 0), line(2, 20, 1, 6, 0)].concat(),
        // Its memory is older than its count.
        [line(0, 10, 1, 5, 0), line(1, 20, 2, 4, 0)].concat(),
        [line(0, 10, 1, 5, 0), line(1, 20, 2, 5, 1)].concat(),
    ];
    for text in bad {
        assert_ne!(Witness::parse(&text).unwrap().faults(), Vec::<String>::new(), "not noticed:\n{text}");
    }
    assert_eq!(Witness::parse(&(good.clone() + "3 40")).unwrap().records.len(), 3);
    Witness::parse(&(good + "3 x\n")).unwrap_err();
}
