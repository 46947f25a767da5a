//! `etcd-relay top`: shows a relay's state in a terminal, read from its `/debug/state`.
//!
//! The flags are in `cli::top`; `main` calls this. It depends on docs/debug-state.schema.json alone, and also shows the
//! answers of older relays. Always holds: each second it costs the relay at most one page of each list, and nothing
//! once it has ended. Text from others is escaped before it reaches the terminal (`text`). The terminal is restored at
//! the end (`screen`). If standard output is not a terminal, the state is printed once as plain text.

mod details;
mod draw;
mod lists;
mod numbers;
mod page;
mod rates;
mod reader;
mod screen;
mod state;
mod sweep;
mod table;
mod text;

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use crossterm::event::{Event, EventStream};
use futures_util::StreamExt as _;
use thiserror::Error;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

use self::{
    draw::draw,
    page::{Action, Filter, Page, Update},
    reader::Reader,
    screen::Screen,
};
use crate::fetch::Fetcher;

/// The page is redrawn at least this often, because it shows how old the data is.
const REDRAW: Duration = Duration::from_secs(1);
/// Answers that may wait to be drawn. When this many wait, no further request is sent.
const WAITING: usize = 4;

/// Which relay to show, and how.
#[derive(Debug)]
pub struct Top {
    /// Sends the requests.
    pub fetcher: Fetcher,
    /// Refresh interval.
    pub every: Duration,
    /// Whether to print the state once as plain text and end.
    pub once: bool,
    /// Show only rows that contain this text.
    pub find: String,
}

/// How `top` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The user quit, or the state was printed once.
    Done,
    /// A signal with this number ended it.
    Signal(u8),
}

impl Ended {
    /// The exit code. For a signal it is the one that a shell would report.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Signal(number) => 128 + number,
        }
    }
}

/// Why nothing can be shown.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TopError {
    /// The relay does not answer.
    #[error("{0}")]
    Relay(String),
    /// The terminal cannot be used.
    #[error("cannot use the terminal")]
    Terminal(#[source] io::Error),
    /// The system provides no signals or no timers.
    #[error("cannot start")]
    Start(#[source] io::Error),
    /// The text cannot be written.
    #[error("cannot write to standard output")]
    Write(#[source] io::Error),
}

impl Top {
    /// Shows the relay until the user or a signal ends it.
    ///
    /// # Errors
    /// Fails if the terminal cannot be used. If the state is printed once, it also fails if the relay does not answer;
    /// in a terminal it keeps trying instead.
    pub fn run(self) -> Result<Ended, TopError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(TopError::Start)?;
        let interactive = !self.once && io::stdout().is_terminal() && io::stdin().is_terminal();
        runtime.block_on(async { if interactive { self.show().await } else { self.picture().await } })
    }

    async fn show(self) -> Result<Ended, TopError> {
        let filter = Filter { find: self.find.clone(), behind: false };
        let (filters, filter_changes) = watch::channel(filter.clone());
        let (updates, mut came) = mpsc::channel(WAITING);
        let mut page = Page::new(self.fetcher.url().to_string(), Instant::now());
        page.filter = filter;
        let mut reading = std::pin::pin!(Reader::new(self.fetcher, self.every, filter_changes, updates).run());
        let listen = |kind| signal(kind).map_err(TopError::Start);
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut hang_up = listen(SignalKind::hangup())?;
        let mut redraw = tokio::time::interval(REDRAW);
        let mut screen = Screen::enter().map_err(TopError::Terminal)?;
        let mut keys = EventStream::new();
        loop {
            screen.draw(|frame| draw(frame, &mut page, Instant::now())).map_err(TopError::Terminal)?;
            // All branches are cancel safe.
            tokio::select! {
                // The reader ends only when nothing receives its updates any more.
                () = &mut reading => return Ok(Ended::Done),
                Some(update) = came.recv() => page.update(update, Instant::now()),
                event = keys.next() => match event {
                    Some(Ok(Event::Key(key))) => match page.key(key, Instant::now()) {
                        Action::Nothing => {}
                        Action::Connections => _ = filters.send_replace(page.filter.clone()),
                        Action::Quit => return Ok(Ended::Done),
                    },
                    // Other events, such as a new size: the next drawing uses it.
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(TopError::Terminal(error)),
                    None => return Ok(Ended::Done),
                },
                _ = redraw.tick() => {}
                _ = terminate.recv() => return Ok(Ended::Signal(15)),
                _ = interrupt.recv() => return Ok(Ended::Signal(2)),
                _ = hang_up.recv() => return Ok(Ended::Signal(1)),
            }
        }
    }

    /// Prints the state once. The rates come from two readings of the counters.
    async fn picture(self) -> Result<Ended, TopError> {
        let filter = Filter { find: self.find.clone(), behind: false };
        let (_wishes, filter_changes) = watch::channel(filter.clone());
        let (updates, mut came) = mpsc::channel(WAITING);
        let mut page = Page::new(self.fetcher.url().to_string(), Instant::now());
        page.filter = filter;
        let reader = Reader::new(self.fetcher, self.every, filter_changes, updates);
        let reading = async move {
            // The reader is dropped at the end of this block, and closes the channel of updates.
            let mut reader = reader;
            reader.read_state().await?;
            tokio::time::sleep(self.every).await;
            reader.round().await
        };
        let taking = async {
            while let Some(update) = came.recv().await {
                let update: Update = update;
                page.update(update, Instant::now());
            }
        };
        let (read, ()) = tokio::join!(reading, taking);
        read.map_err(|error| TopError::Relay(error.to_string()))?;
        let mut out = io::stdout().lock();
        match out.write_all(draw::text(&page, Instant::now()).as_bytes()).and_then(|()| out.flush()) {
            // The reader closed the pipe early, for example `head`: that is not an error.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(TopError::Write(error)),
            _ => Ok(Ended::Done),
        }
    }
}
