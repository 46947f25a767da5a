//! What processes take of the machine: CPU time and memory, from `/proc`.
//!
//! Not here: what it is divided by, see `report`. Linux only. CPU time is the kernel's own account of a whole process, ended threads
//! included, in hundredths of a second; it is exact in sum, and its split in user and system is sampled.

use std::{fs, str::FromStr, time::Duration};

use super::BenchError;

/// A process to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// What it is called in the report.
    pub name: String,
    /// Its id.
    pub pid: u32,
}

/// What a process has taken up to now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) user: Duration,
    pub(super) system: Duration,
    /// Resident memory in bytes.
    pub(super) resident: u64,
}

impl Usage {
    pub(super) fn of(pid: u32) -> Result<Self, BenchError> {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
        let usage = || Self::parse(&read("stat")?, &read("status")?);
        usage().ok_or(BenchError::Process(pid))
    }

    /// CPU time since then.
    pub(super) fn since(&self, then: &Self) -> Self {
        Self {
            user: self.user.saturating_sub(then.user),
            system: self.system.saturating_sub(then.system),
            resident: self.resident,
        }
    }

    pub(super) fn cpu(&self) -> Duration {
        self.user + self.system
    }

    fn parse(stat: &str, status: &str) -> Option<Self> {
        // The name, in parentheses, may itself have spaces; utime and stime are fields 14 and 15.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
        let tick = 1000 / rustix::param::clock_ticks_per_second().max(1);
        let mut time = || Some(Duration::from_millis(fields.next()?.parse::<u64>().ok()? * tick));
        let (user, system) = (time()?, time()?);
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let resident = line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024;
        Some(Self { user, system, resident })
    }
}

impl FromStr for Watched {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, pid) = text.split_once('=').unwrap_or((text, text));
        let pid = pid.parse().map_err(|_| format!("`{text}` is no process; write it like relay=1234"))?;
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
    fn processes_have_names() {
        assert_eq!("relay=12".parse(), Ok(Watched { name: "relay".to_owned(), pid: 12 }));
        assert_eq!("12".parse(), Ok(Watched { name: "12".to_owned(), pid: 12 }));
        "relay".parse::<Watched>().expect_err("no id");
    }
}
