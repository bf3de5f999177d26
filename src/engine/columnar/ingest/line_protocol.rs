//! InfluxDB line protocol, from bytes straight into columns.
//!
//! ```text
//! measurement[,tag=value...] field=value[,field=value...] [timestamp]
//! ```
//! Most lines look like the one before: its table and its keys are tried first, by comparing bytes.
//! Only what differs is taken apart and looked up.

use std::{borrow::Cow, collections::HashMap};

use super::{
    super::schema::{ColumnKind, MAX_TABLES, SchemaError, Schemas, Tables, check_table_name},
    BodyError, Encoded, MAX_BODY, Options, Parsed, Room,
    budget::Budget,
    columns::{TableBuilder, Value},
    cursor::{Cursor, KEY_ESCAPES, MEASUREMENT_ESCAPES, line_end, plain, quoted, unescape},
    gathered::Gathered,
    number::{NumberError, timestamp},
};

/// Reads a body. Good points become a batch, of bad ones it says why.
///
/// Types come from `schemas` and, for new columns, from the first point that has them.
///
/// # Errors
/// Nothing of the body can be taken, see [`BodyError`].
pub fn parse(body: &[u8], options: &Options, schemas: &Schemas, room: Room<'_>) -> Result<Parsed, BodyError> {
    read(body, options, schemas, room)?.into_parsed(options)
}

/// As [`parse`], straight into the payload of a log record: the same bytes as
/// [`encode`](super::super::batch::encode) makes of the batch, at less cost.
///
/// # Errors
/// As [`parse`].
pub fn encode(
    body: &[u8],
    options: &Options,
    schemas: &Schemas,
    room: Room<'_>,
) -> Result<Encoded, BodyError> {
    read(body, options, schemas, room)?.into_encoded(options)
}

fn read(body: &[u8], options: &Options, schemas: &Schemas, room: Room<'_>) -> Result<Gathered, BodyError> {
    schemas.check_database(&options.database)?;
    if body.len() > MAX_BODY {
        return Err(BodyError::TooLarge { len: body.len(), limit: MAX_BODY });
    }
    let mut parser = Parser {
        body,
        is_text: std::str::from_utf8(body).is_ok(),
        options,
        assigned: schemas.tables(&options.database),
        tables: Vec::new(),
        by_name: HashMap::new(),
        last: 0,
        new_tables: 0,
        budget: Budget::new(body.len(), room)?,
        unescaped: Vec::new(),
    };
    let mut gathered = Gathered::default();
    let mut lines = Lines { number: 1, counted: 0 };
    let mut cursor = Cursor { body, at: 0 };
    while let Some(byte) = cursor.peek() {
        match byte {
            b'\n' | b' ' | b'\t' | b'\r' => cursor.at += 1,
            b'#' => cursor.at += memchr::memchr(b'\n', cursor.rest()).unwrap_or(cursor.rest().len()),
            _ => {
                let start = cursor.at;
                let taken = parser.point(&mut cursor);
                if options.series.is_some() && taken.is_ok() {
                    parser.came_with(lines.at(body, start));
                }
                if let Err(error) = taken {
                    if parser.budget.exhausted() {
                        return Err(BodyError::NoRoom);
                    }
                    cursor.at = line_end(body, start);
                    gathered.reject(lines.at(body, start), &error);
                }
            }
        }
    }
    gathered.tables = parser.tables.into_iter().map(|table| table.builder).collect();
    Ok(gathered)
}

/// Numbers of lines, counted only as far as somebody asks.
struct Lines {
    number: usize,
    counted: usize,
}

impl Lines {
    /// The number of the line that this place is in, which lies behind those asked for before.
    fn at(&mut self, body: &[u8], place: usize) -> usize {
        self.number += memchr::memchr_iter(b'\n', body.get(self.counted..place).unwrap_or_default()).count();
        self.counted = place;
        self.number
    }
}

struct Parser<'a> {
    body: &'a [u8],
    /// The whole body is UTF-8; otherwise each line is checked.
    is_text: bool,
    options: &'a Options,
    /// The database's tables in the registry.
    assigned: Option<&'a Tables>,
    tables: Vec<Table<'a>>,
    by_name: HashMap<Cow<'a, str>, usize>,
    /// Index of the table of the last line.
    last: usize,
    /// Tables with points that the registry does not know.
    new_tables: usize,
    budget: Budget<'a>,
    /// Text with its escapes taken out, for one value at a time.
    unescaped: Vec<u8>,
}

/// A table, and what the next line of it is likely to look like.
struct Table<'a> {
    builder: TableBuilder,
    /// The measurement as it was spelled first.
    spelled: Key<'a>,
    /// The table whose line came after the last line of this one.
    next: usize,
    /// Per column its key as it was spelled first, with the equals sign. As the two that follow, from the second line
    /// on: many tables of a body that names many have one.
    keys: Vec<Option<Key<'a>>>,
    /// Columns of the last line in order.
    tags: Vec<usize>,
    /// The same for fields.
    fields: Vec<usize>,
}

