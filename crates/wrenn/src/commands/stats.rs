//! `wrenn capsule metrics` and `wrenn top`: metrics of capsules as tables and small charts.

use super::capsule::path;
use super::query;
use crate::cli;
use crate::client::{self, Client};
use crate::output::{self, Form};
use std::collections::BTreeMap;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Period of `--follow` and of `wrenn top`, equal to the period of samples.
const PERIOD: Duration = Duration::from_secs(5);
/// Largest number of capsules in one request.
const AT_ONCE: usize = 100;
/// Largest number of steps in a series, so that a chart fits a terminal.
const POINTS: u32 = 60;
/// Largest number of rows in the table under the charts.
const ROWS: usize = 12;
/// Heights of a chart, from the lowest.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Lines of `wrenn top` apart from those of capsules.
const BESIDE: usize = 4;

/// Runs `wrenn capsule metrics`.
pub(super) async fn metrics(
    metrics: cli::Metrics,
    client: &Client,
    form: Form,
) -> anyhow::Result<()> {
    let Some(capsule) = &metrics.capsule else { return all(client, form).await };
    let now = OffsetDateTime::now_utc();
    let since = time::Duration::try_from(Duration::from(metrics.since)).ok();
    let from = since.and_then(|since| now.checked_sub(since));
    let from = from.ok_or_else(|| output::usage("--since is too long"))?;
    if metrics.follow {
        return match follow(capsule, from, client, form).await {
            Err(error) if output::reader_left(&error) => Ok(()),
            followed => followed,
        };
    }
    let series = series(capsule, from, POINTS, client).await?;
    match form {
        Form::Json => output::json(&series),
        Form::Human => {
            show(&series);
            Ok(())
        }
    }
}

/// Fetches a capsule's series up to now.
async fn series(
    capsule: &str,
    from: OffsetDateTime,
    points: u32,
    client: &Client,
) -> anyhow::Result<api::MetricsSeries> {
    let fields = [("from", Some(from.format(&Rfc3339)?)), ("points", Some(points.to_string()))];
    client.get(&query(&path(capsule, "/metrics")?, &fields)).await
}

