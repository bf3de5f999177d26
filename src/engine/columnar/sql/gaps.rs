//! `date_bin_gapfill`, `locf` and `interpolate`, as InfluxDB 3 has them: a query that is grouped by
//! `date_bin_gapfill(INTERVAL '..', time)` has a row for every bin of its time, also for those that no
//! point is in.
//!
//! DataFusion plans them as functions that nothing can compute. Here the aggregate below gets `date_bin`
//! in place of the first, and above it, where its rows are final, a step that adds the rows that are
//! missing ([`FillGaps`]); the other two become columns of that step.

use std::{hash::Hash, sync::Arc};

use arrow_schema::{DataType, Field, TimeUnit};
use async_trait::async_trait;
use datafusion::{
    catalog::Session,
    common::{
        Column, DFSchema, DFSchemaRef, ScalarValue,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    error::{DataFusionError, Result},
    functions::datetime::date_bin,
    logical_expr::{
        Aggregate, BinaryExpr, Expr, Extension, Filter, LogicalPlan, LogicalPlanBuilder, Operator,
        Projection, UserDefinedLogicalNode, UserDefinedLogicalNodeCore, cast, expr::ScalarFunction,
        physical_planning_context::PhysicalPlanningContext, utils::split_conjunction,
    },
    physical_plan::ExecutionPlan,
    physical_planner::{ExtensionPlanner, PhysicalPlanner},
};

use super::error::QueryError;
use exec::GapsExec;

mod exec;
mod functions;

pub(super) use functions::{NAMES, functions};

/// Bins of one series that a query may have: more than a screen has columns, by far.
const MAX_BINS: u64 = 100_000;

/// What stands in a bin that has no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd)]
enum Fill {
    /// The value of the bin before.
    Last,
    /// What lies on the line between the values before and behind.
    Between,
}

impl Fill {
    fn of(function: &str) -> Option<Self> {
        match function {
            functions::LOCF => Some(Self::Last),
            functions::INTERPOLATE => Some(Self::Between),
            _ => None,
        }
    }
}

/// Adds to an aggregate's rows those of the bins that are missing, and to its columns those that say what
/// is to stand there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd)]
pub(super) struct FillGaps {
    input: LogicalPlan,
    /// Which column has the times of bins; and which others tell series apart.
    time: usize,
    groups: Vec<usize>,
    /// How long a bin is; where one begins.
    stride: Expr,
    origin: Expr,
    /// Times that all rows are at or behind, and before: none, one or several of each.
    least: Vec<Expr>,
    below: Vec<Expr>,
    /// For each added column which one it is made of.
    filled: Vec<(usize, Fill)>,
    schema: Shape,
}

/// A schema without an order of its own: what it follows from is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Shape(DFSchemaRef);

impl PartialOrd for Shape {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        (self == other).then_some(std::cmp::Ordering::Equal)
    }
}

impl UserDefinedLogicalNodeCore for FillGaps {
    fn name(&self) -> &'static str {
        "FillGaps"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema.0
    }

    fn expressions(&self) -> Vec<Expr> {
        [&self.stride, &self.origin].into_iter().chain(&self.least).chain(&self.below).cloned().collect()
    }

    fn fmt_for_explain(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = |exprs: &[Expr]| exprs.iter().map(Expr::to_string).collect::<Vec<_>>().join(", ");
        let (least, below) = (of(&self.least), of(&self.below));
        write!(f, "FillGaps: stride={}, from=[{least}], before=[{below}]", self.stride)
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let mut exprs = exprs.into_iter();
        match (inputs.pop(), exprs.next(), exprs.next()) {
            (Some(input), Some(stride), Some(origin)) => {
                let least = exprs.by_ref().take(self.least.len()).collect();
                let below = exprs.collect();
                Ok(Self { input, stride, origin, least, below, ..self.clone() })
            }
            _ => Err(DataFusionError::Internal("FillGaps lost its input".into())),
        }
    }
}

