//! A thread that reads or writes files beside the computation.

use crate::error::{Context, Error, Result};
use std::sync::mpsc::{Receiver, Sender, channel};

/// A thread that does jobs in the order in which they are sent. It ends with the value.
pub(crate) struct Worker<J, D> {
    task: &'static str,
    jobs: Sender<J>,
    done: Receiver<D>,
}

impl<J: Send + 'static, D: Send + 'static> Worker<J, D> {
    /// Starts a thread called `name`. `task` completes the sentence "the thread that …".
    pub fn start(name: &str, task: &'static str, mut work: impl FnMut(J) -> D + Send + 'static) -> Result<Self> {
        let (jobs, to_do) = channel::<J>();
        let (tell, done) = channel();
        let run = move || {
            for job in to_do {
                // Nobody waits for the result if the run has ended.
                if tell.send(work(job)).is_err() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn(run).context(|| format!("a thread that {task} cannot be started"))?;
        Ok(Self { task, jobs, done })
    }

    pub fn send(&self, job: J) -> Result<()> {
        self.jobs.send(job).map_err(|_| self.ended())
    }

    /// Outcome of the oldest job whose outcome was not received yet.
    pub fn receive(&self) -> Result<D> {
        self.done.recv().map_err(|_| self.ended())
    }

    fn ended(&self) -> Error {
        Error::Failed(format!("the thread that {} has ended", self.task))
    }
}
