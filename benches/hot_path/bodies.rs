//! Rows of a fleet of machines as clients send them, as `skein bench write` does.

use rand::{Rng, SeedableRng, rngs::StdRng};
use skeinmesh::engine::columnar::{
    batch,
    ingest::{Options, Precision, line_protocol},
    schema::Schemas,
};

/// Rows of a body.
pub const ROWS: u64 = 1_000;
/// Time of the first row, in nanoseconds since 1970.
const START: u64 = 1_763_850_000_000_000_000;

/// How bodies are read.
pub fn options() -> Options {
    Options {
        database: "bench".into(),
        precision: Precision::Nanosecond,
        now_ns: 0,
        accept_partial: true,
        series: None,
    }
}

/// The `nth` body: host and four decimals of three values, a row each nanosecond.
pub fn line_protocol(nth: u64) -> String {
    let mut rng = StdRng::seed_from_u64(nth);
    let mut body = String::new();
    for row in 0..ROWS {
        let host = rng.random_range(0..1_000);
        let [value, idle, user] = std::array::from_fn(|_| f64::from(rng.random_range(0..1_000_000)) / 1e4);
        let time = START + nth * ROWS + row;
        body += &format!(
            "cpu,host=server{host:03} value={value:.4},cpu_idle={idle:.4},cpu_user={user:.4} {time}\n"
        );
    }
    body
}

/// The same as columns in MessagePack.
pub fn msgpack(nth: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(nth);
    let mut body = vec![0x82];
    for word in ["m", "cpu", "columns"] {
        text(&mut body, word);
    }
    body.push(0x85);
    list(&mut body, "time");
    for row in 0..ROWS {
        body.push(0xd3);
        body.extend_from_slice(&(START + nth * ROWS + row).to_be_bytes());
    }
    list(&mut body, "host");
    for _ in 0..ROWS {
        text(&mut body, &format!("server{:03}", rng.random_range(0..1_000)));
    }
    for name in ["value", "cpu_idle", "cpu_user"] {
        list(&mut body, name);
        for _ in 0..ROWS {
            body.push(0xcb);
            body.extend_from_slice(&(f64::from(rng.random_range(0..1_000_000)) / 1e4).to_be_bytes());
        }
    }
    body
}

fn text(body: &mut Vec<u8>, text: &str) {
    body.push(0xa0 | text.len() as u8);
    body.extend_from_slice(text.as_bytes());
}

fn list(body: &mut Vec<u8>, name: &str) {
    text(body, name);
    body.push(0xdd);
    body.extend_from_slice(&(ROWS as u32).to_be_bytes());
}

/// The `nth` body as the payload of a record.
pub fn payload(nth: u64) -> bytes::Bytes {
    let parsed =
        line_protocol::parse(line_protocol(nth).as_bytes(), &options(), &Schemas::default(), &mut |_| true);
    batch::encode(&parsed.expect("a good body").batch.expect("points")).expect("a payload")
}
