//! [`Page`]: everything on the screen, and what each key does.
//!
//! The terminal is in `screen`, drawing in `draw`, and reading from the relay in `reader`. Always holds: only updates
//! and keys change the page, so it can be tested without a terminal or a relay. A selection always stays within its
//! list.

use std::time::Instant;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{
    lists::{CONNECTIONS, FEEDS, sort},
    rates::Rates,
    state::{Cluster, Connection, Feed, State},
    sweep::Sweep,
};

/// Longest text to search for. The relay is certain to accept this length.
const MOST_FIND: usize = 200;

/// Which connections to show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    /// Only connections that contain this text.
    pub(super) find: String,
    /// Only connections with a watch that is behind.
    pub(super) behind: bool,
}

/// What the reader received from the relay.
#[derive(Debug)]
pub(super) enum Update {
    State(Box<State>),
    Feeds(Part<Feed>),
    /// Connections that match this filter.
    Connections(Filter, Part<Connection>),
    /// There was no answer, for this reason.
    Trouble(String),
}

/// One page of a list.
#[derive(Debug)]
pub(super) struct Part<R> {
    /// The page begins after the row with this number.
    pub(super) after: u64,
    pub(super) rows: Vec<R>,
    /// The number after which the next page begins, if there is one.
    pub(super) next: Option<u64>,
}

/// What has to happen outside the page after a key was pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// The filter for connections has changed.
    Connections,
    Quit,
}

/// The list that keys act on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Focus {
    Feeds,
    #[default]
    Connections,
}

/// The position in a list.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct View {
    /// The column that the list is sorted by.
    pub(super) column: usize,
    pub(super) reversed: bool,
    pub(super) selected: usize,
    /// The first visible row.
    pub(super) top: usize,
    /// The number of visible rows in the last drawing, used to move by a page.
    pub(super) height: usize,
}

/// The state behind the screen; see the module.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) url: String,
    pub(super) state: Option<State>,
    pub(super) rates: Rates,
    pub(super) feeds: Sweep<Feed>,
    pub(super) connections: Sweep<Connection>,
    /// When the relay last answered.
    pub(super) heard: Option<Instant>,
    /// Why the relay does not answer, and since when.
    pub(super) trouble: Option<(String, Instant)>,
    pub(super) focus: Focus,
    pub(super) feeds_view: View,
    pub(super) connections_view: View,
    pub(super) filter: Filter,
    /// The search text while the user types it.
    pub(super) typing: Option<String>,
    /// Whether the details of the selected row are shown.
    pub(super) details: bool,
    pub(super) help: bool,
}

