//! [`Screen`]: the terminal while `top` uses it.
//!
//! Always holds: the terminal is restored however `top` ends: by a key, an error, a handled signal or a panic. Raw mode
//! is off, the previous screen is back and the cursor is visible. The message of a panic is shown on that screen.

use std::{
    io::{self, Stdout, Write},
    panic,
    sync::Once,
};

use crossterm::{
    QueueableCommand as _, cursor,
    terminal::{self, EnterAlternateScreen, LeaveAlternateScreen},
};
use ratatui::{Frame, Terminal, backend::CrosstermBackend};

/// The terminal in raw mode; see the module.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    _taken: Taken,
}

impl Screen {
    /// Switches the terminal to the page.
    ///
    /// # Errors
    /// Fails if standard output is not a terminal, which then stays unchanged.
    pub(super) fn enter() -> io::Result<Self> {
        restore_on_panic();
        // From here on, dropping this value restores the terminal if anything fails.
        let taken = Taken;
        terminal::enable_raw_mode()?;
        let mut out = io::stdout();
        out.queue(EnterAlternateScreen)?.queue(cursor::Hide)?.flush()?;
        Ok(Self { terminal: Terminal::new(CrosstermBackend::new(out))?, _taken: taken })
    }

    /// Draws in the current size of the terminal.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(draw).map(|_| ())
    }
}

/// Restores the terminal when it is dropped.
struct Taken;

impl Drop for Taken {
    fn drop(&mut self) {
        give_back();
    }
}

/// Errors are ignored: if this fails, the terminal is gone.
fn give_back() {
    let _ = terminal::disable_raw_mode();
    let mut out = io::stdout();
    let _ = out.queue(LeaveAlternateScreen).and_then(|out| out.queue(cursor::Show)).and_then(Write::flush);
}

fn restore_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            give_back();
            tell(info);
        }));
    });
}

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, io::Read as _, os::fd::AsFd as _, process::Command};

    use rustix::{
        pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
        termios::tcgetattr,
    };

    use super::*;

    const ENTERED: &str = "\x1b[?1049h";
    const LEFT: &str = "\x1b[?1049l";

    /// Not a test by itself: the test below runs it in a terminal.
    #[test]
    #[ignore = "needs a terminal, which the test below provides"]
    fn panics_on_its_screen() {
        let mut screen = Screen::enter().expect("a terminal");
        screen.draw(|frame| frame.buffer_mut().set_string(0, 0, "x", ratatui::style::Style::new())).expect("drawn");
        panic!("this panic is intended");
    }

    #[test]
    fn a_panic_gives_the_terminal_back_and_says_why_there() {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&controller).and_then(|()| unlockpt(&controller)).expect("a terminal");
        let name = ptsname(&controller, Vec::new()).expect("a name").into_string().expect("a path");
        let terminal = OpenOptions::new().read(true).write(true).open(name).expect("a terminal");
        let before = tcgetattr(terminal.as_fd()).expect("its modes");
        let end = || terminal.try_clone().expect("a file");
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        let test = concat!(module_path!(), "::panics_on_its_screen");
        let test = test.split_once("::").map_or(test, |(_, path)| path);
        command.args(["--exact", test, "--ignored", "--nocapture"]);
        let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("it runs");
        drop(command);
        let reader = std::thread::spawn(move || {
            let mut told = Vec::new();
            // Reading ends with an error once no process has the terminal open.
            let _ = std::fs::File::from(controller).read_to_end(&mut told);
            told
        });
        assert!(!child.wait().expect("it ends").success(), "it panics");
        let after = tcgetattr(terminal.as_fd()).expect("its modes");
        assert_eq!(after.local_modes, before.local_modes, "raw mode is off again");
        assert_eq!(after.output_modes, before.output_modes);
        drop(terminal);
        let told = reader.join().expect("read");
        let told = String::from_utf8_lossy(&told);
        let places = [ENTERED, LEFT, "this panic is intended"]
            .map(|text| told.find(text).unwrap_or_else(|| panic!("{text:?} is not in {told:?}")));
        assert!(places.is_sorted(), "{told:?}");
    }
}
