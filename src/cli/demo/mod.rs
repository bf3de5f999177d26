//! `skein demo`: three real node processes on loopback, fed with this machine's own readings; SQL,
//! a killed writer, and a count of every acknowledged row. [`run`] tells the story.

mod feed;

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};

use feed::Feed;

use super::{DemoArgs, Failure, output, processes::Nodes};

/// Rows are fed this long before the writer is killed, and again after.
const CALM: Duration = Duration::from_secs(5);
/// Longest wait for anything that should happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// A line of the table this often.
const LINE: Duration = Duration::from_secs(1);

/// What `--json` prints, as one line.
#[derive(Debug, Serialize)]
struct Summary {
    acked_rows: u64,
    found_rows: u64,
    failed_writes: u64,
    failover_ms: Option<u64>,
    nodes: u16,
}

/// Runs the demo. Exit code 1 if an acknowledged row is missing.
pub async fn run(args: DemoArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let say = Say { json: args.json };
    let mut stop = super::start::Stop::listen()?;
    let mut nodes = Nodes::prepare(args.nodes, "demo")?;
    let story = tell(&args, &mut nodes, &say);
    let summary = tokio::select! {
        summary = story => summary,
        () = stop.asked() => return Ok(()),
    };
    if let Ok(summary) = &summary {
        if args.json {
            output::json(summary)?;
        }
        let left = args.seconds.map(|all| Duration::from_secs(all).saturating_sub(started.elapsed()));
        if summary.found_rows == summary.acked_rows && left != Some(Duration::ZERO) {
            say.line("\nThe nodes go on; Ctrl-C ends them and removes their data:")?;
            for (name, url) in nodes.urls() {
                say.line(&format!("  {name}  {url}"))?;
            }
            let urls = nodes.urls();
            if let Some((_, url)) = urls.first() {
                say.line(&format!("\n  skein status --url {url}\n  skein query --url {url} -d demo 'select * from cpu order by time desc limit 5'"))?;
            }
            tokio::select! {
                () = async { match left { Some(left) => sleep(left).await, None => std::future::pending().await } } => {}
                () = stop.asked() => {}
            }
        }
    }
    nodes.stop().await;
    let summary = summary?;
    if summary.found_rows < summary.acked_rows {
        let missing = summary.acked_rows - summary.found_rows;
        return Err(Failure::new(format!("{missing} acknowledged rows are missing")));
    }
    Ok(())
}

async fn tell(args: &DemoArgs, nodes: &mut Nodes, say: &Say) -> Result<Summary, Failure> {
    say.line(&format!("Starting {} nodes in {}", args.nodes, nodes.home().display()))?;
    nodes.start_first("lan").await?;
    nodes.join_others().await?;
    nodes.wait_until_formed(PATIENCE).await?;
    say.line(&format!("{} nodes joined by token, all voters.\n", args.nodes))?;

    let mut feed = Feed::begin(nodes.clients())?;
    say.line(&feed.head())?;
    feed_for(CALM, &mut feed, nodes, say).await?;

    let writer = nodes.writer().await?;
    let reader = nodes.other_than(writer);
    say.line(&format!("\nSQL at {}, which is not the writer:\n", nodes.name(reader)))?;
    say.line(&feed.ask(reader).await?)?;

    let mut failover_ms = None;
    if !args.no_failover && args.nodes >= 3 {
        say.line(&format!("kill -9 {} (the writer), while writes go on", nodes.name(writer)))?;
        let killed = Instant::now();
        nodes.kill(writer).await?;
        feed.lost(writer);
        let back = feed.until_acknowledged(nodes, killed, PATIENCE).await?;
        failover_ms = u64::try_from(back.as_millis()).ok();
        say.line(&format!("next acknowledged write after {} ms\n", back.as_millis()))?;
        say.line(&feed.head())?;
        feed_for(CALM, &mut feed, nodes, say).await?;
        let survivor = nodes.other_than(writer);
        let found = feed.count_found(survivor).await?;
        say.line(&format!(
            "\n{} rows acknowledged, {found} of them found at {}",
            feed.acked(),
            nodes.name(survivor)
        ))?;
        say.line(&format!("starting {} again", nodes.name(writer)))?;
        let again = Instant::now();
        nodes.restart(writer).await?;
        feed.found_again(writer, nodes.client(writer));
        while !nodes.caught_up(writer).await {
            if again.elapsed() > PATIENCE {
                return Err(Failure::new(format!(
                    "{} did not catch up; see {}",
                    nodes.name(writer),
                    nodes.home().display()
                )));
            }
            feed.once(nodes).await;
            sleep(Duration::from_millis(100)).await;
        }
        say.line(&format!("it has caught up after {} ms", again.elapsed().as_millis()))?;
    }
    let found = feed.count_found(writer).await?;
    say.line(&format!(
        "{} rows acknowledged, {found} of them found at {}",
        feed.acked(),
        nodes.name(writer)
    ))?;
    Ok(Summary {
        acked_rows: feed.acked(),
        found_rows: found,
        failed_writes: feed.failed(),
        failover_ms,
        nodes: args.nodes,
    })
}

async fn feed_for(time: Duration, feed: &mut Feed, nodes: &Nodes, say: &Say) -> Result<(), Failure> {
    let end = Instant::now() + time;
    let mut line = Instant::now() + LINE;
    while Instant::now() < end {
        feed.once(nodes).await;
        if Instant::now() >= line {
            line += LINE;
            say.line(&feed.line(nodes).await)?;
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Standard output for people; nothing while `--json` keeps it for its one line.
struct Say {
    json: bool,
}

impl Say {
    fn line(&self, text: &str) -> Result<(), Failure> {
        if self.json { Ok(()) } else { output::print(&format!("{text}\n")) }
    }
}