/// Puts the steps in that fill gaps.
pub(super) fn fill_gaps(plan: LogicalPlan) -> Result<LogicalPlan, QueryError> {
    let plan = plan.transform_up_with_subqueries(|step| match &step {
        LogicalPlan::Projection(projection) => match fill_below(projection)? {
            Some(filled) => Ok(Transformed::yes(filled)),
            None => Ok(Transformed::no(step)),
        },
        _ => Ok(Transformed::no(step)),
    });
    let plan = plan?.data;
    let mut left = None;
    plan.apply_with_subqueries(|step| {
        step.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::ScalarFunction(call) = expr
                    && NAMES.contains(&call.name())
                {
                    left = Some(call.name().to_owned());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    match left.as_deref() {
        None => Ok(plan),
        Some(functions::BIN) => Err(QueryError::Invalid(
            "date_bin_gapfill can only be what a query is grouped by: \
             SELECT date_bin_gapfill(INTERVAL '1 minute', time) AS t, avg(v) FROM .. GROUP BY t"
                .into(),
        )),
        Some(other) => Err(QueryError::Invalid(format!(
            "{other} goes around an aggregate, {other}(avg(v)), of a query that is grouped by date_bin_gapfill"
        ))),
    }
}

/// The projection of an aggregate that is grouped by bins, with their gaps filled.
fn fill_below(projection: &Projection) -> Result<Option<LogicalPlan>> {
    let (aggregate, having) = match projection.input.as_ref() {
        LogicalPlan::Aggregate(aggregate) => (aggregate, None),
        LogicalPlan::Filter(filter) => match filter.input.as_ref() {
            LogicalPlan::Aggregate(aggregate) => (aggregate, Some(&filter.predicate)),
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    let bins: Vec<usize> = (0..aggregate.group_expr.len())
        .filter(|&at| aggregate.group_expr.get(at).and_then(bin_of).is_some())
        .collect();
    let time = match bins.as_slice() {
        [] => return Ok(None),
        [time] => *time,
        _ => return Err(DataFusionError::Plan("a query can be grouped by date_bin_gapfill once".into())),
    };
    let Some(call) = aggregate.group_expr.get(time).and_then(bin_of) else { return Ok(None) };
    let (stride, source, origin) = match call.args.as_slice() {
        [stride, source] => (stride, source, None),
        [stride, source, origin] => (stride, source, Some(origin)),
        _ => return Err(DataFusionError::Plan("date_bin_gapfill has two or three arguments".into())),
    };
    let (least, below) = bounds(source, &aggregate.input);
    let input = binned(aggregate, time, having)?;
    let groups: Vec<usize> = (0..aggregate.group_expr.len()).filter(|&group| group != time).collect();
    let mut filled: Vec<(usize, Fill, String)> = Vec::new();
    let mut exprs = Vec::with_capacity(projection.expr.len());
    for expr in &projection.expr {
        let name = expr.schema_name().to_string();
        let with_columns = expr.clone().transform_up(|expr| {
            let Expr::ScalarFunction(call) = &expr else { return Ok(Transformed::no(expr)) };
            let (Some(fill), [Expr::Column(of)]) = (Fill::of(call.name()), call.args.as_slice()) else {
                return Ok(Transformed::no(expr));
            };
            let Some(at) = input.schema().maybe_index_of_column(of) else { return Ok(Transformed::no(expr)) };
            if at < aggregate.group_expr.len() {
                return Ok(Transformed::no(expr));
            }
            let added = format!("{}({of})", call.name());
            if !filled.iter().any(|(_, _, name)| *name == added) {
                filled.push((at, fill, added.clone()));
            }
            Ok(Transformed::yes(Expr::Column(Column::from_name(added))))
        })?;
        // It keeps its name, by which steps above know it.
        exprs.push(match with_columns {
            Transformed { data, transformed: true, .. } if data.schema_name().to_string() != name => {
                data.alias(name)
            }
            with_columns => with_columns.data,
        });
    }
    let schema = Shape(Arc::new(with_gaps(input.schema(), time, &groups, &filled)?));
    let gaps = FillGaps {
        input,
        time,
        groups,
        stride: stride.clone(),
        origin: as_time(origin.cloned().unwrap_or_else(|| nanos(0))),
        least,
        below,
        filled: filled.into_iter().map(|(of, fill, _)| (of, fill)).collect(),
        schema,
    };
    let gaps = LogicalPlan::Extension(Extension { node: Arc::new(gaps) });
    Ok(Some(LogicalPlanBuilder::from(gaps).project(exprs)?.build()?))
}

fn bin_of(group: &Expr) -> Option<&ScalarFunction> {
    match group {
        Expr::Alias(alias) => bin_of(&alias.expr),
        Expr::ScalarFunction(call) if call.name() == functions::BIN => Some(call),
        _ => None,
    }
}

/// The aggregate, by `date_bin` under the old name, and what HAVING leaves of it.
fn binned(aggregate: &Aggregate, time: usize, having: Option<&Expr>) -> Result<LogicalPlan> {
    let mut groups = aggregate.group_expr.clone();
    if let Some(group) = groups.get_mut(time) {
        let name = group.schema_name().to_string();
        let args = bin_of(group).map(|call| call.args.clone()).unwrap_or_default();
        *group = date_bin().call(args).alias(name);
    }
    let input = Aggregate::try_new(aggregate.input.clone(), groups, aggregate.aggr_expr.clone())?;
    let input = LogicalPlan::Aggregate(input);
    Ok(match having {
        Some(predicate) => LogicalPlan::Filter(Filter::try_new(predicate.clone(), Arc::new(input))?),
        None => input,
    })
}

/// The columns of the rows below and those that are added; what a gap has no value for may be null.
fn with_gaps(
    below: &DFSchema,
    time: usize,
    groups: &[usize],
    filled: &[(usize, Fill, String)],
) -> Result<DFSchema> {
    let mut fields = Vec::with_capacity(below.fields().len() + filled.len());
    for (at, (qualifier, field)) in below.iter().enumerate() {
        let always = at == time || groups.contains(&at);
        let field = if always { field.clone() } else { Arc::new(field.as_ref().clone().with_nullable(true)) };
        fields.push((qualifier.cloned(), field));
    }
    for (of, _, name) in filled {
        let kind = below.field(*of).data_type().clone();
        fields.push((None, Arc::new(Field::new(name, kind, true))));
    }
    DFSchema::new_with_metadata(fields, below.metadata().clone())
}

/// Between which times the rows are that reach the aggregate, as far as its conditions say: those that
/// they are at or behind, and those that they are before.
fn bounds(source: &Expr, mut input: &LogicalPlan) -> (Vec<Expr>, Vec<Expr>) {
    let Expr::Column(source) = source else { return (Vec::new(), Vec::new()) };
    let is_time = |expr: &Expr| matches!(expr, Expr::Column(column) if column.name == source.name);
    let is_constant = |expr: &Expr| expr.column_refs().is_empty() && !expr.is_volatile();
    let (mut least, mut below) = (Vec::new(), Vec::new());
    let mut note = |op: Operator, with: &Expr| {
        let one = nanos(1);
        let at = as_time(with.clone());
        let behind = |at: Expr| as_time(cast(at, DataType::Int64) + cast(one.clone(), DataType::Int64));
        match op {
            Operator::GtEq => least.push(at),
            Operator::Gt => least.push(behind(at)),
            Operator::Lt => below.push(at),
            Operator::LtEq => below.push(behind(at)),
            Operator::Eq => {
                least.push(at.clone());
                below.push(behind(at));
            }
            _ => {}
        }
    };
    loop {
        input = match input {
            LogicalPlan::SubqueryAlias(alias) => &alias.input,
            LogicalPlan::Filter(filter) => {
                for condition in split_conjunction(&filter.predicate) {
                    match condition {
                        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                            if is_time(left) && is_constant(right) {
                                note(*op, right);
                            } else if is_constant(left) && is_time(right) {
                                note(op.swap().unwrap_or(Operator::NotEq), left);
                            }
                        }
                        Expr::Between(between) if is_time(&between.expr) && !between.negated => {
                            if is_constant(&between.low) {
                                note(Operator::GtEq, &between.low);
                            }
                            if is_constant(&between.high) {
                                note(Operator::LtEq, &between.high);
                            }
                        }
                        _ => {}
                    }
                }
                &filter.input
            }
            _ => return (least, below),
        };
    }
}

fn nanos(at: i64) -> Expr {
    Expr::Literal(ScalarValue::TimestampNanosecond(Some(at), None), None)
}

fn as_time(expr: Expr) -> Expr {
    cast(expr, DataType::Timestamp(TimeUnit::Nanosecond, None))
}

/// Plans [`FillGaps`], and nothing else.
#[derive(Debug)]
pub(super) struct GapsPlanner;

#[async_trait]
impl ExtensionPlanner for GapsPlanner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _logical_inputs: &[&LogicalPlan],
        inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        context: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let (Some(gaps), [input]) = (node.as_any().downcast_ref::<FillGaps>(), inputs) else {
            return Ok(None);
        };
        let nothing = DFSchema::empty();
        let value = |expr: &Expr| -> Result<ScalarValue> {
            let expr = planner.create_physical_expr(expr, &nothing, session, context)?;
            let row = arrow_array::RecordBatch::try_new_with_options(
                Arc::new(arrow_schema::Schema::empty()),
                Vec::new(),
                &arrow_array::RecordBatchOptions::new().with_row_count(Some(1)),
            )?;
            ScalarValue::try_from_array(expr.evaluate(&row)?.into_array(1)?.as_ref(), 0)
        };
        let time = |expr: &Expr| match value(expr)? {
            ScalarValue::TimestampNanosecond(at, _) => Ok(at),
            other => Err(DataFusionError::Plan(format!("{other} is no time"))),
        };
        let times = |exprs: &[Expr]| exprs.iter().map(time).collect::<Result<Vec<_>>>();
        let stride = stride(&value(&gaps.stride)?)?;
        let origin = time(&gaps.origin)?.unwrap_or(0);
        let least = times(&gaps.least)?.into_iter().flatten().max();
        let below = times(&gaps.below)?.into_iter().flatten().min();
        let bin = |at: i64| {
            let bin = i128::from(at) - (i128::from(at) - i128::from(origin)).rem_euclid(stride.into());
            i64::try_from(bin).map_err(|_| DataFusionError::Plan("a time is out of range".into()))
        };
        let first = least.map(bin).transpose()?;
        let last = below.map(|below| bin(below.saturating_sub(1))).transpose()?;
        let plan = GapsExec::new(
            input.clone(),
            Arc::new(gaps.schema.0.as_arrow().clone()),
            exec::Bins { time: gaps.time, groups: gaps.groups.clone(), stride, first, last },
            gaps.filled.clone(),
        )?;
        Ok(Some(Arc::new(plan)))
    }
}

/// How long a bin is, in nanoseconds.
fn stride(value: &ScalarValue) -> Result<i64> {
    let wrong = |why: &str| DataFusionError::Plan(format!("date_bin_gapfill: {why}"));
    let nanos = match value {
        ScalarValue::IntervalMonthDayNano(Some(interval)) if interval.months == 0 => i64::from(interval.days)
            .checked_mul(86_400_000_000_000)
            .and_then(|days| days.checked_add(interval.nanoseconds)),
        ScalarValue::IntervalDayTime(Some(interval)) => {
            let days = i64::from(interval.days) * 86_400_000;
            (days + i64::from(interval.milliseconds)).checked_mul(1_000_000)
        }
        ScalarValue::IntervalMonthDayNano(Some(_)) => {
            return Err(wrong("months and years are not equally long; use days, or date_bin"));
        }
        _ => return Err(wrong("the first argument is an INTERVAL")),
    };
    nanos.filter(|nanos| *nanos > 0).ok_or_else(|| wrong("a bin has to be longer than nothing"))
}
