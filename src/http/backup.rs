//! A backup of the databases in one answer, and rows of one coming back.

use std::{
    collections::BTreeSet,
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};
use tokio::{sync::mpsc, time::timeout};

use super::{
    Edge, body,
    error::{self, ApiError, Fault},
    params::{self, Params, shown},
    write::receipt_headers,
};
use crate::{
    disk::{Create, Disk},
    engine::{
        EngineError, ExportFile, StorageEngine,
        columnar::{batch, saved::Saved},
    },
    node::{Backup, BackupError, Consistency, ReadError, SubmitError, VERSION, Write},
    protocol::{
        archive::{self, Contents, DatabaseContents, FileContents},
        frame::MAX_PAYLOAD,
    },
};

/// How long a backup may wait for the writer's word and for what it says, unless the request says otherwise,
/// and at most.
const BEGIN: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(600));
/// How long rows that come back may take to be written, unless the request says otherwise, and at most.
const IMPORT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// A client that takes nothing for so long holds files no more.
const STALL: Duration = Duration::from_secs(60);
/// Bytes of a file that are read at once.
const PIECE: usize = 1 << 20;
/// Longest manifest that is read.
const MAX_MANIFEST: u64 = 1 << 30;

/// What stands before a payload that is brought back, so that no byte of it is taken for a compressed one.
pub(crate) const ROWS: &[u8; 8] = b"SKEINROW";

