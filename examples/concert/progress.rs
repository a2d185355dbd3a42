//! The progress of a replay on stderr: a bar on a terminal, a plain line every few seconds
//! elsewhere.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::clock::now;
use crate::text::number;

const PLAIN_EVERY: Duration = Duration::from_secs(5);

pub struct Progress {
    bar: ProgressBar,
    told: Instant,
}

impl Progress {
    /// Creates a bar, which hides itself if stderr is not a terminal.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("[{bar:40}] {percent:>3}% {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        Self { bar, told: now() }
    }

    /// Creates a hidden one, for events that were read before.
    pub fn hidden() -> Self {
        Self { bar: ProgressBar::hidden(), told: now() }
    }

    /// Wraps a file, so that the progress counts its bytes.
    pub fn watch(&mut self, file: File, bytes: u64) -> impl Read + use<> {
        self.bar.set_length(bytes);
        self.bar.wrap_read(file)
    }

    pub fn tell(&mut self, lines: i64) {
        let text = format!("{} lines", number(lines.unsigned_abs()));
        if !self.bar.is_hidden() {
            self.bar.set_message(text);
        } else if self.told.elapsed() >= PLAIN_EVERY {
            let (position, length) = (self.bar.position(), self.bar.length().unwrap_or(0));
            let percent = (position * 100).checked_div(length).unwrap_or(100);
            // A log that is full or gone is no reason to stop.
            let _ = writeln!(io::stderr(), "{text} applied, {percent}%");
            self.told = now();
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
