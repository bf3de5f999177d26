//! A log that has nothing to do does nothing, and with little to do it lets others add to it.

use std::{
    future::poll_fn,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
};

use super::*;

/// What was due when the log began anew was written with the beginning, and its alarm must not outlive it:
/// the driver would turn a core hot until the next record comes.
#[tokio::test(start_paused = true)]
async fn a_log_that_began_anew_with_a_watermark_due_rests() {
    let disk = SimDisk::new();
    let opened = Wal::open(Arc::new(disk.boot()), config(), CLUSTER, Box::new(|| 1)).await;
    let (wal, driver, _) = opened.unwrap();
    let polls = Arc::new(AtomicU64::new(0));
    let counter = polls.clone();
    tokio::spawn(async move {
        let mut run = pin!(driver.run());
        poll_fn(|context| {
            counter.fetch_add(1, Ordering::Relaxed);
            run.as_mut().poll(context)
        })
        .await
    });
    wal.append(1, batch(200, 0)).unwrap();
    wal.settle().await.unwrap();
    let epochs = EpochTable::from_entries(vec![(1, 1), (3, 12)]).unwrap();
    wal.announce(Lsn::new(3, 15), 5, epochs).await.unwrap();
    assert_eq!(wal.begin_anew(Lsn::new(3, 15)).await.unwrap(), Some(Lsn::new(3, 15)));

    tokio::time::advance(Duration::from_secs(2)).await;
    let before = polls.load(Ordering::Relaxed);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let woken = polls.load(Ordering::Relaxed) - before;
    assert!(woken < 10, "the driver was woken {woken} times though there was nothing to do");
    wal.append(3, batch(9, 9)).unwrap();
    assert_eq!(wal.settle().await.unwrap(), Lsn::new(3, 16));
}

#[tokio::test(start_paused = true)]
async fn who_is_about_to_append_shares_the_group_of_a_small_record() {
    let disk = SimDisk::new();
    let config = WalConfig { segment_bytes: 64 << 10, ..WalConfig::new(DIR) };
    let (wal, _, _) = open_with(&disk, config).await.unwrap();
    wal.append(1, batch(10, 0)).unwrap();
    wal.settle().await.unwrap();
    for (len, groups) in [(10, 1), (4_096, 2), (20, 1)] {
        // For whatever is left to be done of the group before.
        tokio::task::yield_now().await;
        let before = disk.calls();
        let (first, second) = (wal.clone(), wal.clone());
        // The driver is woken before the second task is there.
        let both = tokio::spawn(async move {
            first.append(1, batch(len, 1)).unwrap();
            tokio::spawn(async move { second.append(1, batch(len, 2)).unwrap() }).await.unwrap();
        });
        both.await.unwrap();
        wal.settle().await.unwrap();
        assert_eq!(disk.calls() - before, groups, "groups of records of {len} bytes");
    }
}
