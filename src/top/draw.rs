//! Draws the page as terminal cells, or as plain text.
//!
//! What the page contains is in `page`. Always holds: all text from others goes through [`safe`]. The page fits a
//! terminal of any size. Drawing costs only as much as the visible rows, however long the lists are.

use std::time::{Duration, Instant};

use ratatui::{
    Frame,
    layout::Rect,
    style::{Color, Modifier, Style},
};

use super::{
    details::{of_connection, of_feed},
    lists::{CONNECTIONS, FEEDS, trouble},
    numbers::{bytes, count, lag, short, time},
    page::{Filter, Focus, Page},
    state::{Connection, Feed, Row},
    sweep::Sweep,
    table::{Column, Layout},
    text::{columns, fit, safe},
};

/// The smallest terminal in which anything is drawn.
const LEAST: (u16, u16) = (20, 5);
/// With fewer lines than this, only one list is shown.
const BOTH: usize = 16;
/// A list that is older than this shows its age.
const FRESH: Duration = Duration::from_secs(2);
/// After this time without an answer, the page says so.
const SILENT: Duration = Duration::from_secs(5);
/// Largest number of reasons and of members that are listed.
const REASONS: usize = 3;
/// Width of the chart of events, in columns.
const CURVE: usize = 40;
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

const KEYS: &str = "q quit  tab list  s/S sort  r reverse  / find  b behind  enter details  ? help";
const HELP: &[&str] = &[
    "q, ctrl-c         quit",
    "tab               go to the other list",
    "up, down, j, k    select the row above or below",
    "pgup, pgdn        move by a page; home, end: first and last row",
    "s, S              sort by the next or the previous column",
    "r                 reverse the order",
    "/                 show only rows with this text in address, user, agent or keys",
    "b                 show only connections with a watch that is behind",
    "enter             show all details of the selected row; esc goes back",
    "esc               show all rows again",
];

/// A line with its style.
struct Line {
    text: String,
    style: Style,
}

/// Draws the page.
pub(super) fn draw(frame: &mut Frame<'_>, page: &mut Page, now: Instant) {
    let area = frame.area();
    if area.is_empty() {
        return;
    }
    if area.width < LEAST.0 || area.height < LEAST.1 {
        put(frame, area, 0, "too small", Style::new());
        return;
    }
    let (width, height) = (usize::from(area.width), usize::from(area.height));
    let mut lines = head(page, now, width);
    lines.truncate(height - 3);
    let room = height - lines.len() - 1;
    if page.help {
        lines.extend(HELP.iter().take(room).map(|text| plain(*text)));
    } else if page.details {
        lines.extend(details(page, width, room));
    } else {
        lists(&mut lines, page, now, width, room);
    }
    for (at, line) in lines.iter().enumerate().take(height - 1) {
        put(frame, area, at as u16, &line.text, line.style);
    }
    let (foot, style) = match &page.typing {
        Some(text) => (format!("/{}_", safe(text)), Style::new().add_modifier(Modifier::BOLD)),
        None => (KEYS.to_owned(), Style::new().add_modifier(Modifier::DIM)),
    };
    put(frame, area, area.height - 1, &foot, style);
}

/// The page as plain text, with all rows in full.
pub(super) fn text(page: &Page, now: Instant) -> String {
    let mut text = String::new();
    let mut add = |line: &str| {
        text.push_str(line.trim_end());
        text.push('\n');
    };
    head(page, now, usize::MAX).iter().for_each(|line| add(&line.text));
    add("");
    add(&feeds_title(page, now));
    whole(&page.sorted_feeds(), FEEDS, page.feeds_view.column, page.feeds_view.reversed, &mut add);
    add("");
    add(&connections_title(page, now));
    let view = page.connections_view;
    whole(&page.sorted_connections(), CONNECTIONS, view.column, view.reversed, &mut add);
    text
}

fn whole<R>(rows: &[&R], list: &[Column<R>], sorted: usize, reversed: bool, add: &mut impl FnMut(&str)) {
    let layout = Layout::new(list, rows, None);
    add(&layout.head(list, sorted, reversed));
    for row in rows {
        add(&layout.row(list, *row));
    }
}

fn put(frame: &mut Frame<'_>, area: Rect, line: u16, text: &str, style: Style) {
    // The text is padded to the full width, so that it overwrites what was there before.
    let text = fit(text, usize::from(area.width), false);
    frame.buffer_mut().set_stringn(area.x, area.y + line, text, usize::from(area.width), style);
}

fn plain(text: impl Into<String>) -> Line {
    Line { text: text.into(), style: Style::new() }
}

fn bold(text: String) -> Line {
    Line { text, style: Style::new().add_modifier(Modifier::BOLD) }
}

fn alarming(text: String) -> Line {
    Line { text, style: Style::new().fg(Color::Red).add_modifier(Modifier::BOLD) }
}

