//! `etcd-relay top`: a relay's state in a terminal, from its `/debug/state`.
//!
//! Not here: flags, see `cli::top`. Called by `main`. Knows nothing of the relay but docs/debug-state.schema.json, and shows what an older relay tells as well.
//! Always holds: it costs the relay a bounded page of each list a second, and nothing after it has ended; text of others reaches the terminal escaped
//! (`text`); the terminal is given back as it was (`screen`); where standard output is no terminal, one picture in plain text is written.

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
    page::{Asks, Page, Update, Wish},
    reader::Reader,
    screen::Screen,
};
use crate::fetch::Fetcher;

/// How often the page is drawn at least: it says how old it is.
const REDRAW: Duration = Duration::from_secs(1);
/// Answers that wait to be drawn; then the relay is asked for no more.
const WAITING: usize = 4;

/// Which relay to show, and how.
#[derive(Debug)]
pub struct Top {
    /// Asks it.
    pub fetcher: Fetcher,
    /// Time between two looks.
    pub every: Duration,
    /// Whether to write one picture in plain text, and end.
    pub once: bool,
    /// Only rows with this text.
    pub find: String,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As it was told to.
    Done,
    /// By a signal of this number.
    Signal(u8),
}

impl Ended {
    /// The exit code, as a shell makes it of a signal.
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
    /// The system gives no signals or no timers.
    #[error("cannot start")]
    Start(#[source] io::Error),
    /// The picture cannot be written.
    #[error("cannot write to standard output")]
    Write(#[source] io::Error),
}

impl Top {
    /// Shows the relay until told to end.
    ///
    /// # Errors
    /// Where the terminal cannot be used; and, for one picture, where the relay does not answer. A terminal waits for the relay instead.
    pub fn run(self) -> Result<Ended, TopError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(TopError::Start)?;
        let interactive = !self.once && io::stdout().is_terminal() && io::stdin().is_terminal();
        runtime.block_on(async { if interactive { self.show().await } else { self.picture().await } })
    }

    async fn show(self) -> Result<Ended, TopError> {
        let wish = Wish { find: self.find.clone(), behind: false };
        let (wishes, wished) = watch::channel(wish.clone());
        let (updates, mut came) = mpsc::channel(WAITING);
        let mut page = Page::new(self.fetcher.url().to_string(), Instant::now());
        page.wish = wish;
        let mut reading = std::pin::pin!(Reader::new(self.fetcher, self.every, wished, updates).run());
        let listen = |kind| signal(kind).map_err(TopError::Start);
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut hang_up = listen(SignalKind::hangup())?;
        let mut redraw = tokio::time::interval(REDRAW);
        let mut screen = Screen::enter().map_err(TopError::Terminal)?;
        let mut keys = EventStream::new();
        loop {
            screen.draw(|frame| draw(frame, &mut page, Instant::now())).map_err(TopError::Terminal)?;
            // Cancel safe, all.
            tokio::select! {
                // Ends only when nobody listens any more.
                () = &mut reading => return Ok(Ended::Done),
                Some(update) = came.recv() => page.update(update, Instant::now()),
                event = keys.next() => match event {
                    Some(Ok(Event::Key(key))) => match page.key(key, Instant::now()) {
                        Asks::Nothing => {}
                        Asks::Connections => _ = wishes.send_replace(page.wish.clone()),
                        Asks::Quit => return Ok(Ended::Done),
                    },
                    // A new size, for one: it is drawn in that.
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

    /// One picture, from two looks at the counters.
    async fn picture(self) -> Result<Ended, TopError> {
        let wish = Wish { find: self.find.clone(), behind: false };
        let (_wishes, wished) = watch::channel(wish.clone());
        let (updates, mut came) = mpsc::channel(WAITING);
        let mut page = Page::new(self.fetcher.url().to_string(), Instant::now());
        page.wish = wish;
        let reader = Reader::new(self.fetcher, self.every, wished, updates);
        let reading = async move {
            // Ends with this, and the updates with it.
            let mut reader = reader;
            reader.tell_state().await?;
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
            // Whoever wanted only the beginning has it.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(TopError::Write(error)),
            _ => Ok(Ended::Done),
        }
    }
}
