//! The names under which a statement asks for bins without gaps. They are planned as functions and
//! replaced before anything runs.

use std::sync::Arc;

use arrow_schema::DataType;
use datafusion::{
    error::{DataFusionError, Result},
    functions::datetime::date_bin,
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};

/// What a query is grouped by.
pub(super) const BIN: &str = "date_bin_gapfill";
/// Last observation carried forward.
pub(super) const LOCF: &str = "locf";
/// What lies between.
pub(super) const INTERPOLATE: &str = "interpolate";

/// All of them.
pub(in super::super) const NAMES: [&str; 3] = [BIN, INTERPOLATE, LOCF];

/// The functions for the planner.
pub(in super::super) fn functions() -> [Arc<ScalarUDF>; 3] {
    NAMES.map(|name| {
        let signature = match name {
            BIN => date_bin().signature().clone(),
            _ => Signature::any(1, Volatility::Volatile),
        };
        Arc::new(ScalarUDF::from(Placeholder { name, signature }))
    })
}

/// A function that stands for a step.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Placeholder {
    name: &'static str,
    signature: Signature,
}

impl ScalarUDFImpl for Placeholder {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        if self.name == BIN {
            return date_bin().inner().return_type(arguments);
        }
        let one = arguments.first().cloned();
        let one = one.ok_or_else(|| DataFusionError::Plan(format!("{} has one argument", self.name)))?;
        if self.name == INTERPOLATE && !one.is_numeric() {
            return Err(DataFusionError::Plan(format!("interpolate: between values of {one} is nothing")));
        }
        Ok(one)
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(DataFusionError::Internal(format!("{} was not replaced", self.name)))
    }
}
