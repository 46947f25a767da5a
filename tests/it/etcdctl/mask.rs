//! Masks what differs between two clusters: ids, addresses, durations, and sizes of files.

/// Runs of at least this many hexadecimal digits are ids.
const ID_LENGTH: usize = 12;
/// Fields of `-w=json` and `-w=fields` whose numbers differ between clusters.
const OWN_NUMBERS: [&str; 9] = [
    "ClusterID",
    "MemberID",
    "cluster_id",
    "member_id",
    "DBSize",
    "DBSizeInUse",
    "RaftIndex",
    "RaftAppliedIndex",
    "Leader",
];

/// The line with these parts masked.
pub fn masked(line: &str) -> String {
    let line = narrow(&mask_own_numbers(line));
    let mut masked = String::with_capacity(line.len());
    let mut rest = line.as_str();
    while let Some(first) = rest.chars().next() {
        if let Some(after) = address(rest) {
            masked.push_str("<address>");
            rest = after;
        } else if let Some(after) = measured(rest) {
            masked.push_str("<measured>");
            rest = after;
        } else {
            let word = rest.find(|char: char| !char.is_ascii_alphanumeric()).unwrap_or(rest.len());
            let (word, after) = rest.split_at(word.max(first.len_utf8()));
            let is_id = word.len() >= ID_LENGTH && word.chars().all(|char| char.is_ascii_hexdigit());
            masked.push_str(if is_id { "<id>" } else { word });
            rest = after;
        }
    }
    masked
}

/// A line of a table without the padding, because an id may be a digit shorter than another.
fn narrow(line: &str) -> String {
    if !line.starts_with(['+', '|']) {
        return line.to_owned();
    }
    let mut narrowed = String::with_capacity(line.len());
    for char in line.chars() {
        if !(matches!(char, '-' | ' ') && narrowed.ends_with(char)) {
            narrowed.push(char);
        }
    }
    narrowed
}

/// `"Field" : 123` and `"field":123`, whatever the length of the number.
fn mask_own_numbers(line: &str) -> String {
    let mut line = line.to_owned();
    for field in OWN_NUMBERS {
        let name = format!("\"{field}\"");
        let mut from = 0;
        while let Some(found) = line[from..].find(&name) {
            let start = from + found + name.len();
            let number = start + line[start..].find(|char: char| char.is_ascii_digit()).unwrap_or(line.len() - start);
            let end = number + line[number..].find(|char: char| !char.is_ascii_digit()).unwrap_or(line.len() - number);
            line.replace_range(number..end, "<own>");
            from = number;
        }
    }
    line
}

/// The text after an address on the loopback interface, with or without a scheme.
fn address(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("http://").unwrap_or(text).strip_prefix("127.0.0.1:")?;
    Some(rest.trim_start_matches(|char: char| char.is_ascii_digit()))
}

/// The text after a duration (`1.5ms`) or a size (`20 kB`).
fn measured(text: &str) -> Option<&str> {
    let rest = text.trim_start_matches(|char: char| char.is_ascii_digit() || char == '.');
    if rest.len() == text.len() || !text.starts_with(|char: char| char.is_ascii_digit()) {
        return None;
    }
    [" kB", " MB", " B", "ms", "µs", "ns", "s"].iter().find_map(|unit| {
        let after = rest.strip_prefix(unit)?;
        (!after.starts_with(|char: char| char.is_ascii_alphanumeric())).then_some(after)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_each_clusters_own_is_masked() {
        for (line, expected) in [
            (
                "8e9e05c52164694d, started, m0, http://127.0.0.1:2380, http://127.0.0.1:2379, false",
                "<id>, started, m0, <address>, <address>, false",
            ),
            (
                "127.0.0.1:2379 is healthy: successfully committed proposal: took = 1.2345ms",
                "<address> is healthy: successfully committed proposal: took = <measured>",
            ),
            (
                "{\"header\":{\"cluster_id\":123,\"member_id\":45,\"revision\":6,\"raft_term\":2}}",
                "{\"header\":{\"cluster_id\":<own>,\"member_id\":<own>,\"revision\":6,\"raft_term\":2}}",
            ),
            ("\"ClusterID\" : 14841639068965178418", "\"ClusterID\" : <own>"),
            ("x, 3.5.16, 20 kB, true", "x, 3.5.16, <measured>, true"),
            ("a/2 deux 17", "a/2 deux 17"),
            ("|  8e9e05c52164694d |", "| <id> |"),
            ("+------+--+", "+-+-+"),
        ] {
            assert_eq!(masked(line), expected);
        }
    }
}
