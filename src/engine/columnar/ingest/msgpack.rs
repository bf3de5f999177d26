//! MessagePack in the shapes of Arc, from bytes straight into columns.
//!
//! ```text
//! {"m": "cpu", "columns": {"time": [..], "host": [..], "usage": [..]}, "tag_keys": ["host"]}
//! {"m": "cpu", "t": 1700000000, "h": "a", "fields": {"usage": 0.5}, "tags": {"region": "eu"}}
//! {"batch": [item, ..]}     or     [item, ..]
//! ```
//! Times are in seconds to nanoseconds, guessed from their magnitude with Arc's thresholds: in
//! columns by the first, in rows by each. Arc does not tell tags from fields in columns; where
//! `tag_keys` does not either, a new column of strings becomes a tag, for otherwise the points of
//! two hosts at one time would be one.

use std::collections::HashMap;

use self::item::Put;
use super::{
    super::schema::{MAX_TABLES, SchemaError, Schemas, Tables, check_table_name},
    BodyError, Encoded, MAX_BODY, Options, Parsed, Room,
    budget::Budget,
    columns::TableBuilder,
    gathered::Gathered,
    unpack::{Item, Malformed, Unpacker},
};

mod item;
mod values;

/// Reads a body. Good items become a batch, of bad ones it says why.
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
        options,
        assigned: schemas.tables(&options.database),
        tables: Vec::new(),
        by_name: HashMap::new(),
        new_tables: 0,
        budget: Budget::new(body.len(), room)?,
        spelled: Vec::new(),
    };
    let mut gathered = Gathered::default();
    let mut items = Items::of(body)?;
    let mut number = 0;
    while let Some(item) = items.next()? {
        number += 1;
        if let Err(error) = item.and_then(|item| parser.item(&item, number)) {
            if parser.budget.exhausted() {
                return Err(BodyError::NoRoom);
            }
            gathered.reject(number, &error);
        }
    }
    gathered.tables = parser.tables;
    Ok(gathered)
}

impl From<Malformed> for BodyError {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// The items of a body, each of which has been walked through to its end.
struct Items<'a> {
    unpacker: Unpacker<'a>,
    left: usize,
    /// The whole body, if it is an item itself.
    own: Option<Result<Shape<'a>, String>>,
}

impl<'a> Items<'a> {
    fn of(body: &'a [u8]) -> Result<Self, BodyError> {
        let shapes =
            "the body is neither a map with \"columns\", \"fields\" or \"batch\", nor a list of such maps";
        let mut whole = Unpacker::new(body);
        whole.skip()?;
        if !whole.is_at_end() {
            return Err(BodyError::Malformed(
                "the body is not MessagePack: there are bytes behind its value".into(),
            ));
        }
        let mut unpacker = Unpacker::new(body);
        match unpacker.next()? {
            Item::Array(left) => Ok(Self { unpacker, left, own: None }),
            Item::Map(_) => match Shape::of(Unpacker::new(body))? {
                Ok(Shape { batch: Some(mut batch), .. }) => match batch.next()? {
                    Item::Array(left) => Ok(Self { unpacker: batch, left, own: None }),
                    _ => Err(BodyError::Malformed("\"batch\" is not a list".into())),
                },
                own => Ok(Self { unpacker, left: 0, own: Some(own) }),
            },
            _ => Err(BodyError::Malformed(shapes.into())),
        }
    }

    /// The next item, or why it is none.
    #[allow(clippy::type_complexity, reason = "two kinds of failure: of the body, and of one item")]
    fn next(&mut self) -> Result<Option<Result<Shape<'a>, String>>, BodyError> {
        if let Some(own) = self.own.take() {
            return Ok(Some(own));
        }
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        let start = self.unpacker;
        self.unpacker.skip()?;
        Ok(Some(Shape::of(start)?))
    }
}

/// Where the parts of an item are.
#[derive(Default)]
struct Shape<'a> {
    measurement: Option<Unpacker<'a>>,
    time: Option<Unpacker<'a>>,
    host: Option<Unpacker<'a>>,
    tags: Option<Unpacker<'a>>,
    fields: Option<Unpacker<'a>>,
    compact: Option<Unpacker<'a>>,
    columns: Option<Unpacker<'a>>,
    tag_keys: Option<Unpacker<'a>>,
    batch: Option<Unpacker<'a>>,
}

