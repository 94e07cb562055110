//! `wrenn capsule ps`: the processes of a capsule. The list resumes no capsule and does not count
//! as activity.

use super::capsule::path;
use crate::cli;
use crate::client::Client;
use crate::output::{self, Form};
use std::time::Duration;

/// Deepest level that is shown by an indent of its own.
const DEPTH_MAX: u32 = 32;

pub(super) async fn ps(ps: &cli::Ps, client: &Client, form: Form) -> anyhow::Result<()> {
    if ps.all {
        return all(ps, client, form).await;
    }
    let path = path(&ps.capsule, "/processes?passive=true")?;
    let list: api::ProcessList = client.get(&path).await?;
    if form == Form::Json {
        return output::json(&list.processes);
    }
    let row = |p: api::Process| {
        vec![
            p.pid.to_string(),
            p.tag.unwrap_or_default(),
            format!("{} {}", p.cmd, p.args.join(" ")),
        ]
    };
    output::table(&["PID", "TAG", "COMMAND"], list.processes.into_iter().map(row).collect());
    Ok(())
}

async fn all(ps: &cli::Ps, client: &Client, form: Form) -> anyhow::Result<()> {
    let path = path(&ps.capsule, "/processes?all=true&passive=true")?;
    let list: api::GuestProcessList = client.get(&path).await?;
    if form == Form::Json {
        return output::json(&list);
    }
    let mut processes = list.processes;
    if !ps.tree {
        processes.sort_by_key(|process| process.pid);
    }
    let row = |p: api::GuestProcess| {
        let indent = if ps.tree { indent(p.depth) } else { String::new() };
        vec![
            p.pid.to_string(),
            p.ppid.to_string(),
            p.user,
            p.state,
            output::human(Duration::from_millis(p.cpu_ms)),
            output::bytes(p.memory_bytes),
            output::ago(p.started_at),
            format!("{indent}{}", p.command),
        ]
    };
    let header = ["PID", "PPID", "USER", "STATE", "CPU", "MEMORY", "STARTED", "COMMAND"];
    output::table(&header, processes.into_iter().map(row).collect());
    if list.truncated {
        output::note("the guest has more processes than are listed");
    }
    Ok(())
}

/// Returns the indent of a process with a number of ancestors.
fn indent(depth: u32) -> String {
    (0..depth.min(DEPTH_MAX)).map(|_| "  ").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indent_of_deep_processes_is_bounded() {
        assert_eq!((indent(0).as_str(), indent(2).as_str()), ("", "    "));
        assert_eq!(indent(u32::MAX).len(), 64);
    }
}
