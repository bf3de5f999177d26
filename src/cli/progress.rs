//! How far long work is, on standard error: a bar on a terminal, a line now and then elsewhere.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// Between two looks of a bar, and between two lines.
const EVERY: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];
/// Characters of the bar itself.
const WIDTH: u64 = 24;

/// Work of so many bytes.
pub(super) struct Progress {
    what: &'static str,
    total: u64,
    done: u64,
    began: Instant,
    told: Instant,
    terminal: bool,
}

impl Progress {
    /// Work that begins now; `total` 0 if nobody knows how much it is.
    pub(super) fn new(what: &'static str, total: u64) -> Self {
        let (began, terminal) = (Instant::now(), io::stderr().is_terminal());
        Self { what, total, done: 0, began, told: began, terminal }
    }

    /// So many bytes more are done.
    pub(super) fn add(&mut self, bytes: u64) {
        self.done += bytes;
        let [bar, line] = EVERY;
        if self.told.elapsed() >= if self.terminal { bar } else { line } {
            self.told = Instant::now();
            self.tell();
        }
    }

    /// The work is over, well or not.
    pub(super) fn end(self) {
        if self.terminal {
            self.tell();
            let _ = writeln!(io::stderr());
        }
    }

    fn tell(&self) {
        let text = show(self.what, self.done, self.total, self.began.elapsed());
        // Nobody can be told that standard error is gone.
        let _ = match self.terminal {
            true => write!(io::stderr(), "\r\x1b[2K{text}"),
            false => writeln!(io::stderr(), "{text}"),
        };
        let _ = io::stderr().flush();
    }
}

fn show(what: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
    let speed = format!("{}/s", size(rate as u64));
    if total == 0 {
        return format!("{what}  {}  {speed}", size(done));
    }
    let part = |of: u64| done.min(total).saturating_mul(of) / total;
    let bar = format!("{:<width$}", "=".repeat(part(WIDTH) as usize), width = WIDTH as usize);
    let left = (total.saturating_sub(done)) as f64 / rate.max(1.0);
    let (percent, has, all) = (part(100), size(done), size(total));
    format!("{what}  [{bar}] {percent:>3} %  {has} of {all}  {speed}  {} left", clock(left.ceil() as u64))
}

/// Seconds as people say them.
fn clock(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Bytes as people say them.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS.get(unit).unwrap_or(&""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_see() {
        let half = show("reading", 512 << 20, 1 << 30, Duration::from_secs(4));
        assert_eq!(
            half,
            "reading  [============            ]  50 %  512.0 MiB of 1.0 GiB  128.0 MiB/s  4 s left"
        );
        assert_eq!(show("reading", 2048, 0, Duration::from_secs(2)), "reading  2.0 KiB  1.0 KiB/s");
        assert!(show("x", 0, 10, Duration::ZERO).contains("  0 %"));
        assert!(show("x", 11, 10, Duration::from_secs(1)).contains("100 %"), "never more than all");
        assert_eq!(
            (clock(59), clock(61), clock(7260)),
            ("59 s".into(), "1 min 1 s".into(), "2 h 1 min".into())
        );
        assert_eq!((size(1023), size(1 << 50)), ("1023 B".into(), "1024.0 TiB".into()));
    }
}
