//! How fresh a read must be.

use axum::http::HeaderMap;

use crate::{
    config::parse_duration,
    http::{
        error::ApiError,
        params::{Params, either, shown},
    },
    node::Consistency,
};

/// What a request asks for: at most one of the three that are not `local`.
pub(super) fn asked(params: &Params, headers: &HeaderMap) -> Result<Consistency, ApiError> {
    let level = either(params, headers, "consistency", "x-skein-consistency")?;
    let min_lsn = either(params, headers, "min_lsn", "x-skein-min-lsn")?;
    let staleness = either(params, headers, "max_staleness", "x-skein-max-staleness")?;
    let given = [level.is_some_and(|level| level != "local"), min_lsn.is_some(), staleness.is_some()];
    if given.into_iter().filter(|given| *given).count() > 1 {
        return Err(ApiError::invalid(
            "consistency=linearizable, min_lsn and max_staleness exclude each other: give one",
        ));
    }
    if let Some(text) = min_lsn {
        let lsn = text.parse().map_err(|e| ApiError::invalid(format!("min_lsn: {e}")))?;
        return Ok(Consistency::MinLsn(lsn));
    }
    if let Some(text) = staleness {
        let age = parse_duration(text).map_err(|e| ApiError::invalid(format!("max_staleness: {e}")))?;
        return Ok(Consistency::MaxStaleness(age));
    }
    match level {
        None | Some("local") => Ok(Consistency::Local),
        Some("linearizable") => Ok(Consistency::Linearizable),
        Some(word) => Err(ApiError::invalid(format!(
            "consistency={} is no read consistency: use local or linearizable, or min_lsn=EPOCH.SEQ, or \
             max_staleness=200ms",
            shown(word)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::Lsn;

    #[test]
    fn one_of_each_and_not_two() {
        let none = HeaderMap::new();
        let ask = |text: &str| asked(&Params::parse(text), &none);
        assert_eq!(ask("").unwrap(), Consistency::Local);
        assert_eq!(ask("consistency=linearizable").unwrap(), Consistency::Linearizable);
        assert_eq!(ask("min_lsn=3.7&consistency=local").unwrap(), Consistency::MinLsn(Lsn::new(3, 7)));
        assert_eq!(
            ask("max_staleness=200ms").unwrap(),
            Consistency::MaxStaleness(Duration::from_millis(200))
        );
        for wrong in
            ["consistency=strong", "min_lsn=7", "max_staleness=7", "min_lsn=1.1&consistency=linearizable"]
        {
            assert!(ask(wrong).is_err(), "{wrong}");
        }
        let mut header = HeaderMap::new();
        header.insert("x-skein-min-lsn", "1.2".parse().unwrap());
        assert_eq!(asked(&Params::default(), &header).unwrap(), Consistency::MinLsn(Lsn::new(1, 2)));
    }
}
