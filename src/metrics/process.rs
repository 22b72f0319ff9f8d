//! The figures that every program's metrics have: processor time, memory, open files. Read when somebody asks.

use std::path::Path;

use procfs_core::process::{LimitValue, Limits, Stat};
use procfs_core::{FromRead, ProcResult};
use prometheus::{Counter, Gauge, Result};

use super::register::Register;

pub(super) struct Process {
    cpu_seconds: Counter,
    resident_bytes: Gauge,
    virtual_bytes: Gauge,
    open_files: Gauge,
    most_files: Gauge,
    started: Gauge,
    threads: Gauge,
}

/// What /proc says in clock ticks and pages is in these units (sysconf(3)).
struct Units {
    ticks_per_second: f64,
    page_bytes: f64,
}

impl Process {
    pub(super) fn new(to: &mut Register) -> Result<Self> {
        Ok(Self {
            cpu_seconds: to.standard_seconds(
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds.",
            )?,
            resident_bytes: to.standard("process_resident_memory_bytes", "Resident memory size in bytes.")?,
            virtual_bytes: to.standard("process_virtual_memory_bytes", "Virtual memory size in bytes.")?,
            open_files: to.standard("process_open_fds", "Number of open file descriptors.")?,
            most_files: to.standard("process_max_fds", "Maximum number of open file descriptors.")?,
            started: to.standard(
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
            )?,
            threads: to.standard("process_threads", "Number of OS threads in the process.")?,
        })
    }

    /// Reads them anew. What cannot be read stays as it was.
    pub(super) fn read(&self) {
        if let Err(error) = self.read_from(Path::new("/proc"), &Units::of_this_machine()) {
            tracing::debug!(%error, "the figures of the process cannot be read");
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn read_from(&self, proc: &Path, units: &Units) -> ProcResult<()> {
        let own = proc.join("self");
        let stat = Stat::from_file(own.join("stat"))?;
        self.cpu_seconds.reset();
        self.cpu_seconds
            .inc_by((stat.utime + stat.stime) as f64 / units.ticks_per_second);
        self.resident_bytes.set(stat.rss as f64 * units.page_bytes);
        self.virtual_bytes.set(stat.vsize as f64);
        self.threads.set(stat.num_threads as f64);
        // One of them is the directory's own.
        let open = std::fs::read_dir(own.join("fd"))?.count().saturating_sub(1);
        self.open_files.set(open as f64);
        self.most_files
            .set(match Limits::from_file(own.join("limits"))?.max_open_files.soft_limit {
                LimitValue::Unlimited => f64::INFINITY,
                LimitValue::Value(most) => most as f64,
            });
        let boot = std::fs::read_to_string(proc.join("stat"))?;
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime "));
        if let Some(boot) = boot.and_then(|seconds| seconds.trim().parse::<f64>().ok()) {
            self.started.set(boot + stat.starttime as f64 / units.ticks_per_second);
        }
        Ok(())
    }
}

impl Units {
    #[allow(clippy::cast_precision_loss)]
    fn of_this_machine() -> Self {
        use nix::unistd::{SysconfVar, sysconf};
        let ask = |what, default: f64| sysconf(what).ok().flatten().map_or(default, |value| value as f64);
        Self {
            ticks_per_second: ask(SysconfVar::CLK_TCK, 100.0),
            page_bytes: ask(SysconfVar::PAGE_SIZE, 4096.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_and_pages_become_seconds_and_bytes() {
        let proc = tempfile::tempdir().unwrap();
        let own = proc.path().join("self");
        std::fs::create_dir_all(own.join("fd")).unwrap();
        ["0", "1", "2", "3"]
            .iter()
            .for_each(|number| std::fs::write(own.join("fd").join(number), "").unwrap());
        let rest = "0 ".repeat(28);
        std::fs::write(
            own.join("stat"),
            format!("7 (local volume) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 3 0 1200 8192000 512 {rest}\n"),
        )
        .unwrap();
        std::fs::copy("/proc/self/limits", own.join("limits")).unwrap();
        std::fs::write(proc.path().join("stat"), "cpu 1 2 3\nbtime 1700000000\nprocesses 5\n").unwrap();
        let process = Process::new(&mut Register::default()).unwrap();
        let units = Units {
            ticks_per_second: 100.0,
            page_bytes: 4096.0,
        };
        for _ in 0..2 {
            process.read_from(proc.path(), &units).unwrap();
        }
        let close = |what: &str, is: f64, wanted: f64| assert!((is - wanted).abs() < 1e-6, "{what}: {is}");
        close("cpu", process.cpu_seconds.get(), 3.0);
        close("resident", process.resident_bytes.get(), 2_097_152.0);
        close("virtual", process.virtual_bytes.get(), 8_192_000.0);
        close("threads", process.threads.get(), 3.0);
        close("open", process.open_files.get(), 3.0);
        close("started", process.started.get(), 1_700_000_012.0);
        assert!(process.most_files.get() > 10.0);
    }
}
