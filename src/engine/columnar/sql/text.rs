//! Functions that make text longer, within bounds. DataFusion's memory limit covers what it sorts,
//! joins and groups, not what an expression allocates, and a chain of short steps doubles a text at
//! each. So how long a result can become is judged before it is made, one value against
//! [`MAX_VALUE`] and a batch against the query's memory, of which it holds its share while it lives.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use arrow_array::{
    Array, ArrayRef, GenericStringArray, LargeStringArray, OffsetSizeTrait, StringArray, StringViewArray,
    cast::AsArray,
};
use arrow_buffer::Buffer;
use arrow_schema::{DataType, FieldRef};
use bytes::Bytes;
use datafusion::{
    arrow::compute::kernels::concat_elements::concat_elements_utf8,
    common::{DFSchema, ScalarValue},
    error::{DataFusionError, Result},
    execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation},
    logical_expr::{
        ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
        Volatility,
        planner::{ExprPlanner, PlannerResult, RawBinaryExpr},
    },
    sql::sqlparser::ast::BinaryOperator,
};

/// Longest text that a function makes, in bytes.
pub(super) const MAX_VALUE: usize = 1 << 20;

/// Name of the function that stands for the operator.
pub(super) const CONCATENATION: &str = "||";

/// Puts a bounded function in the place of each that can make text longer.
pub(super) fn bound_functions(functions: &mut [Arc<ScalarUDF>], pool: &Arc<dyn MemoryPool>) {
    for function in functions {
        if let Some(growth) = Growth::of(function.name()) {
            *function = Bounded::function(function.clone(), growth, pool);
        }
    }
}

/// Plans `||` as a bounded function.
#[derive(Debug)]
pub(super) struct Concatenation(Arc<ScalarUDF>);

impl Concatenation {
    pub(super) fn new(pool: &Arc<dyn MemoryPool>) -> Self {
        let inner = ScalarUDF::from(Operator { signature: Signature::user_defined(Volatility::Immutable) });
        Self(Bounded::function(inner.into(), Growth::Sum, pool))
    }
}

impl ExprPlanner for Concatenation {
    fn plan_binary_op(&self, expr: RawBinaryExpr, _: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        Ok(match expr.op {
            BinaryOperator::StringConcat => PlannerResult::Planned(self.0.call(vec![expr.left, expr.right])),
            _ => PlannerResult::Original(expr),
        })
    }
}

/// How the length of a result follows from the arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Growth {
    /// `concat`, `||`, `overlay`: all of them together.
    Sum,
    /// `concat_ws`: so too, with the first between them.
    Separated,
    /// `replace`: as often as the second is found.
    Replace,
    /// `regexp_replace`: at most at every place, and each group of the replacement may be all of it.
    RegexReplace,
    /// `regexp_match`: every group may be all of it.
    RegexMatch,
    /// `to_char`: `%c` is short for up to 32 bytes.
    Format,
    /// No text, but the second argument is a pattern.
    Regex,
}

impl Growth {
    fn of(function: &str) -> Option<Self> {
        Some(match function {
            "concat" | "overlay" => Self::Sum,
            "concat_ws" => Self::Separated,
            "replace" => Self::Replace,
            "regexp_replace" => Self::RegexReplace,
            "regexp_match" => Self::RegexMatch,
            "regexp_like" | "regexp_count" | "regexp_instr" => Self::Regex,
            "to_char" => Self::Format,
            _ => return None,
        })
    }

    /// The most bytes that row `row` of the result can have.
    fn most(self, args: &[Text<'_>], row: usize) -> usize {
        let text = |at: usize| args.get(at).map_or("", |arg| arg.get(row));
        let all = || args.iter().map(|arg| arg.get(row).len()).fold(0, usize::saturating_add);
        let groups = |text: &str, marks: &[char]| text.matches(marks).count();
        match self {
            Self::Sum => all(),
            Self::Separated => all().saturating_add(text(0).len().saturating_mul(args.len())),
            Self::Replace => {
                let (from, to, text) = (text(1), text(2), text(0));
                let found = text.matches(from).count();
                (text.len() - found * from.len()).saturating_add(found.saturating_mul(to.len()))
            }
            Self::RegexReplace => {
                let (text, replacement, flags) = (text(0), text(2), text(3));
                let places = if flags.contains('g') { text.len() + 1 } else { 1 };
                let inserted = places.saturating_mul(replacement.len());
                // What is found is found once, but may be put in by every group.
                let copied = text.len().saturating_mul(1 + groups(replacement, &['\\', '$']));
                inserted.saturating_add(copied)
            }
            Self::RegexMatch => text(0).len().saturating_mul(1 + groups(text(1), &['('])),
            Self::Format => text(1).len().saturating_mul(16).saturating_add(64),
            Self::Regex => 0,
        }
    }
}

/// A function, and how much its results may grow.
#[derive(Debug)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    growth: Growth,
    pool: Arc<dyn MemoryPool>,
}

impl Bounded {
    fn function(inner: Arc<ScalarUDF>, growth: Growth, pool: &Arc<dyn MemoryPool>) -> Arc<ScalarUDF> {
        Arc::new(ScalarUDF::from(Self { inner, growth, pool: pool.clone() }))
    }

