//! How files are read: the newest first, their tags in codes where conditions on them leave rows out.

use std::{collections::HashSet, sync::Arc};

use arrow_schema::{Field, Schema};
use datafusion::{
    common::{ColumnStatistics, ScalarValue, Statistics, stats::Precision},
    datasource::{
        listing::PartitionedFile,
        memory::DataSourceExec,
        physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource},
    },
    error::Result,
    execution::object_store::ObjectStoreUrl,
    physical_expr::{PhysicalExpr, expressions::Column, split_conjunction},
    physical_plan::{ExecutionPlan, filter::FilterExecBuilder},
};
use futures::{FutureExt, StreamExt, future::BoxFuture};

use super::{
    LOOKS, Reading, Scan,
    zones::{Outside, Zones},
};
use crate::engine::columnar::{
    data_file::DataFile,
    merge::tags,
    schema::TIME,
    sql::{
        reader::{OURS, Readers, are_in_codes, metadata},
        tags_exec::{Condition, TagsExec, encoded},
    },
};

impl Scan<'_> {
    /// Reads files, of which conditions on tags leave out rows.
    pub(super) async fn narrowed(
        &self,
        files: Vec<Reading>,
        columns: &[usize],
        limit: Option<usize>,
    ) -> Result<Vec<Arc<dyn ExecutionPlan>>> {
        let schema = &self.table.schema;
        let tags: HashSet<usize> = tags(schema).filter(|tag| columns.contains(tag)).collect();
        let conditions = self.all.iter().flat_map(|all| split_conjunction(all));
        let conditions = conditions.map(|condition| Condition::new(condition, schema, &tags));
        let conditions: Vec<Condition> = conditions.filter_map(Result::transpose).collect::<Result<_>>()?;
        let (mut coded, mut plain) = (Vec::new(), Vec::new());
        // Where nothing is left out only those are better taken as codes that are to be numbers.
        let numbers = &self.table.in_codes;
        let in_codes = tags.iter().filter(|tag| !conditions.is_empty() || numbers.contains_key(tag));
        let names: HashSet<String> = in_codes.map(|&tag| schema.field(tag).name().clone()).collect();
        for reading in files {
            // A file that nobody has read yet is not read here to know: most may never be.
            let known = reading.file.metadata.get();
            match known.is_some_and(|known| !names.is_empty() && are_in_codes(known, &names)) {
                true => coded.push(reading),
                false => plain.push(reading),
            }
        }
        let mut plans = Vec::new();
        if !coded.is_empty() {
            let rows = self.files(&coded, columns, self.all.as_ref(), None, &Arc::new(names))?;
            let rows = TagsExec::new(rows, columns, &conditions, numbers);
            plans.push(Arc::new(rows) as Arc<dyn ExecutionPlan>);
        }
        if !plain.is_empty() {
            plans.push(self.files(&plain, columns, self.all.as_ref(), limit, &Arc::default())?);
        }
        Ok(plans)
    }

    /// Reads what reaches into zones, and leaves out what is in them.
    pub(super) async fn edge(
        &self,
        edge: Vec<Reading>,
        zones: &Arc<Zones>,
        floor: i64,
    ) -> Result<Vec<Arc<dyn ExecutionPlan>>> {
        let (columns, wanted) = self.with_time([]);
        let outside = |rows| -> Result<Arc<dyn ExecutionPlan>> {
            let outside = Outside { time: Arc::new(Column::new(TIME, 0)), zones: zones.clone(), floor };
            let filter = FilterExecBuilder::new(Arc::new(outside), rows);
            Ok(Arc::new(filter.apply_projection(Some(wanted.clone()))?.build()?))
        };
        self.narrowed(edge, &columns, None).await?.into_iter().map(outside).collect()
    }

    /// Reads files, the newest first: it is those that are asked for most, and who looks for the last few
    /// rows need not read the others then. The predicate only leaves out row groups and pages. The columns
    /// that are to come in codes are so in all of the files.
    pub(super) fn files(
        &self,
        files: &[Reading],
        columns: &[usize],
        predicate: Option<&Arc<dyn PhysicalExpr>>,
        limit: Option<usize>,
        in_codes: &Arc<HashSet<String>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let field = |field: &Arc<Field>| match in_codes.contains(field.name()) {
            true => Arc::new(encoded(field)),
            false => field.clone(),
        };
        let schema = &self.table.schema;
        let schema = Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>())
            .with_metadata(schema.metadata().clone());
        let readers = Readers { disk: self.table.disk.clone(), in_codes: in_codes.clone() };
        let mut source =
            ParquetSource::new(Arc::new(schema)).with_parquet_file_reader_factory(Arc::new(readers));
        if let Some(predicate) = predicate {
            source = source.with_predicate(predicate.clone());
        }
        let mut newest_first: Vec<&Reading> = files.iter().collect();
        newest_first.sort_by_key(|reading| std::cmp::Reverse(reading.range.1));
        let mut listed_files = Vec::with_capacity(files.len());
        for reading in newest_first {
            let entry = &reading.file.entry;
            let mut listed = PartitionedFile::new(entry.name(), entry.size)
                .with_extension(reading.file.clone())
                .with_statistics(Arc::new(self.statistics(std::slice::from_ref(reading))));
            if let Some(some) = &reading.groups {
                listed = listed.with_extension(some.clone());
            }
            listed_files.push(listed);
        }
        // Partitions take files from one queue, which is made of these in their order.
        let each = listed_files.len().div_ceil(self.partitions).max(1);
        let groups = listed_files.chunks(each).map(|files| FileGroup::new(files.to_vec())).collect();
        let mut statistics = self.statistics(files);
        if files.iter().any(|reading| reading.groups.is_some()) {
            statistics = statistics.to_inexact();
        }
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::parse(OURS)?, Arc::new(source))
            .with_file_groups(groups)
            .with_projection_indices(Some(columns.to_vec()))?
            .with_limit(limit)
            .with_statistics(statistics)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    /// Rows and times, which the manifest knows; enough to answer `count(*)` without reading. Of row groups
    /// rows are guessed and times bounded.
    fn statistics(&self, files: &[Reading]) -> Statistics {
        let mut statistics = Statistics::new_unknown(&self.table.schema);
        let rows: u64 = files.iter().map(|reading| reading.rows).sum();
        let guessed = files.iter().any(|reading| reading.groups.is_some());
        statistics.num_rows = match usize::try_from(rows) {
            Ok(rows) if guessed => Precision::Inexact(rows),
            Ok(rows) => Precision::Exact(rows),
            Err(_) => Precision::Absent,
        };
        let time = |time: Option<i64>| match time {
            // Exact also where it is a bound: whoever leaves out a file by it asks for no more.
            Some(time) => Precision::Exact(ScalarValue::TimestampNanosecond(Some(time), None)),
            None => Precision::Absent,
        };
        if let Some(column) = statistics.column_statistics.first_mut() {
            *column = ColumnStatistics {
                null_count: Precision::Exact(0),
                min_value: time(files.iter().map(|reading| reading.range.0).min()),
                max_value: time(files.iter().map(|reading| reading.range.1).max()),
                ..ColumnStatistics::new_unknown()
            };
        }
        statistics
    }

    /// Reads what files say of themselves, some at a time: for the first query after a start all of a file has
    /// to be read, to know that it is whole.
    pub(super) async fn look_into(&self, files: impl Iterator<Item = &Arc<DataFile>>) -> Result<()> {
        let unknown = files.filter(|file| file.metadata.get().is_none());
        let look = |file: &Arc<DataFile>| {
            let (disk, file) = (self.table.disk.clone(), file.clone());
            async move { metadata(&disk, &file).await.map(drop) }.boxed()
        };
        let looks: Vec<BoxFuture<'static, Result<()>>> = unknown.map(look).collect();
        let mut looks = futures::stream::iter(looks).buffer_unordered(LOOKS);
        while let Some(looked) = looks.next().await {
            looked?;
        }
        Ok(())
    }
}