impl<'a> Parser<'a> {
    /// Reads one point; the cursor ends at the line's end. After an error nothing of it is left.
    fn point(&mut self, cursor: &mut Cursor<'a>) -> Result<(), String> {
        let start = cursor.at;
        let at = self.table(cursor)?;
        let count = self.tables.len();
        let Some(table) = self.tables.get_mut(at) else {
            return Err("there is no such table".into());
        };
        let read = table.read(cursor, &mut self.unescaped, &mut self.budget).and_then(|time| {
            let text = self.body.get(start..cursor.at).unwrap_or_default();
            if !self.is_text && std::str::from_utf8(text).is_err() {
                return Err("the line is not valid UTF-8".into());
            }
            let time = match time {
                None => self.options.now_ns,
                Some(time) => self.options.precision.to_ns(time).ok_or_else(|| {
                    format!("timestamp {time} is out of range for precision {:?}", self.options.precision)
                })?,
            };
            table.builder.commit(time, &mut self.budget)
        });
        let first = table.builder.rows() <= 1;
        if first && count == 1 && read.is_ok() {
            // The lines to come are likely to be of this table and as long.
            table.builder.expect_rows((self.body.len() - start) / (cursor.at - start).max(1));
        }
        match read {
            Ok(()) => {
                self.new_tables += usize::from(first && table.builder.is_new());
                if let Some(last) = self.tables.get_mut(self.last) {
                    last.next = at;
                }
                self.last = at;
            }
            Err(_) => {
                table.rollback(&mut self.budget);
                // A table without points was made for this line, so it is the last one.
                if table.builder.rows() == 0 && at + 1 == count {
                    self.by_name.remove(table.builder.name());
                    self.tables.pop();
                }
            }
        }
        read
    }

    /// Says which line the last point came with.
    fn came_with(&mut self, line: usize) {
        if let Some(table) = self.tables.get_mut(self.last) {
            table.builder.came_with(line);
        }
    }

    /// Index of the table of the point at the cursor, which moves behind the measurement.
    fn table(&mut self, cursor: &mut Cursor<'a>) -> Result<usize, String> {
        let mut guess = self.last;
        for _ in 0..2 {
            let Some(table) = self.tables.get(guess) else { break };
            let (rest, len) = (cursor.rest(), table.spelled.spelled.len());
            if matches!(rest.get(len), Some(b',' | b' ')) && table.spelled.begins(rest) {
                cursor.at += len;
                return Ok(guess);
            }
            guess = table.next;
        }
        let (spelled, escaped) = cursor.measurement();
        let name = plain(spelled, escaped, MEASUREMENT_ESCAPES);
        let name = match name {
            Cow::Borrowed(name) => std::str::from_utf8(name).ok().map(Cow::Borrowed),
            Cow::Owned(name) => String::from_utf8(name).ok().map(Cow::Owned),
        };
        let name = name.ok_or("the measurement is not valid UTF-8")?;
        if let Some(&at) = self.by_name.get(&name) {
            return Ok(at);
        }
        let assigned = self.assigned.and_then(|tables| tables.get(&name)).cloned();
        if assigned.is_none() {
            check_table_name(&name).map_err(|error| error.to_string())?;
            if self.assigned.map_or(0, |tables| tables.len()) + self.new_tables >= MAX_TABLES {
                return Err(SchemaError::too_many_tables(&self.options.database).to_string());
            }
        }
        let at = self.tables.len();
        self.tables.push(Table {
            builder: TableBuilder::new(name.clone().into_owned(), assigned),
            spelled: Key::new(spelled),
            next: at,
            keys: Vec::new(),
            tags: Vec::new(),
            fields: Vec::new(),
        });
        self.by_name.insert(name, at);
        Ok(at)
    }
}

impl<'a> Table<'a> {
    /// Puts the tags and fields behind the measurement; gives the timestamp.
    fn read(
        &mut self,
        cursor: &mut Cursor<'a>,
        unescaped: &mut Vec<u8>,
        budget: &mut Budget<'_>,
    ) -> Result<Option<i64>, String> {
        let mut nth = 0;
        while cursor.eat(b',') {
            self.tag(nth, cursor, unescaped, budget)?;
            nth += 1;
        }
        if !cursor.eat(b' ') {
            return Err("there are no fields".into());
        }
        cursor.skip_spaces();
        if cursor.at_end_of_line() {
            return Err("there are no fields".into());
        }
        nth = 0;
        loop {
            self.field(nth, cursor, unescaped, budget)?;
            nth += 1;
            if !cursor.eat(b',') {
                break;
            }
        }
        cursor.skip_spaces();
        if cursor.at_end_of_line() {
            return Ok(None);
        }
        let wrong = |cursor: &Cursor<'_>| format!("{} is not a timestamp", cursor.quoted());
        let (time, len) = timestamp(cursor.rest()).map_err(|error| match error {
            NumberError::Syntax => wrong(cursor),
            NumberError::Range => format!("timestamp {} does not fit 64 bits", cursor.quoted()),
        })?;
        let behind = Cursor { body: cursor.body, at: cursor.at + len };
        if !matches!(behind.peek(), None | Some(b' ' | b'\n' | b'\r')) {
            return Err(wrong(cursor));
        }
        cursor.at += len;
        cursor.skip_spaces();
        if cursor.at_end_of_line() {
            return Ok(Some(time));
        }
        Err(format!("there is text behind the timestamp: {}", cursor.quoted()))
    }

