//! One item of a body into the columns of its table.

use std::collections::HashSet;

use super::{
    super::{
        super::schema::{ColumnKind, FieldType, MAX_COLUMNS},
        Options,
        budget::Budget,
        columns::{TableBuilder, Value},
        unpack::{Item, Run, Unpacker, eight},
    },
    Shape, broken, text,
    values::{Holds, times, value},
};

/// Puts the parts of one item.
pub(super) struct Put<'a, 'b> {
    pub(super) options: &'a Options,
    pub(super) budget: &'a mut Budget<'b>,
    /// A number that stands for a tag, one at a time.
    pub(super) spelled: &'a mut Vec<u8>,
}

impl Put<'_, '_> {
    /// All rows of an item in columns. What they are is found out before the first is put.
    pub(super) fn columns(
        self,
        table: &mut TableBuilder,
        mut columns: Unpacker<'_>,
        tag_keys: Option<Unpacker<'_>>,
    ) -> Result<(), String> {
        let Item::Map(count) = columns.next().map_err(broken)? else {
            return Err("\"columns\" is not a map".into());
        };
        if count > MAX_COLUMNS + 1 {
            return Err(format!("the item has more than {MAX_COLUMNS} columns"));
        }
        let tag_keys = tag_keys.map(texts).transpose()?;
        let (mut rows, mut time) = (None, None);
        let (mut put, mut seen): (Vec<Column<'_>>, _) = (Vec::new(), HashSet::new());
        for _ in 0..count {
            let Item::Text(name) = columns.next().map_err(broken)? else {
                return Err("the name of a column is not a string".into());
            };
            let name = text(name, "the name of a column")?;
            let Item::Array(len) = columns.next().map_err(broken)? else {
                return Err(format!("column {name:?} is not a list"));
            };
            let values = columns;
            if *rows.get_or_insert(len) != len {
                return Err(format!(
                    "column {name:?} has {len} values and others have {}: all must be equally long",
                    rows.unwrap_or_default()
                ));
            }
            if name == "time" {
                time = Some(values);
                columns.skip_values(len).map_err(broken)?;
                continue;
            }
            let holds = Holds::of(&mut columns, len).map_err(|what| format!("column {name:?} {what}"))?;
            let tag = match (table.kind(name), &tag_keys) {
                (Some(kind), _) => kind == ColumnKind::Tag,
                (None, Some(keys)) => keys.contains(name),
                (None, None) => holds.only_text(),
            };
            let Some(kind) =
                holds.kind(tag, table.kind(name)).map_err(|what| format!("column {name:?} {what}"))?
            else {
                continue;
            };
            let at = table.column(name, kind, self.budget)?;
            if !seen.insert(at) {
                return Err(format!("column {name:?} appears twice"));
            }
            put.push(Column { at, kind, values });
        }
        let rows = rows.unwrap_or(0);
        if rows == 0 {
            return Err("there are no rows in \"columns\"".into());
        }
        if put.is_empty() {
            return Err("there is no value in \"columns\" besides the time".into());
        }
        // Before the times, which are the first to be allocated.
        table.reserve(rows, self.budget)?;
        let times = times(time, rows, self.options.now_ns)?;
        let first = table.rows();
        for mut column in put {
            let mut row = first;
            while row < first + rows {
                if column.kind == ColumnKind::Field(FieldType::Float)
                    && let Some(Run::Floats(run)) = { column.values }.run(first + rows - row)
                {
                    let _ = column.values.run(run.len());
                    table.put_floats(
                        column.at,
                        row,
                        run.iter().map(|value| f64::from_be_bytes(eight(value))),
                    )?;
                    row += run.len();
                    continue;
                }
                let item = column.values.next().map_err(broken)?;
                if let Some(value) = value(item, column.kind, self.spelled)? {
                    pay_for(item, value, self.budget)?;
                    table.put_at(column.at, row, value)?;
                }
                row += 1;
            }
        }
        table.commit_rows(times);
        Ok(())
    }

    /// One point.
    pub(super) fn row(mut self, table: &mut TableBuilder, item: &Shape<'_>) -> Result<(), String> {
        if let Some(mut tags) = item.tags {
            let Item::Map(count) = tags.next().map_err(broken)? else {
                return Err("\"tags\" is not a map".into());
            };
            for _ in 0..count {
                let (name, value) = pair(&mut tags)?;
                self.tag(table, name, value)?;
            }
        }
        match item.host.map(|mut host| host.next()).transpose().map_err(broken)? {
            None => {}
            Some(Item::Int(n)) => self.tag(table, "host", Item::Text(format!("host_{n}").as_bytes()))?,
            Some(host @ Item::Text(_)) => self.tag(table, "host", host)?,
            Some(_) => return Err("the host \"h\" is neither a string nor an integer".into()),
        }
        let mut fields = 0;
        if let Some(mut named) = item.fields {
            let Item::Map(count) = named.next().map_err(broken)? else {
                return Err("\"fields\" is not a map".into());
            };
            for _ in 0..count {
                let (name, value) = pair(&mut named)?;
                fields += self.field(table, name, value)?;
            }
        } else if let Some(mut listed) = item.compact {
            let Item::Array(count) = listed.next().map_err(broken)? else {
                return Err("\"f\" is not a list".into());
            };
            for n in 0..count {
                let value = single(&mut listed)?;
                fields += self.field(table, &format!("field_{n}"), value)?;
            }
        }
        if fields == 0 {
            return Err(
                "there are no fields: the item has neither \"columns\" nor \"fields\" nor \"f\"".into()
            );
        }
        let time = times(item.time, 1, self.options.now_ns)?;
        let time = time.first().copied().unwrap_or(self.options.now_ns);
        table.commit(time, self.budget)
    }

    fn tag(&mut self, table: &mut TableBuilder, name: &str, item: Item<'_>) -> Result<(), String> {
        if let Some(value) =
            value(item, ColumnKind::Tag, self.spelled).map_err(|what| format!("tag {name:?} {what}"))?
        {
            let at = table.column(name, ColumnKind::Tag, self.budget)?;
            pay_for(item, value, self.budget)?;
            table.put(at, value)?;
        }
        Ok(())
    }

    /// How many fields that were: one, or none for nil.
    fn field(&mut self, table: &mut TableBuilder, name: &str, item: Item<'_>) -> Result<usize, String> {
        let mut holds = Holds::default();
        holds.see(item).map_err(|what| format!("field {name:?} {what}"))?;
        let Some(kind) =
            holds.kind(false, table.kind(name)).map_err(|what| format!("field {name:?} {what}"))?
        else {
            return Ok(0);
        };
        let at = table.column(name, kind, self.budget)?;
        match value(item, kind, self.spelled)? {
            Some(value) => table.put(at, value).map(|()| 1),
            None => Ok(0),
        }
    }
}

/// The text of a number may be forty times as long as the number: `5e-324` has 326 characters.
fn pay_for(item: Item<'_>, value: Value<'_>, budget: &mut Budget<'_>) -> Result<(), String> {
    match (item, value) {
        (Item::Int(_) | Item::UInt(_) | Item::Float(_), Value::Text(text)) => budget.take_text(text.len()),
        _ => Ok(()),
    }
}

/// A column of an item.
struct Column<'a> {
    at: usize,
    kind: ColumnKind,
    values: Unpacker<'a>,
}

