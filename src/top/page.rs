//! [`Page`]: all that is on the screen, and what keys do to it.
//!
//! Not here: the terminal, how it is drawn (`draw`), and how the relay is asked (`reader`). Always holds: it is changed by updates and keys alone, so
//! that it can be tested without either; a selection stays within its list, whatever comes and goes.

use std::time::Instant;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{
    lists::{CONNECTIONS, FEEDS, sort},
    rates::Rates,
    state::{Cluster, Connection, Feed, State},
    sweep::Sweep,
};

/// Longest text to look for; the relay takes no longer ones for certain.
const MOST_FIND: usize = 200;

/// Which connections are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// Only those that have this text somewhere.
    pub(super) find: String,
    /// Only those with a watch that is behind.
    pub(super) behind: bool,
}

/// What came from the relay.
#[derive(Debug)]
pub(super) enum Update {
    State(Box<State>),
    Feeds(Part<Feed>),
    /// Of those that were wished for.
    Connections(Wish, Part<Connection>),
    /// No answer, and why.
    Trouble(String),
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Part<R> {
    /// The number after which it was asked to begin.
    pub(super) after: u64,
    pub(super) rows: Vec<R>,
    /// The number after which the next one begins, if there is one.
    pub(super) next: Option<u64>,
}

/// What a key asks of others than the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asks {
    Nothing,
    /// Connections as the page now wishes for them.
    Connections,
    Quit,
}

/// Which list keys are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Focus {
    Feeds,
    #[default]
    Connections,
}

/// Where in a list one is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct View {
    /// The column by which it is sorted.
    pub(super) column: usize,
    pub(super) reversed: bool,
    pub(super) selected: usize,
    /// The first row that is shown.
    pub(super) top: usize,
    /// Rows that were shown last, by which a page is turned.
    pub(super) height: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) url: String,
    pub(super) state: Option<State>,
    pub(super) rates: Rates,
    pub(super) feeds: Sweep<Feed>,
    pub(super) connections: Sweep<Connection>,
    /// When the relay last answered.
    pub(super) heard: Option<Instant>,
    /// Why it does not, and since when.
    pub(super) trouble: Option<(String, Instant)>,
    pub(super) focus: Focus,
    pub(super) feeds_view: View,
    pub(super) connections_view: View,
    pub(super) wish: Wish,
    /// The text to look for while it is typed.
    pub(super) typing: Option<String>,
    /// Whether the selected row is shown with all that is known of it.
    pub(super) details: bool,
    pub(super) help: bool,
}

impl Page {
    /// A page of the relay at `url`, which has not answered yet.
    pub(super) fn new(url: String, now: Instant) -> Self {
        Self {
            url,
            state: None,
            rates: Rates::default(),
            feeds: Sweep::new(now),
            connections: Sweep::new(now),
            heard: None,
            trouble: None,
            focus: Focus::default(),
            feeds_view: View::default(),
            connections_view: View::default(),
            wish: Wish::default(),
            typing: None,
            details: false,
            help: false,
        }
    }

    /// Takes what came.
    pub(super) fn update(&mut self, update: Update, now: Instant) {
        match update {
            Update::Trouble(text) => {
                let since = self.trouble.take().map_or(now, |(_, since)| since);
                self.trouble = Some((text, since));
                return;
            }
            Update::State(state) => {
                self.rates.note(&state.relay);
                self.state = Some(*state);
            }
            // A page that does not go on from what was taken before, or answers an earlier wish, is of no use. The next round brings it again.
            Update::Feeds(part) => {
                if part.after == self.feeds.after() {
                    self.feeds.take(part.rows, part.next, now);
                }
            }
            Update::Connections(wish, part) => {
                if wish == self.wish && part.after == self.connections.after() {
                    self.connections.take(part.rows, part.next, now);
                }
            }
        }
        (self.heard, self.trouble) = (Some(now), None);
    }

    /// What all feeds together know of the cluster.
    pub(super) fn cluster(&self) -> Cluster {
        match &self.state {
            Some(State { cluster: Some(cluster), .. }) => cluster.clone(),
            state => Cluster::from_parts(state.as_ref().map_or(&[][..], |state| &state.members[..]), self.feeds.rows()),
        }
    }

    /// The feeds to be shown, in order.
    pub(super) fn sorted_feeds(&self) -> Vec<&Feed> {
        let find = &self.wish.find;
        let mut rows: Vec<&Feed> = self.feeds.rows().filter(|feed| feed.range.contains(find)).collect();
        sort(&mut rows, &FEEDS[self.feeds_view.column], self.feeds_view.reversed);
        rows
    }