    fn tag(
        &mut self,
        nth: usize,
        cursor: &mut Cursor<'a>,
        unescaped: &mut Vec<u8>,
        budget: &mut Budget<'_>,
    ) -> Result<(), String> {
        let (at, spelled) = match self.expected(self.tags.get(nth), cursor) {
            Some(expected) => expected,
            None => {
                let (spelled, name) = cursor.key("tag")?;
                let at = self.column(&name, spelled, ColumnKind::Tag, budget)?;
                if self.builder.rows() > 0 {
                    expect(&mut self.tags, nth, at);
                }
                (at, spelled)
            }
        };
        let (text, escaped) = cursor.tag_value();
        if text.is_empty() {
            return Err(format!("tag {} has an empty value", spelled_out(spelled)));
        }
        if self.builder.is_set(at) {
            return Err(format!("tag {} appears twice", spelled_out(spelled)));
        }
        if escaped {
            unescape(text, KEY_ESCAPES, unescaped);
            self.builder.put(at, Value::Text(unescaped))
        } else {
            self.builder.put(at, Value::Text(text))
        }
    }

    fn field(
        &mut self,
        nth: usize,
        cursor: &mut Cursor<'a>,
        unescaped: &mut Vec<u8>,
        budget: &mut Budget<'_>,
    ) -> Result<(), String> {
        if let Some((at, spelled)) = self.expected(self.fields.get(nth), cursor) {
            let value = cursor
                .value(unescaped)
                .map_err(|error| format!("field {}: {error}", spelled_out(spelled)))?;
            return self.builder.put(at, value);
        }
        let (spelled, name) = cursor.key("field")?;
        let value = cursor.value(unescaped).map_err(|error| format!("field {name:?}: {error}"))?;
        let at = self.column(&name, spelled, value.kind(), budget)?;
        if self.builder.rows() > 0 {
            expect(&mut self.fields, nth, at);
        }
        self.builder.put(at, value)
    }

    /// The column that the last line had at this place, and its key, if the cursor stands before that; moves the
    /// cursor behind it.
    fn expected(&self, at: Option<&usize>, cursor: &mut Cursor<'_>) -> Option<(usize, &'a [u8])> {
        let at = *at?;
        let key = self.keys.get(at)?.as_ref()?;
        key.begins(cursor.rest()).then(|| {
            cursor.at += key.spelled.len();
            (at, key.spelled)
        })
    }

    fn column(
        &mut self,
        name: &str,
        spelled: &'a [u8],
        kind: ColumnKind,
        budget: &mut Budget<'_>,
    ) -> Result<usize, String> {
        let at = self.builder.column(name, kind, budget)?;
        if self.builder.rows() > 0 {
            self.keys.resize_with(self.builder.width().max(self.keys.len()), || None);
            if let Some(place) = self.keys.get_mut(at) {
                place.get_or_insert_with(|| Key::new(spelled));
            }
        }
        Ok(at)
    }

    fn rollback(&mut self, budget: &mut Budget<'_>) {
        self.builder.rollback(budget);
        let width = self.builder.width();
        if width < self.keys.len() {
            self.keys.truncate(width);
            self.tags.clear();
            self.fields.clear();
        }
    }
}

/// A column's key as the line spells it, for messages.
fn spelled_out(key: &[u8]) -> String {
    quoted(key.strip_suffix(b"=").unwrap_or(key))
}

/// Bytes that begin a part of a line. Short ones are compared at once.
struct Key<'a> {
    spelled: &'a [u8],
    /// The same with zeros behind, and which bits of it count; none if it is too long.
    short: Option<(u128, u128)>,
}

impl<'a> Key<'a> {
    fn new(spelled: &'a [u8]) -> Self {
        const LONGEST: usize = 16;
        let mut word = [0; LONGEST];
        let short = word.get_mut(..spelled.len()).map(|place| place.copy_from_slice(spelled));
        let unused = 8 * (LONGEST - spelled.len().min(LONGEST)) as u32;
        let mask = u128::MAX.checked_shr(unused).unwrap_or(0);
        Self { spelled, short: short.map(|()| (u128::from_le_bytes(word), mask)) }
    }

    #[inline]
    fn begins(&self, text: &[u8]) -> bool {
        match (self.short, text.first_chunk()) {
            (Some((word, mask)), Some(text)) => u128::from_le_bytes(*text) & mask == word,
            _ => text.starts_with(self.spelled),
        }
    }
}

/// Notes the column at place `nth` for the next line.
fn expect(columns: &mut Vec<usize>, nth: usize, at: usize) {
    match columns.get_mut(nth) {
        Some(place) => *place = at,
        None => columns.push(at),
    }
}

#[cfg(test)]
pub(super) use self::tests::row;

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
