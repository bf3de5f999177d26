//! What clients bind, and what they should not.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, BooleanArray, Date32Array, Float64Array, Int8Array, Int64Array, LargeStringArray, NullArray,
    RecordBatch as Rows, StringArray, StringViewArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_ipc::{CompressionType, writer::IpcWriteOptions};
use futures::TryStreamExt;
use proptest::prelude::*;

use super::*;

fn rows(columns: Vec<(&str, ArrayRef)>) -> Rows {
    Rows::try_from_iter_with_nullable(columns.into_iter().map(|(name, values)| (name, values, true))).unwrap()
}

fn sent(rows: &Rows, options: IpcWriteOptions) -> Given {
    let encoder = FlightDataEncoderBuilder::new().with_options(options).with_schema(rows.schema());
    let messages = encoder.build(futures::stream::iter([Ok(rows.clone())])).try_collect::<Vec<_>>();
    let mut messages = futures::executor::block_on(messages).unwrap().into_iter();
    Given { schema: messages.next().unwrap().data_header, rows: messages.collect() }
}

fn bound(columns: Vec<(&str, ArrayRef)>, names: &[&str]) -> Result<Parameters, String> {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    values(&sent(&rows(columns), IpcWriteOptions::default()), &names)
}

/// One column of each type that can be bound, and what it means.
fn every_type() -> Vec<(ArrayRef, Parameter)> {
    let long = "a text of more than twelve bytes";
    vec![
        (Arc::new(NullArray::new(1)), Parameter::Null),
        (Arc::new(BooleanArray::from(vec![true])), Parameter::Bool(true)),
        (Arc::new(Int8Array::from(vec![-7])), Parameter::Int(-7)),
        (Arc::new(Int64Array::from(vec![i64::MIN])), Parameter::Int(i64::MIN)),
        (Arc::new(Int64Array::from(vec![None])), Parameter::Null),
        (Arc::new(UInt64Array::from(vec![u64::MAX])), Parameter::UInt(u64::MAX)),
        (Arc::new(UInt64Array::from(vec![1])), Parameter::Int(1)),
        (Arc::new(Float64Array::from(vec![0.1])), Parameter::Float(0.1)),
        (Arc::new(StringArray::from(vec!["\u{e4}'; --"])), Parameter::Text("\u{e4}'; --".into())),
        (Arc::new(StringArray::from(vec![None::<&str>])), Parameter::Null),
        (Arc::new(LargeStringArray::from(vec![long])), Parameter::Text(long.into())),
        (Arc::new(StringViewArray::from(vec!["short"])), Parameter::Text("short".into())),
        (Arc::new(StringViewArray::from(vec![long])), Parameter::Text(long.into())),
        (Arc::new(TimestampMicrosecondArray::from(vec![-3])), Parameter::Time(-3_000)),
        (Arc::new(Date32Array::from(vec![1])), Parameter::Time(86_400_000_000_000)),
    ]
}

#[test]
fn every_type_by_place_and_by_name() {
    let all = every_type();
    let names: Vec<String> = (0..all.len()).map(|at| format!("n{at}")).collect();
    let columns = |named: &dyn Fn(usize) -> String| {
        let fields: Vec<String> = (0..all.len()).map(named).collect();
        let columns = fields.iter().zip(&all).map(|(name, (values, _))| (name.as_str(), values.clone()));
        sent(&rows(columns.collect()), IpcWriteOptions::default())
    };
    let (mut by_name, mut by_place) = (Parameters::default(), Parameters::default());
    for (at, (_, value)) in all.iter().enumerate() {
        by_name.set(format!("n{at}"), value.clone());
        by_place.set((at + 1).to_string(), value.clone());
    }
    assert_eq!(values(&columns(&|at| format!("n{at}")), &names).unwrap(), by_name);
    assert_eq!(values(&columns(&|at| format!("$n{at}")), &names).unwrap(), by_name);
    let numbers: Vec<String> = (1..=all.len()).map(|at| at.to_string()).collect();
    // As ADBC calls them.
    assert_eq!(values(&columns(&|at| at.to_string()), &numbers).unwrap(), by_place);
}

#[test]
fn what_cannot_be_bound_says_why() {
    let one = |values: ArrayRef| bound(vec![("a", values)], &["a"]).unwrap_err();
    let number = || Arc::new(Int64Array::from(vec![1])) as ArrayRef;
    assert!(one(Arc::new(Int64Array::from(vec![1, 2]))).contains("not 2"));
    assert!(
        one(Arc::new(Float64Array::from(vec![f64::NAN]))).contains("parameter a: a float must be finite")
    );
    assert!(one(Arc::new(TimestampMicrosecondArray::from(vec![i64::MAX]))).contains("2262"));
    assert!(one(Arc::new(arrow_array::BinaryArray::from(vec![&b"x"[..]]))).contains("Binary"));
    assert!(bound(vec![("b", number())], &["a"]).unwrap_err().contains("names (a)"));
    assert!(bound(vec![("a", number()), ("$a", number())], &["a"]).unwrap_err().contains("names (a)"));
    let given = sent(&rows(vec![("a", number())]), IpcWriteOptions::default());
    let none = Given { schema: given.schema.clone(), rows: Vec::new() };
    let two = Given { schema: given.schema.clone(), rows: vec![given.rows[0].clone(); 2] };
    for wrong in [Given::default(), none, two] {
        assert!(values(&wrong, &["a".into()]).unwrap_err().contains("one row"));
    }
    let packed = IpcWriteOptions::default().try_with_compression(Some(CompressionType::ZSTD)).unwrap();
    let packed = sent(&rows(vec![("a", number())]), packed);
    assert!(values(&packed, &["a".into()]).unwrap_err().contains("compressed"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever bits are wrong, the answer is values or an error.
    #[test]
    fn nothing_that_is_sent_does_harm(
        edits in prop::collection::vec((0..3_u8, any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let columns: Vec<(String, ArrayRef)> =
            every_type().into_iter().enumerate().map(|(at, (values, _))| (format!("n{at}"), values)).collect();
        let columns = columns.iter().map(|(name, values)| (name.as_str(), values.clone())).collect();
        let given = sent(&rows(columns), IpcWriteOptions::default());
        let mut parts = [given.schema.to_vec(), given.rows[0].data_header.to_vec(), given.rows[0].data_body.to_vec()];
        for (part, at, byte) in edits {
            let part = &mut parts[usize::from(part)];
            let at = at.index(part.len());
            part[at] = byte;
        }
        let len = parts[2].len();
        parts[2].truncate(if cut.index(4) == 0 { cut.index(len) } else { len });
        let [schema, header, body] = parts.map(Bytes::from);
        let row = FlightData { data_header: header, data_body: body, ..FlightData::default() };
        let names: Vec<String> = (1..=15).map(|at| at.to_string()).collect();
        let _ = values(&Given { schema, rows: vec![row] }, &names);
    }
}
