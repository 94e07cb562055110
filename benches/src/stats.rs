//! Medians, and the table of results.

use std::time::Duration;

/// A row of the table.
pub(crate) struct Row {
    what: String,
    ours: String,
    floor: String,
    figure: String,
    goal: String,
}

/// Returns the median of some times.
pub(crate) fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}

/// Formats a time in milliseconds.
pub(crate) fn shown(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

impl Row {
    /// Makes a row of our median divided by the floor's.
    pub(crate) fn ratio(what: &str, ours: &[Duration], floor: &[Duration], goal: &str) -> Self {
        let (a, b) = (median(ours), median(floor));
        let ratio = a.as_secs_f64() / b.as_secs_f64();
        Self::new(what, &shown(a), &shown(b), &format!("{ratio:.2}"), goal)
    }

    /// Makes a row of our median less the floor's.
    pub(crate) fn less(what: &str, ours: &[Duration], floor: &[Duration], goal: &str) -> Self {
        let (a, b) = (median(ours), median(floor));
        let difference = (a.as_secs_f64() - b.as_secs_f64()) * 1000.0;
        Self::new(what, &shown(a), &shown(b), &format!("{difference:.2} ms"), goal)
    }

    /// Makes a row of throughputs. The figure is the floor's median time divided by ours, which
    /// equals the ratio of throughputs.
    pub(crate) fn throughput(
        what: &str,
        bytes: usize,
        ours: &[Duration],
        floor: &[Duration],
        goal: &str,
    ) -> Self {
        let (a, b) = (median(ours), median(floor));
        let mib = bytes as f64 / f64::from(1 << 20);
        let speed = |time: Duration| format!("{:.0} MiB/s", mib / time.as_secs_f64());
        let ratio = b.as_secs_f64() / a.as_secs_f64();
        Self::new(what, &speed(a), &speed(b), &format!("{ratio:.2}"), goal)
    }

    pub(crate) fn new(what: &str, ours: &str, floor: &str, figure: &str, goal: &str) -> Self {
        let own = str::to_owned;
        let (what, ours, floor) = (own(what), own(ours), own(floor));
        Self { what, ours, floor, figure: own(figure), goal: own(goal) }
    }
}

/// Prints the rows as a Markdown table.
pub(crate) fn print(rows: &[Row]) {
    let head = Row::new("what", "Wrenn", "floor", "figure", "goal");
    let cells = |row: &Row| {
        [&row.what, &row.ours, &row.floor, &row.figure, &row.goal].map(|cell| cell.to_owned())
    };
    let all: Vec<[String; 5]> = std::iter::once(&head).chain(rows).map(cells).collect();
    let width = |at: usize| all.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    for (number, row) in all.iter().enumerate() {
        let pad = |(cell, width): (&String, &usize)| format!("{cell:<width$}");
        let line: Vec<String> = row.iter().zip(&widths).map(pad).collect();
        println!("| {} |", line.join(" | "));
        if number == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            println!("| {} |", rule.join(" | "));
        }
    }
}
