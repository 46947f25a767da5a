//! Types for flag values that clap cannot parse itself.

use std::{fmt, net::IpAddr, num::NonZeroUsize, str::FromStr, time::Duration};

use ipnet::IpNet;

/// Units of bytes, as in the flags of etcd and Kubernetes. MiB and MB differ on purpose.
const UNITS: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

/// A number of bytes above zero, such as `67108864`, `64MiB` or `64MB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteCount(pub(super) NonZeroUsize);

impl FromStr for ByteCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let problem = || format!("invalid number of bytes `{text}`; write it like 67108864, 64MiB or 64MB");
        let (number, unit) = UNITS
            .iter()
            .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|number| (number.trim_end(), *unit)))
            .unwrap_or((text, 1));
        let number: u64 = number.parse().map_err(|_| problem())?;
        let bytes = number.checked_mul(unit).and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(problem)?;
        NonZeroUsize::new(bytes).map(Self).ok_or_else(|| "the number of bytes must be more than zero".to_owned())
    }
}

impl fmt::Display for ByteCount {
    /// Uses the largest binary unit that divides the number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.get() as u64;
        match UNITS[..3].iter().rev().find(|(_, unit)| bytes.is_multiple_of(*unit)) {
            Some((suffix, unit)) => write!(f, "{}{suffix}", bytes / unit),
            None => write!(f, "{bytes}"),
        }
    }
}

/// Key prefixes, separated by commas. `\,` is a comma within a prefix. An empty text is the prefix of all keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prefixes(pub(super) Vec<String>);

impl FromStr for Prefixes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut prefixes = vec![String::new()];
        let mut rest = text.chars().peekable();
        while let Some(char) = rest.next() {
            let char = match char {
                ',' => {
                    prefixes.push(String::new());
                    continue;
                }
                '\\' if rest.peek() == Some(&',') => rest.next().unwrap_or(','),
                char => char,
            };
            if let Some(prefix) = prefixes.last_mut() {
                prefix.push(char);
            }
        }
        if prefixes.len() > 1 && prefixes.iter().any(String::is_empty) {
            return Err(format!(
                "`{text}` has a comma with no prefix before or after it; the empty prefix, which stands for the whole \
                 key space, must be given alone"
            ));
        }
        Ok(Self(prefixes))
    }
}

/// A network with its mask, such as `10.0.0.0/8`.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(addr) => {
            let (net, one) = if addr.is_ipv4() { (8, 32) } else { (64, 128) };
            format!(
                "the mask is missing in `{text}`; write {text}/{net} for a network, or {text}/{one} for this \
                address alone"
            )
        }
        Err(_) => format!("`{text}` is not a network; write it like 10.0.0.0/8"),
    })
}

/// A duration such as `10s`, `5m` or `1h 30m`. Zero means "never" or "not at all".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Time(pub(super) Duration);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text).map(Self).map_err(|error| {
            format!(
                "invalid duration `{text}` ({error}); write it with a unit, like 10s, 5m or \
                500ms"
            )
        })
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&humantime::format_duration(self.0).to_string().replace(' ', ""))
    }
}

/// A duration above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PositiveTime(pub(super) Duration);

impl FromStr for PositiveTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse()? {
            Time(Duration::ZERO) => Err("the duration must be more than zero".to_owned()),
            Time(time) => Ok(Self(time)),
        }
    }
}

impl fmt::Display for PositiveTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Time(self.0).fmt(f)
    }
}

/// A duration, or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimeOrNone(pub(super) Option<Duration>);

impl FromStr for TimeOrNone {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        text.parse().map(|PositiveTime(time)| Self(Some(time)))
    }
}

impl fmt::Display for TimeOrNone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(time) => Time(time).fmt(f),
            None => f.write_str("none"),
        }
    }
}

/// Parses a duration in Go's syntax: `2h0m0s`, `1.5h`, `300ms`, `0`.
pub(super) fn go_duration(text: &str) -> Result<Duration, String> {
    let problem = || format!("invalid duration `{text}`; write it like 20s, 2h0m0s or 1.5h");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.starts_with('-') {
        return Err(format!("`{text}` is negative"));
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return Err(problem());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let number_len = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(problem)?;
        let number: f64 = rest[..number_len].parse().map_err(|_| problem())?;
        rest = &rest[number_len..];
        let unit_len = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit_len] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(problem()),
        };
        rest = &rest[unit_len..];
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| problem())?;
        total = total.checked_add(part).ok_or_else(problem)?;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units_and_are_not_zero() {
        let bytes = |text: &str| text.parse::<ByteCount>().map(|bytes| bytes.0.get());
        for (text, want) in [("1", 1), ("64MiB", 64 << 20), ("64MB", 64_000_000), ("1 GiB", 1 << 30), ("5B", 5)] {
            assert_eq!(bytes(text), Ok(want), "{text}");
            let shown = ByteCount(NonZeroUsize::new(want).expect("not zero")).to_string();
            assert_eq!(bytes(&shown), Ok(want), "{shown}");
        }
        for text in ["", "0", "0MiB", "-1", "64Mib", "64 apples", "18446744073709551615GiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn prefixes_are_split_at_commas_that_are_not_escaped() {
        let split = |text: &str| text.parse::<Prefixes>().map(|Prefixes(prefixes)| prefixes);
        for (text, want) in
            [("/a/", &["/a/"][..]), ("", &[""]), ("/a/,/b/", &["/a/", "/b/"]), (r"/a\,b/,/c\d", &["/a,b/", r"/c\d"])]
        {
            assert_eq!(split(text).expect(text), want, "{text}");
        }
        for text in [",", "/a/,", ",/a/", "/a/,,/b/"] {
            assert!(split(text).expect_err(text).contains("whole key space"), "{text}");
        }
    }

    #[test]
    fn a_network_without_its_mask_is_refused_with_what_to_write() {
        assert!(network("10.0.0.0/8").is_ok() && network("fd00::/8").is_ok());
        assert!(network("10.0.0.0").expect_err("no mask").contains("write 10.0.0.0/8 for a network, or 10.0.0.0/32"));
        assert!(network("fd00::").expect_err("no mask").contains("fd00::/128"));
        assert!(network("ten").expect_err("no network").contains("10.0.0.0/8"));
    }

    #[test]
    fn times_are_shown_as_they_are_read() {
        for text in ["10s", "1m30s", "0s", "5ms"] {
            assert_eq!(text.parse::<Time>().map(|time| time.to_string()).as_deref(), Ok(text));
        }
        assert!("0s".parse::<PositiveTime>().is_err() && "10".parse::<Time>().is_err());
        assert_eq!("none".parse(), Ok(TimeOrNone(None)));
        assert_eq!("1s".parse(), Ok(TimeOrNone(Some(Duration::from_secs(1)))));
    }

    #[test]
    fn go_durations_are_those_that_go_takes() {
        let ms = Duration::from_millis;
        for (text, want) in [
            ("2h0m0s", ms(7_200_000)),
            ("20s", ms(20_000)),
            ("1.5h", ms(5_400_000)),
            ("300ms", ms(300)),
            ("1m0.5s", ms(60_500)),
            ("0", ms(0)),
            ("0s", ms(0)),
        ] {
            assert_eq!(go_duration(text), Ok(want), "{text}");
        }
        for text in ["", "20", "s", "1.2.3s", "20x", "-1s", "1e9h", "99999999999999999999h", "5 s"] {
            assert!(go_duration(text).is_err(), "{text}");
        }
    }
}
