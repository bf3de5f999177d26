//! Request bodies: taken in with limits on size, time and memory, and decompressed with the same.

use std::{
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use super::error::{ApiError, Fault};
use crate::config::{self, ByteSize};

/// Memory that all request bodies of the edge, and what is made of them, may take together.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    /// A budget of `max` bytes.
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max })
    }

    /// Bytes in use.
    pub(super) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
}

/// A share of a [`Budget`]; given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Share {
    fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: 0 }
    }

    /// Bytes of it.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes more of the budget, for what is about to be allocated.
    pub(super) fn grow(&mut self, by: usize) -> Result<(), ApiError> {
        let max = self.budget.max;
        if by > max {
            let why = "the body takes more memory than all bodies of this node may (http.max_bodies): send smaller ones";
            return Err(ApiError::new(Fault::TooLarge, why));
        }
        let fits = |used: usize| used.checked_add(by).filter(|sum| *sum <= max);
        match self.budget.used.fetch_update(Relaxed, Relaxed, fits) {
            Ok(_) => {
                self.bytes += by;
                Ok(())
            }
            Err(_) => Err(ApiError::new(
                Fault::Busy,
                "too many request bodies in memory on this node (http.max_bodies); send it again later, in \
                 smaller parts or to another node",
            )),
        }
    }

    /// Gives some back.
    pub(super) fn shrink(&mut self, by: usize) {
        let by = by.min(self.bytes);
        self.bytes -= by;
        self.budget.used.fetch_sub(by, Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

/// A body as the client meant it, and its share of the memory.
pub(super) struct Taken {
    /// The bytes, decompressed.
    pub(super) bytes: Bytes,
    /// To be kept as long as the bytes.
    pub(super) share: Share,
}

/// Memory set aside at once for a body of announced length, at most.
const RESERVED: usize = 256 * 1024;

/// Longest body that is words: a statement with its values, a form, a JSON object. As it arrives and
/// decompressed.
const WORDS: ByteSize = ByteSize::mib(1);
/// So many times their length words may become: of what they hold, only what is known is kept.
const KEPT: usize = 12;

/// How long a body may be.
#[derive(Debug, Clone, Copy)]
struct Most {
    arrived: ByteSize,
    inflated: ByteSize,
    /// What an error calls the two limits, and what helps.
    arrived_is: &'static str,
    inflated_is: &'static str,
}

impl Most {
    const WORDS: Self = Self {
        arrived: WORDS,
        inflated: WORDS,
        arrived_is: "(the limit of all but writes): shorten the statement",
        inflated_is: "(the limit of all but writes): shorten the statement",
    };

    fn of_points(limits: &config::Http) -> Self {
        Self {
            arrived: limits.max_body,
            inflated: limits.max_inflated,
            arrived_is: "(http.max_body): send smaller batches",
            inflated_is: "(http.max_inflated): send smaller batches",
        }
    }
}

/// Takes a body in and decompresses it. Dropping the future leaves the rest of the body unread.
pub(super) async fn take(
    body: Body,
    headers: &HeaderMap,
    limits: &config::Http,
    budget: &Arc<Budget>,
) -> Result<Taken, ApiError> {
    take_up_to(Most::of_points(limits), body, headers, limits, budget).await
}

/// Takes a body in that is words, and a share of the memory for what they become when they are parsed: to be
/// kept until then, and no longer.
pub(super) async fn take_words(
    body: Body,
    headers: &HeaderMap,
    limits: &config::Http,
    budget: &Arc<Budget>,
) -> Result<Taken, ApiError> {
    let mut taken = take_up_to(Most::WORDS, body, headers, limits, budget).await?;
    // One statement is not told that it never fits.
    taken.share.grow(taken.bytes.len().saturating_mul(KEPT).min(budget.max / 4))?;
    Ok(taken)
}

async fn take_up_to(
    most: Most,
    body: Body,
    headers: &HeaderMap,
    limits: &config::Http,
    budget: &Arc<Budget>,
) -> Result<Taken, ApiError> {
    let coding = Coding::of(headers)?;
    let taken = arrive_up_to(most, body, headers, limits, budget).await?;
    match coding.or_else(|| Coding::by_magic(&taken.bytes)) {
        None => Ok(taken),
        Some(coding) => {
            // It is several times as long when it is unpacked.
            off_thread(taken.bytes.len().saturating_mul(4), move || inflate(coding, taken, most)).await?
        }
    }
}

/// Takes a body in as it comes. Dropping the future leaves the rest of it unread.
pub(super) async fn arrive(
    body: Body,
    headers: &HeaderMap,
    limits: &config::Http,
    budget: &Arc<Budget>,
) -> Result<Taken, ApiError> {
    arrive_up_to(Most::of_points(limits), body, headers, limits, budget).await
}

async fn arrive_up_to(
    most: Most,
    mut body: Body,
    headers: &HeaderMap,
    limits: &config::Http,
    budget: &Arc<Budget>,
) -> Result<Taken, ApiError> {
    let max = most.arrived.as_usize();
    let too_large = || {
        ApiError::new(
            Fault::TooLarge,
            format!("the body is longer than {} {}", most.arrived, most.arrived_is),
        )
    };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|len| len > most.arrived.0) {
        return Err(too_large());
    }
    let mut share = Share::new(budget);
    let whole = async {
        let (mut first, mut bytes) = (Bytes::new(), BytesMut::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| ApiError::invalid(format!("the body broke off: {e}")))?;
            let Ok(data) = frame.into_data() else { continue };
            let len = first.len() + bytes.len();
            if len + data.len() > max {
                return Err(too_large());
            }
            if len == 0 {
                // Mostly all of it, and then nothing is copied.
                share.grow(data.len())?;
                first = data;
                continue;
            }
            // Pages are not there before they are written, so what was announced costs nothing yet.
            let announced = announced.and_then(|len| usize::try_from(len).ok()).unwrap_or(0);
            let least = if first.is_empty() { 0 } else { announced.min(RESERVED) };
            if let Some(room) = room(bytes.capacity(), len + data.len(), least, max) {
                // Both are there while one is copied into the other.
                share.grow(room)?;
                let before = bytes.capacity() + first.len();
                let mut longer = BytesMut::with_capacity(room);
                longer.extend_from_slice(&std::mem::take(&mut first));
                longer.extend_from_slice(&bytes);
                bytes = longer;
                share.shrink(before);
            }
            bytes.extend_from_slice(&data);
        }
        Ok(if bytes.is_empty() { first } else { bytes.freeze() })
    };
    let bytes = match tokio::time::timeout(limits.body_timeout, whole).await {
        Ok(done) => done?,
        Err(_) => {
            return Err(ApiError::new(
                Fault::Slow,
                format!("the body did not arrive within {} s", limits.body_timeout.as_secs_f32()),
            ));
        }
    };
    Ok(Taken { bytes, share })
}

