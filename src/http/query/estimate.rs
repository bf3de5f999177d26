//! Arc's estimate: how many rows a statement would give, found by counting them.

use std::time::Duration;

use arrow_array::{RecordBatch, cast::AsArray, types::Int64Type};
use futures::StreamExt;
use serde_json::json;

use super::{Asked, Head, explain};
use crate::{
    engine::columnar::sql::{QueryError, QueryStream},
    http::{Edge, error::ApiError},
};

/// Counts the rows of a statement's answer.
pub(super) async fn count(edge: &Edge, asked: &Asked, sql: &str) -> Result<(i64, Head), ApiError> {
    // By itself first: what is no statement must not become one by what is put around it. Its place
    // is given on before the count takes one.
    drop(asked.describe(edge, sql).await?);
    let sql = sql.trim_end().trim_end_matches(';');
    // A comment may be the last thing in it.
    let (rows, head) = asked.run(edge, &format!("SELECT count(*) FROM ({sql}\n) AS counted")).await?;
    Ok((only_number(rows).await.map_err(|error| explain(edge, error))?, head))
}

async fn only_number(mut rows: QueryStream) -> Result<i64, QueryError> {
    while let Some(batch) = rows.next().await.transpose()? {
        if let Some(number) = first_number(&batch) {
            return Ok(number);
        }
    }
    Err(QueryError::Internal("a count gave no number".into()))
}

fn first_number(batch: &RecordBatch) -> Option<i64> {
    batch.columns().first()?.as_primitive_opt::<Int64Type>()?.iter().next()?
}

/// The answer, as Arc gives it. Its levels are Arc's too.
pub(super) fn answer(rows: i64, took: Duration) -> String {
    let (level, what) = match rows {
        1_000_001.. => ("high", "a large answer: minutes, and much memory in the client"),
        100_001.. => ("medium", "a long answer: seconds to a minute"),
        10_001.. => ("low", "an answer of some length"),
        _ => ("none", "a short answer"),
    };
    json!({
        "success": true,
        "estimated_rows": rows,
        "warning_level": level,
        "warning_message": format!("{rows} rows: {what}"),
        "execution_time_ms": took.as_secs_f64() * 1e3,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_arcs() {
        for (rows, level) in [
            (0, "none"),
            (10_000, "none"),
            (10_001, "low"),
            (100_000, "low"),
            (100_001, "medium"),
            (1_000_000, "medium"),
            (1_000_001, "high"),
        ] {
            let answer: serde_json::Value = serde_json::from_str(&answer(rows, Duration::ZERO)).unwrap();
            assert_eq!((&answer["warning_level"], &answer["estimated_rows"]), (&json!(level), &json!(rows)));
        }
    }
}
