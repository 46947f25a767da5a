//! Tests of the drawn page, cell by cell: wide, narrow and tiny terminals, hostile texts, thousands of rows, an
//! unreachable relay.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::{Terminal, backend::TestBackend, buffer::Buffer};
use unicode_width::UnicodeWidthStr as _;

use super::*;
use crate::top::{
    page::{Part, Update},
    state::{Cluster, Delivered, Member, Relay, State, Stream, Trouble, Upstream, Watch},
};

fn state(at: f64) -> State {
    State {
        relay: Relay {
            version: "0.1.0".to_owned(),
            uptime_seconds: 7_380,
            upstream: Some(Upstream { etcdserver: "3.5.16".to_owned() }),
            at: Some(at),
            cores: Some(2),
            cpu_seconds: Some(at / 4.0),
            memory_bytes: Some(100 << 20),
            delivered: Some(Delivered {
                responses: at as u64 * 500,
                events: at as u64 * 2_000,
                bytes: at as u64 * 2_048,
            }),
            ..Relay::default()
        },
        cluster: Some(Cluster {
            id: Some("cdf818194e3a8c32".to_owned()),
            member: Some("http://10.0.0.1:2379".to_owned()),
            revision: 1_234_567,
            agreement: Some("reached".to_owned()),
            ..Cluster::default()
        }),
        auth: Some("off".to_owned()),
        feeds_open: 2,
        connections_open: 3,
        ..State::default()
    }
}

fn feed(number: u64, range: &str) -> Feed {
    Feed {
        number,
        range: range.to_owned(),
        state: "live".to_owned(),
        permission: "granted".to_owned(),
        revision: 1_234_567,
        keys: 1_000,
        watches: 5_000,
        ..Feed::default()
    }
}

fn connection(id: u64, behind: i64) -> Connection {
    let watch = Watch { range: Some("[\"/a/\", \"/a0\")".to_owned()), ..Watch::default() };
    let stream = Stream { watches: 1, watching: vec![watch], ..Stream::default() };
    Connection {
        id,
        port: "grpc".to_owned(),
        peer: format!("10.0.0.{id}:5000"),
        open_seconds: 65,
        agent: Some("grpc-go/1.71".to_owned()),
        watches: Some(1),
        lag_revisions: Some(behind),
        watch_streams: vec![stream],
        ..Connection::default()
    }
}

fn page(now: Instant) -> Page {
    let mut page = Page::new("http://127.0.0.1:9001".to_owned(), now);
    page.update(Update::State(Box::new(state(10.0))), now);
    page.update(Update::State(Box::new(state(11.0))), now);
    let feeds = vec![feed(1, "[\"/a/\", \"/a0\")"), feed(2, "[\"/b/\", \"/b0\")")];
    page.update(Update::Feeds(Part { after: 0, rows: feeds, next: None }), now);
    fill(&mut page, vec![connection(1, 0), connection(2, 12), connection(3, 0)], now);
    page
}

fn fill(page: &mut Page, rows: Vec<Connection>, now: Instant) {
    page.update(Update::Connections(page.filter.clone(), Part { after: 0, rows, next: None }), now);
}

/// Draws the page in a terminal of this size and returns its cells.
fn drawn(page: &mut Page, size: (u16, u16), now: Instant) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).expect("a terminal");
    // The cells must cover what was drawn before.
    terminal
        .draw(|frame| frame.buffer_mut().content.iter_mut().for_each(|cell| _ = cell.set_char('#')))
        .expect("drawn");
    terminal.draw(|frame| draw(frame, page, now)).expect("drawn");
    terminal.backend().buffer().clone()
}

fn lines(buffer: &Buffer) -> Vec<String> {
    let width = usize::from(buffer.area.width);
    buffer.content.chunks(width).map(|cells| cells.iter().map(|cell| cell.symbol()).collect::<String>()).collect()
}

fn found(lines: &[String], text: &str) -> usize {
    lines.iter().position(|line| line.contains(text)).unwrap_or_else(|| panic!("{text} is not in {lines:#?}"))
}

