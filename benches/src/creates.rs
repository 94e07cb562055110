//! Creates from a template up to the first command's answer, with pools and without them. The
//! creates run one at a time and four at once. The floor is the bare VMM's restore up to `/health`,
//! as many at once.

use crate::attempt::{self, Attempt};
use crate::bare::{Bare, Namespace};
use crate::guests;
use crate::pools::{Metrics, Pools, gone};
use crate::stats::{Row, say};
use futures::future::join_all;
use serde_json::json;
use std::time::Duration;
use tests::{Client, Platform};

/// Creates of each row.
const CREATES: usize = 48;
/// Rounds that warm caches, and from which the host learns the demand.
const WARM: usize = 3;
const AT_ONCE: [usize; 2] = [1, 4];

/// Runs the benchmark, with a platform for each setting of the pools.
pub(crate) async fn measure() -> Vec<Row> {
    let mut rows = Vec::new();
    for pools in [Pools::Ready, Pools::Networks, Pools::Off] {
        rows.extend(say(Box::pin(with(pools)).await));
    }
    rows
}

async fn with(pools: Pools) -> Vec<Row> {
    let platform = guests::platform(&pools.vars()).await;
    let client = platform.client();
    // The first capsule of its size may be booted. The next one is restored.
    let first = client.create(&json!({})).await;
    client.delete(&format!("/v1/capsules/{first}")).await.expect(204);
    let like = client.create(&json!({})).await;
    let floor = Bare::like(&platform, &like);
    client.delete(&format!("/v1/capsules/{like}")).await.expect(204);
    let metrics = Metrics::of(&platform);
    let side = Side { platform: &platform, client, metrics, floor, pools };
    let mut rows = Vec::new();
    for at_once in AT_ONCE {
        rows.extend(side.rows(at_once).await);
    }
    drop(side);
    platform.finish();
    rows
}

/// A platform and its floor.
struct Side<'a> {
    platform: &'a Platform,
    client: Client,
    metrics: Metrics,
    floor: Bare,
    pools: Pools,
}

impl Side<'_> {
    /// Measures rounds of creates at once, in turns with as many bare machines.
    async fn rows(&self, at_once: usize) -> Vec<Row> {
        let places: Vec<Namespace> =
            (0..at_once).map(|number| Namespace::new(&format!("create-{number}"))).collect();
        let (mut attempts, mut bare, mut unfilled) = (Vec::new(), Vec::new(), 0);
        let mut taken = 0.0;
        for round in 0..WARM + CREATES / at_once {
            // The pool fills before either side, so that its work slows neither.
            let filled = self.pools.filled(&self.metrics, at_once).await;
            let floor = self.floor.restore_all(&places);
            let before = self.pools.taken(&self.metrics).await;
            let made = self.create(at_once).await;
            if round < WARM {
                continue;
            }
            unfilled += usize::from(!filled);
            taken += self.pools.taken(&self.metrics).await - before;
            bare.extend(floor);
            attempts.extend(made);
        }
        if unfilled > 0 {
            println!("note: {unfilled} rounds began with less than {at_once} in the pool");
        }
        let row = self.row(at_once, attempts, &bare);
        let pool = self.pool(at_once, taken);
        std::iter::once(row).chain(pool).collect()
    }

    /// Creates capsules at once, removes them, and waits until the host has nothing of them.
    async fn create(&self, at_once: usize) -> Vec<Attempt> {
        let body = json!({});
        let creates = (0..at_once).map(|_| attempt::create(&self.client, &body, "true", ""));
        let made = join_all(creates).await;
        let ids = attempt::remove(&self.client, &made).await;
        gone(self.platform, &ids).await;
        made
    }

    fn row(&self, at_once: usize, attempts: Vec<Attempt>, bare: &[Duration]) -> Row {
        let goal = match self.pools {
            Pools::Ready => "≤ 0.6",
            Pools::Networks => "≤ 1.2",
            Pools::Off => "",
        };
        let name = self.pools.name();
        let what =
            format!("create to first command, {name}, {at_once} at once ÷ bare restore to /health");
        let (ours, failed) = attempt::sort(attempts);
        Row::ratio(&what, &ours, bare, goal).failures(failed)
    }

    /// Returns the row of the creates that the pool served.
    fn pool(&self, at_once: usize, taken: f64) -> Option<Row> {
        let what = match self.pools {
            Pools::Ready => "creates that took a ready capsule",
            Pools::Networks => "creates that took a ready network",
            Pools::Off => return None,
        };
        let value = format!("{taken:.0} of {CREATES}");
        Some(Row::value(&format!("{what}, {at_once} at once"), &value, "all"))
    }
}
