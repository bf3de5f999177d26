//! The tokens of line protocol: where keys and values end, what escapes stand for.

use std::borrow::Cow;

use super::{
    columns::Value,
    number::{NumberError, number},
};

/// What a backslash takes the meaning from in a measurement. Before anything else, another
/// backslash included, it stands for itself: clients do not double it there.
pub(super) const MEASUREMENT_ESCAPES: &[u8] = b", ";
/// The same in tag keys, tag values and field keys.
pub(super) const KEY_ESCAPES: &[u8] = b",= ";
/// The same in strings.
const STRING_ESCAPES: &[u8] = b"\"\\";

const MEASUREMENT_STOPS: [bool; 256] = stops(b", \n\\");
const KEY_STOPS: [bool; 256] = stops(b",= \n\\");
const TAG_VALUE_STOPS: [bool; 256] = stops(b", \n\\");
const FIELD_VALUE_STOPS: [bool; 256] = stops(b", \n\r");

/// Where the parser stands.
pub(super) struct Cursor<'a> {
    pub(super) body: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    #[inline]
    pub(super) fn rest(&self) -> &'a [u8] {
        self.body.get(self.at..).unwrap_or_default()
    }

    #[inline]
    pub(super) fn peek(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    #[inline]
    pub(super) fn eat(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    #[inline]
    pub(super) fn skip_spaces(&mut self) {
        while self.eat(b' ') {}
    }

    #[inline]
    pub(super) fn at_end_of_line(&self) -> bool {
        matches!(self.rest(), [] | [b'\n', ..] | [b'\r'] | [b'\r', b'\n', ..])
    }

    /// Takes a measurement; says if it has escapes.
    pub(super) fn measurement(&mut self) -> (&'a [u8], bool) {
        self.token(&MEASUREMENT_STOPS, MEASUREMENT_ESCAPES)
    }

    /// Takes the value of a tag; says if it has escapes.
    #[inline]
    pub(super) fn tag_value(&mut self) -> (&'a [u8], bool) {
        self.token(&TAG_VALUE_STOPS, KEY_ESCAPES)
    }

    /// Takes the bytes up to one of `stops` that no backslash protects; says if one did.
    #[inline]
    fn token(&mut self, stops: &[bool; 256], escapes: &[u8]) -> (&'a [u8], bool) {
        let start = self.at;
        let mut escaped = false;
        loop {
            let rest = self.rest();
            self.at += rest.iter().position(|&byte| stops[usize::from(byte)]).unwrap_or(rest.len());
            match self.rest() {
                [b'\\', next, ..] if escapes.contains(next) => {
                    escaped = true;
                    self.at += 2;
                }
                [b'\\', ..] => self.at += 1,
                _ => return (self.body.get(start..self.at).unwrap_or_default(), escaped),
            }
        }
    }

    /// Takes a key and the equals sign behind it: as spelled, sign included, and the name.
    pub(super) fn key(&mut self, what: &str) -> Result<(&'a [u8], Cow<'a, str>), String> {
        let start = self.at;
        let (key, escaped) = self.token(&KEY_STOPS, KEY_ESCAPES);
        if !self.eat(b'=') {
            return Err(format!("{what} {} has no value", quoted(key)));
        }
        let wrong = || format!("{what} {} is not valid UTF-8", quoted(key));
        let name = match plain(key, escaped, KEY_ESCAPES) {
            Cow::Borrowed(name) => Cow::Borrowed(std::str::from_utf8(name).map_err(|_| wrong())?),
            Cow::Owned(name) => Cow::Owned(String::from_utf8(name).map_err(|_| wrong())?),
        };
        if name.is_empty() {
            return Err(format!("a {what} has an empty name"));
        }
        Ok((self.body.get(start..self.at).unwrap_or_default(), name))
    }

    /// Takes the value of a field. A string with escapes is put into `unescaped`.
    #[inline]
    pub(super) fn value<'v>(&mut self, unescaped: &'v mut Vec<u8>) -> Result<Value<'v>, String>
    where
        'a: 'v,
    {
        let (value, len) = match self.peek() {
            Some(b'"') => return self.string(unescaped).map(Value::Text),
            Some(b'0'..=b'9' | b'-' | b'.') => match number(self.rest()) {
                Ok(read) => read,
                Err(NumberError::Range) => return Err(format!("{} is out of range", self.quoted())),
                Err(NumberError::Syntax) => return Err(self.not_a_value()),
            },
            _ => match self.word() {
                word @ (b"t" | b"T" | b"true" | b"True" | b"TRUE") => (Value::Bool(true), word.len()),
                word @ (b"f" | b"F" | b"false" | b"False" | b"FALSE") => (Value::Bool(false), word.len()),
                _ => return Err(self.not_a_value()),
            },
        };
        self.at += len;
        if self.peek().is_none_or(|byte| FIELD_VALUE_STOPS[usize::from(byte)]) {
            return Ok(value);
        }
        self.at -= len;
        Err(self.not_a_value())
    }

    /// Takes a string in quotes, line breaks included.
    fn string<'v>(&mut self, unescaped: &'v mut Vec<u8>) -> Result<&'v [u8], String>
    where
        'a: 'v,
    {
        let mut rest = self.rest().get(1..).unwrap_or_default();
        let whole = rest;
        unescaped.clear();
        let mut copied = false;
        loop {
            let Some(stop) = memchr::memchr2(b'"', b'\\', rest) else {
                return Err("the string is not closed".into());
            };
            let (before, behind) = rest.split_at(stop);
            match behind {
                [b'\\', next, tail @ ..] if STRING_ESCAPES.contains(next) => {
                    unescaped.extend_from_slice(before);
                    unescaped.push(*next);
                    copied = true;
                    rest = tail;
                }
                [b'\\', tail @ ..] => {
                    unescaped.extend_from_slice(before);
                    unescaped.push(b'\\');
                    copied = true;
                    rest = tail;
                }
                _ => {
                    let len = whole.len() - behind.len();
                    self.at += len + 2;
                    if self.peek().is_some_and(|byte| !FIELD_VALUE_STOPS[usize::from(byte)]) {
                        return Err("there is text behind the string's closing quote".into());
                    }
                    unescaped.extend_from_slice(if copied { before } else { b"" });
                    return Ok(if copied { unescaped } else { before });
                }
            }
        }
    }

    /// The bytes up to the end of a field value.
    fn word(&self) -> &'a [u8] {
        let rest = self.rest();
        let end = rest.iter().position(|&byte| FIELD_VALUE_STOPS[usize::from(byte)]).unwrap_or(rest.len());
        rest.get(..end).unwrap_or_default()
    }

    pub(super) fn quoted(&self) -> String {
        quoted(self.word())
    }

    fn not_a_value(&self) -> String {
        let word = self.word();
        let unsigned = word.strip_prefix(b"-").or_else(|| word.strip_prefix(b"+")).unwrap_or(word);
        if word.is_empty() {
            "there is no value".into()
        } else if [&b"nan"[..], b"inf", b"infinity"].iter().any(|name| unsigned.eq_ignore_ascii_case(name)) {
            format!("{} cannot be stored: a float must be finite", self.quoted())
        } else {
            format!("{} is not a number, a boolean or a string in quotes", self.quoted())
        }
    }
}

