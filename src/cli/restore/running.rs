//! Into a running cluster, through the log as any write: every node has it, at one position.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use hyper::Method;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    cli::{
        Client, ClientError, Failure,
        archive::Archive,
        backup::keeps,
        db::path_part,
        output,
        progress::Progress,
        table::{number, render, text},
    },
    engine::columnar::saved::{Saved, SavedDatabase, SavedFile},
    http::ROWS,
};

/// How long the cluster may have no writer, or too much to do, before this gives up.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// A backup on its way into a cluster.
pub(super) struct Restoring<'a> {
    pub(super) archive: &'a Archive,
    pub(super) saved: &'a Saved,
    pub(super) client: Client,
    pub(super) name: Option<&'a str>,
    pub(super) merge: bool,
}

/// What a node answers to `GET /api/v1/databases`.
#[derive(Deserialize)]
struct Listed {
    databases: Vec<Known>,
}

#[derive(Deserialize)]
struct Known {
    name: String,
    #[serde(rename = "measurement_count")]
    tables: u64,
}

impl Restoring<'_> {
    pub(super) async fn run(&self, wanted: Option<&BTreeSet<String>>, as_json: bool) -> Result<(), Failure> {
        let databases: Vec<SavedDatabase> = self
            .saved
            .databases()
            .into_iter()
            .filter(|db| wanted.is_none_or(|wanted| wanted.contains(&db.name)))
            .collect();
        let listed: Listed = self.client.get("/api/v1/databases?consistency=linearizable").await?;
        let filled = |name: &str| listed.databases.iter().any(|known| known.name == name && known.tables > 0);
        // All of them are judged before any is begun.
        for database in &databases {
            let name = self.target(database);
            path_part(name)?;
            if filled(name) && !self.merge {
                return Err(Failure::new(format!(
                    "database {name} has points already, and nothing was changed. Choose: --as another name, --merge into it, \
                     or skein db drop {name} first"
                )));
            }
        }
        let files = self.saved.files();
        let ours: Vec<&SavedFile> =
            files.iter().filter(|file| databases.iter().any(|db| db.name == file.database)).collect();
        let mut progress = Progress::new("restoring", ours.iter().map(|file| file.bytes).sum());
        let mut done = Vec::new();
        for database in &databases {
            let name = self.target(database);
            let mut rows = 0;
            for file in ours.iter().filter(|file| file.database == database.name) {
                self.bring(file, name).await.map_err(|e| self.half_way(database, rows, &e))?;
                rows += file.rows;
                progress.add(file.bytes);
            }
            // What it keeps is said last: while rows come in nothing of them is too old.
            if let Some(keep) = keeps(database.keep_ns).filter(|_| !filled(name)) {
                let path = format!("/api/v1/databases/{}/retention", path_part(name)?);
                let body: Bytes = json!({ "keep": keep }).to_string().into();
                self.send(Method::PUT, &path, &body).await.map_err(|e| self.half_way(database, rows, &e))?;
            }
            done.push((database, name));
        }
        progress.end();
        if as_json {
            let lines: Vec<_> = done
                .iter()
                .map(|(db, name)| json!({ "database": db.name, "as": name, "rows": db.rows, "tables": db.tables }))
                .collect();
            return output::json(
                &json!({ "position": self.archive.contents.position.to_string(), "databases": lines }),
            );
        }
        let columns =
            [text("DATABASE"), text("RESTORED AS"), number("TABLES"), number("ROWS"), text("KEEPS")];
        let row = |(db, name): &(&SavedDatabase, &str)| {
            let keep = keeps(db.keep_ns).unwrap_or_else(|| "for ever".to_owned());
            vec![db.name.clone(), (*name).to_owned(), db.tables.to_string(), db.rows.to_string(), keep]
        };
        output::print(&render(&columns, &done.iter().map(row).collect::<Vec<_>>()))
    }

    fn target<'b>(&'b self, database: &'b SavedDatabase) -> &'b str {
        self.name.unwrap_or(&database.name)
    }

    /// Writes the rows of a file.
    async fn bring(&self, file: &SavedFile, name: &str) -> Result<(), Failure> {
        let path = format!("/api/v1/databases/{}/rows", path_part(name)?);
        let index = self.archive.find(&file.name);
        let index = index.ok_or_else(|| Failure::new(format!("the backup has no {}", file.name)))?;
        let content = self.archive.read(index)?;
        let payloads =
            self.saved.payloads(&file.name, content, name).map_err(|e| Failure::new(e.to_string()))?;
        for payload in payloads {
            let payload = payload.map_err(|e| Failure::new(e.to_string()))?;
            self.send(Method::POST, &path, &[&ROWS[..], &payload].concat().into()).await?;
        }
        Ok(())
    }

    /// Sends, again if that may help: what is sent changes nothing the second time.
    async fn send(&self, method: Method, path: &str, body: &Bytes) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.client.send(method.clone(), path, body.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) if passes(&error) && Instant::now() < deadline => sleep(PAUSE).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn half_way(&self, database: &SavedDatabase, rows: u64, error: &Failure) -> Failure {
        let name = self.target(database);
        Failure::new(format!(
            "{error}\nDatabase {name} holds a part of the backup now: about {rows} of {}. Give the command again with \
             --merge to bring the rest (nothing comes twice), or take it back: skein db drop {name}",
            output::counted(database.rows, "row", "rows")
        ))
    }
}

/// True for what goes away by itself.
fn passes(error: &ClientError) -> bool {
    match error {
        ClientError::Refused { status, .. } => matches!(status, 408 | 429 | 503 | 504),
        ClientError::Broken { .. } | ClientError::Unreachable { .. } => true,
        ClientError::Target(_) | ClientError::Untrusted { .. } => false,
    }
}