fn press(page: &mut Page, code: KeyCode) {
    page.key(KeyEvent::new(code, KeyModifiers::NONE), Instant::now());
}

#[test]
fn a_wide_terminal_shows_all() {
    let now = Instant::now();
    let buffer = drawn(&mut page(now), (160, 30), now);
    let lines = lines(&buffer);
    assert!(lines[0].starts_with("etcd-relay 0.1.0  http://127.0.0.1:9001  up 2h03m  ready "), "{}", lines[0]);
    for text in [
        "cluster cdf818194e3a8c32  etcd 3.5.16  member http://10.0.0.1:2379  revision 1,234,567  behind 0  authentication off",
        "2.0k events/s  500 responses/s  2.0 KiB/s  CPU 0.25 of 2 cores  memory 100 MiB",
        "Feeds: 2 ",
        "Connections: 3 ",
    ] {
        found(&lines, text);
    }
    let feed = found(&lines, "[\"/a/\", \"/a0\")  live");
    assert!(feed < found(&lines, "[\"/b/\", \"/b0\")  live"), "sorted by range");
    let (first, second) = (found(&lines, "10.0.0.2:5000"), found(&lines, "10.0.0.1:5000"));
    assert!(first < second, "the connection that is behind comes first");
    assert!(lines[first].trim_start().starts_with("12  10.0.0.2:5000"), "{}", lines[first]);
    assert!(lines[first].contains("grpc-go/1.71") && lines[first].contains("[\"/a/\", \"/a0\")"), "{}", lines[first]);
    let cell = &buffer[(0, first as u16)];
    assert_eq!(cell.fg, Color::Yellow);
    assert!(cell.modifier.contains(Modifier::REVERSED), "the first row is selected");
    assert!(!buffer[(0, second as u16)].modifier.contains(Modifier::REVERSED));
    assert!(lines[29].starts_with("q quit"), "{}", lines[29]);
    assert!(!lines.concat().contains('#'), "every cell is drawn again");
}

#[test]
fn narrow_and_low_terminals_show_what_matters_most() {
    let now = Instant::now();
    let narrow = lines(&drawn(&mut page(now), (44, 30), now));
    found(&narrow, "revision 1,234,567");
    let row = &narrow[found(&narrow, "10.0.0.2:5000")];
    assert!(row.contains("12") && row.contains("[\"/a/\""), "{row}");
    assert!(!row.contains("grpc-go"), "{row}");
    let low = lines(&drawn(&mut page(now), (80, 12), now));
    found(&low, "Connections: 3");
    assert!(!low.concat().contains("Feeds:"), "{low:#?}");
    let mut other = page(now);
    press(&mut other, KeyCode::Tab);
    let low = lines(&drawn(&mut other, (80, 12), now));
    found(&low, "Feeds: 2");
    assert!(!low.concat().contains("Connections:"), "{low:#?}");
}

#[test]
fn a_terminal_of_any_size_is_filled_and_none_is_too_small() {
    let now = Instant::now();
    let mut page = page(now);
    page.trouble = Some(("refused".to_owned(), now));
    for size in [(1, 1), (19, 40), (20, 5), (21, 6), (40, 8), (79, 15), (80, 24), (300, 100), (65, 3)] {
        for keys in [&[][..], &[KeyCode::Char('?')], &[KeyCode::Enter], &[KeyCode::Tab, KeyCode::End]] {
            keys.iter().for_each(|key| press(&mut page, *key));
            drawn(&mut page, size, now);
            press(&mut page, KeyCode::Esc);
        }
    }
    assert!(lines(&drawn(&mut page, (9, 3), now))[0].starts_with("too small"));
}

