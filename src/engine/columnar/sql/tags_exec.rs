//! Tags as files hold them, codes and what each stands for: conditions are judged once for each text that a tag
//! has and not for each row.
//!
//! This step leaves out the rows whose codes no condition allows, and gives the text of what is left, or numbers
//! if nothing else is needed (`codes.rs`): most queries ask for few series of many, or for what is one for each,
//! and to make the text of every row would be most of their work. The conditions are judged by row again above,
//! so what cannot be judged here is simply passed on.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::Arc,
};

use arrow_array::{
    Array, ArrayRef, BooleanArray, DictionaryArray, Int32Array, RecordBatch, StringArray, cast::AsArray,
    types::Int32Type,
};
use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder};
use arrow_cast::cast;
use arrow_ord::cmp::eq;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::filter::filter_record_batch;
use datafusion::{
    common::{
        config::ConfigOptions,
        tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion},
    },
    error::{DataFusionError, Result},
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{EquivalenceProperties, PhysicalExpr, expressions::Column, utils::collect_columns},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
        filter_pushdown::{ChildFilterDescription, FilterDescription, FilterPushdownPhase},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, TryStreamExt, future::ready};

use super::{
    codes::{Coder, Texts},
    table_provider::SqlTable,
};

/// Up to so many codes are looked for one after the other.
const FEW: usize = 4;

/// A column of codes: what reads it, and what it is in the table.
pub(super) fn encoded(field: &Field) -> Field {
    let codes = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    field.clone().with_data_type(codes)
}

/// A condition on one tag and nothing else.
#[derive(Debug, Clone)]
pub(super) struct Condition {
    /// Among all columns of the table.
    pub(super) column: usize,
    /// Of a batch with this column alone.
    of_text: Arc<dyn PhysicalExpr>,
    field: Arc<Field>,
}

impl Condition {
    /// `None` for a condition on anything else than one of the tags.
    pub(super) fn new(
        condition: &Arc<dyn PhysicalExpr>,
        schema: &Schema,
        tags: &HashSet<usize>,
    ) -> Result<Option<Self>> {
        let columns: HashSet<usize> = collect_columns(condition).iter().map(Column::index).collect();
        let mut columns = columns.into_iter();
        let (Some(column), None) = (columns.next(), columns.next()) else { return Ok(None) };
        if !tags.contains(&column) {
            return Ok(None);
        }
        let field = Arc::new(schema.field(column).clone());
        let alone = condition.clone().transform(|part| {
            Ok(match part.downcast_ref::<Column>() {
                Some(column) => Transformed::yes(Arc::new(Column::new(column.name(), 0)) as Arc<_>),
                None => Transformed::no(part),
            })
        });
        Ok(Some(Self { column, of_text: alone.data()?, field }))
    }

