//! Medians, and the table.

use std::time::Duration;

/// One line of the table.
pub(crate) struct Row {
    what: String,
    ours: String,
    floor: String,
    figure: String,
    goal: String,
}

/// The middle of them.
pub(crate) fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}

/// A time for people.
pub(crate) fn shown(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

impl Row {
    /// Ours divided by the floor, of medians.
    pub(crate) fn ratio(what: &str, ours: &[Duration], floor: &[Duration], goal: &str) -> Self {
        let (a, b) = (median(ours), median(floor));
        let ratio = a.as_secs_f64() / b.as_secs_f64();
        Self::new(what, &shown(a), &shown(b), &format!("{ratio:.2}"), goal)
    }

    /// Ours less the floor, of medians.
    pub(crate) fn less(what: &str, ours: &[Duration], floor: &[Duration], goal: &str) -> Self {
        let (a, b) = (median(ours), median(floor));
        let difference = (a.as_secs_f64() - b.as_secs_f64()) * 1000.0;
        Self::new(what, &shown(a), &shown(b), &format!("{difference:.2} ms"), goal)
    }

    /// The floor's time divided by ours, which is the ratio of throughputs.
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

/// Prints the rows as a table that Markdown takes too.
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