#[test]
fn hostile_texts_show_as_text() {
    let now = Instant::now();
    let evil = "\u{1b}[31mA\u{1b}]0;T\u{7}\u{202e}B\u{200b}\u{9b}2J\r\nC\u{0301}";
    let mut page = page(now);
    let mut state = state(12.0);
    state.relay.version = evil.to_owned();
    state.relay.not_ready = vec![evil.to_owned()];
    state.relay.upstream = Some(Upstream { etcdserver: evil.to_owned() });
    state.auth = Some(evil.to_owned());
    state.members = vec![Member {
        endpoint: evil.to_owned(),
        health: evil.to_owned(),
        why: Some(evil.to_owned()),
        ..Member::default()
    }];
    state.cluster = Some(Cluster {
        id: Some(evil.to_owned()),
        member: Some(evil.to_owned()),
        agreement: Some(evil.to_owned()),
        ..Cluster::default()
    });
    page.update(Update::State(Box::new(state)), now);
    let trouble = Trouble { error: evil.to_owned(), at: evil.to_owned(), over: false };
    let feed = Feed {
        number: 1,
        range: evil.to_owned(),
        kind: evil.to_owned(),
        state: evil.to_owned(),
        permission: evil.to_owned(),
        member: Some(evil.to_owned()),
        last_error: Some(trouble),
        ..Feed::default()
    };
    page.update(Update::Feeds(Part { after: 0, rows: vec![feed], next: None }), now);
    let mut row = connection(1, 3);
    (row.peer, row.port) = (evil.to_owned(), evil.to_owned());
    (row.user, row.agent, row.request) = (Some(evil.to_owned()), Some(evil.to_owned()), Some(evil.to_owned()));
    (row.watch_streams[0].watching[0].range, row.watch_streams[0].watching[0].phase) =
        (Some(evil.to_owned()), evil.to_owned());
    row.watch_streams[0].watching_next = Some(evil.to_owned());
    row.watch_streams_next = Some(evil.to_owned());
    page.filter.find = evil.to_owned();
    fill(&mut page, vec![row], now);
    page.filter.find = String::new();
    page.update(Update::Trouble(evil.to_owned()), now);

    let mut shown = vec![text(&page, now)];
    for keys in [&[][..], &[KeyCode::Enter], &[KeyCode::Tab], &[KeyCode::Enter]] {
        keys.iter().for_each(|key| press(&mut page, *key));
        for size in [(200, 50), (60, 50), (25, 20)] {
            let buffer = drawn(&mut page, size, now);
            for cell in &buffer.content {
                assert!((1..=2).contains(&cell.symbol().width()), "{:?}", cell.symbol());
            }
            shown.extend(lines(&buffer));
        }
    }
    page.typing = Some(evil.to_owned());
    shown.extend(lines(&drawn(&mut page, (200, 50), now)));
    for text in shown {
        for char in text.chars().filter(|char| *char != '\n') {
            assert!(!char.is_control() && safe(&char.to_string()).len() == char.len_utf8(), "{char:?} in {text}");
        }
    }
    assert!(text(&page, now).contains("\\u{1b}[31mA\\u{1b}]0;T\\u{7}\\u{202e}B\\u{200b}"), "the text stays readable");
}

#[test]
fn of_thousands_of_rows_those_on_the_screen_are_made_into_text() {
    let now = Instant::now();
    let mut page = page(now);
    let mut rows: Vec<Connection> = (1..=5_000).map(|id| connection(id, 0)).collect();
    rows[4_321].lag_revisions = Some(99);
    fill(&mut page, rows, now);
    let first = lines(&drawn(&mut page, (120, 40), now));
    assert!(
        first[found(&first, "10.0.0.4322:5000")].trim_start().starts_with("99"),
        "the row is found among all of \
        them"
    );
    press(&mut page, KeyCode::End);
    let last = lines(&drawn(&mut page, (120, 40), now));
    assert_eq!(found(&last, "10.0.0.5000:5000"), 38, "the last row is at the bottom");
    press(&mut page, KeyCode::PageUp);
    let before = lines(&drawn(&mut page, (120, 40), now));
    assert_ne!(before, last);
}

#[test]
fn a_list_of_many_pages_says_how_old_it_is() {
    let start = Instant::now();
    let mut page = page(start);
    let part = |after, next| Part { after, rows: vec![connection(after + 1, 0)], next };
    let later = start + Duration::from_secs(4);
    page.update(Update::Connections(Filter::default(), part(0, Some(1))), later);
    let lines = lines(&drawn(&mut page, (120, 30), later));
    found(&lines, "Connections: 3, read within the last 5s");
}

