//! `skein write`: line protocol from a file or standard input, in pieces that a node takes.

use std::{
    fs::File,
    io::{self, Read},
};

use bytes::Bytes;
use clap::Args;
use hyper::Method;
use serde_json::json;

use crate::node::AckLevel;

use super::{Client, ClientError, Failure, TargetArgs, client::query_string, output};

/// Flags of `skein write`.
#[derive(Debug, Args)]
pub(super) struct WriteArgs {
    /// File with line protocol, or - for standard input
    #[arg(default_value = "-")]
    file: String,
    /// Database to write to; made by its first write
    #[arg(short = 'd', long = "database", value_name = "DB", default_value = "default")]
    database: String,
    /// What timestamps count: ns, us, ms, s, or auto
    #[arg(long, default_value = "ns")]
    precision: String,
    /// When a piece counts as written: memory, local, quorum or all [default: the cluster's]
    #[arg(long, value_parser = AckLevel::EVERY.map(AckLevel::as_str))]
    ack: Option<String>,
    #[command(flatten)]
    target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Size from which on a piece is sent at the next end of a point, in bytes.
const PIECE: usize = 4 << 20;
/// Longest piece, in bytes: what one point may need.
const PIECE_LIMIT: usize = 20 << 20;
/// Bad lines that are shown.
const SHOWN: usize = 20;

pub(super) async fn run(args: WriteArgs) -> Result<(), Failure> {
    let client = Client::from_env(args.target.resolve()?);
    let pairs = [
        ("db", Some(args.database.as_str())),
        ("precision", Some(args.precision.as_str())),
        ("ack", args.ack.as_deref()),
    ];
    let path = format!("/api/v3/write_lp{}", query_string(&pairs));
    let input: Box<dyn Read + Send> = match args.file.as_str() {
        "-" => Box::new(io::stdin()),
        file => Box::new(File::open(file).map_err(|e| Failure::new(format!("cannot read {file}: {e}")))?),
    };
    let mut pieces = Pieces::new(input);
    let mut done = Done::default();
    loop {
        // The command has nothing else to do while it reads.
        let piece = tokio::task::block_in_place(|| pieces.next())
            .map_err(|e| Failure::new(format!("cannot read {}: {e}", args.file)))?;
        let Some(piece) = piece else { break };
        let lines_before = done.lines;
        done.lines += count_lines(&piece);
        done.bytes += piece.len() as u64;
        match client.send(Method::POST, &path, piece).await {
            Ok(answer) => done.note(answer.header("x-skein-lsn"), answer.header("x-skein-ack")),
            Err(ClientError::Refused { lines, headers, .. }) if !lines.is_empty() => {
                let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
                done.note(text("x-skein-lsn"), text("x-skein-ack"));
                done.bad.extend(lines.into_iter().map(|(line, error)| (line + lines_before, error)));
            }
            Err(error) if lines_before == 0 => return Err(error.into()),
            Err(error) => {
                return Err(Failure::new(format!(
                    "{error}; lines 1 to {lines_before} were written, what follows was not"
                )));
            }
        }
    }
    done.report(args.json)
}

/// What became of the pieces.
#[derive(Default)]
struct Done {
    lines: u64,
    bytes: u64,
    last: Option<(String, String)>,
    bad: Vec<(u64, String)>,
}

impl Done {
    fn note(&mut self, lsn: Option<&str>, ack: Option<&str>) {
        if let (Some(lsn), Some(ack)) = (lsn, ack) {
            self.last = Some((lsn.to_owned(), ack.to_owned()));
        }
    }

    fn report(self, as_json: bool) -> Result<(), Failure> {
        let Self { lines, bytes, last, bad } = self;
        if as_json && (last.is_some() || !bad.is_empty()) {
            let (lsn, ack) = last.clone().unzip();
            let line = |(line, error): &(u64, String)| json!({ "line": line, "error": error });
            let refused: Vec<_> = bad.iter().map(line).collect();
            output::json(
                &json!({ "lines": lines, "bytes": bytes, "lsn": lsn, "ack": ack, "refused": refused }),
            )?;
        } else if let Some((lsn, ack)) = &last {
            output::print(&format!("{lines} lines, {bytes} bytes sent; written up to {lsn} (ack {ack})\n"))?;
        }
        if bad.is_empty() {
            return if last.is_some() { Ok(()) } else { Err(Failure::usage("there was nothing to write")) };
        }
        let mut message = format!("{} points were not taken:", bad.len());
        for (line, error) in bad.iter().take(SHOWN) {
            message.push_str(&format!("\n  line {line}: {error}"));
        }
        if bad.len() > SHOWN {
            message.push_str(&format!("\n  and {} more", bad.len() - SHOWN));
        }
        Err(Failure::new(message))
    }
}

fn count_lines(piece: &[u8]) -> u64 {
    let breaks = piece.iter().filter(|byte| **byte == b'\n').count() as u64;
    breaks + u64::from(piece.last().is_some_and(|byte| *byte != b'\n'))
}

/// Cuts a stream of line protocol where a point ends: at a line break that is in no string.
struct Pieces<R> {
    input: R,
    rest: Vec<u8>,
    ended: bool,
}

impl<R: Read> Pieces<R> {
    fn new(input: R) -> Self {
        Self { input, rest: Vec::new(), ended: false }
    }