/// The lines above the lists.
fn head(page: &Page, now: Instant, width: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    let Some(state) = &page.state else {
        lines.push(bold(format!("etcd-relay at {}", safe(&page.url))));
        match &page.trouble {
            Some((why, _)) => lines.push(alarming(format!("{}; trying again", safe(why)))),
            None => lines.push(plain("Reading the state")),
        }
        return lines;
    };
    let relay = &state.relay;
    let mut identity = vec![
        format!("etcd-relay {}", safe(&relay.version)),
        safe(&page.url),
        format!("up {}", time(relay.uptime_seconds)),
    ];
    if relay.not_ready.is_empty() {
        identity.push("ready".to_owned());
    }
    lines.extend(flow(&identity, width).into_iter().map(bold));
    if let Some((why, since)) = &page.trouble {
        let heard = page.heard.unwrap_or(*since);
        let silent = time(now.saturating_duration_since(heard).as_secs());
        lines.push(alarming(format!("No answer for {silent}: {}; retrying. The data below is that old", safe(why))));
    } else if let Some(heard) = page.heard.filter(|heard| now.saturating_duration_since(*heard) >= SILENT) {
        let silent = time(now.saturating_duration_since(heard).as_secs());
        lines.push(alarming(format!("No answer for {silent}. The data below is that old")));
    }
    for reason in relay.not_ready.iter().take(REASONS) {
        lines.push(alarming(format!("Not ready: {}", safe(reason))));
    }
    if relay.not_ready.len() > REASONS {
        lines.push(alarming(format!("and {} more reasons, see /ready", relay.not_ready.len() - REASONS)));
    }
    for member in
        state.members.iter().filter(|member| !matches!(&*member.health, "" | "healthy" | "unknown")).take(REASONS)
    {
        let why = member.why.as_deref().map(|why| format!(": {}", safe(why))).unwrap_or_default();
        lines.push(alarming(format!("Member {} is {}{why}", safe(&member.endpoint), safe(&member.health))));
    }
    let cluster = page.cluster();
    let mut items = vec![format!("cluster {}", cluster.id.as_deref().map_or_else(|| "–".to_owned(), safe))];
    items.extend(relay.upstream.as_ref().map(|upstream| format!("etcd {}", safe(&upstream.etcdserver))));
    items.extend(cluster.member.as_deref().map(|member| format!("member {}", safe(member))));
    items.push(format!("revision {}", count(cluster.revision)));
    items.push(format!("behind {}", lag(cluster.lag_revisions, cluster.lag_seconds)));
    items.extend(state.auth.as_deref().map(|auth| format!("authentication {}", safe(auth))));
    if let Some(agreement) = cluster.agreement.as_deref().filter(|agreement| *agreement != "reached") {
        lines.push(alarming(format!("The cluster has no agreement: {}", safe(agreement))));
    }
    lines.extend(flow(&items, width).into_iter().map(plain));
    lines.extend(flow(&rates(page), width).into_iter().map(plain));
    lines
}

/// The delivery rates and their cost.
fn rates(page: &Page) -> Vec<String> {
    let Some(relay) = page.state.as_ref().map(|state| &state.relay) else { return Vec::new() };
    let mut items = Vec::new();
    match page.rates.now() {
        Some(rate) => {
            items.push(format!("{} events/s", short(rate.events)));
            items.push(format!("{} responses/s", short(rate.responses)));
            items.push(format!("{}/s", bytes(rate.bytes)));
            let cores = relay.cores.map(|cores| format!(" of {cores} cores")).unwrap_or_default();
            items.push(format!("CPU {:.2}{cores}", rate.cpu));
        }
        None if relay.delivered.is_none() => items.push("(an older relay: no rates)".to_owned()),
        None => {}
    }
    items.extend(relay.memory_bytes.map(|memory| format!("memory {}", bytes(memory as f64))));
    let curve = curve(&page.rates.events(CURVE).collect::<Vec<_>>());
    items.extend(Some(curve).filter(|curve| !curve.is_empty()));
    items
}

fn curve(events: &[u64]) -> String {
    if events.len() < 2 {
        return String::new();
    }
    let most = events.iter().copied().max().unwrap_or_default().max(1);
    let level = |events: &u64| LEVELS[events.saturating_mul(LEVELS.len() as u64 - 1).div_ceil(most).min(7) as usize];
    events.iter().map(level).collect()
}

/// Puts items side by side, on as many lines as needed.
fn flow(items: &[String], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for item in items {
        match lines.last_mut() {
            Some(line) if columns(line) + 2 + columns(item) <= width => {
                line.push_str("  ");
                line.push_str(item);
            }
            _ => lines.push(item.clone()),
        }
    }
    lines
}

