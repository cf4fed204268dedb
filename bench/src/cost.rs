//! What processes cost, as the kernel counts it: CPU time, memory, wake-ups.
//!
//! The processes of a node's host are told apart by the program that they run: PostgreSQL's, etcd's, and the
//! agent's, which is every other one, so that no helper of an agent is left out. A proxy is a process and all that
//! descend from it. Two looks make a [`Usage`]. Only /proc is read; no process is touched.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};
use serde::Serialize;

/// Whose process it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    /// The agent, or something that it started and that is no PostgreSQL.
    Agent,
    /// etcd, which an agent without a store of its own needs.
    Store,
    /// PostgreSQL.
    Server,
}

/// What the processes of one owner on one host have cost since they began.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Cost {
    /// In user and kernel mode, children that have ended included.
    cpu: Duration,
    rss_bytes: u64,
    pss_bytes: u64,
    threads: u64,
    /// How often a thread went to sleep, and so was woken.
    sleeps: u64,
    processes: u64,
}

/// What the processes of one owner on one host cost between two looks.
#[derive(Clone, Copy, Serialize, Debug)]
pub(crate) struct Usage {
    /// Percent of one core.
    pub(crate) cpu_percent: f64,
    /// Memory that is resident, in units of 1,000,000 bytes; the sum over its processes.
    pub(crate) rss_mb: f64,
    /// The same with pages that are shared counted in parts, also among the nodes that share this machine.
    pub(crate) pss_mb: f64,
    /// Wake-ups a second, over all threads.
    pub(crate) wakes_per_second: f64,
    /// Threads of all its processes.
    pub(crate) threads: u64,
    /// Processes.
    pub(crate) processes: u64,
}

/// What one owner's processes among these have cost. One that ends meanwhile is left out.
pub(crate) fn look(pids: &[i32], owner: Owner) -> Cost {
    let own: Vec<i32> = pids.iter().copied().filter(|pid| owner_of(*pid) == Some(owner)).collect();
    sum(&own)
}

/// What these processes have cost, whatever they run. One that ends meanwhile is left out.
pub(crate) fn sum(pids: &[i32]) -> Cost {
    pids.iter().filter_map(|pid| process(*pid)).fold(Cost::default(), |sum, cost| Cost {
        cpu: sum.cpu + cost.cpu,
        rss_bytes: sum.rss_bytes + cost.rss_bytes,
        pss_bytes: sum.pss_bytes + cost.pss_bytes,
        threads: sum.threads + cost.threads,
        sleeps: sum.sleeps + cost.sleeps,
        processes: sum.processes + 1,
    })
}

/// The most memory of a process that was ever resident, in bytes; nothing if it has ended.
pub(crate) fn peak_rss(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(field(&status, "VmHWM:")? * 1024)
}

/// A process and all that descend from it, itself first.
pub(crate) fn family(pid: i32) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let parents: Vec<(i32, i32)> = pids.filter_map(|pid| Some((pid, parent_of(pid)?))).collect();
    let mut family = vec![pid];
    let mut looked_at = 0;
    while let Some(parent) = family.get(looked_at).copied() {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
        looked_at += 1;
    }
    family
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

impl Cost {
    /// Memory that is resident, in bytes.
    pub(crate) fn rss_bytes(&self) -> u64 {
        self.rss_bytes
    }

    /// CPU time that went by since an earlier look.
    pub(crate) fn cpu_since(&self, earlier: &Cost) -> Duration {
        self.cpu.saturating_sub(earlier.cpu)
    }

    /// What was used since an earlier look, which was `span` ago; nothing if there is no such process.
    pub(crate) fn since(&self, earlier: &Cost, span: Duration) -> Option<Usage> {
        let seconds = span.as_secs_f64();
        (self.processes > 0 && seconds > 0.0).then(|| Usage {
            cpu_percent: 100.0 * self.cpu_since(earlier).as_secs_f64() / seconds,
            rss_mb: self.rss_bytes as f64 / 1e6,
            pss_mb: self.pss_bytes as f64 / 1e6,
            wakes_per_second: self.sleeps.saturating_sub(earlier.sleeps) as f64 / seconds,
            threads: self.threads,
            processes: self.processes,
        })
    }
}

/// Nothing for a process that has ended.
fn owner_of(pid: i32) -> Option<Owner> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = program.file_name()?.to_string_lossy().into_owned();
    Some(match name.as_str() {
        "postgres" => Owner::Server,
        "etcd" => Owner::Store,
        _ => Owner::Agent,
    })
}

fn process(pid: i32) -> Option<Cost> {
    let folder = format!("/proc/{pid}");
    let folder = Path::new(&folder);
    let status = fs::read_to_string(folder.join("status")).ok()?;
    let pss = fs::read_to_string(folder.join("smaps_rollup")).unwrap_or_default();
    let threads = fs::read_dir(folder.join("task")).ok()?.flatten();
    let threads: Vec<String> =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok()).collect();
    Some(Cost {
        cpu: cpu(&fs::read_to_string(folder.join("stat")).ok()?)?,
        rss_bytes: field(&status, "VmRSS:").unwrap_or(0) * 1024,
        pss_bytes: field(&pss, "Pss:").unwrap_or(0) * 1024,
        threads: threads.len() as u64,
        sleeps: threads.iter().filter_map(|status| field(status, "voluntary_ctxt_switches:")).sum(),
        processes: 1,
    })
}

/// The CPU time in a line of /proc/PID/stat: utime, stime, cutime and cstime.
fn cpu(stat: &str) -> Option<Duration> {
    // The name in parentheses may hold anything, so what comes after its end is counted.
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks: u64 =
        rest.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
    let per_second =
        sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u32::try_from(ticks).ok())?;
    Some(Duration::from_secs(ticks) / per_second)
}

/// The number after a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// How many processes wanted to run on this machine lately (its load average over a minute).
pub(crate) fn machine_load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_whatever_a_process_is_called() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 300 20 0 0 150 50 30 20 20 0 5 0 100 1 1";
        let per_second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap() as f64;
        let expected = 250.0 / per_second;
        assert!((cpu(stat).unwrap().as_secs_f64() - expected).abs() < 1e-6);
        assert_eq!(cpu("no line of that kind"), None);
    }

    #[test]
    fn a_family_is_a_process_and_its_children() {
        let own = i32::try_from(std::process::id()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = family(own);
        let alone = family(i32::try_from(child.id()).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.first(), Some(&own));
        assert!(found.contains(&i32::try_from(child.id()).unwrap()), "{found:?}");
        assert_eq!(alone.len(), 1);
    }

    #[test]
    fn this_process_is_an_agent_with_memory_and_threads() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let cost = look(&[pid], Owner::Agent);
        assert!(cost.rss_bytes > 100_000 && cost.threads >= 1 && cost.processes == 1, "{cost:?}");
        assert!(look(&[pid], Owner::Server).since(&Cost::default(), Duration::from_secs(1)).is_none());
    }
}