    /// What it is true of, in order; `None` if it cannot be judged apart from the others, which may keep it
    /// from being asked about a text. So many at a time as a batch has rows: what is made of each of them
    /// may be long.
    fn judge(&self, texts: &ArrayRef, rows: usize) -> Option<BooleanBuffer> {
        let schema = Arc::new(Schema::new(vec![self.field.clone()]));
        let mut allowed = BooleanBufferBuilder::new(texts.len());
        let rows = rows.max(1);
        for start in (0..texts.len()).step_by(rows) {
            let some = texts.slice(start, rows.min(texts.len() - start));
            let batch = RecordBatch::try_new(schema.clone(), vec![some]).ok()?;
            let judged = self.of_text.evaluate(&batch).ok()?.into_array(batch.num_rows()).ok()?;
            let judged = judged.as_boolean_opt()?;
            // What is not known is not true.
            match judged.nulls() {
                Some(known) => allowed.append_buffer(&(judged.values() & known.inner())),
                None => allowed.append_buffer(judged.values()),
            }
        }
        Some(allowed.finish())
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct TagsExec {
    of: Arc<dyn ExecutionPlan>,
    /// With the columns among those of `of`.
    conditions: Vec<(usize, Condition)>,
    /// What columns of `of` are to be numbers of.
    texts: BTreeMap<usize, Arc<Texts>>,
    properties: Arc<PlanProperties>,
    schema: SchemaRef,
}

impl TagsExec {
    /// Of a plan that gives these columns of the table, and tags in codes: all of those on which there are
    /// conditions, and of the others at least those that are to be numbers.
    pub(super) fn new(
        of: Arc<dyn ExecutionPlan>,
        columns: &[usize],
        conditions: &[Condition],
        numbers: &BTreeMap<usize, Arc<Texts>>,
    ) -> Self {
        let at = |wanted: usize| columns.iter().position(|&column| column == wanted);
        let conditions = conditions.iter().filter_map(|condition| Some((at(condition.column)?, condition)));
        let conditions = conditions.map(|(at, condition)| (at, condition.clone())).collect();
        let numbers = numbers.iter().filter_map(|(&column, texts)| Some((at(column)?, texts.clone())));
        Self::of(of, conditions, numbers.collect())
    }

    /// The plan, which gives these columns of a table, with numbers where it has text and they are wanted.
    pub(super) fn giving(
        wanted: &SchemaRef,
        plan: Arc<dyn ExecutionPlan>,
        columns: &[usize],
        table: &SqlTable,
    ) -> Arc<dyn ExecutionPlan> {
        let has = plan.schema();
        let same = wanted.fields().iter().zip(has.fields()).all(|(a, b)| a.data_type() == b.data_type());
        if same { plan } else { Arc::new(Self::new(plan, columns, &[], &table.in_codes)) }
    }

    fn of(
        of: Arc<dyn ExecutionPlan>,
        conditions: Vec<(usize, Condition)>,
        texts: BTreeMap<usize, Arc<Texts>>,
    ) -> Self {
        let given = |(at, field): (usize, &Arc<Field>)| {
            let kind = match field.data_type() {
                _ if texts.contains_key(&at) => DataType::UInt32,
                DataType::Dictionary(_, text) => text.as_ref().clone(),
                _ => return field.clone(),
            };
            Arc::new(field.as_ref().clone().with_data_type(kind))
        };
        let below = of.schema();
        let fields = below.fields().iter().enumerate().map(given).collect::<Vec<_>>();
        let schema: SchemaRef = Arc::new(Schema::new(fields).with_metadata(below.metadata().clone()));
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema.clone()),
            of.output_partitioning().clone(),
            of.pipeline_behavior(),
            of.boundedness(),
        );
        Self { of, conditions, texts, properties: Arc::new(properties), schema }
    }
}

impl DisplayAs for TagsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let conditions = self.conditions.iter().map(|(_, condition)| condition.of_text.to_string());
        write!(f, "TagsExec: {}", conditions.collect::<Vec<_>>().join(" AND "))?;
        let numbers: Vec<&str> = self.texts.keys().map(|&at| self.schema.field(at).name().as_str()).collect();
        if numbers.is_empty() { Ok(()) } else { write!(f, " numbers=[{}]", numbers.join(", ")) }
    }
}

impl ExecutionPlan for TagsExec {
    fn name(&self) -> &'static str {
        "TagsExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.of]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let of = children.first().unwrap_or(&self.of);
        Ok(Arc::new(Self::of(of.clone(), self.conditions.clone(), self.texts.clone())))
    }

    /// What asks for the newest rows tells the files from when on; what is about tags is of another type there.
    fn gather_filters_for_pushdown(
        &self,
        _: FilterPushdownPhase,
        filters: Vec<Arc<dyn PhysicalExpr>>,
        _: &ConfigOptions,
    ) -> Result<FilterDescription> {
        let below = self.of.schema();
        let plain = below.fields().iter().zip(self.schema.fields()).enumerate();
        let plain = plain.filter(|(_, (below, given))| below.data_type() == given.data_type());
        let plain = plain.map(|(at, _)| at).collect();
        let child = ChildFilterDescription::from_child_with_allowed_indices(&filters, plain, &self.of)?;
        Ok(FilterDescription::new().with_child(child))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows = context.session_config().batch_size();
        let batches = self.of.execute(partition, context)?;
        let mut judges: Vec<Judge> =
            self.conditions.iter().map(|(at, condition)| Judge::new(*at, condition, rows)).collect();
        let mut coders: Vec<Option<Coder>> =
            (0..self.schema.fields().len()).map(|at| self.texts.get(&at).map(Coder::new)).collect();
        let schema = self.schema.clone();
        let left = batches.map(move |batch| {
            let left = narrow(&batch?, &mut judges)?;
            given(&left, &mut coders, &schema)
        });
        let left = left.try_filter(|batch| ready(batch.num_rows() > 0));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), left)))
    }
}