/// A key and its value, which is not a list or map.
fn pair<'a>(unpacker: &mut Unpacker<'a>) -> Result<(&'a str, Item<'a>), String> {
    let Item::Text(name) = unpacker.next().map_err(broken)? else {
        return Err("the name of a tag or field is not a string".into());
    };
    Ok((text(name, "the name of a tag or field")?, single(unpacker)?))
}

fn single<'a>(unpacker: &mut Unpacker<'a>) -> Result<Item<'a>, String> {
    match unpacker.next().map_err(broken)? {
        Item::Array(_) | Item::Map(_) => Err("a tag or field is a list or map".into()),
        item => Ok(item),
    }
}

/// A list of strings.
fn texts(mut list: Unpacker<'_>) -> Result<HashSet<&str>, String> {
    let Item::Array(len) = list.next().map_err(broken)? else {
        return Err("\"tag_keys\" is not a list".into());
    };
    if len > MAX_COLUMNS {
        return Err(format!("\"tag_keys\" has more than {MAX_COLUMNS} names"));
    }
    let mut texts = HashSet::new();
    for _ in 0..len {
        let Item::Text(name) = list.next().map_err(broken)? else {
            return Err("\"tag_keys\" has what is not a string".into());
        };
        texts.insert(text(name, "a name in \"tag_keys\"")?);
    }
    Ok(texts)
}
