//! Medians and ratios.

use crate::{
    child::Outcome,
    contestants::Contestant,
    workload::{Figure, Kind, Workload},
};

/// One contestant's figures.
pub struct Row {
    pub contestant: &'static Contestant,
    figures: Vec<Figure>,
    failures: Vec<String>,
}

impl Row {
    pub fn new(contestant: &'static Contestant) -> Self {
        Self { contestant, figures: Vec::new(), failures: Vec::new() }
    }

    pub fn add(&mut self, outcome: Outcome<Figure>) {
        match outcome {
            Ok(figure) => self.figures.push(figure),
            Err(error) => self.failures.push(error.to_string()),
        }
    }

    /// Whether it is worth measuring again: what fails twice does so each time.
    pub fn goes_on(&self) -> bool {
        self.failures.len() < 2
    }

    /// The median of each figure; none if no run succeeded.
    pub fn median(&self) -> Option<Figure> {
        let of = |pick: fn(&Figure) -> f64| {
            let mut values: Vec<f64> = self.figures.iter().map(pick).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        Some(Figure {
            rate: of(|figure| figure.rate)?,
            cpu_nanos_per_message: of(|figure| figure.cpu_nanos_per_message)?,
            peak_kib: of(|figure| figure.peak_kib as f64)? as u64,
            latency: [
                of(|figure| figure.latency[0] as f64)? as u64,
                of(|figure| figure.latency[1] as f64)? as u64,
                of(|figure| figure.latency[2] as f64)? as u64,
            ],
            load: of(|figure| figure.load)?,
        })
    }
}

/// Prints the rows of one workload; the ratios are to the bare wire and to the fastest that is neither bare nor ours.
/// Of round trips only the current-thread rows compare with the bare wire: like it they have a processor for each side.
pub fn print(workload: &Workload, rows: &[Row]) {
    let round_trip = workload.kind.is_round_trip();
    // Beside a busy link it is the slow ones that matter.
    let share = usize::from(workload.kind == Kind::Beside);
    let score = |figure: &Figure| if round_trip { figure.latency[share] as f64 } else { figure.rate };
    let peers = rows.iter().filter(|row| !["raw", "ropewalk"].contains(&row.contestant.library));
    let scores = peers.filter_map(|row| row.median().map(|figure| score(&figure)));
    let best = scores.reduce(if round_trip { f64::min } else { f64::max });
    let raw = rows.iter().find(|row| row.contestant.library == "raw").and_then(Row::median);
    let raw = raw.map(|figure| score(&figure));
    println!("\n{}", workload.name);
    if round_trip {
        let load = if workload.kind == Kind::Beside { "load k/s" } else { "" };
        println!(
            "  {:<26}{:>10}{:>10}{:>10}{:>8}{:>8}{:>12}{load:>12}",
            "", "p50 us", "p99 us", "p99.9 us", "x raw", "x best", "CPU ns/req"
        );
    } else {
        println!(
            "  {:<26}{:>12}{:>10}{:>8}{:>8}{:>12}{:>10}",
            "", "k msg/s", "MB/s", "x raw", "x best", "CPU ns/msg", "MiB"
        );
    }
    for row in rows {
        let Some(figure) = row.median() else {
            println!("  {:<26}failed: {}", row.contestant.name, row.failures.first().map_or("", String::as_str));
            continue;
        };
        let to = |other: Option<f64>| other.map_or("-".into(), |other| format!("{:.2}", score(&figure) / other));
        let (of_raw, of_best) = (to(raw), to(best));
        let cpu = figure.cpu_nanos_per_message;
        if round_trip {
            let [p50, p99, p999] = figure.latency.map(|nanos| nanos as f64 / 1e3);
            print!("  {:<26}{p50:>10.1}{p99:>10.1}{p999:>10.1}", row.contestant.name);
            print!("{of_raw:>8}{of_best:>8}{cpu:>12.0}");
            match workload.kind {
                Kind::Beside => println!("{:>12.0}", figure.load / 1e3),
                _ => println!(),
            }
        } else {
            let (rate, megabytes) = (figure.rate / 1e3, figure.rate * workload.size as f64 / 1e6);
            let peak = figure.peak_kib as f64 / 1024.0;
            print!("  {:<26}{rate:>12.0}{megabytes:>10.0}", row.contestant.name);
            println!("{of_raw:>8}{of_best:>8}{cpu:>12.0}{peak:>10.0}");
        }
        if !row.failures.is_empty() {
            println!("  {:<26}and {} runs failed: {}", "", row.failures.len(), row.failures[0]);
        }
    }
}
