//! Medians, percentiles, and the rows of results.

use crate::table;
use std::time::Duration;

/// Cell of a value that a row does not have.
pub(crate) const NONE: &str = "–";
/// Heads of the columns.
const HEADS: [&str; 8] = ["measured", "Wrenn", "p99", "floor", "figure", "goal", "failed", "left"];

/// A row of the table.
pub(crate) struct Row {
    what: String,
    ours: String,
    /// Our 99th of a hundred times, and its ratio to the median in parentheses. Fewer than a
    /// hundred times give their longest.
    p99: String,
    floor: String,
    figure: String,
    goal: String,
    /// Operations of ours that failed. `None` for rows that time nothing.
    failed: Option<usize>,
    /// Namespaces, processes, folders and the like that the row's group left on the machine.
    left: Option<usize>,
}

/// Returns the median of some times.
pub(crate) fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}

/// Returns the time that `percent` of the times do not exceed, such as the 95th of a hundred.
pub(crate) fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[(sorted.len() * percent).div_ceil(100) - 1]
}

/// Formats a time in milliseconds.
pub(crate) fn shown(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1000.0;
    if ms < 1.0 { format!("{ms:.3} ms") } else { format!("{ms:.1} ms") }
}

/// Formats the median, if there are times.
pub(crate) fn middle(times: &[Duration]) -> String {
    if times.is_empty() { NONE.to_owned() } else { shown(median(times)) }
}

/// Formats the 99th of a hundred times, and its ratio to the median. A single time has none.
pub(crate) fn high(times: &[Duration]) -> String {
    if times.len() < 2 {
        return NONE.to_owned();
    }
    let (middle, high) = (median(times), percentile(times, 99));
    format!("{} ({:.1}×)", shown(high), high.as_secs_f64() / middle.as_secs_f64())
}

/// Returns both medians in seconds, unless one side has no times.
fn medians(ours: &[Duration], floor: &[Duration]) -> Option<(f64, f64)> {
    if ours.is_empty() || floor.is_empty() {
        return None;
    }
    Some((median(ours).as_secs_f64(), median(floor).as_secs_f64()))
}

impl Row {
    /// Makes a row of our median divided by the floor's.
    pub(crate) fn ratio(what: &str, ours: &[Duration], floor: &[Duration], goal: &str) -> Self {
        let ratio = medians(ours, floor).map(|(a, b)| format!("{:.2}", a / b));
        Self::timed(what, ours, floor, ratio, goal)
    }

    /// Makes a row of our median less the floor's.
    pub(crate) fn less(what: &str, ours: &[Duration], floor: &[Duration], goal: &str) -> Self {
        let less = medians(ours, floor).map(|(a, b)| format!("{:.2} ms", (a - b) * 1000.0));
        Self::timed(what, ours, floor, less, goal)
    }

    /// Makes a row of throughputs. The figure is the floor's median time divided by ours, which
    /// equals the ratio of throughputs. The p99 is the throughput that 99 of a hundred reach.
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
        let row = Self::new(what, &speed(a), &speed(b), &format!("{ratio:.2}"), goal);
        row.p99(&speed(percentile(ours, 99))).failures(0)
    }

    /// Makes a row of times without a floor. The figure is the median.
    pub(crate) fn alone(what: &str, times: &[Duration], goal: &str) -> Self {
        let figure = (!times.is_empty()).then(|| middle(times));
        Self::timed(what, times, &[], figure, goal)
    }

    fn timed(
        what: &str,
        ours: &[Duration],
        floor: &[Duration],
        figure: Option<String>,
        goal: &str,
    ) -> Self {
        let figure = figure.unwrap_or_else(|| NONE.to_owned());
        let row = Self::new(what, &middle(ours), &middle(floor), &figure, goal);
        row.p99(&high(ours)).failures(0)
    }

    /// Makes a row that times nothing.
    pub(crate) fn new(what: &str, ours: &str, floor: &str, figure: &str, goal: &str) -> Self {
        let own = str::to_owned;
        Self {
            what: own(what),
            ours: own(ours),
            p99: own(NONE),
            floor: own(floor),
            figure: own(figure),
            goal: own(goal),
            failed: None,
            left: None,
        }
    }

    /// Makes a row of one value without a floor.
    pub(crate) fn value(what: &str, value: &str, goal: &str) -> Self {
        Self::new(what, value, NONE, value, goal)
    }

    /// Sets the p99.
    pub(crate) fn p99(mut self, p99: &str) -> Self {
        p99.clone_into(&mut self.p99);
        self
    }

    /// Sets the number of operations of ours that failed.
    pub(crate) fn failures(mut self, failed: usize) -> Self {
        self.failed = Some(failed);
        self
    }

    /// Sets the number of things that the row's group left on the machine.
    pub(crate) fn left(mut self, left: usize) -> Self {
        self.left = Some(left);
        self
    }

    fn cells(&self) -> Vec<String> {
        let count = |count: Option<usize>| count.map_or_else(|| NONE.to_owned(), |n| n.to_string());
        let Self { what, ours, p99, floor, figure, goal, .. } = self;
        let mut cells = [what, ours, p99, floor, figure, goal].map(String::clone).to_vec();
        cells.extend([count(self.failed), count(self.left)]);
        cells
    }
}

/// Prints each row on a line of its own, as soon as it is measured. Returns the rows.
pub(crate) fn say(rows: Vec<Row>) -> Vec<Row> {
    for Row { what, ours, p99, floor, figure, goal, .. } in &rows {
        println!("{what}: {ours} (p99 {p99}) to {floor}, figure {figure}, goal {goal}");
    }
    rows
}

/// Returns the rows as a Markdown table.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let head = HEADS.map(str::to_owned).to_vec();
    let lines = std::iter::once(head).chain(rows.iter().map(Row::cells));
    let lines: Vec<Vec<String>> = lines.collect();
    table::markdown(&lines)
}
