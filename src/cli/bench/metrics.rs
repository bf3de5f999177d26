//! What a node says on `/metrics`.

use hyper::Method;

use crate::cli::{Client, Failure};

/// All of it, as it came.
pub(super) struct Metrics(String);

impl Metrics {
    pub(super) async fn of(client: &Client) -> Result<Self, Failure> {
        let answer = client.send(Method::GET, "/metrics", "").await?;
        Ok(Self(String::from_utf8_lossy(&answer.bytes().await?).into_owned()))
    }

    /// A figure without labels that counts something.
    pub(super) fn count(&self, name: &str) -> Result<u64, Failure> {
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok();
        let found = self.0.lines().find_map(value);
        found
            .map(|count| count as u64)
            .ok_or_else(|| Failure::new(format!("a node does not tell its {name}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_by_their_whole_name() {
        let metrics =
            Metrics("# HELP a_seq A.\n# TYPE a_seq gauge\na_seq_more 1\na_seq 42\nb{x=\"y\"} 3\n".into());
        assert_eq!(metrics.count("a_seq").unwrap(), 42);
        assert!(metrics.count("b").is_err() && metrics.count("a_se").is_err());
    }
}