/// End of the line that starts at `start` and could not be read: the first line break outside of a
/// string, so that nothing in a string is ever taken for a point.
pub(super) fn line_end(body: &[u8], start: usize) -> usize {
    let (mut at, mut fields, mut string, mut before) = (start, false, false, b' ');
    while let Some(&byte) = body.get(at) {
        let escapes = if string { STRING_ESCAPES } else { KEY_ESCAPES };
        match byte {
            b'\\' if body.get(at + 1).is_some_and(|next| escapes.contains(next)) => at += 1,
            b'"' if string => string = false,
            b'"' if fields && before == b'=' => string = true,
            b' ' => fields = true,
            b'\n' if !string => return at,
            _ => {}
        }
        before = byte;
        at += 1;
    }
    body.len()
}

pub(super) fn plain<'a>(spelled: &'a [u8], escaped: bool, escapes: &[u8]) -> Cow<'a, [u8]> {
    if !escaped {
        return Cow::Borrowed(spelled);
    }
    let mut plain = Vec::new();
    unescape(spelled, escapes, &mut plain);
    Cow::Owned(plain)
}

/// Drops each backslash that stands before one of `escapes`.
pub(super) fn unescape(mut text: &[u8], escapes: &[u8], plain: &mut Vec<u8>) {
    plain.clear();
    loop {
        match text {
            [] => return,
            [b'\\', next, tail @ ..] if escapes.contains(next) => {
                plain.push(*next);
                text = tail;
            }
            [byte, tail @ ..] => {
                plain.push(*byte);
                text = tail;
            }
        }
    }
}

pub(super) fn quoted(text: &[u8]) -> String {
    let text = text.get(..text.len().min(256)).unwrap_or_default();
    format!("{:?}", shortened(&String::from_utf8_lossy(text), 64))
}

pub(in crate::engine::columnar) fn shortened(text: &str, limit: usize) -> String {
    if text.chars().nth(limit).is_none() {
        return text.to_owned();
    }
    text.chars().take(limit.saturating_sub(3)).chain("...".chars()).collect()
}

const fn stops(bytes: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut at = 0;
    while at < bytes.len() {
        table[bytes[at] as usize] = true;
        at += 1;
    }
    table
}