/// `GET /api/v1/backup`: everything acknowledged before the request, of every database or of those named
/// by `database`, at one position.
pub(super) async fn take(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, ApiError> {
    let (params, headers) = (Params::of(request.uri()), request.headers());
    let longest = params::timeout(&params, headers, BEGIN.0, BEGIN.1)?;
    let consistency = match params.get("consistency") {
        None | Some("linearizable") => Consistency::Linearizable,
        Some("local") => Consistency::Local,
        Some(word) => {
            let word = shown(word);
            return Err(ApiError::invalid(format!("consistency={word}: a backup is linearizable or local")));
        }
    };
    let wanted: Option<BTreeSet<String>> =
        params.get("database").map(|names| names.split(',').map(str::to_owned).collect());
    let backup = edge.app.node.backup(consistency, longest).await?;
    let disk = Arc::clone(edge.app.node.disk());
    let (contents, manifest) = contents(&edge, &*disk, &backup, wanted.as_ref()).await?;
    let json = serde_json::to_vec_pretty(&contents).map_err(internal)?;
    let len = contents.archive_len(json.len() as u64);
    let name = format!("skein backup at {}", contents.position);
    let (give, mut take) = mpsc::channel(2);
    tokio::spawn(async move {
        match send(&*disk, &backup, &contents, json.into(), manifest, &give).await {
            Ok(()) => tracing::info!(what = name, bytes = len, "sent a backup"),
            Err(error) => {
                tracing::warn!(what = name, %error, "a backup broke off");
                // The client sees a body that is shorter than announced.
                let _ = give.send(Err(error)).await;
            }
        }
    });
    let pieces = futures::stream::poll_fn(move |cx| take.poll_recv(cx));
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
    error::set(&mut headers, "x-skein-node", edge.app.node.id());
    Ok(error::ok("application/x-tar", headers, Body::from_stream(pieces)))
}

/// What the archive will hold, and the manifest that goes into it.
async fn contents(
    edge: &Edge,
    disk: &dyn Disk,
    backup: &Backup,
    wanted: Option<&BTreeSet<String>>,
) -> Result<(Contents, Bytes), ApiError> {
    let Some(first) = backup.export.files.first() else {
        return Err(ApiError::new(Fault::Internal, "the engine gave no manifest"));
    };
    let all = crate::disk::read_file(disk, &first.path, MAX_MANIFEST).await.map_err(internal)?;
    let all = Saved::read(&all).map_err(internal)?;
    if let Some(unknown) =
        wanted.and_then(|names| names.iter().find(|name| !all.databases().iter().any(|db| db.name == **name)))
    {
        return Err(ApiError::new(Fault::NotFound, format!("there is no database {}", shown(unknown))));
    }
    // A retry of a write into a database that is not in the backup must not find that it was applied.
    let sidecar = if wanted.is_none() { backup.sidecar.clone() } else { Bytes::new() };
    let picked = all.pick(wanted, sidecar);
    let manifest = picked.to_bytes().map_err(internal)?;
    let mut files = vec![FileContents {
        name: archive::MANIFEST.to_owned(),
        bytes: manifest.len() as u64,
        sha256: HEXLOWER.encode(digest(&SHA256, &manifest).as_ref()),
    }];
    files.extend(picked.files().into_iter().map(|file| FileContents {
        name: file.name,
        bytes: file.bytes,
        sha256: HEXLOWER.encode(&file.hash),
    }));
    let databases = picked.databases().into_iter().map(|db| DatabaseContents {
        name: db.name,
        keep_ns: db.keep_ns,
        tables: db.tables,
        rows: db.rows,
        bytes: db.bytes,
    });
    let view = edge.app.node.view().borrow().clone();
    let contents = Contents {
        format: Contents::format(),
        version: VERSION.to_owned(),
        cluster_id: view.cluster,
        cluster_name: view.name.clone(),
        node_id: edge.app.node.id(),
        position: picked.position(),
        epochs: backup.epochs.clone(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        databases: databases.collect(),
        files,
    };
    Ok((contents, manifest))
}

type Pieces = mpsc::Sender<io::Result<Bytes>>;

async fn send(
    disk: &dyn Disk,
    backup: &Backup,
    contents: &Contents,
    json: Bytes,
    manifest: Bytes,
    give: &Pieces,
) -> io::Result<()> {
    let created = contents.created;
    let entry = |name: &str, content: Bytes| {
        let mut bytes = archive::head(name, content.len() as u64, created);
        bytes.extend_from_slice(&content);
        bytes.resize(bytes.len() + archive::padding(content.len() as u64), 0);
        Bytes::from(bytes)
    };
    let sum = format!("{}\n", HEXLOWER.encode(digest(&SHA256, &json).as_ref()));
    put(give, entry(archive::CONTENTS, json)).await?;
    put(give, entry(archive::MANIFEST, manifest)).await?;
    for file in contents.files.iter().skip(1) {
        let there = backup.export.files.iter().find(|there| there.name == file.name);
        let there = there.ok_or_else(|| io::Error::other(format!("{} is not there", file.name)))?;
        put(give, archive::head(&file.name, file.bytes, created).into()).await?;
        send_file(disk, there, give).await?;
        put(give, vec![0; archive::padding(file.bytes)].into()).await?;
    }
    let mut end = entry(archive::SUM, sum.into()).to_vec();
    end.resize(end.len() + archive::END, 0);
    put(give, end.into()).await
}

async fn send_file(disk: &dyn Disk, file: &ExportFile, give: &Pieces) -> io::Result<()> {
    let open = disk.open(&file.path, Create::No).await?;
    let mut at = 0;
    while at < file.len {
        let want = usize::try_from(file.len - at).unwrap_or(PIECE).min(PIECE);
        let piece = open.read(at, want).await?;
        if piece.is_empty() {
            return Err(io::Error::other(format!("{} is shorter than its manifest says", file.name)));
        }
        at += piece.len() as u64;
        put(give, piece).await?;
    }
    Ok(())
}

async fn put(give: &Pieces, piece: Bytes) -> io::Result<()> {
    match timeout(STALL, give.send(Ok(piece))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(io::Error::other("the client is gone")),
        Err(_) => Err(io::Error::other(format!("the client took nothing for {} s", STALL.as_secs()))),
    }
}

/// `POST /api/v1/databases/{name}/rows`: rows of a backup, as [`ROWS`] and a payload of the engine. Sent
/// again they change nothing.
pub(super) async fn import(
    State(edge): State<Arc<Edge>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let _permit = edge.intake.permit()?;
    let (head, body) = request.into_parts();
    let timeout = params::timeout(&Params::of(&head.uri), &head.headers, IMPORT.0, IMPORT.1)?;
    let taken = body::take(body, &head.headers, &edge.app.config, &edge.bodies).await?;
    if !taken.bytes.starts_with(ROWS) {
        return Err(ApiError::invalid("the body is not rows of a backup: use skein restore"));
    }
    let payload = taken.bytes.slice(ROWS.len()..);
    if payload.len() > MAX_PAYLOAD {
        let limit = MAX_PAYLOAD >> 20;
        return Err(ApiError::new(
            Fault::TooLarge,
            format!("these rows are a record of more than {limit} MiB"),
        ));
    }
    let (engine, judged) = (Arc::clone(&edge.app.engine), payload.clone());
    let rows = body::off_thread(payload.len(), move || {
        let header = batch::peek(&judged).map_err(|e| ApiError::invalid(e.to_string()))?;
        if header.database != name {
            let other = shown(&header.database);
            return Err(ApiError::invalid(format!(
                "these rows are for database {other}, not {}",
                shown(&name)
            )));
        }
        engine.validate(batch::ENCODING, &judged).map_err(ApiError::invalid)?;
        Ok(header.tables.iter().map(|table| u64::from(table.rows)).sum::<u64>())
    });
    let rows = rows.await??;
    match edge.app.node.submit(Write::new(batch::ENCODING, payload, timeout)).await {
        Ok(receipt) => {
            edge.intake.rows_written.add(rows);
            Ok(error::no_content(receipt_headers(&receipt)))
        }
        Err(SubmitError::SchemaChanged(_)) => Err(ApiError::new(
            Fault::Conflict,
            "a column of these rows has another type in the database: restore under another name (--as)",
        )),
        Err(error) => Err(error.into()),
    }
}

fn internal(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(Fault::Internal, error.to_string())
}

impl From<BackupError> for ApiError {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Read(ReadError::NoWriter) => Self::new(
                Fault::Unavailable,
                "no writer with a majority says what is acknowledged; skein backup --local (consistency=local) takes \
                 what this node has",
            ),
            BackupError::Read(error) => error.into(),
            BackupError::Unsettled { .. } => Self::new(Fault::Unavailable, error.to_string()),
            BackupError::Engine { error: EngineError::Io(ref source), .. }
                if crate::disk::is_full(source) =>
            {
                Self::new(Fault::Full, error.to_string())
            }
            BackupError::Engine { error: EngineError::Damaged(..), .. } => {
                Self::new(Fault::Unavailable, format!("{error}; ask another node"))
            }
            BackupError::Engine { .. } => Self::new(Fault::Internal, error.to_string()),
        }
    }
}
