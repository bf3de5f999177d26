//! SRV records (RFC 2782): where the nodes of a cluster are, by one name. The system's resolver answers
//! for addresses only, so the name servers of `/etc/resolv.conf` are asked here, over UDP.
//!
//! Whoever forges an answer makes this node dial in vain, and no more: addresses are hints.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{net::UdpSocket, time::timeout};

/// Longest wait for one name server.
const PATIENCE: Duration = Duration::from_secs(2);
/// Name servers that are asked, one after the other, as many as the system's resolver asks.
const SERVERS: usize = 3;
/// Longest answer, as the question says (RFC 6891); a longer one comes cut, and what is there counts.
const ANSWER: usize = 1232;
/// Most records that are looked at.
const RECORDS: usize = 64;
/// Labels and pointers of one name; a loop has more.
const STEPS: usize = 128;
/// Longest name as text.
const NAME: usize = 253;

const SRV: u16 = 33;
const OPT: u16 = 41;
const IN: u16 = 1;

/// Where a service is, as a record says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    priority: u16,
    /// Its DNS name.
    pub(super) host: String,
    /// Its port.
    pub(super) port: u16,
}

/// The name servers of this machine.
pub(super) async fn servers_here() -> Vec<SocketAddr> {
    servers(&tokio::fs::read_to_string("/etc/resolv.conf").await.unwrap_or_default())
}

/// The places behind a name, by priority, as the first of these servers that knows says. All of them are
/// tried in the end, so weights mean nothing.
pub(super) async fn places(servers: &[SocketAddr], name: &str) -> io::Result<Vec<Place>> {
    let mut last = io::Error::other("no name server in /etc/resolv.conf");
    for server in servers {
        match timeout(PATIENCE, ask(*server, name)).await {
            Ok(Ok(places)) => return Ok(places),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{server} did not answer")),
        }
    }
    Err(last)
}

/// Name servers of a `resolv.conf`; this machine's own if there is none, as in the system's resolver.
fn servers(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok())?
    });
    let mut servers: Vec<_> = named.map(|ip| SocketAddr::new(ip, 53)).take(SERVERS).collect();
    if servers.is_empty() {
        servers.push(SocketAddr::from(([127, 0, 0, 1], 53)));
    }
    servers
}