/// Work on a shorter body is done in place: it takes a few hundred microseconds at most, and handing
/// it to another thread and back a tenth of that.
const IN_PLACE: usize = 128 * 1024;

/// Runs work on a body of `len` bytes: in place if it is short, else where it holds up nobody.
pub(super) async fn off_thread<T: Send + 'static>(
    len: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if len < IN_PLACE {
        return Ok(work());
    }
    let broken = |e| ApiError::new(Fault::Internal, format!("work on the request failed: {e}"));
    tokio::task::spawn_blocking(work).await.map_err(broken)
}

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Gzip,
    Zstd,
    Deflate,
}

impl Coding {
    /// As `Content-Encoding` says; `None` for no or `identity`.
    fn of(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        let Some(value) = headers.get(header::CONTENT_ENCODING) else { return Ok(None) };
        match value.to_str().unwrap_or("?").trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(None),
            "gzip" | "x-gzip" => Ok(Some(Self::Gzip)),
            "zstd" => Ok(Some(Self::Zstd)),
            "deflate" => Ok(Some(Self::Deflate)),
            _ => Err(ApiError::invalid("this Content-Encoding is not known: use gzip, zstd or deflate")),
        }
    }

    /// By the first bytes, for clients that compress and do not say so. No text starts like this.
    fn by_magic(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x1f, 0x8b, 8, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Largest zstd window taken, as a power of two: what a frame may make the decoder allocate. No level of
/// zstd asks for more without `--ultra` or `--long`.
const ZSTD_WINDOW_LOG: u32 = 23;

fn inflate(coding: Coding, taken: Taken, most: Most) -> Result<Taken, ApiError> {
    let Taken { bytes, mut share } = taken;
    let (input, packed) = (bytes.as_ref(), share.bytes());
    let mut all = |decoder: &mut dyn Read, window| read_all(decoder, window, most, &mut share);
    let out = match coding {
        Coding::Gzip => all(&mut flate2::read::MultiGzDecoder::new(input), 0)?,
        // RFC 9110 means zlib; some clients send raw deflate.
        Coding::Deflate if is_zlib(input) => all(&mut flate2::read::ZlibDecoder::new(input), 0)?,
        Coding::Deflate => all(&mut flate2::read::DeflateDecoder::new(input), 0)?,
        Coding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(|e| damaged(&e))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(|e| damaged(&e))?;
            all(&mut decoder, 1 << ZSTD_WINDOW_LOG)?
        }
    };
    share.shrink(packed);
    Ok(Taken { bytes: Bytes::from(out), share })
}

