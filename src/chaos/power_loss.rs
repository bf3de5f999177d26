//! A lone node on a real file system that loses its power again and again. What was acknowledged is
//! written down here, outside of what can be lost.

use std::{path::Path, sync::Arc, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng};
use skeinmesh::cli::Failure;
use tokio::time::sleep;

use crate::{
    check, clients,
    disk::{Disk, Kind},
    ledger::Ledger,
    network,
    process::Process,
    report::Report,
};

/// Clients, and their pause between two operations.
const CLIENTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(2);
/// Until the node is back.
const READY: Duration = Duration::from_secs(60);

/// So many losses. After each, everything acknowledged in all cycles must be there.
pub async fn run(
    cycles: u32,
    home: &Path,
    seed: u64,
    ledger: &Arc<Ledger>,
    report: &mut Report,
) -> Result<(), Failure> {
    (report.chaos, report.nodes) = ("power-loss", 1);
    if let Err(why) = Disk::try_ext4(home) {
        // One line that a gate can show.
        eprintln!("SKIPPED: power loss: no ext4 on loop devices here: {why}");
        report.skipped.insert("power-loss", "no ext4 on loop devices here");
        return Ok(());
    }
    // So nobody else takes office, and only what was acknowledged at `memory` may be lost.
    ledger.history().lone = true;
    network::make(1)?;
    let mut node = Process::new(0, Disk::make(home, &network::name(0), Kind::Ext4)?, home);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut forgotten = 0;
    node.launch(&["--new-cluster"], None).await?;
    node.ready(READY).await?;
    for cycle in 1..=u64::from(cycles) {
        ledger.resume();
        let mut clients = clients::feeds(CLIENTS, 1, PAUSE, ledger, seed.wrapping_add(cycle << 8));
        sleep(Duration::from_millis(rng.random_range(50..600))).await;
        node.disk.set_canary()?;
        // First nobody runs any more: a sync that is cut short may say that all is well, which no
        // machine without power can tell anybody.
        node.freeze().await?;
        node.disk.lose_power()?;
        ledger.stop();
        if let Some(ended) = node.kill().await? {
            return Err(Failure::new(format!("the node had ended with {:?}: {}", ended.code, ended.said)));
        }
        while clients.join_next().await.is_some() {}
        node.disk.power_up()?;
        forgotten += u32::from(!node.disk.take_canary());
        *report.faults.entry("power-loss").or_default() += 1;
        node.launch(&[], None).await?;
        node.ready(READY).await?;
        clients::look_at_the_end(1, ledger).await;
        let found = check::check(&ledger.history());
        if !found.is_empty() {
            eprintln!("{} violations after cycle {cycle}", found.len());
            return Ok(());
        }
        ledger.history().finals.clear();
    }
    if forgotten == 0 {
        return Err(Failure::new("no power loss lost what was never synced: this fault does not bite here"));
    }
    Ok(())
}