    /// The same of connections.
    pub(super) fn sorted_connections(&self) -> Vec<&Connection> {
        // An older relay gives all, whatever is wished for. A newer one looks at more than it shows, so what it gives is right.
        let is_older = self.state.as_ref().is_some_and(|state| state.cluster.is_none());
        let Wish { find, behind } = &self.wish;
        let is_wanted = |row: &&Connection| !is_older || row.has(find) && (!behind || row.behind() > 0);
        let mut rows: Vec<&Connection> = self.connections.rows().filter(is_wanted).collect();
        sort(&mut rows, &CONNECTIONS[self.connections_view.column], self.connections_view.reversed);
        rows
    }

    /// The list that keys are for.
    pub(super) fn view(&mut self) -> &mut View {
        match self.focus {
            Focus::Feeds => &mut self.feeds_view,
            Focus::Connections => &mut self.connections_view,
        }
    }

    /// Does what a key says.
    pub(super) fn key(&mut self, key: KeyEvent, now: Instant) -> Asks {
        if key.kind == KeyEventKind::Release {
            return Asks::Nothing;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) && matches!(key.code, KeyCode::Char('c' | 'd')) {
            return Asks::Quit;
        }
        if let Some(text) = &mut self.typing {
            match key.code {
                KeyCode::Enter => {
                    let find = std::mem::take(text);
                    self.typing = None;
                    return self.wish(Wish { find, ..self.wish.clone() }, now);
                }
                KeyCode::Esc => self.typing = None,
                KeyCode::Backspace => _ = text.pop(),
                KeyCode::Char(char) if text.len() < MOST_FIND => text.push(char),
                _ => {}
            }
            return Asks::Nothing;
        }
        if self.help {
            self.help = false;
            return Asks::Nothing;
        }
        match key.code {
            KeyCode::Char('q') => return Asks::Quit,
            KeyCode::Esc if self.details => self.details = false,
            KeyCode::Esc if self.wish != Wish::default() => return self.wish(Wish::default(), now),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.help = true,
            KeyCode::Enter => self.details = !self.details,
            KeyCode::Tab | KeyCode::BackTab => {
                self.focus = if self.focus == Focus::Feeds { Focus::Connections } else { Focus::Feeds };
                self.details = false;
            }
            KeyCode::Char('/') => self.typing = Some(self.wish.find.clone()),
            KeyCode::Char('b') => return self.wish(Wish { behind: !self.wish.behind, ..self.wish.clone() }, now),
            KeyCode::Char('s') | KeyCode::Right => self.sort_by(1),
            KeyCode::Char('S') | KeyCode::Left => self.sort_by(-1),
            KeyCode::Char('r') => self.view().reversed ^= true,
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.turn(1),
            KeyCode::PageUp => self.turn(-1),
            KeyCode::Home | KeyCode::Char('g') => self.view().selected = 0,
            // Drawing keeps it within the list.
            KeyCode::End | KeyCode::Char('G') => self.view().selected = usize::MAX,
            _ => {}
        }
        Asks::Nothing
    }

    fn wish(&mut self, wish: Wish, now: Instant) -> Asks {
        if wish == self.wish {
            return Asks::Nothing;
        }
        self.wish = wish;
        self.connections = Sweep::new(now);
        self.connections_view.selected = 0;
        self.feeds_view.selected = 0;
        Asks::Connections
    }

    fn sort_by(&mut self, step: isize) {
        let columns = if self.focus == Focus::Feeds { FEEDS.len() } else { CONNECTIONS.len() };
        let view = self.view();
        view.column = view.column.checked_add_signed(step).unwrap_or(columns - 1) % columns;
        view.selected = 0;
    }

    fn step(&mut self, step: isize) {
        let view = self.view();
        view.selected = view.selected.saturating_add_signed(step);
    }

    fn turn(&mut self, step: isize) {
        let height = self.view().height.max(1).cast_signed();
        self.step(step * height);
    }
}

