//! The demand for ready capsules, and the next step to meet it. Pure.
//!
//! The demand for one kind is an estimate of the creates that come while two machines are made. The
//! estimate takes the rate or the largest burst of late, whichever gives more. Both fade
//! exponentially.

use std::time::{Duration, Instant};

/// Most ready capsules of one kind.
const MOST: u32 = 8;
/// Time after the last create within which a kind stays ready.
const WANTED: Duration = Duration::from_secs(600);
/// Time after the last create within which a version with a successor stays ready.
const WANTED_BESIDE: Duration = Duration::from_secs(10);
/// Time after the last create within which a kind gives its place to no other one.
const BUSY: Duration = Duration::from_secs(60);
/// Time in seconds by which the rate of creates fades to 1/e.
const RATE_FADES: f64 = 30.0;
/// Time in seconds by which a burst fades to 1/e.
const BURST_FADES: f64 = 300.0;
/// Assumed time to make the first machine of a kind, in seconds.
const FIRST: f64 = 1.0;
/// Weight of the newest machine in the average time.
const NEWEST: f64 = 0.3;
/// Least and greatest time in which creates count as one burst, in seconds.
const WINDOW: (f64, f64) = (1.0, 20.0);

/// Demand for one kind of ready capsules.
#[derive(Debug, Clone)]
pub(super) struct Demand {
    /// Creates in a second.
    rate: f64,
    /// Creates in the largest burst.
    burst: f64,
    /// Beginning of the burst under way, and its creates.
    window: (Instant, u32),
    /// Time of the last create.
    last: Instant,
    /// Set if a create has since asked for another version of the template.
    has_successor: bool,
    /// Average time to make a machine, in seconds.
    takes: f64,
}

impl Demand {
    /// Returns the demand before the first create, which comes now.
    pub(super) fn new(now: Instant) -> Self {
        let (rate, burst, window) = (0.0, 0.0, (now, 0));
        Self { rate, burst, window, last: now, has_successor: false, takes: FIRST }
    }

    /// Counts a create.
    pub(super) fn note_create(&mut self, now: Instant) {
        self.fade(now);
        self.has_successor = false;
        self.rate += 1.0 / RATE_FADES;
        let (began, creates) = self.window;
        let is_over = since(began, now).as_secs_f64() > self.window_secs();
        self.window = if is_over { (now, 1) } else { (began, creates.saturating_add(1)) };
        self.burst = self.burst.max(f64::from(self.window.1));
    }

    /// Notes a create of another version of the template. A version that was replaced is soon
    /// forgotten, and one that is still asked for stays.
    pub(super) fn note_successor(&mut self) {
        self.has_successor = true;
    }

    /// Counts the time that a machine took to make.
    pub(super) fn note_made(&mut self, took: Duration) {
        self.takes += NEWEST * (took.as_secs_f64() - self.takes);
    }

    /// Returns the number of capsules that are to be ready.
    pub(super) fn wanted(&self, now: Instant) -> u32 {
        if self.unused(now) > if self.has_successor { WANTED_BESIDE } else { WANTED } {
            return 0;
        }
        let mut then = self.clone();
        then.fade(now);
        let creates = then.burst.max(then.rate * then.window_secs());
        1 + (1..MOST).take_while(|&fewer| creates > f64::from(fewer)).last().unwrap_or(0)
    }

    /// Returns the time since the last create.
    pub(super) fn unused(&self, now: Instant) -> Duration {
        since(self.last, now)
    }

    fn fade(&mut self, now: Instant) {
        let age = self.unused(now).as_secs_f64();
        self.rate *= (-age / RATE_FADES).exp();
        self.burst *= (-age / BURST_FADES).exp();
        self.last = self.last.max(now);
    }

    /// Returns the seconds in which two machines are made.
    fn window_secs(&self) -> f64 {
        (2.0 * self.takes).clamp(WINDOW.0, WINDOW.1)
    }
}

fn since(then: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(then)
}

/// Stock of one kind, as the choice of the next step sees it.
#[derive(Debug, Clone)]
pub(super) struct Stock {
    pub wanted: u32,
    pub ready: u32,
    /// Memory of one capsule.
    pub memory_mib: u64,
    /// Time since the last create.
    pub unused: Duration,
    /// True unless the last attempt to make one failed a short time ago.
    pub may_make: bool,
}

/// Step towards the stock that is wanted, with the number of the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Make(usize),
    End(usize),
}

