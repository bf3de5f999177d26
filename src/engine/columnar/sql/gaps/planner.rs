//! From the logical step to the one that runs: what is constant has its value now.

use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::Schema;
use async_trait::async_trait;
use datafusion::{
    catalog::Session,
    common::{DFSchema, ScalarValue},
    error::{DataFusionError, Result},
    logical_expr::{
        Expr, LogicalPlan, UserDefinedLogicalNode, physical_planning_context::PhysicalPlanningContext,
    },
    physical_plan::ExecutionPlan,
    physical_planner::{ExtensionPlanner, PhysicalPlanner},
};

use super::{
    FillGaps,
    bounds::Bound,
    exec::{Bins, GapsExec, nanos_of},
};

/// Plans [`FillGaps`], and nothing else.
#[derive(Debug)]
pub(in super::super) struct GapsPlanner;

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
        let rows = RecordBatchOptions::new().with_row_count(Some(1));
        let row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &rows)?;
        let value = |expr: &Expr| -> Result<ScalarValue> {
            let expr = planner.create_physical_expr(expr, &nothing, session, context)?;
            ScalarValue::try_from_array(expr.evaluate(&row)?.into_array(1)?.as_ref(), 0)
        };
        let time = |expr: &Expr| match value(expr)? {
            ScalarValue::TimestampNanosecond(at, _) => Ok(at),
            other => Err(DataFusionError::Plan(format!("{other} is no time"))),
        };
        let times = |bounds: &[Bound]| -> Result<Vec<i64>> {
            let one = |bound: &Bound| Ok(time(&bound.at)?.map(|at| at.saturating_add(bound.next.into())));
            bounds.iter().filter_map(|bound| one(bound).transpose()).collect()
        };
        let stride = stride(&value(&gaps.stride)?)?;
        let origin = time(&gaps.origin)?.unwrap_or(0);
        let unit = nanos_of(gaps.schema.0.field(gaps.time).data_type())?;
        if stride % unit != 0 || origin % unit != 0 {
            let why = "date_bin_gapfill: bins have to be whole units of the time that is binned";
            return Err(DataFusionError::Plan(why.into()));
        }
        // A bin that begins before all of time bounds nothing.
        let bin = |at: i64| {
            let from_origin = i128::from(at) - i128::from(origin);
            i64::try_from(i128::from(at) - from_origin.rem_euclid(stride.into())).ok()
        };
        let first = times(&gaps.bounds.least)?.into_iter().max().and_then(bin);
        let below = times(&gaps.bounds.below)?.into_iter().min();
        let last = below.and_then(|below| bin(below.checked_sub(1)?));
        let bins = Bins { time: gaps.time, groups: gaps.groups.clone(), stride, first, last };
        let filled = gaps.filled.iter().map(|filled| (filled.of, filled.fill)).collect();
        let schema = Arc::new(gaps.schema.0.as_arrow().clone());
        Ok(Some(Arc::new(GapsExec::new(input.clone(), schema, bins, filled)?)))
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
