//! A burst: a hundred creates at once, of three teams, with sizes and environments mixed. Each
//! capsule must have its own environment.

use crate::attempt::{self, Attempt};
use crate::guests;
use crate::pools::{Pools, gone};
use crate::stats::{Row, say};
use futures::future::join_all;
use serde_json::{Value, json};
use std::time::Instant;
use tests::{Client, Platform};

const CREATES: usize = 100;
const TEAMS: usize = 3;

/// Returns the sizes of the capsules.
fn sizes() -> [Value; 3] {
    [
        json!({ "memory_mib": 256 }),
        json!({ "memory_mib": 512 }),
        json!({ "memory_mib": 256, "vcpus": 2 }),
    ]
}

/// Runs the burst with both pools at the product's defaults.
pub(crate) async fn measure() -> Vec<Row> {
    let mut vars = Pools::Ready.vars().to_vec();
    // The default limit of virtual CPUs would refuse the last capsules on two cores.
    vars.push(("WRENN_VCPUS", "1000"));
    let platform = guests::platform(&vars).await;
    let teams = teams(&platform).await;
    // The first capsule of each size is booted, and leaves the machine that the others start from.
    for client in &teams {
        for size in sizes() {
            let id = client.create(&size).await;
            client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
        }
    }
    let began = Instant::now();
    let attempts = join_all((0..CREATES).map(|number| one(&teams, number))).await;
    let all = began.elapsed();
    for (number, client) in teams.iter().enumerate() {
        let of_team = attempts.iter().skip(number).step_by(TEAMS);
        let ids: Vec<String> = of_team.filter_map(|attempt| attempt.id.clone()).collect();
        for id in &ids {
            client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
        }
        gone(&platform, &ids).await;
    }
    let (times, failed) = attempt::sort(attempts);
    let done = format!("{} of {CREATES}", times.len());
    let what = "burst of 100 creates, three teams, sizes and environments mixed, to first command";
    let rows = vec![
        Row::alone(what, &times, "").failures(failed),
        Row::value("creates of the burst that succeeded", &done, "100 of 100"),
        Row::alone("the burst's last answer", &[all], ""),
    ];
    platform.finish();
    say(rows)
}

/// Makes users, each with a team, and lifts the limits of all teams.
async fn teams(platform: &Platform) -> Vec<Client> {
    guests::lift_limits(platform).await;
    let mut teams = Vec::new();
    for number in 0..TEAMS {
        teams.push(platform.user(&format!("burst-{number}@example.com")).await);
    }
    teams
}

/// Creates the capsule with a number. Its environment has the number.
async fn one(teams: &[Client], number: usize) -> Attempt {
    let client = &teams[number % TEAMS];
    // Neighbouring creates of a team differ in size.
    let mut body = sizes()[number / TEAMS % 3].clone();
    body["envs"] = json!({ "NUMBER": number.to_string(), "TEAM": (number % TEAMS).to_string() });
    let wanted = format!("{number} {}\n", number % TEAMS);
    attempt::create(client, &body, "echo $NUMBER $TEAM", &wanted).await
}
