//! A kernel whose driver is a task of its own. The kernel has its process, the way to the driver,
//! and facts by which a later interpreter finds the process. Jupyter's kernels and kernels over
//! named pipes share this type.

use super::{Kernel, Question, Run, Saved};
use crate::process::Process;
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Order of a context to the driver of its kernel.
pub(super) enum Order {
    Run(Run),
    Interrupt(u32),
    /// The kernel stands still, or goes on.
    Hold(bool),
    Ask(Question, oneshot::Sender<Value>),
}

/// Facts of one kind of kernel. They suffice to find the kernel again.
pub(super) trait Facts: Serialize + Send + 'static {
    /// Stops a process or lets it go on, before its driver hears of that. A driver that reads
    /// nothing meanwhile may suffice.
    fn hold(&self, process: &Process, held: bool);

    /// Removes the files of a kernel that ends.
    fn remove(&self);
}

/// A kernel with a driver.
pub(super) struct Driven<F: Facts> {
    process: Arc<Process>,
    facts: F,
    orders: mpsc::UnboundedSender<Order>,
    /// Number of the newest run.
    run: u64,
    /// Set if a drop leaves the kernel and its files.
    released: bool,
}

impl<F: Facts> Driven<F> {
    /// Makes the context's side of a kernel. `run` is the number of its newest run.
    pub(super) fn new(
        process: Arc<Process>,
        facts: F,
        orders: mpsc::UnboundedSender<Order>,
        run: u64,
    ) -> Self {
        Self { process, facts, orders, run, released: false }
    }

    fn order(&self, order: Order) {
        // A driver that has ended has told of the kernel's death.
        let _ = self.orders.send(order);
    }
}

impl<F: Facts> Kernel for Driven<F> {
    fn run(&mut self, run: Run) {
        self.run = run.number;
        self.order(Order::Run(run));
    }

    fn interrupt(&mut self, round: u32) {
        self.order(Order::Interrupt(round));
    }

    fn hold(&mut self, held: bool) {
        self.facts.hold(&self.process, held);
        self.order(Order::Hold(held));
    }

    fn ask(&mut self, question: Question, answer: oneshot::Sender<Value>) {
        self.order(Order::Ask(question, answer));
    }

    fn memory(&self) -> Option<u64> {
        self.process.memory()
    }

    fn saved(&self) -> Option<Saved> {
        let (pid, started, group) = self.process.saved();
        let driver = serde_json::to_value(&self.facts).ok()?;
        Some(Saved { pid, started, group, run: self.run, driver })
    }

    fn release(mut self: Box<Self>) {
        self.released = true;
        self.process.keep();
    }
}

impl<F: Facts> Drop for Driven<F> {
    fn drop(&mut self) {
        if !self.released {
            self.facts.remove();
        }
    }
}