    /// The most bytes that the result can have.
    fn most(&self, args: &ScalarFunctionArgs) -> Result<usize> {
        let is_pattern = matches!(self.growth, Growth::Regex | Growth::RegexReplace | Growth::RegexMatch);
        if is_pattern && matches!(args.args.get(1), Some(ColumnarValue::Array(_))) {
            // Each row's would have to be compiled, at any cost.
            return Err(DataFusionError::Execution(format!(
                "the pattern of {} must be constant",
                self.name()
            )));
        }
        let texts = args.args.iter().map(Text::of).collect::<Result<Vec<_>>>()?;
        let constant = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let mut sum = 0usize;
        for row in 0..if constant { 1 } else { args.number_rows } {
            let most = self.growth.most(&texts, row);
            if most > MAX_VALUE {
                return Err(DataFusionError::ResourcesExhausted(format!(
                    "{} makes a text of up to {most} bytes, {MAX_VALUE} are possible",
                    self.name()
                )));
            }
            sum = sum.saturating_add(most);
        }
        Ok(sum)
    }
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    // `simplify` is left out on purpose: it joins constants, or becomes an operator, past the bound.

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let share = MemoryConsumer::new(self.name()).register(&self.pool);
        share.try_grow(self.most(&args)?)?;
        Ok(match self.inner.invoke_with_args(args)? {
            ColumnarValue::Array(array) => ColumnarValue::Array(held(array, share)?),
            scalar @ ColumnarValue::Scalar(_) => scalar,
        })
    }
}

// A query has one memory pool, so a function is told by the one that it bounds.
impl PartialEq for Bounded {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }
}

impl Eq for Bounded {}

impl Hash for Bounded {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

/// An argument that is text; nulls and what is no text are empty.
enum Text<'a> {
    None,
    One(&'a str),
    Short(&'a StringArray),
    Long(&'a LargeStringArray),
    View(&'a StringViewArray),
}

impl<'a> Text<'a> {
    fn of(value: &'a ColumnarValue) -> Result<Self> {
        let kind = value.data_type();
        Ok(match (value, &kind) {
            (ColumnarValue::Scalar(scalar), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => {
                scalar.try_as_str().flatten().map_or(Self::None, Self::One)
            }
            (ColumnarValue::Array(array), DataType::Utf8) => Self::Short(array.as_string()),
            (ColumnarValue::Array(array), DataType::LargeUtf8) => Self::Long(array.as_string()),
            (ColumnarValue::Array(array), DataType::Utf8View) => Self::View(array.as_string_view()),
            _ if kind.is_null() || kind.is_primitive() || kind == DataType::Boolean => Self::None,
            // Bytes and dictionaries would pass unmeasured.
            _ => return Err(DataFusionError::Execution(format!("this function takes text, not {kind}"))),
        })
    }

    fn get(&self, row: usize) -> &'a str {
        fn or_empty<'a>(array: &'a impl Array, row: usize, value: impl FnOnce() -> &'a str) -> &'a str {
            if row < array.len() && array.is_valid(row) { value() } else { "" }
        }
        match *self {
            Self::None => "",
            Self::One(text) => text,
            Self::Short(array) => or_empty(array, row, || array.value(row)),
            Self::Long(array) => or_empty(array, row, || array.value(row)),
            Self::View(array) => or_empty(array, row, || array.value(row)),
        }
    }
}

/// The array, which keeps its share of the memory as long as its text lives.
fn held(array: ArrayRef, share: MemoryReservation) -> Result<ArrayRef> {
    match array.data_type() {
        DataType::Utf8 => held_text::<i32>(&array, share),
        DataType::LargeUtf8 => held_text::<i64>(&array, share),
        _ => Ok(array),
    }
}

fn held_text<O: OffsetSizeTrait>(array: &ArrayRef, share: MemoryReservation) -> Result<ArrayRef> {
    let (offsets, text, nulls) = array.as_string::<O>().clone().into_parts();
    share.try_resize(text.len())?;
    let text = Buffer::from(Bytes::from_owner(Held { text, _share: share }));
    Ok(Arc::new(GenericStringArray::<O>::try_new(offsets, text, nulls)?))
}

struct Held {
    text: Buffer,
    _share: MemoryReservation,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

/// `||`: null if one side is.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Operator {
    signature: Signature,
}

impl ScalarUDFImpl for Operator {
    fn name(&self) -> &'static str {
        CONCATENATION
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let sides: Vec<_> = args.iter().map(|arg| arg.schema_name().to_string()).collect();
        Ok(sides.join(" || "))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let is_text =
            |kind: &DataType| matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        let castable = |kind: &DataType| {
            is_text(kind) || kind.is_null() || kind.is_primitive() || *kind == DataType::Boolean
        };
        if !types.iter().any(|kind| is_text(kind) || kind.is_null()) || !types.iter().all(castable) {
            let types: Vec<_> = types.iter().map(ToString::to_string).collect();
            return Err(DataFusionError::Plan(format!("cannot join {} with ||", types.join(" and "))));
        }
        Ok(vec![DataType::Utf8; types.len()])
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constant = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { args.number_rows };
        let arrays = args.args.iter().map(|arg| arg.to_array(rows)).collect::<Result<Vec<_>>>()?;
        let [left, right] = arrays.as_slice() else {
            return Err(DataFusionError::Internal("|| has two sides".into()));
        };
        let joined: ArrayRef =
            Arc::new(concat_elements_utf8(left.as_string::<i32>(), right.as_string::<i32>())?);
        if constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&joined, 0)?));
        }
        Ok(ColumnarValue::Array(joined))
    }
}
