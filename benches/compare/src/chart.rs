//! One bar chart for each workload, as SVG.

use std::path::Path;

use plotters::prelude::*;

use crate::{
    child::Outcome,
    table::Row,
    workload::{Kind, Workload},
};

const BAR: i32 = 26;
const LABELS: i32 = 210;

/// Draws the medians of one workload.
pub fn draw(directory: &Path, workload: &Workload, rows: &[Row]) -> Outcome {
    let round_trip = workload.kind.is_round_trip();
    let share = usize::from(workload.kind == Kind::Beside);
    let bars: Vec<(&str, f64, bool)> = rows
        .iter()
        .filter_map(|row| {
            let figure = row.median()?;
            let value = if round_trip { figure.latency[share] as f64 / 1e3 } else { figure.rate / 1e3 };
            Some((row.contestant.name, value, row.contestant.name.starts_with("ropewalk")))
        })
        .collect();
    let most = bars.iter().map(|(_, value, _)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let path = directory.join(format!("{}.svg", workload.name.to_lowercase().replace([' ', ','], "-")));
    let (width, height) = (720, 50 + BAR * bars.len() as i32);
    let area = SVGBackend::new(&path, (width, height as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let unit = match workload.kind {
        Kind::RoundTrip => "p50 in microseconds, less is better",
        Kind::Beside => "p99 in microseconds, less is better",
        _ => "thousand messages a second",
    };
    let text = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
    area.draw(&Text::new(format!("{}: {unit}", workload.name), (10, 12), text(16)))?;
    for (index, (name, value, ours)) in bars.iter().enumerate() {
        let top = 42 + BAR * index as i32;
        let right = LABELS + (f64::from(width as i32 - LABELS - 90) * value / most) as i32;
        let color = if *ours { RGBColor(200, 90, 20) } else { RGBColor(120, 130, 145) };
        area.draw(&Rectangle::new([(LABELS, top), (right.max(LABELS + 1), top + BAR - 8)], color.filled()))?;
        area.draw(&Text::new((*name).to_owned(), (10, top + 2), text(14)))?;
        let shown = if *value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") };
        area.draw(&Text::new(shown, (right + 6, top + 2), text(14)))?;
    }
    area.present()?;
    Ok(())
}