impl Page {
    /// A page for the relay at `url`, which has not answered yet.
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
            filter: Filter::default(),
            typing: None,
            details: false,
            help: false,
        }
    }

    /// Applies an update from the reader.
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
            // A page is dropped if it does not continue where the list ends, or belongs to an earlier filter. The next
            // round brings it again.
            Update::Feeds(part) => {
                if part.after == self.feeds.after() {
                    self.feeds.take(part.rows, part.next, now);
                }
            }
            Update::Connections(filter, part) => {
                if filter == self.filter && part.after == self.connections.after() {
                    self.connections.take(part.rows, part.next, now);
                }
            }
        }
        (self.heard, self.trouble) = (Some(now), None);
    }

    /// The state of the cluster, as all feeds together see it.
    pub(super) fn cluster(&self) -> Cluster {
        match &self.state {
            Some(State { cluster: Some(cluster), .. }) => cluster.clone(),
            state => Cluster::from_parts(state.as_ref().map_or(&[][..], |state| &state.members[..]), self.feeds.rows()),
        }
    }

    /// The feeds to show, in order.
    pub(super) fn sorted_feeds(&self) -> Vec<&Feed> {
        let find = &self.filter.find;
        let mut rows: Vec<&Feed> = self.feeds.rows().filter(|feed| feed.range.contains(find)).collect();
        sort(&mut rows, &FEEDS[self.feeds_view.column], self.feeds_view.reversed);
        rows
    }

    /// The connections to show, in order.
    pub(super) fn sorted_connections(&self) -> Vec<&Connection> {
        // An older relay ignores the filter, so its rows are filtered here. A newer relay searches more fields than it
        // sends, so its result is used as it is.
        let is_older = self.state.as_ref().is_some_and(|state| state.cluster.is_none());
        let Filter { find, behind } = &self.filter;
        let is_wanted = |row: &&Connection| !is_older || row.has(find) && (!behind || row.behind() > 0);
        let mut rows: Vec<&Connection> = self.connections.rows().filter(is_wanted).collect();
        sort(&mut rows, &CONNECTIONS[self.connections_view.column], self.connections_view.reversed);
        rows
    }

    /// The list that keys act on.
    pub(super) fn view(&mut self) -> &mut View {
        match self.focus {
            Focus::Feeds => &mut self.feeds_view,
            Focus::Connections => &mut self.connections_view,
        }
    }

    /// Handles a key.
    pub(super) fn key(&mut self, key: KeyEvent, now: Instant) -> Action {
        if key.kind == KeyEventKind::Release {
            return Action::Nothing;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) && matches!(key.code, KeyCode::Char('c' | 'd')) {
            return Action::Quit;
        }
        if let Some(text) = &mut self.typing {
            match key.code {
                KeyCode::Enter => {
                    let find = std::mem::take(text);
                    self.typing = None;
                    return self.set_filter(Filter { find, ..self.filter.clone() }, now);
                }
                KeyCode::Esc => self.typing = None,
                KeyCode::Backspace => _ = text.pop(),
                KeyCode::Char(char) if text.len() < MOST_FIND => text.push(char),
                _ => {}
            }
            return Action::Nothing;
        }
        if self.help {
            self.help = false;
            return Action::Nothing;
        }
        match key.code {
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Esc if self.details => self.details = false,
            KeyCode::Esc if self.filter != Filter::default() => return self.set_filter(Filter::default(), now),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.help = true,
            KeyCode::Enter => self.details = !self.details,
            KeyCode::Tab | KeyCode::BackTab => {
                self.focus = if self.focus == Focus::Feeds { Focus::Connections } else { Focus::Feeds };
                self.details = false;
            }
            KeyCode::Char('/') => self.typing = Some(self.filter.find.clone()),
            KeyCode::Char('b') => {
                return self.set_filter(Filter { behind: !self.filter.behind, ..self.filter.clone() }, now);
            }
            KeyCode::Char('s') | KeyCode::Right => self.sort_by(1),
            KeyCode::Char('S') | KeyCode::Left => self.sort_by(-1),
            KeyCode::Char('r') => self.view().reversed ^= true,
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.turn(1),
            KeyCode::PageUp => self.turn(-1),
            KeyCode::Home | KeyCode::Char('g') => self.view().selected = 0,
            // Drawing limits the selection to the list.
            KeyCode::End | KeyCode::Char('G') => self.view().selected = usize::MAX,
            _ => {}
        }
        Action::Nothing
    }

    fn set_filter(&mut self, filter: Filter, now: Instant) -> Action {
        if filter == self.filter {
            return Action::Nothing;
        }
        self.filter = filter;
        self.connections = Sweep::new(now);
        self.connections_view.selected = 0;
        self.feeds_view.selected = 0;
        Action::Connections
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
    /// Adapts the view to a list of `len` rows, of which `height` are visible.
    pub(super) fn fit(&mut self, len: usize, height: usize) {
        self.height = height;
        self.selected = self.selected.min(len.saturating_sub(1));
        self.top = self.top.min(self.selected).max((self.selected + 1).saturating_sub(height.max(1)));
        // No empty lines at the bottom while there are rows above.
        self.top = self.top.min(len.saturating_sub(height));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(page: &mut Page, code: KeyCode) -> Action {
        page.key(KeyEvent::new(code, KeyModifiers::NONE), Instant::now())
    }

    fn connection(id: u64, peer: &str, behind: i64) -> Connection {
        Connection { id, peer: peer.to_owned(), lag_revisions: Some(behind), ..Connection::default() }
    }

    fn page(rows: Vec<Connection>) -> Page {
        let mut page = Page::new("http://127.0.0.1:1".to_owned(), Instant::now());
        let state = State { cluster: Some(Cluster::default()), ..State::default() };
        page.update(Update::State(Box::new(state)), Instant::now());
        page.update(all(Filter::default(), rows), Instant::now());
        page
    }

    fn all(filter: Filter, rows: Vec<Connection>) -> Update {
        Update::Connections(filter, Part { after: 0, rows, next: None })
    }

    fn peers(page: &Page) -> Vec<&str> {
        page.sorted_connections().iter().map(|row| &*row.peer).collect()
    }

    #[test]
    fn connections_are_sorted_by_how_far_they_are_behind_and_then_as_keys_say() {
        let mut page = page(vec![connection(1, "b", 0), connection(2, "a", 7), connection(3, "c", 0)]);
        assert_eq!(peers(&page), ["a", "b", "c"]);
        press(&mut page, KeyCode::Char('r'));
        assert_eq!(peers(&page), ["b", "c", "a"], "equal rows stay in the order in which they were opened");
        press(&mut page, KeyCode::Char('s'));
        press(&mut page, KeyCode::Char('r'));
        assert_eq!(peers(&page), ["a", "b", "c"]);
        press(&mut page, KeyCode::Char('S'));
        press(&mut page, KeyCode::Char('S'));
        assert_eq!(page.connections_view.column, CONNECTIONS.len() - 1, "the selection of columns wraps around");
        press(&mut page, KeyCode::Char('s'));
        assert_eq!(page.connections_view.column, 0);
    }

    #[test]
    fn what_is_looked_for_is_asked_of_the_relay_and_late_answers_are_dropped() {
        let mut page = page(vec![connection(1, "a", 0)]);
        press(&mut page, KeyCode::Char('/'));
        for char in "qx".chars() {
            assert_eq!(
                press(&mut page, KeyCode::Char(char)),
                Action::Nothing,
                "a letter that is typed is not a \
                command"
            );
        }
        press(&mut page, KeyCode::Backspace);
        assert_eq!(press(&mut page, KeyCode::Enter), Action::Connections);
        assert_eq!(page.filter.find, "q");
        page.update(all(Filter::default(), vec![connection(1, "a", 0)]), Instant::now());
        assert!(peers(&page).is_empty() && !page.connections.is_complete());
        page.update(all(page.filter.clone(), vec![connection(2, "unlike", 0)]), Instant::now());
        assert_eq!(peers(&page), ["unlike"], "the relay searches more than it shows");
        assert_eq!(press(&mut page, KeyCode::Char('b')), Action::Connections);
        assert_eq!(press(&mut page, KeyCode::Esc), Action::Connections);
        assert_eq!(page.filter, Filter::default());
        assert_eq!(
            (press(&mut page, KeyCode::Esc), press(&mut page, KeyCode::Char('q'))),
            (Action::Nothing, Action::Quit)
        );
    }

    #[test]
    fn of_an_older_relay_rows_are_looked_through_here() {
        let mut page = page(vec![]);
        page.update(Update::State(Box::default()), Instant::now());
        page.filter = Filter { find: "a".to_owned(), behind: true };
        let rows = vec![connection(1, "a1", 0), connection(2, "a2", 3), connection(3, "b", 3)];
        page.update(all(page.filter.clone(), rows), Instant::now());
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
        page.update(Update::Connections(Filter::default(), stray), Instant::now());
        assert_eq!((peers(&page), page.connections.after()), (vec!["a"], 0));
    }

    #[test]
    fn trouble_lasts_from_its_first_moment_until_the_relay_answers() {
        let mut page = page(vec![connection(1, "a", 0)]);
        let start = Instant::now();
        page.update(Update::Trouble("refused".to_owned()), start);
        page.update(Update::Trouble("late".to_owned()), start + std::time::Duration::from_secs(3));
        assert_eq!(page.trouble, Some(("late".to_owned(), start)));
        assert_eq!(peers(&page), ["a"], "the earlier state is kept");
        page.update(Update::State(Box::default()), Instant::now());
        assert!(page.trouble.is_none());
    }
}
