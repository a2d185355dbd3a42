//! The progress of a replay on stderr: a bar on a terminal, a plain line every few seconds
//! elsewhere.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::clock::now;
use crate::text::number;

const LINE_PERIOD: Duration = Duration::from_secs(5);

pub struct Progress {
    bar: ProgressBar,
    last_shown: Instant,
}

impl Progress {
    /// Creates a bar, which hides itself if stderr is not a terminal.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("[{bar:40}] {percent:>3}% {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        Self { bar, last_shown: now() }
    }

    /// Creates a progress that is not shown, for events that are read again.
    pub fn hidden() -> Self {
        Self { bar: ProgressBar::hidden(), last_shown: now() }
    }

    /// Wraps a file, so that the progress counts the bytes that are read.
    pub fn watch(&mut self, file: File, bytes: u64) -> impl Read + use<> {
        self.bar.set_length(bytes);
        self.bar.wrap_read(file)
    }

    pub fn show(&mut self, lines: i64) {
        let text = format!("{} lines", number(lines.unsigned_abs()));
        if !self.bar.is_hidden() {
            self.bar.set_message(text);
        } else if self.last_shown.elapsed() >= LINE_PERIOD {
            let (position, length) = (self.bar.position(), self.bar.length().unwrap_or(0));
            let percent = (position * 100).checked_div(length).unwrap_or(100);
            // The replay goes on if stderr cannot be written.
            let _ = writeln!(io::stderr(), "{text} applied, {percent}%");
            self.last_shown = now();
        }
    }

    pub fn end(&mut self, lines: i64) {
        if self.bar.is_hidden() {
            let _ = writeln!(io::stderr(), "{} lines applied, 100%", number(lines.unsigned_abs()));
        } else {
            self.bar.finish();
        }
    }
}
