//! The judge of the demonstration: a program of its own that reads what the moved program wrote.

use std::fs;
use std::io;
use std::path::PathBuf;

/// Where to look.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Directory of the log.
    #[arg(long)]
    dir: PathBuf,
}

/// What the log says.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Verdict {
    /// The count went on unbroken, in exactly two pid namespaces, and every page was right at the end.
    pub verified: bool,
    /// What was wrong, or nothing.
    pub complaints: Vec<String>,
    /// Lines written, all told.
    pub lines: u64,
    /// Lines written after the move.
    pub lines_after: u64,
    /// Longest time between two lines, across the move, in microseconds: the downtime as the program saw it.
    pub gap_us: u64,
}

/// Prints the verdict as one JSON object.
///
/// # Errors
/// When the log cannot be read.
pub fn run(args: &CheckArgs) -> io::Result<bool> {
    let verdict = judge(&fs::read_to_string(args.dir.join("log"))?);
    println!("{}", serde_json::to_string(&verdict)?);
    Ok(verdict.verified)
}

/// One line that the program writes every few milliseconds.
struct Line {
    count: u64,
    at_ns: u64,
    namespace: u64,
    written: u64,
}

fn parse(text: &str) -> Option<Line> {
    let words: Vec<_> = text.split(' ').collect();
    let ["line", count, "at", at_ns, "ns", namespace, "written", written] = words.as_slice() else {
        return None;
    };
    Some(Line {
        count: count.parse().ok()?,
        at_ns: at_ns.parse().ok()?,
        namespace: namespace.parse().ok()?,
        written: written.parse().ok()?,
    })
}

/// Reads the log of a moved program.
pub fn judge(log: &str) -> Verdict {
    let mut complaints = Vec::new();
    let lines: Vec<Line> = log.lines().filter_map(parse).collect();
    let ends: Vec<&str> = log.lines().filter(|line| line.starts_with("end ")).collect();
    if lines.len() + ends.len() != log.lines().count() {
        complaints.push("the log has a torn line".to_owned());
    }
    let mut gap_ns = 0;
    let mut moves = 0;
    for pair in lines.windows(2) {
        let [before, after] = pair else { continue };
        if after.count != before.count + 1 {
            complaints.push(format!("line {} follows line {}", after.count, before.count));
        }
        if after.at_ns < before.at_ns || after.written < before.written {
            complaints.push(format!("line {} goes back in time or work", after.count));
        }
        if after.namespace != before.namespace {
            moves += 1;
            gap_ns = after.at_ns.saturating_sub(before.at_ns);
        }
    }
    if moves != 1 {
        complaints.push(format!("the program changed its pid namespace {moves} times, not once"));
    }
    let last = lines.last().map_or(0, |line| line.namespace);
    let lines_after = lines.iter().filter(|line| line.namespace == last).count() as u64;
    complaints.extend(judge_end(&ends, lines.len() as u64));
    Verdict {
        verified: complaints.is_empty(),
        complaints,
        lines: lines.len() as u64,
        lines_after,
        gap_us: gap_ns / 1000,
    }
}

/// The last line: every page right, every write accounted for, the checksum as expected.
fn judge_end(ends: &[&str], lines: u64) -> Vec<String> {
    let [end] = ends else { return vec![format!("the program wrote {} last lines, not one", ends.len())] };
    let words: Vec<_> = end.split(' ').collect();
    let field = |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1));
    let mut complaints = Vec::new();
    if field("end").and_then(|count| count.parse().ok()) != Some(lines) {
        complaints.push(format!("the last line counts other than {lines} lines: {end}"));
    }
    if field("bad") != Some(&"0") {
        complaints.push(format!("pages are wrong: {end}"));
    }
    if field("writes").is_none() || field("writes") != field("generations") {
        complaints.push(format!("writes are lost: {end}"));
    }
    if field("checksum").is_none() || field("checksum") != field("expected") {
        complaints.push(format!("the memory's checksum is wrong: {end}"));
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "line 1 at 1000 ns 7 written 0\nline 2 at 3000 ns 7 written 5\n\
        line 3 at 90000 ns 8 written 5\nend 3 pages 9 threads 1 bad 0 writes 4 generations 4 \
        checksum 0a expected 0a\n";

    #[test]
    fn an_unbroken_log_over_one_move_is_good() {
        let verdict = judge(GOOD);
        assert!(verdict.verified, "{verdict:?}");
        assert_eq!((verdict.lines, verdict.lines_after, verdict.gap_us), (3, 1, 87));
    }

    #[test]
    fn every_way_to_be_wrong_is_found() {
        let wrong = [
            ("line 2 ", "line 3 "),
            ("ns 8", "ns 7"),
            ("bad 0", "bad 1"),
            ("writes 4", "writes 5"),
            ("checksum 0a", "checksum 0b"),
            ("end 3", "end 4"),
            ("at 90000", "at 900"),
            ("line 1 at", "lin"),
        ];
        for (from, to) in wrong {
            let log = GOOD.replacen(from, to, 1);
            assert_ne!(log, GOOD);
            assert!(!judge(&log).verified, "{from} -> {to}");
        }
    }
}
