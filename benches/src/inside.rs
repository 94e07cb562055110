//! A thread in a network namespace, with an HTTP client. The client dials from inside, so it
//! reaches a capsule's guest without any part of the platform.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;
use tokio::runtime::Runtime;

type Job = Box<dyn FnOnce(&Runtime, &reqwest::Client) + Send>;

/// A thread that works in a network namespace.
pub(crate) struct Inside {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Inside {
    pub(crate) fn enter(namespace: &Path) -> Self {
        let namespace = File::open(namespace).unwrap();
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = std::thread::spawn(move || {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let client = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build().unwrap();
            for job in queue {
                job(&runtime, &client);
            }
        });
        Self { jobs: Some(jobs), thread: Some(thread) }
    }

    /// Runs `job` on the thread and returns its result.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Runtime, &reqwest::Client) -> T + Send + 'static,
    ) -> T {
        let (answer, wait) = mpsc::channel();
        let job: Job = Box::new(move |runtime, client| answer.send(job(runtime, client)).unwrap());
        self.jobs.as_ref().unwrap().send(job).unwrap();
        wait.recv().unwrap()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