/// How long a buffer has to become that has to hold `needed` bytes, if it does not: twice what it was, so that
/// little is copied, and no longer than it can ever have to be.
fn room(has: usize, needed: usize, least: usize, most: usize) -> Option<usize> {
    (needed > has).then(|| has.saturating_mul(2).max(least).min(most).max(needed))
}

/// The two bytes of a zlib header: method 8, and a multiple of 31.
fn is_zlib(input: &[u8]) -> bool {
    matches!(input, [a, b, ..] if a & 0x0f == 8 && u16::from_be_bytes([*a, *b]).is_multiple_of(31))
}

fn damaged(error: &io::Error) -> ApiError {
    ApiError::invalid(format!("the body cannot be decompressed: {error}"))
}

/// All that a decoder gives. It holds a copy of the last `window` bytes at most, which counts while it does.
fn read_all(
    decoder: &mut dyn Read,
    window: usize,
    most: Most,
    share: &mut Share,
) -> Result<Vec<u8>, ApiError> {
    let mut out: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut held = 0;
    loop {
        let n = match decoder.read(&mut buffer) {
            Ok(0) => {
                share.shrink(held);
                return Ok(out);
            }
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(damaged(&e)),
        };
        if out.len() + n > most.inflated.as_usize() {
            let why = format!("the body is longer than {} decompressed {}", most.inflated, most.inflated_is);
            return Err(ApiError::new(Fault::TooLarge, why));
        }
        let more = n.min(window - held);
        share.grow(more)?;
        held += more;
        if let Some(room) = room(out.capacity(), out.len() + n, 0, most.inflated.as_usize()) {
            // Both are there while one is copied into the other.
            share.grow(room)?;
            let before = out.capacity();
            out.reserve_exact(room - out.len());
            share.shrink(before);
        }
        out.extend_from_slice(buffer.get(..n).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, time::Duration};

    use flate2::{Compression, write};

    use super::*;

    fn limits() -> config::Http {
        config::Http {
            max_body: ByteSize(100_000),
            max_inflated: ByteSize(1_000_000),
            ..config::Http::default()
        }
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = write::GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(plain: &[u8]) -> Vec<u8> {
        let mut encoder = write::ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn raw_deflate(plain: &[u8]) -> Vec<u8> {
        let mut encoder = write::DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    async fn taken(body: Vec<u8>, coding: &str, budget: &Arc<Budget>) -> Result<Taken, ApiError> {
        let mut headers = HeaderMap::new();
        if !coding.is_empty() {
            headers.insert("content-encoding", coding.parse().unwrap());
        }
        take(Body::from(body), &headers, &limits(), budget).await
    }

    #[tokio::test]
    async fn words_are_short_and_count_for_what_they_become() {
        let budget = Budget::new(10_000_000);
        let words = |body: Vec<u8>| {
            let headers = HeaderMap::new();
            let budget = Arc::clone(&budget);
            let limits = config::Http::default();
            async move { take_words(Body::from(body), &headers, &limits, &budget).await }
        };
        let taken = words(b"q=SHOW+DATABASES".to_vec()).await.unwrap();
        assert_eq!((taken.share.bytes(), budget.used()), (16 * 13, 16 * 13));
        drop(taken);
        for (body, fault) in [
            (vec![b'='; (1 << 20) + 1], Fault::TooLarge),
            (gzip(&vec![b'='; (1 << 20) + 1]), Fault::TooLarge),
        ] {
            assert_eq!(words(body).await.map(|taken| taken.bytes.len()).unwrap_err().fault(), fault);
        }
        // What they become takes a quarter of all at most, and others wait until it has become that.
        let one = words(gzip(&[b'='; 500_000])).await.unwrap();
        assert!((3_000_000..3_500_000).contains(&budget.used()), "{}", budget.used());
        let more = [words(vec![b'='; 500_000]).await.unwrap(), words(vec![b'='; 500_000]).await.unwrap()];
        assert_eq!(words(vec![b'='; 500_000]).await.map(drop).unwrap_err().fault(), Fault::Busy);
        drop((one, more));
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn every_coding_by_header_and_magic() {
        let plain = b"cpu,host=a usage=0.5\n".repeat(300);
        let budget = Budget::new(10_000_000);
        let mut two = gzip(b"first ");
        two.extend(gzip(b"second"));
        for (body, coding, want) in [
            (plain.clone(), "", plain.clone()),
            (plain.clone(), "identity", plain.clone()),
            (gzip(&plain), "gzip", plain.clone()),
            (gzip(&plain), "", plain.clone()),
            (zlib(&plain), "deflate", plain.clone()),
            (raw_deflate(&plain), "deflate", plain.clone()),
            (zstd::encode_all(&plain[..], 3).unwrap(), "zstd", plain.clone()),
            (zstd::encode_all(&plain[..], 3).unwrap(), "", plain.clone()),
            (two, "gzip", b"first second".to_vec()),
        ] {
            let got = taken(body, coding, &budget).await.unwrap();
            assert_eq!(got.bytes, want, "{coding}");
            // What it lies in may be longer than it is.
            assert!((got.bytes.len()..=got.bytes.len() * 2).contains(&budget.used()));
        }
        assert_eq!(budget.used(), 0);
        for (body, coding) in
            [(plain.clone(), "gzip"), (gzip(&plain)[..40].to_vec(), "gzip"), (plain.clone(), "br")]
        {
            assert_eq!(taken(body, coding, &budget).await.err().unwrap().fault(), Fault::Invalid);
        }
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn bombs_and_floods_are_cut_short() {
        let budget = Budget::new(10_000_000);
        let zeros = vec![0; 1_000_001];
        for (body, coding) in [
            (gzip(&zeros), "gzip"),
            (zlib(&zeros), "deflate"),
            (zstd::encode_all(&zeros[..], 3).unwrap(), "zstd"),
            (vec![b'a'; 100_001], ""),
        ] {
            assert!(body.len() < 2_000 || coding.is_empty());
            assert_eq!(taken(body, coding, &budget).await.err().unwrap().fault(), Fault::TooLarge);
        }
        assert!(taken(gzip(&zeros[1..]), "gzip", &budget).await.is_ok());
        assert!(taken(vec![b'a'; 100_000], "", &budget).await.is_ok());
        // No Content-Length, and more than allowed.
        let chunks = (0..11).map(|_| Ok::<_, io::Error>(Bytes::from(vec![b'a'; 10_000])));
        let body = Body::from_stream(futures::stream::iter(chunks));
        let flood = take(body, &HeaderMap::new(), &limits(), &budget).await;
        assert_eq!(flood.err().unwrap().fault(), Fault::TooLarge);
        // The memory of all together.
        let small = Budget::new(50_000);
        let first = taken(vec![b'a'; 40_000], "", &small).await.unwrap();
        assert_eq!(taken(vec![b'a'; 40_000], "", &small).await.err().unwrap().fault(), Fault::Busy);
        drop(first);
        assert!(taken(vec![b'a'; 40_000], "", &small).await.is_ok());
        // What never fits is not to be sent again.
        assert_eq!(
            taken(gzip(&zeros[..60_000]), "gzip", &small).await.err().unwrap().fault(),
            Fault::TooLarge
        );
        assert_eq!((budget.used(), small.used()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_given_up() {
        let stream = futures::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(7)).await;
            Some((Ok::<_, io::Error>(Bytes::from_static(b"x")), ()))
        });
        let budget = Budget::new(1_000);
        let slow = take(Body::from_stream(stream), &HeaderMap::new(), &limits(), &budget).await;
        assert_eq!(slow.err().unwrap().fault(), Fault::Slow);
        assert_eq!(budget.used(), 0);
    }
}