impl<'a> Shape<'a> {
    fn of(mut unpacker: Unpacker<'a>) -> Result<Result<Self, String>, Malformed> {
        let Item::Map(len) = unpacker.next()? else { return Ok(Err("the item is not a map".into())) };
        let mut shape = Self::default();
        for _ in 0..len {
            let key = unpacker.next()?;
            let place = match key {
                Item::Text(b"m") => Some(&mut shape.measurement),
                Item::Text(b"t") => Some(&mut shape.time),
                Item::Text(b"h") => Some(&mut shape.host),
                Item::Text(b"tags") => Some(&mut shape.tags),
                Item::Text(b"fields") => Some(&mut shape.fields),
                Item::Text(b"f") => Some(&mut shape.compact),
                Item::Text(b"columns") => Some(&mut shape.columns),
                Item::Text(b"tag_keys") => Some(&mut shape.tag_keys),
                Item::Text(b"batch") => Some(&mut shape.batch),
                Item::Text(_) => None,
                _ => return Ok(Err("a key of the item is not a string".into())),
            };
            if let Some(place) = place
                && !matches!({ unpacker }.next()?, Item::Nil)
            {
                *place = Some(unpacker);
            }
            unpacker.skip()?;
        }
        Ok(Ok(shape))
    }
}

struct Parser<'a> {
    options: &'a Options,
    /// The database's tables in the registry.
    assigned: Option<&'a Tables>,
    tables: Vec<TableBuilder>,
    by_name: HashMap<String, usize>,
    /// Tables with points that the registry does not know.
    new_tables: usize,
    budget: Budget<'a>,
    /// A number that stands for a tag, one at a time.
    spelled: Vec<u8>,
}

impl Parser<'_> {
    /// Takes an item whole, or nothing of it.
    fn item(&mut self, item: &Shape<'_>, number: usize) -> Result<(), String> {
        let at = self.table(item.measurement)?;
        let Some(table) = self.tables.get_mut(at) else { return Err("there is no such table".into()) };
        let before = table.rows();
        let put = Put { options: self.options, budget: &mut self.budget, spelled: &mut self.spelled };
        let result = match (item.columns, item.batch) {
            (Some(columns), _) => put.columns(table, columns, item.tag_keys),
            (None, Some(_)) => Err("a batch within a batch".into()),
            (None, None) => put.row(table, item),
        };
        if result.is_err() {
            table.rollback(&mut self.budget);
        } else if self.options.series.is_some() {
            table.came_with(number);
        }
        if before == 0 && table.rows() > 0 {
            self.new_tables += usize::from(table.is_new());
        }
        // A table without points was made for this item, so it is the last one.
        if table.rows() == 0
            && at + 1 == self.tables.len()
            && let Some(table) = self.tables.pop()
        {
            self.by_name.remove(table.name());
        }
        result
    }

    /// Index of the table of a measurement; one that is a number is called `measurement_N`.
    fn table(&mut self, measurement: Option<Unpacker<'_>>) -> Result<usize, String> {
        let named = measurement.map(|mut at| at.next()).transpose().map_err(|e| e.to_string())?;
        let number;
        let name = match named {
            Some(Item::Text(name)) => text(name, "the measurement")?,
            Some(Item::Int(n)) => {
                number = format!("measurement_{n}");
                &number
            }
            Some(Item::UInt(n)) => {
                number = format!("measurement_{n}");
                &number
            }
            Some(_) => return Err("the measurement \"m\" is neither a string nor an integer".into()),
            None => return Err("there is no measurement \"m\"".into()),
        };
        if let Some(&at) = self.by_name.get(name) {
            return Ok(at);
        }
        let assigned = self.assigned.and_then(|tables| tables.get(name)).cloned();
        if assigned.is_none() {
            check_table_name(name).map_err(|error| error.to_string())?;
            if self.assigned.map_or(0, |tables| tables.len()) + self.new_tables >= MAX_TABLES {
                return Err(SchemaError::too_many_tables(&self.options.database).to_string());
            }
        }
        self.by_name.insert(name.to_owned(), self.tables.len());
        self.tables.push(TableBuilder::new(name.to_owned(), assigned));
        Ok(self.tables.len() - 1)
    }
}

fn text<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str, String> {
    std::str::from_utf8(bytes).map_err(|_| format!("{what} is not valid UTF-8"))
}

/// Cannot be: the whole body has been walked through before.
fn broken(error: Malformed) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests;