impl View {
    /// Fits it to a list of `len` rows of which `height` are shown.
    pub(super) fn fit(&mut self, len: usize, height: usize) {
        self.height = height;
        self.selected = self.selected.min(len.saturating_sub(1));
        self.top = self.top.min(self.selected).max((self.selected + 1).saturating_sub(height.max(1)));
        // No empty lines below while there are rows above.
        self.top = self.top.min(len.saturating_sub(height));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(page: &mut Page, code: KeyCode) -> Asks {
        page.key(KeyEvent::new(code, KeyModifiers::NONE), Instant::now())
    }

    fn connection(id: u64, peer: &str, behind: i64) -> Connection {
        Connection { id, peer: peer.to_owned(), lag_revisions: Some(behind), ..Connection::default() }
    }

    fn page(rows: Vec<Connection>) -> Page {
        let mut page = Page::new("http://127.0.0.1:1".to_owned(), Instant::now());
        let state = State { cluster: Some(Cluster::default()), ..State::default() };
        page.update(Update::State(Box::new(state)), Instant::now());
        page.update(all(Wish::default(), rows), Instant::now());
        page
    }

    fn all(wish: Wish, rows: Vec<Connection>) -> Update {
        Update::Connections(wish, Part { after: 0, rows, next: None })
    }

    fn peers(page: &Page) -> Vec<&str> {
        page.sorted_connections().iter().map(|row| &*row.peer).collect()
    }

    #[test]
    fn connections_are_sorted_by_how_far_they_are_behind_and_then_as_keys_say() {
        let mut page = page(vec![connection(1, "b", 0), connection(2, "a", 7), connection(3, "c", 0)]);
        assert_eq!(peers(&page), ["a", "b", "c"]);
        press(&mut page, KeyCode::Char('r'));
        assert_eq!(peers(&page), ["b", "c", "a"], "those that are equal stay in the order in which they were opened");
        press(&mut page, KeyCode::Char('s'));
        press(&mut page, KeyCode::Char('r'));
        assert_eq!(peers(&page), ["a", "b", "c"]);
        press(&mut page, KeyCode::Char('S'));
        press(&mut page, KeyCode::Char('S'));
        assert_eq!(page.connections_view.column, CONNECTIONS.len() - 1, "it goes round");
        press(&mut page, KeyCode::Char('s'));
        assert_eq!(page.connections_view.column, 0);
    }

    #[test]
    fn what_is_looked_for_is_asked_of_the_relay_and_late_answers_are_dropped() {
        let mut page = page(vec![connection(1, "a", 0)]);
        press(&mut page, KeyCode::Char('/'));
        for char in "qx".chars() {
            assert_eq!(press(&mut page, KeyCode::Char(char)), Asks::Nothing, "a letter that is typed is no command");
        }
        press(&mut page, KeyCode::Backspace);
        assert_eq!(press(&mut page, KeyCode::Enter), Asks::Connections);
        assert_eq!(page.wish.find, "q");
        page.update(all(Wish::default(), vec![connection(1, "a", 0)]), Instant::now());
        assert!(peers(&page).is_empty() && !page.connections.is_complete());
        page.update(all(page.wish.clone(), vec![connection(2, "unlike", 0)]), Instant::now());
        assert_eq!(peers(&page), ["unlike"], "the relay looks at more than it shows");
        assert_eq!(press(&mut page, KeyCode::Char('b')), Asks::Connections);
        assert_eq!(press(&mut page, KeyCode::Esc), Asks::Connections);
        assert_eq!(page.wish, Wish::default());
        assert_eq!((press(&mut page, KeyCode::Esc), press(&mut page, KeyCode::Char('q'))), (Asks::Nothing, Asks::Quit));
    }

    #[test]
    fn of_an_older_relay_rows_are_looked_through_here() {
        let mut page = page(vec![]);
        page.update(Update::State(Box::default()), Instant::now());
        page.wish = Wish { find: "a".to_owned(), behind: true };
        let rows = vec![connection(1, "a1", 0), connection(2, "a2", 3), connection(3, "b", 3)];
        page.update(all(page.wish.clone(), rows), Instant::now());
        assert_eq!(peers(&page), ["a2"]);
    }

    #[test]
    fn a_selection_stays_within_its_list() {
        let mut view = View { selected: usize::MAX, ..View::default() };
        view.fit(100, 10);
        assert_eq!((view.selected, view.top), (99, 90));
        view.fit(5, 10);
        assert_eq!((view.selected, view.top), (4, 0));
        view.fit(0, 10);
        assert_eq!((view.selected, view.top), (0, 0));
        let mut page = page((1..=100).map(|id| connection(id, "a", 0)).collect());
        page.connections_view.fit(100, 10);
        press(&mut page, KeyCode::PageDown);
        page.connections_view.fit(100, 10);
        assert_eq!((page.connections_view.selected, page.connections_view.top), (10, 1));
        press(&mut page, KeyCode::Up);
        press(&mut page, KeyCode::PageUp);
        page.connections_view.fit(100, 10);
        assert_eq!((page.connections_view.selected, page.connections_view.top), (0, 0));
    }

    #[test]
    fn a_page_that_does_not_go_on_from_the_last_one_is_left_out() {
        let mut page = page(vec![connection(1, "a", 0)]);
        let stray = Part { after: 500, rows: vec![connection(501, "b", 0)], next: Some(1_000) };
        page.update(Update::Connections(Wish::default(), stray), Instant::now());
        assert_eq!((peers(&page), page.connections.after()), (vec!["a"], 0));
    }

    #[test]
    fn trouble_lasts_from_its_first_moment_until_the_relay_answers() {
        let mut page = page(vec![connection(1, "a", 0)]);
        let start = Instant::now();
        page.update(Update::Trouble("refused".to_owned()), start);
        page.update(Update::Trouble("late".to_owned()), start + std::time::Duration::from_secs(3));
        assert_eq!(page.trouble, Some(("late".to_owned(), start)));
        assert_eq!(peers(&page), ["a"], "what was known stays");
        page.update(Update::State(Box::default()), Instant::now());
        assert!(page.trouble.is_none());
    }
}
