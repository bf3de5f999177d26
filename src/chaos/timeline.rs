//! What happened when: on standard error, and in a file beside the nodes' logs.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use tokio::time::Instant;

/// See the module.
#[derive(Debug)]
pub struct Timeline {
    began: Instant,
    file: File,
}

impl Timeline {
    pub fn new(home: &Path) -> io::Result<Self> {
        Ok(Self { began: Instant::now(), file: File::create(home.join("timeline.log"))? })
    }

    pub fn say(&mut self, what: &str) {
        let line = format!("{:8.3} s  {what}\n", self.began.elapsed().as_secs_f64());
        // A full disk of the host ends no run.
        let _ = self.file.write_all(line.as_bytes());
        let _ = io::stderr().write_all(line.as_bytes());
    }
}
