//! `date_bin_gapfill`, `locf` and `interpolate`, as InfluxDB 3 has them: a query that is grouped by
//! `date_bin_gapfill(INTERVAL '..', time)` has a row for every bin of its time, also for those that no
//! point is in.
//!
//! DataFusion plans them as functions that nothing can compute. Here the aggregate below gets `date_bin`
//! in place of the first, and above it, where its rows are final, a step that adds the rows that are
//! missing ([`FillGaps`]); the other two become columns of that step.

use std::{hash::Hash, sync::Arc};

use arrow_schema::{DataType, Field};
use datafusion::{
    common::{
        Column, DFSchema, DFSchemaRef,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    error::{DataFusionError, Result},
    functions::datetime::date_bin,
    logical_expr::{
        Aggregate, Expr, Extension, Filter, LogicalPlan, LogicalPlanBuilder, Projection,
        UserDefinedLogicalNodeCore, expr::ScalarFunction,
    },
};

use super::error::QueryError;
use bounds::{Bounds, as_time, nanos};

mod bounds;
mod exec;
mod functions;
mod planner;

pub(super) use functions::{NAMES, functions};
pub(super) use planner::GapsPlanner;

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
    bounds: Bounds,
    /// The columns that are added.
    filled: Vec<Filled>,
    schema: Shape,
}

/// A column that is added to those below.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd)]
struct Filled {
    name: String,
    /// Which one it is made of.
    of: usize,
    fill: Fill,
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
        [&self.stride, &self.origin].into_iter().chain(self.bounds.exprs()).cloned().collect()
    }

    fn fmt_for_explain(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = |bounds: &[bounds::Bound]| {
            bounds.iter().map(|bound| bound.at.to_string()).collect::<Vec<_>>().join(", ")
        };
        let (least, below) = (of(&self.bounds.least), of(&self.bounds.below));
        write!(f, "FillGaps: stride={}, from=[{least}], to=[{below}]", self.stride)
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let mut exprs = exprs.into_iter();
        match (inputs.pop(), exprs.next(), exprs.next()) {
            (Some(input), Some(stride), Some(origin)) => {
                let bounds = self.bounds.with(&mut exprs);
                // Types below may have become others: literals are coerced, parameters get their values.
                let schema = Shape(with_gaps(input.schema(), self.time, &self.groups, &self.filled)?);
                Ok(Self { input, stride, origin, bounds, schema, ..self.clone() })
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
            "date_bin_gapfill can only be what a query is grouped by, without window functions: \
             SELECT date_bin_gapfill(INTERVAL '1 minute', time) AS t, avg(v) FROM .. GROUP BY t"
                .into(),
        )),
        Some(other) => Err(QueryError::Invalid(format!(
            "{other} goes around an aggregate, {other}(avg(v)), in the SELECT of a query that is grouped by \
             date_bin_gapfill"
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
    let bounds = Bounds::of(source, &aggregate.input);
    let input = binned(aggregate, time, having)?;
    if !matches!(input.schema().field(time).data_type(), DataType::Timestamp(..)) {
        return Err(DataFusionError::Plan("date_bin_gapfill: bins are of times that have a date".into()));
    }
    let groups: Vec<usize> = (0..aggregate.group_expr.len()).filter(|&group| group != time).collect();
    let mut filled: Vec<Filled> = Vec::new();
    let mut exprs = Vec::with_capacity(projection.expr.len());
    for expr in &projection.expr {
        let name = expr.schema_name().to_string();
        let with_columns = expr.clone().transform_up(|expr| {
            let Expr::ScalarFunction(call) = &expr else { return Ok(Transformed::no(expr)) };
            let (Some(fill), [of]) = (Fill::of(call.name()), call.args.as_slice()) else {
                return Ok(Transformed::no(expr));
            };
            // `count(*)` is another name of what is counted.
            let Expr::Column(of) = of.clone().unalias() else { return Ok(Transformed::no(expr)) };
            let Some(at) = input.schema().maybe_index_of_column(&of) else {
                return Ok(Transformed::no(expr));
            };
            if at < aggregate.group_expr.len() {
                return Ok(Transformed::no(expr));
            }
            let name = format!("{}({of})", call.name());
            if !filled.iter().any(|filled| filled.name == name) {
                filled.push(Filled { name: name.clone(), of: at, fill });
            }
            Ok(Transformed::yes(Expr::Column(Column::from_name(name))))
        })?;
        // It keeps its name, by which steps above know it.
        exprs.push(match with_columns {
            Transformed { data, transformed: true, .. } if data.schema_name().to_string() != name => {
                data.alias(name)
            }
            with_columns => with_columns.data,
        });
    }
    let schema = Shape(with_gaps(input.schema(), time, &groups, &filled)?);
    let origin = as_time(origin.cloned().unwrap_or_else(|| nanos(0)));
    let gaps = FillGaps { input, time, groups, stride: stride.clone(), origin, bounds, filled, schema };
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
fn with_gaps(below: &DFSchema, time: usize, groups: &[usize], filled: &[Filled]) -> Result<DFSchemaRef> {
    let mut fields = Vec::with_capacity(below.fields().len() + filled.len());
    for (at, (qualifier, field)) in below.iter().enumerate() {
        let always = at == time || groups.contains(&at);
        let field = if always { field.clone() } else { Arc::new(field.as_ref().clone().with_nullable(true)) };
        fields.push((qualifier.cloned(), field));
    }
    for Filled { name, of, .. } in filled {
        let kind = below.field(*of).data_type().clone();
        fields.push((None, Arc::new(Field::new(name, kind, true))));
    }
    Ok(Arc::new(DFSchema::new_with_metadata(fields, below.metadata().clone())?))
}