#[test]
fn a_relay_that_is_gone_is_said_with_the_time_and_what_was_known_stays() {
    let start = Instant::now();
    let mut page = page(start);
    let later = start + Duration::from_secs(12);
    page.update(Update::Trouble("cannot connect to http://127.0.0.1:9001: refused".to_owned()), later);
    let buffer = drawn(&mut page, (130, 30), later);
    let gone = lines(&buffer);
    let line = found(
        &gone,
        "No answer for 12s: cannot connect to http://127.0.0.1:9001: refused; retrying. The data below is that old",
    );
    assert_eq!(buffer[(0, line as u16)].fg, Color::Red);
    found(&gone, "10.0.0.2:5000");
    page.update(Update::State(Box::new(state(30.0))), later);
    assert!(!lines(&drawn(&mut page, (130, 30), later)).concat().contains("No answer"));
    // This relay accepts connections and sends nothing.
    let silent = lines(&drawn(&mut page, (130, 30), later + Duration::from_secs(6)));
    found(&silent, "No answer for 6s");
}

#[test]
fn trouble_of_the_cluster_stands_above_the_lists() {
    let now = Instant::now();
    let mut page = page(now);
    let mut state = state(12.0);
    state.relay.not_ready = (1..=5).map(|number| format!("reason {number}")).collect();
    state.members = vec![Member {
        endpoint: "http://b:1".to_owned(),
        health: "away".to_owned(),
        why: Some("late".to_owned()),
        ..Member::default()
    }];
    state.cluster.as_mut().expect("there is a state").agreement = Some("leaderless".to_owned());
    page.update(Update::State(Box::new(state)), now);
    let lines = lines(&drawn(&mut page, (100, 40), now));
    for text in
        ["Not ready: reason 3", "and 2 more reasons", "Member http://b:1 is away: late", "no agreement: leaderless"]
    {
        found(&lines, text);
    }
    assert!(!lines[0].contains("ready"), "{}", lines[0]);
}

#[test]
fn the_selected_row_is_shown_in_full() {
    let now = Instant::now();
    let mut page = page(now);
    press(&mut page, KeyCode::Enter);
    let shown = lines(&drawn(&mut page, (60, 30), now));
    for text in [
        "Connection 2 from 10.0.0.2:5000",
        "agent grpc-go/1.71",
        "behind 12 revisions",
        "watch 0 of [\"/a/\", \"/a0\")",
    ] {
        found(&shown, text);
    }
    press(&mut page, KeyCode::Tab);
    press(&mut page, KeyCode::Enter);
    let shown = lines(&drawn(&mut page, (60, 30), now));
    found(&shown, "Feed 1  [\"/a/\", \"/a0\")");
    press(&mut page, KeyCode::Esc);
    press(&mut page, KeyCode::Char('?'));
    found(&lines(&drawn(&mut page, (90, 30), now)), "show only connections with a watch that is behind");
}

#[test]
fn a_plain_picture_has_all_rows_in_full() {
    let now = Instant::now();
    let mut page = page(now);
    let long = format!("[\"/{}\", ∞)", "k".repeat(100));
    let mut rows: Vec<Connection> = (1..=100).map(|id| connection(id, 0)).collect();
    rows[99].watch_streams[0].watching[0].range = Some(long.clone());
    fill(&mut page, rows, now);
    let text = text(&page, now);
    assert!(text.starts_with("etcd-relay 0.1.0  http://127.0.0.1:9001  up 2h03m  ready\n"), "{text}");
    assert_eq!(text.matches(":5000").count(), 100);
    assert!(text.contains(&long) && text.lines().all(|line| line.trim_end() == line), "{text}");
}

#[test]
fn a_curve_is_as_high_as_its_highest_second() {
    assert_eq!(curve(&[0, 1, 50, 100]), "▁▂▅█");
    assert_eq!(curve(&[0, 0]), "▁▁");
    assert_eq!(curve(&[7]), "");
    assert_eq!(curve(&[u64::MAX / 8, 1]), "█▂");
}
