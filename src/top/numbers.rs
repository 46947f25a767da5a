//! Formats numbers for people.

/// Separates thousands by commas: `12,345,678`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// At most five columns wide: `999`, `12.3k`, `4.0M`.
pub(super) fn short(number: f64) -> String {
    scaled(number, 1000.0, ["", "k", "M", "G", "T"])
}

/// Bytes in units of 1024: `999 B`, `1.5 MiB`.
pub(super) fn bytes(bytes: f64) -> String {
    scaled(bytes, 1024.0, [" B", " KiB", " MiB", " GiB", " TiB"])
}

/// A duration, in seconds if it is below a minute: `9s`, `3m05s`, `2h03m`, `4d07h`.
pub(super) fn time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// How far something is behind, such as `3 rev, 1.5s`, or 0 if it is not behind.
pub(super) fn lag(revisions: i64, seconds: f64) -> String {
    match revisions {
        ..=0 => "0".to_owned(),
        _ if seconds >= 0.1 => format!("{} rev, {seconds:.1}s", count(revisions.unsigned_abs())),
        _ => format!("{} rev", count(revisions.unsigned_abs())),
    }
}

fn scaled(number: f64, step: f64, units: [&str; 5]) -> String {
    let (mut number, mut unit) = (number.max(0.0), 0);
    // A number that would be rounded to 1000 moves to the next unit.
    while number >= step - 0.5 && unit + 1 < units.len() {
        number /= step;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && number < 99.95);
    format!("{number:.digits$}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_true() {
        assert_eq!([0, 999, 1_000, 12_345_678].map(count), ["0", "999", "1,000", "12,345,678"]);
        assert_eq!(
            [0.0, 999.4, 999.6, 12_345.0, 250_000.0, 4e6, 1e18].map(short),
            ["0", "999", "1.0k", "12.3k", "250k", "4.0M", "1000000T"]
        );
        assert_eq!([1023.0, 1536.0, 3e9].map(bytes), ["1023 B", "1.5 KiB", "2.8 GiB"]);
        assert_eq!([59, 60, 3_599, 7_380, 370_800].map(time), ["59s", "1m00s", "59m59s", "2h03m", "4d07h"]);
        assert_eq!([lag(-1, 9.0), lag(3, 0.0), lag(1_200, 1.52)], ["0", "3 rev", "1,200 rev, 1.5s"]);
    }
}
