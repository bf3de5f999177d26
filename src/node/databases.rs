//! Databases as a whole: drop one, say what it keeps. Both are records of the log, so every replica
//! does them at one position.

use std::time::Duration;

use super::Node;
use crate::write_path::{Receipt, SubmitError, policy::Change};

impl Node {
    /// Drops a database with all its points, columns and what it was told to keep. Returns when the
    /// record is committed; its files go with each replica's next checkpoint, once no query reads
    /// them. A database of that name that is written later begins anew. One that is not there is
    /// none: nothing happens.
    ///
    /// Dropping the future stops waiting, not the drop.
    ///
    /// # Errors
    /// As [`Node::submit`].
    pub async fn drop_database(&self, database: &str, timeout: Duration) -> Result<Receipt, SubmitError> {
        self.submit(Change::Drop { database: database.to_owned() }.into_write(timeout)).await
    }

    /// Has a database, which need not be there yet, keep its points for so long, at least
    /// [`SHORTEST_KEEP`](crate::node::SHORTEST_KEEP); `None` for ever. What is too old is not
    /// returned any more once the writer has said in the log what time it is, within a minute.
    ///
    /// Dropping the future stops waiting, not the change.
    ///
    /// # Errors
    /// As [`Node::submit`].
    pub async fn set_retention(
        &self,
        database: &str,
        keep: Option<Duration>,
        timeout: Duration,
    ) -> Result<Receipt, SubmitError> {
        let too_long = |_| SubmitError::Invalid("a time of more than 292 years: use none".to_owned());
        let keep_ns = keep.map(|keep| i64::try_from(keep.as_nanos())).transpose().map_err(too_long)?;
        let change = Change::Retention { database: database.to_owned(), keep_ns };
        self.submit(change.into_write(timeout)).await
    }
}
