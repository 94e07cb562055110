//! Compares random histories of the tracker with a plain model of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hop::{ConnTracker, Drain, Drained, Permit, Refused};
use proptest::prelude::*;
use std::task::{Context, Poll, Waker};

#[derive(Debug, Clone)]
enum Step {
    Acquire(u32),
    /// The visitor at this position leaves, counted from the oldest.
    Leave(usize),
    Shut,
    Reset,
    /// Polls the drain at this position, counted from the newest.
    Poll(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u32..5).prop_map(Step::Acquire),
        3 => (0usize..5).prop_map(Step::Leave),
        1 => Just(Step::Shut),
        1 => Just(Step::Reset),
        3 => (0usize..4).prop_map(Step::Poll),
    ];
    proptest::collection::vec(step, 0..120)
}

/// Plain model of the tracker.
#[derive(Default)]
struct Model {
    inside: Vec<Permit>,
    shut: bool,
    opened: u32,
    /// Drains, each with the number of openings at its beginning.
    drains: Vec<(Drain, u32)>,
}

impl Model {
    fn acquire(&mut self, gate: &ConnTracker, most: u32) {
        let wanted = match (self.shut, self.inside.len() >= most as usize) {
            (true, _) => Err(Refused::Draining),
            (false, true) => Err(Refused::Full),
            (false, false) => Ok(()),
        };
        let got = gate.acquire(most);
        assert_eq!(got.as_ref().map(|_| ()).map_err(|refused| *refused), wanted);
        self.inside.extend(got);
    }

    fn poll(&self, gate: &ConnTracker, which: usize) {
        let Some((drain, began)) = self.drains.iter().rev().nth(which) else { return };
        let wanted = match (*began == self.opened && self.shut, self.inside.is_empty()) {
            (false, _) => Poll::Ready(Drained::Reset),
            (true, true) => Poll::Ready(Drained::Empty),
            (true, false) => Poll::Pending,
        };
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(gate.poll_drained(*drain, &mut cx), wanted);
    }
}

proptest! {
    #[test]
    fn conn_tracker_matches_its_model(steps in steps()) {
        let (gate, mut model) = (ConnTracker::default(), Model::default());
        for step in steps {
            match step {
                Step::Acquire(most) => model.acquire(&gate, most),
                Step::Leave(which) if which < model.inside.len() => drop(model.inside.remove(which)),
                Step::Leave(_) => {}
                Step::Shut => {
                    model.drains.push((gate.shut(), model.opened));
                    model.shut = true;
                }
                Step::Reset => {
                    gate.reset();
                    (model.shut, model.opened) = (false, model.opened + 1);
                }
                Step::Poll(which) => model.poll(&gate, which),
            }
            prop_assert_eq!(gate.count(), model.inside.len() as u64);
        }
        drop(model);
        prop_assert_eq!(gate.count(), 0);
    }
}
