//! Arc's answer: columns once, rows as arrays, how many and how long it took behind them.

use arrow_array::RecordBatch;
use arrow_json::writer::{EncoderOptions, make_encoder};
use arrow_schema::{ArrowError, SchemaRef};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::Instant;

use crate::engine::columnar::sql::{QueryError, QueryStream};

/// The answer in pieces as rows come; `started` is when the request came.
pub(super) fn encode(
    rows: QueryStream,
    started: Instant,
    now_ns: fn() -> i64,
) -> impl Stream<Item = Result<Bytes, QueryError>> + Send {
    let head = head(&rows.schema());
    let document = Document { rows, count: 0, started, now_ns, ended: false };
    let rest = futures::stream::try_unfold(document, Document::next);
    futures::stream::iter([Ok(head)]).chain(rest)
}

struct Document {
    rows: QueryStream,
    count: usize,
    started: Instant,
    now_ns: fn() -> i64,
    ended: bool,
}

impl Document {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, QueryError> {
        if self.ended {
            return Ok(None);
        }
        let piece = match self.rows.next().await.transpose()? {
            Some(batch) => {
                let piece = array_rows(&batch, self.count == 0)
                    .map_err(|e| QueryError::Invalid(format!("the answer cannot be written as JSON: {e}")))?;
                self.count += batch.num_rows();
                piece.into()
            }
            None => {
                self.ended = true;
                tail(self.count, self.started.elapsed().as_secs_f64() * 1e3, (self.now_ns)())
            }
        };
        Ok(Some((piece, self)))
    }
}

fn head(schema: &SchemaRef) -> Bytes {
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    format!("{{\"success\":true,\"columns\":{},\"data\":[", json!(columns)).into()
}

fn tail(rows: usize, took_ms: f64, now_ns: i64) -> Bytes {
    let now = json!(now_text(now_ns));
    format!("],\"row_count\":{rows},\"execution_time_ms\":{took_ms:.3},\"timestamp\":{now}}}").into()
}

/// When that was, as RFC 3339 has it.
pub(super) fn now_text(now_ns: i64) -> Option<String> {
    OffsetDateTime::from_unix_timestamp_nanos(now_ns.into()).ok()?.format(&Rfc3339).ok()
}

/// The rows as arrays, separated by commas; `first` says that none stand before them.
fn array_rows(batch: &RecordBatch, first: bool) -> Result<Vec<u8>, ArrowError> {
    let options = EncoderOptions::default().with_explicit_nulls(true);
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns());
    let mut columns = columns
        .map(|(field, column)| make_encoder(field, column.as_ref(), &options))
        .collect::<Result<Vec<_>, _>>()?;
    let mut out = Vec::new();
    for row in 0..batch.num_rows() {
        out.extend_from_slice(if first && row == 0 { b"[" } else { b",[" });
        for (at, column) in columns.iter_mut().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            if column.is_null(row) {
                out.extend_from_slice(b"null");
            } else {
                column.encode(row, &mut out);
            }
        }
        out.push(b']');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Float64Array, StringArray, TimestampNanosecondArray};
    use arrow_schema::{DataType, Field, Schema, TimeUnit};
    use serde_json::Value;

    use super::*;

    #[test]
    fn rows_are_arrays_in_column_order() {
        let time = DataType::Timestamp(TimeUnit::Nanosecond, None);
        // Two columns of one name, as a join may give them.
        let schema = Arc::new(Schema::new(vec![
            Field::new("time", time, false),
            Field::new("v", DataType::Float64, true),
            Field::new("v", DataType::Utf8, true),
        ]));
        let batch = RecordBatch::try_new(
            schema.clone(),
            vec![
                Arc::new(TimestampNanosecondArray::from(vec![0, 1_500_000_000])),
                Arc::new(Float64Array::from(vec![Some(0.5), None])),
                Arc::new(StringArray::from(vec![None, Some("a \"b\"")])),
            ],
        )
        .unwrap();
        let mut all = head(&schema).to_vec();
        all.extend(array_rows(&batch, true).unwrap());
        all.extend(array_rows(&batch.slice(0, 1), false).unwrap());
        all.extend(tail(3, 1.25, 1_700_000_000_000_000_000));
        let answer: Value = serde_json::from_slice(&all).unwrap();
        assert_eq!(answer["columns"], json!(["time", "v", "v"]));
        assert_eq!(answer["data"].as_array().unwrap().len(), 3);
        assert_eq!(answer["data"][1], json!(["1970-01-01T00:00:01.500", null, "a \"b\""]));
        assert_eq!(answer["row_count"], 3);
        assert_eq!(answer["execution_time_ms"], 1.25);
        assert_eq!(answer["timestamp"], "2023-11-14T22:13:20Z");
        let mut empty = head(&schema).to_vec();
        empty.extend(tail(0, 0.0, 0));
        assert!(serde_json::from_slice::<Value>(&empty).unwrap()["success"].as_bool().unwrap());
    }
}