async fn ask(server: SocketAddr, name: &str) -> io::Result<Vec<Place>> {
    let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    // The system has drawn the port; that and the socket's peer are all that tells an answer from another.
    let id = socket.local_addr()?.port();
    let question = question(id, name).ok_or_else(|| bad("the name cannot be asked for"))?;
    socket.send(&question).await?;
    let mut answer = [0; ANSWER];
    loop {
        let len = socket.recv(&mut answer).await?;
        let Some(bytes) = answer.get(..len) else { continue };
        // What is no answer to this question was for somebody else, or is late.
        if let Some(read) = Answer::of(bytes, id) {
            return read.places();
        }
    }
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// A question for SRV records, with room for long answers; `None` if the name is none.
fn question(id: u16, name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(64);
    // Recursion desired; one question, one additional record.
    for word in [id, 0x0100, 1, 0, 0, 1] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    if name.len() > NAME {
        return None;
    }
    for label in name.trim_end_matches('.').split('.') {
        let len = u8::try_from(label.len()).ok().filter(|len| (1..64).contains(len))?;
        bytes.push(len);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    for word in [SRV, IN] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes.push(0);
    for word in [OPT, ANSWER as u16, 0, 0, 0] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    Some(bytes)
}

/// An answer to a question of ours.
struct Answer<'a> {
    bytes: &'a [u8],
    code: u16,
    questions: u16,
    records: u16,
}

impl<'a> Answer<'a> {
    /// `None` if it is none, or to another question.
    fn of(bytes: &'a [u8], id: u16) -> Option<Self> {
        let mut at = 0;
        let (got, flags) = (word(bytes, &mut at)?, word(bytes, &mut at)?);
        let (questions, records) = (word(bytes, &mut at)?, word(bytes, &mut at)?);
        (got == id && flags & 0x8000 != 0).then_some(Self { bytes, code: flags & 0xf, questions, records })
    }

    /// What its SRV records say. A record that is cut ends the list.
    fn places(&self) -> io::Result<Vec<Place>> {
        match self.code {
            0 => {}
            3 => return Err(io::Error::new(io::ErrorKind::NotFound, "there is no such name")),
            code => return Err(bad(&format!("the name server says error {code}"))),
        }
        let mut at = 12;
        for _ in 0..self.questions {
            skip_name(self.bytes, &mut at).ok_or_else(|| bad("the answer is cut in its question"))?;
            at += 4;
        }
        let mut places = Vec::new();
        for _ in 0..usize::from(self.records).min(RECORDS) {
            match self.record(&mut at) {
                Some(Some(place)) => places.push(place),
                Some(None) => {}
                None => break,
            }
        }
        places.sort();
        Ok(places)
    }

    /// The next record: a place if it is an SRV record that names one; `None` at the end of what came.
    fn record(&self, at: &mut usize) -> Option<Option<Place>> {
        skip_name(self.bytes, at)?;
        let (kind, class) = (word(self.bytes, at)?, word(self.bytes, at)?);
        *at += 4;
        let len = usize::from(word(self.bytes, at)?);
        let data = *at;
        *at = data.checked_add(len).filter(|end| *end <= self.bytes.len())?;
        if (kind, class) != (SRV, IN) {
            return Some(None);
        }
        let mut at = data;
        let (priority, _weight, port) =
            (word(self.bytes, &mut at)?, word(self.bytes, &mut at)?, word(self.bytes, &mut at)?);
        // A lone dot says that there is no such service.
        let host = name(self.bytes, at)?;
        Some((port != 0 && !host.is_empty()).then_some(Place { priority, host, port }))
    }
}

fn word(bytes: &[u8], at: &mut usize) -> Option<u16> {
    let two = bytes.get(*at..at.checked_add(2)?)?;
    *at += 2;
    Some(u16::from_be_bytes(two.try_into().ok()?))
}

/// Steps over a name, which ends with a zero or a pointer.
fn skip_name(bytes: &[u8], at: &mut usize) -> Option<()> {
    for _ in 0..STEPS {
        match *bytes.get(*at)? {
            0 => {
                *at += 1;
                return Some(());
            }
            0xc0.. => {
                *at += 2;
                return Some(());
            }
            len @ 1..64 => *at += usize::from(len) + 1,
            64..0xc0 => return None,
        }
    }
    None
}

/// The name there; `None` if it is none, loops, or has other letters than a host name.
fn name(bytes: &[u8], mut at: usize) -> Option<String> {
    let mut text = String::new();
    for _ in 0..STEPS {
        match *bytes.get(at)? {
            0 => return Some(text),
            high @ 0xc0.. => at = usize::from(u16::from_be_bytes([high & 0x3f, *bytes.get(at + 1)?])),
            len @ 1..64 => {
                let label = bytes.get(at + 1..at + 1 + usize::from(len))?;
                let fits = |b: &u8| b.is_ascii_alphanumeric() || b"-_".contains(b);
                if !label.iter().all(fits) || text.len() + label.len() >= NAME {
                    return None;
                }
                if !text.is_empty() {
                    text.push('.');
                }
                text.extend(label.iter().map(|b| char::from(*b)));
                at += usize::from(len) + 1;
            }
            64..0xc0 => return None,
        }
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An answer with records of (name server's bytes of a name, type, data).
    fn answer(question: &[u8], code: u16, records: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = question[..2].to_vec();
        for word in [0x8180 | code, 1, records.len() as u16, 0, 0] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        let mut end = 12;
        skip_name(question, &mut end).unwrap();
        bytes.extend_from_slice(&question[12..end + 4]);
        for (kind, data) in records {
            // The name is that of the question.
            bytes.extend_from_slice(&[0xc0, 12]);
            for word in [*kind, IN, 0, 60, data.len() as u16] {
                bytes.extend_from_slice(&word.to_be_bytes());
            }
            bytes.extend_from_slice(data);
        }
        bytes
    }

    fn srv(priority: u16, port: u16, host: &[u8]) -> (u16, Vec<u8>) {
        let mut data = Vec::new();
        for word in [priority, 5, port] {
            data.extend_from_slice(&word.to_be_bytes());
        }
        data.extend_from_slice(host);
        (SRV, data)
    }

    /// The answer to a question: places of these priorities, ports and hosts.
    pub(in crate::discovery) fn places_as_answered(question: &[u8], places: &[(u16, u16, &str)]) -> Vec<u8> {
        let id = u16::from_be_bytes([question[0], question[1]]);
        let name = |host: &str| {
            let labels = host.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
            labels.chain([0]).collect::<Vec<u8>>()
        };
        let records: Vec<_> =
            places.iter().map(|(priority, port, host)| srv(*priority, *port, &name(host))).collect();
        let mut answer = answer(question, 0, &records);
        answer[..2].copy_from_slice(&id.to_be_bytes());
        answer
    }

    fn read(bytes: &[u8]) -> Vec<(String, u16)> {
        let places = Answer::of(bytes, 7).unwrap().places().unwrap();
        places.into_iter().map(|place| (place.host, place.port)).collect()
    }

    #[test]
    fn the_question_is_byte_for_byte_what_rfc_1035_says() {
        let bytes = question(7, "_skein._udp.example.org.").unwrap();
        let text: &[u8] =
            b"\0\x07\x01\0\0\x01\0\0\0\0\0\x01\x06_skein\x04_udp\x07example\x03org\0\0\x21\0\x01";
        assert_eq!(bytes, [text, b"\0\0\x29\x04\xd0\0\0\0\0\0\0"].concat());
        for wrong in ["", "a..b", &"a".repeat(64), &"a.".repeat(200)] {
            assert_eq!(question(7, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn places_come_by_priority_and_what_is_none_is_passed_over() {
        let question = question(7, "_skein._udp.x.org").unwrap();
        let records = [
            srv(20, 7401, b"\x01b\xc0\x18"),
            (1, vec![192, 0, 2, 1]),
            srv(10, 7400, b"\x01a\x01y\x03net\0"),
            srv(10, 7400, b"\0"),
            srv(10, 0, b"\x01c\0"),
            srv(10, 1, b"\x02a b\0"),
        ];
        // What is malformed in itself ends the list; what came before counts.
        assert_eq!(
            read(&answer(&question, 0, &records[..5])),
            [("a.y.net".into(), 7400), ("b.x.org".into(), 7401)]
        );
        assert_eq!(read(&answer(&question, 0, &records)).len(), 2);
        assert!(read(&answer(&question, 0, &[])).is_empty());
        let gone = answer(&question, 3, &[]);
        assert_eq!(Answer::of(&gone, 7).unwrap().places().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(Answer::of(&gone, 8).is_none(), "to another question");
        assert!(Answer::of(&question, 7).is_none(), "the question itself");
    }

    #[test]
    fn a_hostile_answer_is_bounded_and_never_read_beyond_its_end() {
        let question = question(7, "_skein._udp.x.org").unwrap();
        let whole = answer(&question, 0, &[srv(1, 1, b"\x01a\xc0\x18"), srv(2, 2, b"\x01b\0")]);
        for cut in 0..whole.len() {
            let short = &whole[..cut];
            assert!(
                Answer::of(short, 7).is_none_or(|answer| answer.places().map_or(0, |all| all.len()) < 2),
                "{cut}"
            );
            for at in 0..whole.len() {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << (cut % 8);
                let _ = Answer::of(&flipped, 7).map(|answer| answer.places().is_ok());
            }
        }
        // A pointer to itself.
        let own = u8::try_from(whole.len() - 3).unwrap();
        let looped = answer(&question, 0, &[srv(1, 1, &[0xc0, own])]);
        assert!(read(&looped).len() <= 1);
        let many: Vec<_> = (0..100).map(|n| srv(n, 1, b"\x01a\0")).collect();
        assert_eq!(read(&answer(&question, 0, &many)).len(), RECORDS);
    }

    #[tokio::test]
    async fn the_next_name_server_is_asked_when_one_does_not_know() {
        let broken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let good = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let servers = [broken.local_addr().unwrap(), good.local_addr().unwrap()];
        let asked = tokio::spawn(async move { places(&servers, "_skein._udp.x.org").await });
        let mut bytes = [0; 512];
        let (len, from) = broken.recv_from(&mut bytes).await.unwrap();
        broken.send_to(&answer(&bytes[..len], 2, &[]), from).await.unwrap();
        let (len, from) = good.recv_from(&mut bytes).await.unwrap();
        // What answers another question is not taken for this one's.
        let mut other = answer(&bytes[..len], 0, &[srv(1, 9, b"\x04evil\0")]);
        other[0] ^= 0xff;
        good.send_to(&other, from).await.unwrap();
        good.send_to(&answer(&bytes[..len], 0, &[srv(1, 7400, b"\x01a\0")]), from).await.unwrap();
        let places = asked.await.unwrap().unwrap();
        assert_eq!(places, [Place { priority: 1, host: "a".into(), port: 7400 }]);
    }

    #[test]
    fn name_servers_of_a_resolv_conf() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver 192.0.2.1\nnameserver fd00::1\noptions a\nnameserver x";
        let ports: Vec<_> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["192.0.2.1:53", "[fd00::1]:53"]);
        assert_eq!(servers("")[0].to_string(), "127.0.0.1:53");
    }
}
