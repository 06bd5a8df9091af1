//! Samples the memory, descriptors and threads of a process.

use std::fs;

use crate::{counters, result::Result, stats::percentile};

/// A process whose use of the machine is sampled.
pub(crate) struct Watched {
    pub(crate) name: &'static str,
    pid: String,
    memory_mib: Vec<f64>,
    descriptors: Vec<f64>,
    /// Threads of a service; tasks of this process, which has its runtime at hand.
    threads_or_tasks: Vec<f64>,
    cpu_before: f64,
}

/// The medians of the second and of the last third of the samples. The first third is for warming up.
pub(crate) struct Course {
    pub(crate) middle: f64,
    pub(crate) last: f64,
}

impl Watched {
    pub(crate) fn new(name: &'static str, pid: impl Into<String>) -> Result<Self> {
        let pid = pid.into();
        let cpu_before = counters::cpu(&pid).ok_or_else(|| format!("{name} has ended"))?;
        Ok(Self {
            name,
            pid,
            memory_mib: Vec::with_capacity(10_000),
            descriptors: Vec::with_capacity(10_000),
            threads_or_tasks: Vec::with_capacity(10_000),
            cpu_before,
        })
    }

    pub(crate) fn is_this_process(&self) -> bool {
        self.pid == "self"
    }

    pub(crate) fn sample(&mut self) -> Result<()> {
        let ended = || format!("{} has ended", self.name);
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).map_err(|_| ended())?;
        let value = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key))?;
            line.split_whitespace().nth(1)?.parse::<f64>().ok()
        };
        let threads = value("Threads:").ok_or_else(ended)?;
        self.memory_mib.push(value("VmRSS:").ok_or_else(ended)? / 1024.0);
        self.descriptors.push(fs::read_dir(format!("/proc/{}/fd", self.pid))?.count() as f64);
        self.threads_or_tasks.push(if self.is_this_process() {
            tokio::runtime::Handle::current().metrics().num_alive_tasks() as f64
        } else {
            threads
        });
        Ok(())
    }

    pub(crate) fn memory(&self) -> Course {
        course(&self.memory_mib)
    }

    pub(crate) fn descriptors(&self) -> Course {
        course(&self.descriptors)
    }

    pub(crate) fn threads_or_tasks(&self) -> Course {
        course(&self.threads_or_tasks)
    }

    /// The processor time since the beginning, in seconds.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let now = counters::cpu(&self.pid).ok_or_else(|| format!("{} has ended", self.name))?;
        Ok(now - self.cpu_before)
    }
}

fn course(samples: &[f64]) -> Course {
    let third = samples.len() / 3;
    let middle = percentile(&samples[third..2 * third], 50.0);
    let last = percentile(&samples[2 * third..], 50.0);
    Course { middle, last }
}