/// Prints each sample of a capsule as it comes. A platform that does not answer for a while is asked
/// again.
async fn follow(
    capsule: &str,
    mut from: OffsetDateTime,
    client: &Client,
    form: Form,
) -> anyhow::Result<()> {
    let mut head = form == Form::Human;
    loop {
        let seconds = (OffsetDateTime::now_utc() - from).whole_seconds().max(1);
        // As many points as samples, up to the largest number that the platform takes.
        let points = u32::try_from(seconds / 5 + 1).unwrap_or(1000).min(1000);
        match series(capsule, from, points, client).await {
            Ok(series) => {
                let seen = from;
                for point in series.items.iter().filter(|point| point.at > seen) {
                    from = point.at;
                    if std::mem::take(&mut head) {
                        output::stream_line(&columns(HEAD.map(str::to_owned)))?;
                    }
                    match form {
                        Form::Json => output::stream_line(&serde_json::to_string(point)?)?,
                        Form::Human => output::stream_line(&columns(row(point)))?,
                    }
                }
            }
            Err(error) if client::is_passing(&error) => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// A running capsule with its latest metrics.
#[derive(serde::Serialize)]
struct Latest {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    metrics: api::MetricsPoint,
}

/// Prints the latest metrics of all running capsules.
async fn all(client: &Client, form: Form) -> anyhow::Result<()> {
    let latest = latest(client).await?;
    if form == Form::Json {
        let by_id = latest.into_iter().map(|capsule| (capsule.id, capsule.metrics));
        return output::json(&by_id.collect::<BTreeMap<_, _>>());
    }
    table(&latest);
    Ok(())
}

/// Prints the latest metrics of capsules.
fn table(capsules: &[Latest]) {
    let head: Vec<&str> = ["ID", "NAME"].into_iter().chain(HEAD).collect();
    let cells = |capsule: &Latest| -> Vec<String> {
        let names = [capsule.id.clone(), capsule.name.clone().unwrap_or_default()];
        names.into_iter().chain(row(&capsule.metrics)).collect()
    };
    output::table(&head, capsules.iter().map(cells).collect());
}

/// Fetches the latest metrics of the team's running capsules. A capsule without a sample is left
/// out.
async fn latest(client: &Client) -> anyhow::Result<Vec<Latest>> {
    let running: Vec<api::Capsule> = client.list("/v1/capsules?status=running").await?;
    let ids: Vec<String> = running.iter().map(|capsule| capsule.id.clone()).collect();
    let mut all = BTreeMap::new();
    for ids in ids.chunks(AT_ONCE) {
        let body = api::LatestMetrics { ids: ids.to_vec() };
        let some: api::LatestMetricsMap = client.post("/v1/capsules/metrics", &body).await?;
        all.extend(some.items);
    }
    let latest = |capsule: api::Capsule| {
        let metrics = all.remove(&capsule.id)?;
        Some(Latest { id: capsule.id, name: capsule.name, metrics })
    };
    Ok(running.into_iter().filter_map(latest).collect())
}

/// Runs `wrenn top`: a table of the team's running capsules that changes until interrupted. Without
/// a terminal, prints it once.
pub(crate) async fn top(top: cli::Top, client: &Client, form: Form) -> anyhow::Result<()> {
    let moves = !top.once && form == Form::Human && output::on_terminal();
    loop {
        let latest = latest(client).await;
        if moves && latest.as_ref().is_err_and(client::is_passing) {
            tokio::time::sleep(PERIOD).await;
            continue;
        }
        let mut sorted = latest?;
        sort(&mut sorted, &top.sort);
        if form == Form::Json {
            return output::json(&sorted);
        }
        if moves {
            output::clear_screen()?;
            output::line(&summary(&sorted));
            output::line("");
            sorted.truncate(output::height().saturating_sub(BESIDE));
        }
        table(&sorted);
        if !moves {
            return Ok(());
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Puts the capsules with the largest use of processors or memory first.
fn sort(rows: &mut [Latest], by: &str) {
    rows.sort_by(|a, b| {
        let larger = match by {
            "memory" => b.metrics.memory_used.cmp(&a.metrics.memory_used),
            _ => b.metrics.cpu_percent.total_cmp(&a.metrics.cpu_percent),
        };
        larger.then_with(|| a.id.cmp(&b.id))
    });
}

/// Returns the first line of `wrenn top`.
fn summary(rows: &[Latest]) -> String {
    let memory: u64 = rows.iter().map(|capsule| capsule.metrics.memory_used).sum();
    format!("{} running, memory {}", rows.len(), output::bytes(memory))
}

/// Heads of the columns of one point. Network columns count bytes in the step.
const HEAD: [&str; 7] = ["TIME", "CPU", "MEMORY", "DISK", "RECEIVED", "SENT", "NOTE"];

/// Returns the columns of one point.
fn row(point: &api::MetricsPoint) -> [String; 7] {
    let time = point.at.time();
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), output::bytes);
    let memory =
        format!("{} of {}", output::bytes(point.memory_used), output::bytes(point.memory_total));
    [
        format!("{:02}:{:02}:{:02}", time.hour(), time.minute(), time.second()),
        format!("{:.1} %", point.cpu_percent),
        memory,
        size(point.guest_disk_used),
        size(point.network_received),
        size(point.network_sent),
        note(point),
    ]
}

/// Returns the events of a step, in a few words.
fn note(point: &api::MetricsPoint) -> String {
    let kills = |count: u32, whose: &str| (count > 0).then(|| format!("{count} {whose}"));
    let notes = [
        point.gap.then(|| "started".to_owned()),
        kills(point.oom_kills, "OOM kills of the VMM"),
        kills(point.guest_oom_kills, "OOM kills in the guest"),
        (point.source != "host").then(|| "reported by the guest".to_owned()),
    ];
    notes.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Joins columns for lines that come one by one.
fn columns(cells: [String; 7]) -> String {
    let widths = [10, 9, 28, 12, 12, 12, 0];
    let cells = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
    cells.collect::<String>().trim_end().to_owned()
}

/// Prints charts of a series, and its last points as a table.
fn show(series: &api::MetricsSeries) {
    let items = &series.items;
    if items.is_empty() {
        return output::note("the capsule has no metrics in this time");
    }
    let max = |of: fn(&api::MetricsPoint) -> f64| items.iter().map(of).fold(0.0, f64::max);
    let chart = |of: fn(&api::MetricsPoint) -> f64| sparkline(items, series.step_sec, of);
    let cpu: fn(&api::MetricsPoint) -> f64 = |point| point.cpu_max_percent / 100.0;
    let memory: fn(&api::MetricsPoint) -> f64 =
        |point| share(point.memory_used, point.memory_total);
    output::line(&format!("cpu     {}  max {:.0} %", chart(cpu), max(cpu) * 100.0));
    output::line(&format!("memory  {}  max {:.0} %", chart(memory), max(memory) * 100.0));
    output::line("");
    let last = items.iter().skip(items.len().saturating_sub(ROWS));
    output::table(&HEAD, last.map(|point| row(point).into()).collect());
}

/// Returns a part as a share of the whole, from 0 to 1.
fn share(part: u64, whole: u64) -> f64 {
    let mib = |bytes: u64| f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX));
    mib(part) / mib(whole).max(1.0)
}

/// Returns a chart of shares, with a space for each step without metrics.
fn sparkline(
    items: &[api::MetricsPoint],
    step_sec: u32,
    of: impl Fn(&api::MetricsPoint) -> f64,
) -> String {
    let mut chart = String::new();
    let mut last: Option<OffsetDateTime> = None;
    for point in items {
        let steps =
            last.map_or(1, |last| (point.at - last).whole_seconds() / i64::from(step_sec.max(1)));
        let missing = usize::try_from(steps - 1).unwrap_or(0);
        chart.extend(std::iter::repeat_n(' ', missing.min(200)));
        chart.push(bar(of(point)));
        last = Some(point.at);
    }
    chart
}

/// Returns the bar of a share.
fn bar(share: f64) -> char {
    let reached = (1_u32..8).filter(|n| share * 8.0 >= f64::from(*n)).count();
    BARS[reached.min(BARS.len() - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(seconds: i64, cpu: f64, memory: u64) -> api::MetricsPoint {
        api::MetricsPoint {
            at: OffsetDateTime::from_unix_timestamp(seconds).unwrap(),
            cpu_percent: cpu,
            cpu_max_percent: cpu,
            memory_used: memory,
            memory_total: 1 << 20,
            disk_total: 1 << 30,
            guest_memory_used: None,
            guest_memory_cache: None,
            guest_disk_used: None,
            network_received: Some(2048),
            network_sent: None,
            oom_kills: 0,
            guest_oom_kills: 2,
            source: "guest".to_owned(),
            gap: true,
        }
    }

    #[test]
    fn chart_has_a_bar_for_each_step_and_spaces_for_gaps() {
        let items = [point(0, 0.0, 1), point(5, 50.0, 1), point(20, 100.0, 1)];
        let chart = sparkline(&items, 5, |point| point.cpu_percent / 100.0);
        assert_eq!(chart, "▁▅  █");
        assert_eq!((bar(f64::NAN), bar(-1.0), bar(9.0)), ('▁', '▁', '█'));
    }

    #[test]
    fn row_shows_gaps_kills_and_the_source() {
        let row = row(&point(3661, 12.34, 1024));
        assert_eq!((row[0].as_str(), row[1].as_str()), ("01:01:01", "12.3 %"));
        assert_eq!(row[3], "-");
        assert_eq!(row[6], "started, 2 OOM kills in the guest, reported by the guest");
        assert!(columns(row).starts_with("01:01:01  12.3 %"));
    }

    #[test]
    fn largest_capsules_come_first() {
        let capsule = |id: &str, memory| Latest {
            id: id.to_owned(),
            name: None,
            metrics: point(0, 1.0, memory),
        };
        let mut rows = vec![capsule("b", 9), capsule("a", 5)];
        sort(&mut rows, "cpu");
        assert_eq!(rows[0].id, "a");
        sort(&mut rows, "memory");
        assert_eq!(rows[0].id, "b");
    }
}