/// A condition, and what was found out about the texts of the last batch: those of a row group are the same.
struct Judge {
    at: usize,
    condition: Condition,
    /// Of a batch.
    rows: usize,
    /// Of a row without this tag.
    of_none: bool,
    texts: Option<ArrayRef>,
    allowed: Option<BooleanBuffer>,
}

impl Judge {
    fn new(at: usize, condition: &Condition, rows: usize) -> Self {
        let none: ArrayRef = Arc::new(StringArray::new_null(1));
        let of_none = condition.judge(&none, rows).is_none_or(|allowed| allowed.value(0));
        Self { at, condition: condition.clone(), rows, of_none, texts: None, allowed: None }
    }

    /// Which rows of a batch it allows; `None` for all.
    fn allowed_of(&mut self, batch: &RecordBatch) -> Result<Option<BooleanBuffer>> {
        let codes = batch.columns().get(self.at).and_then(|column| column.as_dictionary_opt::<Int32Type>());
        let Some(codes) = codes else {
            return Err(DataFusionError::Internal("a tag that was to come in codes does not".into()));
        };
        let same = |texts: &ArrayRef| texts.to_data().ptr_eq(&codes.values().to_data());
        if !self.texts.as_ref().is_some_and(same) {
            self.allowed = self.condition.judge(codes.values(), self.rows);
            self.texts = Some(codes.values().clone());
        }
        self.allowed.as_ref().map(|allowed| self.of_codes(codes, allowed)).transpose()
    }

    fn of_codes(&self, codes: &DictionaryArray<Int32Type>, allowed: &BooleanBuffer) -> Result<BooleanBuffer> {
        let keys = codes.keys();
        let mut rows = if allowed.count_set_bits() <= FEW {
            // Whole vectors at a time.
            let mut rows = BooleanBuffer::new_unset(keys.len());
            let of_values = Int32Array::new(keys.values().clone(), None);
            for code in allowed.set_indices().filter_map(|code| i32::try_from(code).ok()) {
                rows = &rows | eq(&of_values, &Int32Array::new_scalar(code))?.values();
            }
            rows
        } else {
            BooleanBuffer::collect_bool(keys.len(), |row| {
                let code = keys.values().get(row).and_then(|&code| usize::try_from(code).ok());
                code.is_some_and(|code| code < allowed.len() && allowed.value(code))
            })
        };
        if let Some(there) = keys.nulls() {
            // What stands where there is no code means nothing.
            rows = &rows & there.inner();
            if self.of_none {
                rows = &rows | &!there.inner();
            }
        }
        Ok(rows)
    }
}

/// The rows that all conditions allow.
fn narrow(batch: &RecordBatch, judges: &mut [Judge]) -> Result<RecordBatch> {
    let mut allowed: Option<BooleanBuffer> = None;
    for judge in judges {
        if let Some(rows) = judge.allowed_of(batch)? {
            allowed = Some(match allowed {
                Some(allowed) => &allowed & &rows,
                None => rows,
            });
        }
    }
    Ok(match allowed.map(|allowed| (allowed.count_set_bits(), allowed)) {
        Some((0, _)) => RecordBatch::new_empty(batch.schema()),
        Some((count, allowed)) if count < batch.num_rows() => {
            filter_record_batch(batch, &BooleanArray::new(allowed, None))?
        }
        _ => batch.clone(),
    })
}

/// Rows with numbers or text in the place of codes.
fn given(batch: &RecordBatch, coders: &mut [Option<Coder>], schema: &SchemaRef) -> Result<RecordBatch> {
    if batch.num_rows() == 0 {
        return Ok(RecordBatch::new_empty(schema.clone()));
    }
    let columns = batch.columns().iter().zip(schema.fields()).zip(coders);
    let columns = columns.map(|((column, field), coder)| match coder {
        Some(coder) => coder.numbers(column),
        None if column.data_type() == field.data_type() => Ok(column.clone()),
        None => Ok(cast(column, field.data_type())?),
    });
    Ok(RecordBatch::try_new(schema.clone(), columns.collect::<Result<_>>()?)?)
}
