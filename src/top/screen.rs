//! [`Screen`]: the terminal while `top` has it.
//!
//! Always holds: however `top` ends (by a key, an error, a signal that is handled, or a panic), the terminal is as it was: no raw mode, the screen of before, and
//! a cursor. After a panic its message stands on that screen.

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

/// See the module.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    _taken: Taken,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// Where standard output is none; then it is as it was.
    pub(super) fn enter() -> io::Result<Self> {
        restore_on_panic();
        // From here on it is given back whatever fails.
        let taken = Taken;
        terminal::enable_raw_mode()?;
        let mut out = io::stdout();
        out.queue(EnterAlternateScreen)?.queue(cursor::Hide)?.flush()?;
        Ok(Self { terminal: Terminal::new(CrosstermBackend::new(out))?, _taken: taken })
    }

    /// Draws, in the size that the terminal has now.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(draw).map(|_| ())
    }
}

/// Dropped, the terminal is given back.
struct Taken;

impl Drop for Taken {
    fn drop(&mut self) {
        give_back();
    }
}

/// Nothing can be done where this fails: the terminal is gone.
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

    /// Not a test of its own: the one below runs it in a terminal.
    #[test]
    #[ignore = "needs a terminal, which the test below gives it"]
    fn panics_on_its_screen() {
        let mut screen = Screen::enter().expect("a terminal");
        screen.draw(|frame| frame.buffer_mut().set_string(0, 0, "x", ratatui::style::Style::new())).expect("drawn");
        panic!("as it should");
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
            // Ends with an error once nobody has the terminal open.
            let _ = std::fs::File::from(controller).read_to_end(&mut told);
            told
        });
        assert!(!child.wait().expect("it ends").success(), "it panics");
        let after = tcgetattr(terminal.as_fd()).expect("its modes");
        assert_eq!(after.local_modes, before.local_modes, "no raw mode is left");
        assert_eq!(after.output_modes, before.output_modes);
        drop(terminal);
        let told = reader.join().expect("read");
        let told = String::from_utf8_lossy(&told);
        let places = [ENTERED, LEFT, "as it should"]
            .map(|text| told.find(text).unwrap_or_else(|| panic!("{text:?} is not in {told:?}")));
        assert!(places.is_sorted(), "{told:?}");
    }
}