/// Decides on the next step, within `most_mib` MiB of memory for all kinds.
pub(super) fn next_step(stocks: &[Stock], most_mib: u64) -> Option<Step> {
    if let Some(surplus) = stocks.iter().position(|stock| stock.ready > stock.wanted) {
        return Some(Step::End(surplus));
    }
    let held = |stock: &Stock| stock.memory_mib.saturating_mul(stock.ready.into());
    let used = stocks.iter().map(held).fold(0, u64::saturating_add);
    let fits = |stock: &Stock, used: u64| used.saturating_add(stock.memory_mib) <= most_mib;
    let mut short: Vec<usize> = (0..stocks.len())
        .filter(|&at| stocks[at].may_make && stocks[at].ready < stocks[at].wanted)
        .collect();
    short.sort_by_key(|&at| (stocks[at].ready, stocks[at].unused));
    let first = &stocks[*short.first()?];
    // A kind without any takes the place of kinds that nobody has used for longer.
    let is_older = |stock: &Stock| stock.ready > 0 && stock.unused > BUSY.max(first.unused);
    let older = stocks.iter().filter(|&stock| is_older(stock)).map(held);
    let without = used.saturating_sub(older.fold(0, u64::saturating_add));
    if first.ready == 0 && !fits(first, used) && fits(first, without) {
        let older = (0..stocks.len()).filter(|&at| is_older(&stocks[at]));
        return older.max_by_key(|&at| stocks[at].unused).map(Step::End);
    }
    short.into_iter().find(|&at| fits(&stocks[at], used)).map(Step::Make)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn one_stays_ready_for_ten_minutes_after_a_create() {
        let began = Instant::now();
        let mut demand = Demand::new(began);
        demand.note_create(began);
        for age in [0, 1, 60, 600] {
            assert_eq!(demand.wanted(began + SECOND * age), 1, "{age}");
        }
        assert_eq!(demand.wanted(began + SECOND * 601), 0);
        demand.note_create(began + SECOND * 700);
        assert_eq!(demand.wanted(began + SECOND * 700), 1);
    }

    #[test]
    fn burst_and_rate_raise_the_number_until_they_fade() {
        let began = Instant::now();
        let mut demand = Demand::new(began);
        (0..4).for_each(|_| demand.note_create(began));
        assert_eq!(demand.wanted(began), 4);
        assert_eq!(demand.wanted(began + SECOND * 150), 3);
        assert_eq!(demand.wanted(began + SECOND * 590), 1);
        // Three creates a second, while a machine takes two.
        let mut demand = Demand::new(began);
        (0..20).for_each(|_| demand.note_made(SECOND * 2));
        for step in 0..600 {
            demand.note_create(began + SECOND * step / 3);
        }
        assert_eq!(demand.wanted(began + SECOND * 200), MOST);
    }

    #[test]
    fn version_with_a_successor_is_forgotten_soon_unless_it_is_asked_for() {
        let now = Instant::now();
        let mut demand = Demand::new(now);
        demand.note_create(now);
        demand.note_successor();
        assert_eq!(demand.wanted(now + WANTED_BESIDE), 1);
        assert_eq!(demand.wanted(now + WANTED_BESIDE * 2), 0);
        demand.note_create(now + WANTED_BESIDE);
        assert_eq!(demand.wanted(now + WANTED), 1);
    }

    proptest! {
        #[test]
        fn number_stays_within_its_bounds(
            creates in prop::collection::vec((0_u64..400_000, 0_u64..60_000), 1..200),
            after in 0_u64..1_000_000,
        ) {
            let mut now = Instant::now();
            let mut demand = Demand::new(now);
            for (pause, took) in creates {
                now += Duration::from_millis(pause);
                demand.note_create(now);
                demand.note_made(Duration::from_millis(took));
                prop_assert!((1..=MOST).contains(&demand.wanted(now)));
            }
            let later = now + Duration::from_millis(after);
            let wanted = demand.wanted(later);
            prop_assert!(wanted <= demand.wanted(now), "it rises without a create");
            prop_assert_eq!(wanted == 0, Duration::from_millis(after) > WANTED);
        }

        #[test]
        fn steps_end_within_the_share_of_memory(
            kinds in prop::collection::vec((0..=MOST, 1_u64..600, 0_u64..900, any::<bool>()), 0..6),
            most_mib in 0_u64..2000,
        ) {
            let stock = |(wanted, memory_mib, unused, may_make): (u32, u64, u64, bool)| Stock {
                wanted,
                ready: 0,
                memory_mib,
                unused: Duration::from_secs(unused),
                may_make,
            };
            let mut stocks: Vec<Stock> = kinds.into_iter().map(stock).collect();
            let mut steps = 0;
            while let Some(step) = next_step(&stocks, most_mib) {
                match step {
                    Step::Make(at) => {
                        prop_assert!(stocks[at].may_make);
                        stocks[at].ready += 1;
                    }
                    Step::End(at) => stocks[at].ready -= 1,
                }
                let used: u64 = stocks.iter().map(|s| s.memory_mib * u64::from(s.ready)).sum();
                prop_assert!(used <= most_mib);
                prop_assert!(stocks.iter().all(|stock| stock.ready <= stock.wanted));
                steps += 1;
                prop_assert!(steps < 2000, "the steps go round in circles");
            }
        }
    }

    #[test]
    fn kind_in_use_takes_the_place_of_an_idle_one() {
        let stock = |ready: u32, unused: u64| Stock {
            wanted: 1,
            ready,
            memory_mib: 100,
            unused: Duration::from_secs(unused),
            may_make: true,
        };
        assert_eq!(next_step(&[stock(1, 300), stock(0, 1)], 100), Some(Step::End(0)));
        // Kinds that alternate do not push each other out.
        assert_eq!(next_step(&[stock(1, 30), stock(0, 1)], 100), None);
        assert_eq!(next_step(&[stock(1, 300), stock(0, 1)], 200), Some(Step::Make(1)));
        assert_eq!(next_step(&[stock(0, 9), stock(0, 1)], 200), Some(Step::Make(1)));
        let gone = Stock { wanted: 0, ..stock(1, 700) };
        assert_eq!(next_step(&[stock(1, 1), gone], 1000), Some(Step::End(1)));
        // A kind that never fits ends nothing.
        let large = Stock { memory_mib: 101, ..stock(0, 1) };
        assert_eq!(next_step(&[stock(1, 300), large], 100), None);
    }
}
