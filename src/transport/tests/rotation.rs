//! Links while the cluster's CA is rotated.

use super::*;
use crate::types::CaRotation;

fn next_ca() -> ClusterCa {
    ClusterCa::create(CLUSTER, &[210; 32], NOW).unwrap()
}

/// Everyone's view: these roots, and a rotation in which these have renewed, if one is under way.
fn rotate(nodes: &[&Node], roots: &[&ClusterCa], renewed: Option<&[&Node]>) {
    let mut view = (*view_of(nodes.iter().map(|n| listed(&n.identity, Some(n.addr()))))).clone();
    view.roots = roots.iter().map(|root| root.certificate().to_vec().into()).collect();
    view.rotation = renewed.map(|renewed| CaRotation {
        renewed: renewed.iter().map(|node| node.id()).collect(),
        ..CaRotation::default()
    });
    for node in nodes {
        node.view.send_replace(Arc::new(view.clone()));
    }
}

async fn since_changes(node: &Node, peer: NodeId, since: Instant) -> Instant {
    let mut links = node.mesh.links();
    let newer = links.wait_for(|links| links.get(&peer).is_some_and(|link| link.since != since));
    timeout(Duration::from_secs(10), newer).await.expect("the link is not renewed").unwrap()[&peer].since
}

#[tokio::test]
async fn links_move_to_the_new_root_without_a_stream_cut_and_outlive_the_old_one() {
    let (a, b) = pair().await;
    let (old, new) = (ca(), next_ca());
    let (since_a, since_b) = (a.linked(b.id()).await.since, b.linked(a.id()).await.since);
    rotate(&[&a, &b], &[&old, &new], Some(&[]));
    admit(&a.identity, &new, CLUSTER, NOW);
    rotate(&[&a, &b], &[&old, &new], Some(&[&a]));
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(a.linked(b.id()).await.since, since_a, "the other one has not renewed yet");

    let mut stream = b.mesh.open(a.id(), StreamKind::Status, Lane::Request).await.unwrap();
    admit(&b.identity, &new, CLUSTER, NOW);
    rotate(&[&a, &b], &[&old, &new], Some(&[&a, &b]));
    let (renewed_a, renewed_b) =
        (since_changes(&a, b.id(), since_a).await, since_changes(&b, a.id(), since_b).await);
    // What was open on the old connection goes on.
    let Text(answer) = stream.exchange(&Text("still there".to_owned()), MAX_MESSAGE).await.unwrap();
    assert!(answer.contains("still there"));
    assert!(a.ask(b.id(), "hi").await.is_ok() && b.ask(a.id(), "ho").await.is_ok());
    drop(stream);

    // The old root goes; these links are not of it.
    rotate(&[&a, &b], &[&new], None);
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!((a.linked(b.id()).await.since, b.linked(a.id()).await.since), (renewed_a, renewed_b));
}

#[tokio::test]
async fn a_connection_of_a_retired_root_is_closed_and_its_holder_is_told() {
    let (a, b) = pair().await;
    let (old, new) = (ca(), next_ca());
    let mut lapses = b.mesh.lapses();
    rotate(&[&a, &b], &[&old, &new], Some(&[&a]));
    admit(&a.identity, &new, CLUSTER, NOW);
    // b was dropped: it still trusts both and shows the old one.
    let mut view = (**a.view.borrow()).clone();
    (view.roots, view.rotation) = (vec![new.certificate().to_vec().into()], None);
    a.view.send_replace(Arc::new(view));
    a.unlinked(b.id()).await;
    let told = timeout(Duration::from_secs(5), lapses.wait_for(|told| *told > 0)).await;
    assert!(told.is_ok(), "it does not hear that its certificate is not taken");
    let (_, ended) = b.knock(a.addr(), StreamKind::Hello, "hi").await;
    assert!(refused(&ended, CloseCode::Lapsed), "{ended:?}");
    // With one of the new root it is back.
    admit(&b.identity, &new, CLUSTER, NOW);
    a.linked(b.id()).await;
}

#[tokio::test]
async fn who_slept_through_a_rotation_notices_that_it_knows_a_root_too_few() {
    let (a, b) = pair().await;
    let new = next_ca();
    let mut lapses = b.mesh.lapses();
    admit(&a.identity, &new, CLUSTER, NOW);
    let mut view = (**a.view.borrow()).clone();
    view.roots = vec![new.certificate().to_vec().into()];
    a.view.send_replace(Arc::new(view));
    // b has heard of nothing: it meets a's new certificate when it dials again.
    a.unlinked(b.id()).await;
    b.unlinked(a.id()).await;
    let told = timeout(Duration::from_secs(5), lapses.wait_for(|told| *told > 1)).await;
    assert!(told.is_ok());
}
