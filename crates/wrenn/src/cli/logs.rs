//! Grammar of `wrenn capsule logs`.

use clap::Args;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

#[derive(Args, Debug)]
pub(crate) struct Logs {
    /// Id or name of the capsule, or the id of one that ended.
    pub capsule: String,
    /// Follow the log: print new entries until the capsule has ended.
    #[arg(long, short)]
    pub follow: bool,
    /// Earliest time of an entry: an age such as `10m`, or a date such as 2026-11-26T12:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<OffsetDateTime>,
    /// End of the time range: an age such as `10m`, or a date. Entries at this time are left out.
    #[arg(long, value_name = "TIME", value_parser = moment, conflicts_with = "follow")]
    pub until: Option<OffsetDateTime>,
    /// Sources of the entries, separated by commas: `console`, `lifecycle` and `process`. Default:
    /// all.
    #[arg(long, value_name = "SOURCES", value_delimiter = ',',
        value_parser = ["console", "lifecycle", "process"])]
    pub source: Vec<String>,
    /// Text that each entry contains. Upper and lower case differ.
    #[arg(long, value_name = "TEXT")]
    pub search: Option<String>,
    /// Number of the newest entries, at most 100,000. Default: 1000, or all with --since.
    #[arg(long, short = 'n', value_name = "N",
        value_parser = clap::value_parser!(u32).range(..=100_000))]
    pub lines: Option<u32>,
}

/// Parses an age or a date.
fn moment(text: &str) -> Result<OffsetDateTime, String> {
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(at);
    }
    let before = humantime::parse_duration(text).ok();
    let before = before.and_then(|before| time::Duration::try_from(before).ok());
    let at = before.and_then(|before| OffsetDateTime::now_utc().checked_sub(before));
    at.ok_or_else(|| "must be a time such as `10m` or 2026-11-26T12:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moment_is_a_date_or_a_time_before_now() {
        let date = moment("2026-01-01T00:00:00Z").unwrap();
        assert_eq!(date.unix_timestamp(), 1_767_225_600);
        let (early, now) = (moment("2h").unwrap(), OffsetDateTime::now_utc());
        assert!(early < now && now - early < time::Duration::hours(3));
        for wrong in ["", "yesterday", "10", "99999999999y"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }
}