    /// The next piece; `None` at the end.
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut scan = Scan::default();
        let mut scanned = 0;
        let mut end = None;
        loop {
            for (at, byte) in self.rest.iter().enumerate().skip(scanned) {
                if scan.step(*byte) {
                    end = Some(at + 1);
                    if at + 1 >= PIECE {
                        break;
                    }
                }
            }
            scanned = self.rest.len();
            if self.ended || end.is_some_and(|end| end >= PIECE) {
                break;
            }
            if self.rest.len() >= PIECE_LIMIT {
                let what = format!("no point ends within {PIECE_LIMIT} bytes: is a quote left open?");
                if end.is_none() {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
                break;
            }
            let mut buffer = vec![0; 1 << 20];
            let n = self.input.read(&mut buffer)?;
            self.ended = n == 0;
            self.rest.extend_from_slice(buffer.get(..n).unwrap_or_default());
        }
        // At the end of the input the last point needs no line break.
        let whole = self.ended && end.is_none_or(|end| end < PIECE);
        let end = if whole { self.rest.len() } else { end.unwrap_or(self.rest.len()) };
        let piece: Vec<u8> = self.rest.drain(..end).collect();
        Ok((!piece.is_empty()).then(|| Bytes::from(piece)))
    }
}

/// Where in a point the scanner stands.
#[derive(Clone, Copy, Default, PartialEq)]
enum Part {
    /// At the start of a line.
    #[default]
    Start,
    /// In a comment.
    Comment,
    /// In table name and tags, where a quote is an ordinary character.
    Key,
    /// In fields.
    Fields,
    /// In a string.
    Text,
    /// In the timestamp.
    Time,
}

/// Follows line protocol just closely enough to tell a line break that ends a point.
#[derive(Default)]
struct Scan {
    part: Part,
    escaped: bool,
}

impl Scan {
    /// Takes a byte; true if a point, comment or empty line ends with it.
    fn step(&mut self, byte: u8) -> bool {
        // A line break ends a point behind a backslash too, but not in a string.
        if std::mem::take(&mut self.escaped) && (byte != b'\n' || self.part == Part::Text) {
            return false;
        }
        self.part = match (self.part, byte) {
            (Part::Text, b'"') => Part::Fields,
            (Part::Fields, b'"') => Part::Text,
            (Part::Text | Part::Key | Part::Fields, b'\\') => {
                self.escaped = true;
                self.part
            }
            (Part::Text, _) => Part::Text,
            (_, b'\n') => {
                self.part = Part::Start;
                return true;
            }
            (Part::Start, b' ' | b'\t' | b'\r') => Part::Start,
            (Part::Start, b'#') => Part::Comment,
            (Part::Start, b'\\') => {
                self.escaped = true;
                Part::Key
            }
            (Part::Start, _) => Part::Key,
            (Part::Key, b' ') => Part::Fields,
            (Part::Fields, b' ') => Part::Time,
            (part, _) => part,
        };
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(text: &str) -> Vec<usize> {
        let mut scan = Scan::default();
        text.bytes().enumerate().filter(|(_, byte)| scan.step(*byte)).map(|(at, _)| at + 1).collect()
    }

    #[test]
    fn points_end_outside_of_strings() {
        assert_eq!(ends("cpu v=1\ncpu v=2 7\n\n# a \"comment\ncpu v=3"), [8, 18, 19, 32]);
        assert_eq!(ends("cpu s=\"two\nlines\",v=1 7\nx v=1\n"), [24, 30]);
        assert_eq!(ends("cpu s=\"a \\\" b\n\" 7\nx v=1\n"), [18, 24]);
        assert_eq!(ends("cpu s=\"ends in backslash \\\\\" 7\nx v=1\n"), [31, 37]);
        // In names and tags a quote is only a character.
        assert_eq!(ends("c\"pu,t=a\"b v=1\nx v=1\n"), [15, 21]);
        assert_eq!(ends("c\\ p\\,u,t=\\\"\\ x s=\"\n\"\nx v=1\n"), [22, 28]);
        assert_eq!(ends("  cpu v=1\r\ncpu v=2\r\n"), [11, 20]);
    }

    /// Hands out few bytes at a time.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(into.len()).min(self.0.len());
            into[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    #[test]
    fn pieces_are_whole_points_and_all_of_the_input() {
        let point = format!("cpu s=\"{}\n\" 7\n", "x".repeat(100_000));
        let text = format!("{}last v=1", point.repeat(100));
        for step in [1 << 20, 300_007] {
            let mut pieces = Pieces::new(Drip(text.as_bytes(), step));
            let mut got = Vec::new();
            while let Some(piece) = pieces.next().unwrap() {
                assert!(piece.len() <= PIECE + point.len());
                assert!(piece.ends_with(b" 7\n") || piece.ends_with(b"last v=1"));
                got.extend_from_slice(&piece);
            }
            assert!(got == text.as_bytes());
        }
        assert!(Pieces::new(&b""[..]).next().unwrap().is_none());
    }

    #[test]
    fn an_open_quote_does_not_take_all_memory() {
        let text = format!("cpu s=\"{}", "x\n".repeat(PIECE_LIMIT));
        let error = Pieces::new(text.as_bytes()).next().unwrap_err();
        assert!(error.to_string().contains("quote"), "{error}");
    }

    #[test]
    fn lines_are_counted_as_people_do() {
        assert_eq!(count_lines(b"a\nb\n"), 2);
        assert_eq!(count_lines(b"a\nb"), 2);
        assert_eq!(count_lines(b""), 0);
    }
}
