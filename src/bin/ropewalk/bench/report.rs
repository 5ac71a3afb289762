//! Medians of the rounds, and how the library stands beside the bare sockets.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use super::{
    ROUNDS,
    job::{Job, Transport, Way, What, word},
};
use crate::failure::Failure;

/// A column of figures.
struct Column {
    name: &'static str,
    json: &'static str,
    digits: usize,
    /// Whether it is told beside that of the bare sockets.
    compared: bool,
}

const RATES: &[Column] = &[
    Column { name: "msg/s", json: "messages_per_second", digits: 0, compared: true },
    Column { name: "MB/s", json: "megabytes_per_second", digits: 1, compared: false },
    Column { name: "cpu ns/msg", json: "cpu_nanoseconds_per_message", digits: 0, compared: false },
    Column { name: "peak MiB", json: "peak_mebibytes", digits: 1, compared: false },
];

const TIMES: &[Column] = &[
    Column { name: "p50 us", json: "p50_microseconds", digits: 1, compared: true },
    Column { name: "p99 us", json: "p99_microseconds", digits: 1, compared: true },
    Column { name: "p99.9 us", json: "p999_microseconds", digits: 1, compared: false },
    Column { name: "busy msg/s", json: "busy_messages_per_second", digits: 0, compared: false },
];

/// The figures of all runs.
pub(super) struct Report {
    job: Job,
    columns: &'static [Column],
    /// Each way's name and figures, round by round. The bare sockets come last.
    rows: Vec<(String, Vec<Vec<f64>>)>,
}

/// How a way is called.
pub(super) fn name(job: &Job) -> String {
    match (job.way, job.what) {
        (Way::Raw, _) if job.transport == Transport::Ipc && cfg!(unix) => "raw unix stream".into(),
        (Way::Raw, _) => "raw tcp".into(),
        (Way::Plain, What::Lat) => "ropewalk request".into(),
        (Way::Plain, _) => "ropewalk recv".into(),
        (Way::Many, _) => "ropewalk recv_many".into(),
    }
}

impl Report {
    pub(super) fn new(job: Job, ways: &[Way]) -> Self {
        // What keeps a link busy is told only where there is one.
        let columns = match job.what {
            What::Lat if job.busy => TIMES,
            What::Lat => &TIMES[..3],
            What::Thr | What::Fan => RATES,
        };
        Self { job, columns, rows: ways.iter().map(|way| (name(&Job { way: *way, ..job }), Vec::new())).collect() }
    }

    /// The figures of one run.
    pub(super) fn add(&mut self, row: usize, figures: Vec<f64>) {
        if let Some((_, rounds)) = self.rows.get_mut(row) {
            rounds.push(figures);
        }
    }

    pub(super) fn print(&self, json: bool) -> Result<(), Failure> {
        let text = if json { self.json() } else { self.table() };
        match io::stdout().lock().write_all(text.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::Failed(format!("cannot write: {error}")))
            }
            _ => Ok(()),
        }
    }

    fn table(&self) -> String {
        let Job { what, transport, size, count, senders, peers, busy, .. } = self.job;
        let kind: String = match what {
            What::Thr if senders > 1 => format!("{senders} PUSH to PULL, one way"),
            What::Thr => "PUSH to PULL, one way".into(),
            What::Lat if busy => "REQ to REP and back, one at a time, beside a busy link".into(),
            What::Lat => "REQ to REP and back, one at a time".into(),
            What::Fan => "PUB to SUBs, nothing dropped; deliveries".into(),
        };
        let scheme = word(transport);
        let mut text = format!("{kind}: {scheme}, {size} B, {count} messages, {peers} at the far end\n");
        let mut line = |name: &str, cells: &[String]| {
            let cells: String = cells.iter().map(|cell| format!("{cell:>13}")).collect();
            // A string takes all that is written to it.
            let _taken = writeln!(text, "{name:<24}{cells}");
        };
        let mut head = Vec::new();
        for column in self.columns {
            head.push(column.name.into());
            head.extend(column.compared.then(|| "x raw".into()));
        }
        line(&format!("medians of {ROUNDS} rounds"), &head);
        for (row, (name, _)) in self.rows.iter().enumerate() {
            let mut cells = Vec::new();
            for (index, column) in self.columns.iter().enumerate() {
                cells.push(number(self.median(row, index), column.digits, "-"));
                cells.extend(column.compared.then(|| number(self.ratio(row, index), 2, "-")));
            }
            line(name, &cells);
        }
        text
    }

    fn json(&self) -> String {
        let Job { what, transport, size, count, senders, peers, busy, one_process, .. } = self.job;
        let results: Vec<String> =
            self.rows.iter().enumerate().map(|(row, (name, _))| self.json_row(row, name)).collect();
        format!(
            "{{\"bench\":\"{}\",\"transport\":\"{}\",\"size\":{size},\"count\":{count},\"senders\":{senders},\
             \"peers\":{peers},\"busy\":{busy},\"one_process\":{one_process},\"rounds\":{ROUNDS},\"results\":[{}]}}\n",
            word(what),
            word(transport),
            results.join(",")
        )
    }

    fn json_row(&self, row: usize, name: &str) -> String {
        let mut fields = vec![format!("\"name\":\"{name}\"")];
        for (index, column) in self.columns.iter().enumerate() {
            let (json, digits) = (column.json, column.digits.max(1));
            let each: Vec<String> =
                self.column(row, index).iter().map(|value| number(*value, digits, "null")).collect();
            fields.push(format!("\"{json}\":{}", number(self.median(row, index), digits, "null")));
            fields.push(format!("\"{json}_rounds\":[{}]", each.join(",")));
            if column.compared {
                fields.push(format!("\"{json}_x_raw\":{}", number(self.ratio(row, index), 3, "null")));
            }
        }
        format!("{{{}}}", fields.join(","))
    }

    fn column(&self, row: usize, column: usize) -> Vec<f64> {
        let rounds = self.rows.get(row).map_or(&[][..], |(_, rounds)| rounds);
        rounds.iter().filter_map(|figures| figures.get(column).copied()).collect()
    }

    fn median(&self, row: usize, column: usize) -> f64 {
        let mut all = self.column(row, column);
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// Beside the bare sockets.
    fn ratio(&self, row: usize, column: usize) -> f64 {
        self.median(row, column) / self.median(self.rows.len().saturating_sub(1), column)
    }
}

fn number(value: f64, digits: usize, none: &str) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { none.into() }
}