fn lists(lines: &mut Vec<Line>, page: &mut Page, now: Instant, width: usize, room: usize) {
    let (feeds_title, connections_title) = (feeds_title(page, now), connections_title(page, now));
    let feeds_len = page.feeds.len();
    let (for_feeds, for_connections) = match page.focus {
        _ if room >= BOTH => {
            let feeds = (feeds_len + 2).clamp(3, room / 3);
            (feeds, room - feeds)
        }
        Focus::Feeds => (room, 0),
        Focus::Connections => (0, room),
    };
    let (mut feeds_view, mut connections_view) = (page.feeds_view, page.connections_view);
    if for_feeds > 0 {
        let rows = page.sorted_feeds();
        let height = for_feeds.saturating_sub(2);
        feeds_view.fit(rows.len(), height);
        let shown: Vec<&Feed> = rows.iter().copied().skip(feeds_view.top).take(height).collect();
        let layout = Layout::new(FEEDS, &shown, Some(width));
        list(lines, &layout, FEEDS, &feeds_view, &shown, page.focus == Focus::Feeds, feeds_title, feed_style);
        let used = shown.len() + 2;
        lines.extend((used..for_feeds).map(|_| plain("")));
    }
    if for_connections > 0 {
        let rows = page.sorted_connections();
        let height = for_connections.saturating_sub(2);
        connections_view.fit(rows.len(), height);
        let shown: Vec<&Connection> = rows.iter().copied().skip(connections_view.top).take(height).collect();
        let layout = Layout::new(CONNECTIONS, &shown, Some(width));
        let focused = page.focus == Focus::Connections;
        list(lines, &layout, CONNECTIONS, &connections_view, &shown, focused, connections_title, connection_style);
    }
    (page.feeds_view, page.connections_view) = (feeds_view, connections_view);
}

#[expect(clippy::too_many_arguments, reason = "both borrow from one list and are used only here")]
fn list<R>(
    lines: &mut Vec<Line>,
    layout: &Layout,
    columns: &[Column<R>],
    view: &super::page::View,
    shown: &[&R],
    focused: bool,
    title: String,
    style: fn(&R) -> Style,
) {
    lines.push(if focused { bold(title) } else { plain(title) });
    let head = Style::new().add_modifier(Modifier::UNDERLINED);
    lines.push(Line { text: layout.head(columns, view.column, view.reversed), style: head });
    for (at, row) in shown.iter().enumerate() {
        let mut style = style(row);
        if focused && view.top + at == view.selected {
            style = style.add_modifier(Modifier::REVERSED);
        }
        lines.push(Line { text: layout.row(columns, row), style });
    }
}

fn feed_style(feed: &Feed) -> Style {
    match trouble(feed) {
        0 => Style::new(),
        1 => Style::new().fg(Color::Yellow),
        _ => Style::new().fg(Color::Red),
    }
}

fn connection_style(connection: &Connection) -> Style {
    if connection.behind() > 0 { Style::new().fg(Color::Yellow) } else { Style::new() }
}

fn feeds_title(page: &Page, now: Instant) -> String {
    let open = page.state.as_ref().map_or(0, |state| state.feeds_open);
    let found = Some(&page.filter.find).filter(|find| !find.is_empty());
    let found = found.map(|find| format!(", {} with `{}`", count(page.sorted_feeds().len() as u64), safe(find)));
    format!("Feeds: {}{}{}", count(open), found.unwrap_or_default(), reading(&page.feeds, now))
}

fn connections_title(page: &Page, now: Instant) -> String {
    let open = page.state.as_ref().map_or(0, |state| state.connections_open);
    let Filter { find, behind } = &page.filter;
    let mut wanted = String::new();
    if *behind || !find.is_empty() {
        wanted = format!(", {}", count(page.sorted_connections().len() as u64));
        wanted += if *behind { " behind" } else { "" };
        wanted += &if find.is_empty() { String::new() } else { format!(" with `{}`", safe(find)) };
    }
    format!("Connections: {}{wanted}{}", count(open), reading(&page.connections, now))
}

/// The age of a list, if it is old enough to matter, and whether it is cut.
fn reading<R: Row>(sweep: &Sweep<R>, now: Instant) -> String {
    let mut text = String::new();
    if !sweep.is_complete() {
        text += ", reading";
    } else if sweep.age(now) >= FRESH {
        text += &format!(", read within the last {}", time(sweep.age(now).as_secs() + 1));
    }
    if sweep.is_cut() {
        text += &format!(", only the first {} are shown", count(sweep.len() as u64));
    }
    text
}

/// All details of the selected row.
fn details(page: &Page, width: usize, room: usize) -> Vec<Line> {
    let lines = match page.focus {
        Focus::Feeds => page.sorted_feeds().get(page.feeds_view.selected).map(|feed| of_feed(feed)),
        Focus::Connections => {
            page.sorted_connections().get(page.connections_view.selected).map(|row| of_connection(row))
        }
    };
    let lines = lines.unwrap_or_else(|| vec!["No row is selected".to_owned()]);
    lines.iter().flat_map(|line| wrap(line, width)).take(room).map(plain).collect()
}

/// Wraps a line to the width. The further lines are indented.
fn wrap(text: &str, width: usize) -> Vec<String> {
    const INDENT: &str = "    ";
    let mut lines = vec![String::new()];
    let mut taken = 0;
    for char in text.chars() {
        let takes = columns(char.encode_utf8(&mut [0; 4]));
        if taken + takes > width {
            lines.push(INDENT.to_owned());
            taken = INDENT.len();
        }
        taken += takes;
        if let Some(line) = lines.last_mut() {
            line.push(char);
        }
    }
    lines
}

#[cfg(test)]
mod tests;
