//! CPU time and memory of processes, as the kernel reports them.

use std::fs;
use std::time::Duration;

use anyhow::Context;

/// The kernel's unit of times in /proc (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

/// CPU time of a process until now, in user space and in the kernel: fields 14 and 15 of /proc/PID/stat (proc_pid_stat(5)).
///
/// # Errors
/// The process does not exist, or the format of the file is unknown.
pub fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} has ended"))?;
    // The command name, in parentheses, may contain spaces and parentheses.
    let (_, fields) = text
        .rsplit_once(')')
        .with_context(|| format!("/proc/{pid}/stat has no command name"))?;
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks = times.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(time(ticks))
}

/// Time of all CPUs in interrupts until now, for all processes: fields 6 and 7 of the first line of /proc/stat (proc_stat(5)).
///
/// # Errors
/// /proc/stat cannot be read, or its format is unknown.
pub fn interrupts() -> anyhow::Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    let all = text.lines().next().context("/proc/stat is empty")?;
    let times = all.split_whitespace().skip(6).take(2);
    let ticks = times.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(time(ticks))
}

/// Memory of a process in KiB: the proportional set size (PSS), which includes a share of shared pages.
///
/// # Errors
/// The process does not exist or belongs to another user, or the kernel reports no PSS.
pub fn memory(pid: u32) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .with_context(|| format!("process {pid} has ended"))?;
    let mut words = text
        .lines()
        .filter_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next());
    let kib = words.next().context("the kernel reports no PSS")?;
    Ok(kib.parse()?)
}

fn time(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}
