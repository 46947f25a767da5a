//! Measures CPU time and memory of processes, from `/proc`.
//!
//! Only for Linux. The scheduler accounts the CPU time of each thread in nanoseconds, but without threads that have
//! ended. The kernel's account of the whole process includes these, but in hundredths of a second, which is too coarse
//! for a server that does little. So the first is used, unless the second shows that threads which used CPU have ended.
//! The split into user and system time comes from the second and is sampled.

use std::{fs, str::FromStr, time::Duration};

use super::BenchError;

/// A process to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Its name in the report.
    pub name: String,
    /// Its id.
    pub pid: u32,
}

/// The resources that a process has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// For the whole process, in ticks.
    pub(super) user: Duration,
    pub(super) system: Duration,
    /// For the existing threads; `None` if the kernel keeps no such account.
    pub(super) threads: Option<Duration>,
    /// Resident memory in bytes.
    pub(super) resident: u64,
}

/// CPU time between two measurements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cpu {
    pub(super) user: Duration,
    pub(super) system: Duration,
}

/// By how much the ticks of user and system time may differ from the scheduler's account, including the time between
/// the two measurements.
const ROUNDING_TICKS: u64 = 3;

impl Usage {
    pub(super) fn of(pid: u32) -> Result<Self, BenchError> {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
        let usage = || Some(Self { threads: threads(pid), ..Self::parse(&read("stat")?, &read("status")?)? });
        usage().ok_or(BenchError::Process(pid))
    }

    /// CPU time since an earlier measurement.
    pub(super) fn since(&self, then: &Self) -> Cpu {
        let user = self.user.saturating_sub(then.user);
        let system = self.system.saturating_sub(then.system);
        let ticks = user + system;
        let threads = self.threads.zip(then.threads).map(|(now, then)| now.saturating_sub(then));
        let all = threads.filter(|threads| *threads + tick() * ROUNDING_TICKS as u32 >= ticks).unwrap_or(ticks);
        let share = if ticks.is_zero() { 1.0 } else { user.as_secs_f64() / ticks.as_secs_f64() };
        let user = all.mul_f64(share).min(all);
        Cpu { user, system: all - user }
    }

    fn parse(stat: &str, status: &str) -> Option<Self> {
        // The name, in parentheses, may contain spaces; utime and stime are fields 14 and 15.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
        let mut time = || Some(tick() * u32::try_from(fields.next()?.parse::<u64>().ok()?).ok()?);
        let (user, system) = (time()?, time()?);
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let resident = line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024;
        Some(Self { user, system, threads: None, resident })
    }
}

impl Cpu {
    pub(super) fn all(&self) -> Duration {
        self.user + self.system
    }
}

fn tick() -> Duration {
    Duration::from_secs(1) / u32::try_from(rustix::param::clock_ticks_per_second().max(1)).unwrap_or(100)
}

/// The CPU time of all existing threads.
fn threads(pid: u32) -> Option<Duration> {
    let mut sum = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        // A thread may end between the listing and the reading.
        let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
        sum += Duration::from_nanos(text.split(' ').next()?.parse().ok()?);
    }
    (!sum.is_zero()).then_some(sum)
}

impl FromStr for Watched {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, pid) = text.split_once('=').unwrap_or((text, text));
        let pid = pid.parse().map_err(|_| format!("invalid process `{text}`; write it like relay=1234"))?;
        Ok(Self { name: name.to_owned(), pid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 1 2 3 4 150 25 0 0 20 0 1 0 9 8 7";
        let usage = Usage::parse(stat, "Name:\ta\nVmRSS:\t    2048 kB\n").expect("read");
        assert_eq!(usage.user, Duration::from_millis(1500));
        assert_eq!(usage.system, Duration::from_millis(250));
        assert_eq!(usage.resident, 2 << 20);
        assert!(Usage::of(std::process::id()).expect("this one").resident > 1 << 20);
        assert!(Usage::of(u32::MAX).is_err());
    }

    #[test]
    fn the_finer_account_counts_unless_it_misses_ended_threads() {
        let ms = Duration::from_millis;
        let at = |user, system, threads: Option<u64>| Usage {
            user: ms(user),
            system: ms(system),
            threads: threads.map(ms),
            resident: 0,
        };
        let then = at(1000, 500, Some(1503));
        assert_eq!(at(1030, 510, Some(1551)).since(&then), Cpu { user: ms(36), system: ms(12) });
        assert_eq!(at(1300, 600, Some(1600)).since(&then).all(), ms(400), "a thread has ended");
        assert_eq!(at(1300, 600, Some(1400)).since(&then).all(), ms(400), "an old kernel");
        assert_eq!(at(1300, 600, None).since(&then).all(), ms(400));
        assert_eq!(at(1000, 500, Some(1504)).since(&then), Cpu { user: ms(1), system: ms(0) });
        let of = Usage::of(std::process::id()).expect("this one");
        assert!(of.threads.is_some_and(|threads| threads > Duration::ZERO), "{of:?}");
    }

    #[test]
    fn processes_have_names() {
        assert_eq!("relay=12".parse(), Ok(Watched { name: "relay".to_owned(), pid: 12 }));
        assert_eq!("12".parse(), Ok(Watched { name: "12".to_owned(), pid: 12 }));
        "relay".parse::<Watched>().expect_err("no id");
    }
}
