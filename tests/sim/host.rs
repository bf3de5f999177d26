//! One simulated machine: a disk that outlives its processes, and the node that runs on it now.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use skeinmesh::{
    engine::MemoryEngine,
    identity::{DataDir, JoinToken},
    node::{Node, NodeConfig, Surroundings, Write},
    protocol::status::NodeStatus,
    testing::SimDisk,
    transport::Socket,
    types::{ClusterView, Role, TimingProfile},
};

use crate::{
    ledger::Ledger,
    network::{Bound, Network, SimRuntime, SimSocket},
};

/// The port of every mesh endpoint.
pub(crate) const PORT: u16 = 7400;
/// Simulated time begins here, in nanoseconds since 1970.
const EPOCH_NS: i64 = 1_790_000_000_000_000_000;
/// Between two looks at the node and at what its clients want.
const LOOK: Duration = Duration::from_millis(10);
/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(4);

/// What all hosts of a schedule share.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) network: Arc<Network>,
    pub(crate) ledger: Mutex<Ledger>,
    /// From the founding node, for the others.
    pub(crate) token: Mutex<Option<JoinToken>>,
    pub(crate) addresses: Mutex<Vec<SocketAddr>>,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: &'static str,
    /// The first of them makes the cluster.
    pub(crate) place: usize,
    pub(crate) disk: SimDisk,
    /// For the lock only; everything else goes to the simulated disk under the same path.
    pub(crate) dir: PathBuf,
    pub(crate) seed: u64,
    pub(crate) common: Arc<Common>,
    pub(crate) now: Mutex<Life>,
}

/// The process that runs, as seen from outside.
#[derive(Debug, Default)]
pub(crate) struct Life {
    pub(crate) boots: u64,
    pub(crate) orders: VecDeque<usize>,
    pub(crate) engine: Option<Arc<MemoryEngine>>,
    pub(crate) status: Option<NodeStatus>,
    pub(crate) view: Option<Arc<ClusterView>>,
}

impl Host {
    /// What the machine does from power on. Returns only when the node ended of itself, which is
    /// a violation.
    pub(crate) async fn live(self: Arc<Self>) -> turmoil::Result {
        if let Err(reason) = self.run().await {
            let says = format!("liveness: the node on {} ended: {reason}", self.name);
            self.common.ledger.lock().unwrap().violated(says);
        }
        Ok(())
    }

    async fn run(&self) -> Result<(), Box<dyn std::error::Error>> {
        let boot = {
            let mut life = self.now.lock().unwrap();
            *life = Life { boots: life.boots + 1, ..Life::default() };
            life.boots
        };
        let mut random = StdRng::seed_from_u64(self.seed ^ (boot << 8) ^ ((self.place as u64) << 48));
        let disk = Arc::new(self.disk.boot());
        let addresses = self.common.addresses.lock().unwrap().clone();
        let own = addresses[self.place];
        let socket = SimSocket::bind(own, self.common.network.clone()).await?;
        let _bound = Bound(socket.clone());
        let join = if self.place == 0 { None } else { Some(self.token().await) };
        let config = NodeConfig {
            dir: DataDir::open(&self.dir)?,
            name: self.name.to_owned(),
            role: Role::Voter,
            join,
            new_cluster: self.place == 0,
            bootstrap_expect: None,
            profile: TimingProfile::Lan,
            socket: Socket::Abstract { socket, runtime: Arc::new(SimRuntime), rng_seed: random.random() },
            advertise: vec![own],
            http: None,
            seeds: if self.place == 0 { Vec::new() } else { vec![addresses[0].to_string()] },
            mdns: None,
            segment_bytes: 16 << 10,
            keep_bytes: 16 << 10,
        };
        let random = Mutex::new(random);
        let surroundings = Surroundings {
            disk: disk.clone(),
            clock: Arc::new(|| EPOCH_NS + turmoil::sim_elapsed().unwrap_or_default().as_nanos() as i64),
            entropy: Arc::new(move |bytes| random.lock().unwrap().fill_bytes(bytes)),
        };
        let engine = Arc::new(MemoryEngine::open(disk, self.dir.join("engine")).await?);
        let node = Node::start(config, surroundings, engine.clone()).await?;
        if let Some(founded) = node.founded() {
            *self.common.token.lock().unwrap() = Some(founded.token.clone());
        }
        self.now.lock().unwrap().engine = Some(engine);
        loop {
            tokio::select! {
                biased;
                error = node.run() => return Err(error.into()),
                () = tokio::time::sleep(LOOK) => {}
            }
            self.look(&node);
            let orders = std::mem::take(&mut self.now.lock().unwrap().orders);
            for number in orders {
                tokio::spawn(submit(node.clone(), self.common.clone(), number));
            }
        }
    }

    async fn token(&self) -> JoinToken {
        loop {
            if let Some(token) = &*self.common.token.lock().unwrap() {
                return token.clone();
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn look(&self, node: &Node) {
        let (status, view) = (node.own_status(), node.view().borrow().clone());
        self.common.ledger.lock().unwrap().observe(self.name, &status, &view);
        let mut life = self.now.lock().unwrap();
        (life.status, life.view) = (Some(status), Some(view));
    }
}

/// One client: a write, and what becomes of it.
async fn submit(node: Node, common: Arc<Common>, number: usize) {
    let payload: Bytes = common.ledger.lock().unwrap().writes[number].payload.clone();
    let write = Write { encoding: 9, payload, ack: None, timeout: PATIENCE, key: None };
    let answer = node.submit(write).await;
    let now = turmoil::sim_elapsed().unwrap_or_default();
    common.ledger.lock().unwrap().end(number, answer, now);
}
