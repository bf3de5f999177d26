//! One simulated machine: a disk that outlives its processes, and the node that runs on it now.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use skeinmesh::{
    engine::MemoryEngine,
    identity::{DataDir, JoinToken},
    node::{Node, NodeConfig, NodeError, ScrubConfig, Surroundings},
    protocol::status::NodeStatus,
    testing::SimDisk,
    transport::Socket,
    types::{ClusterView, NodeId, Role, TimingProfile},
};

use crate::{
    clients::{self, Order},
    engine::SimEngine,
    ledger::Ledger,
    machine,
    network::{Bound, Network, SimRuntime, SimSocket, address},
};

/// Simulated time begins here, in nanoseconds since 1970.
const EPOCH_NS: i64 = 1_790_000_000_000_000_000;
/// Between two looks at the node and at what its clients want.
const LOOK: Duration = Duration::from_millis(10);
/// Bytes of a log segment: small, so that there are many.
pub(crate) const SEGMENT_BYTES: u64 = 16 << 10;

/// What all hosts of a schedule share.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) network: Arc<Network>,
    pub(crate) ledger: Mutex<Ledger>,
    /// From the founding node, for the other voters.
    pub(crate) token: Mutex<Option<JoinToken>>,
    /// How many machines there are.
    pub(crate) places: usize,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: &'static str,
    /// Where it is in the network. Who is at the first place makes the cluster.
    pub(crate) place: usize,
    pub(crate) role: Role,
    /// The disk in use, and how many before it were taken out.
    pub(crate) disk: Mutex<(SimDisk, u64)>,
    home: PathBuf,
    seed: u64,
    /// How far its wall clock is off, in nanoseconds.
    pub(crate) clock_off: Arc<AtomicI64>,
    /// For a node that is no member yet; without one the founder's is taken.
    pub(crate) token: Mutex<Option<JoinToken>>,
    pub(crate) boots: AtomicU64,
    pub(crate) common: Arc<Common>,
    pub(crate) now: Mutex<Life>,
}

/// The process that runs, as seen from outside.
#[derive(Debug, Default)]
pub(crate) struct Life {
    pub(crate) orders: VecDeque<Order>,
    pub(crate) engine: Option<Arc<MemoryEngine>>,
    pub(crate) status: Option<NodeStatus>,
    pub(crate) view: Option<Arc<ClusterView>>,
    /// What came of an order for a token.
    pub(crate) made_token: Option<JoinToken>,
    /// How many snapshots it installed.
    pub(crate) installed: u64,
    /// It has ended by itself.
    pub(crate) ended: Option<Ended>,
}

/// How a process ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// As it was asked to.
    Stopped,
    /// It learnt that it was removed.
    Removed,
    /// It blames its disk.
    Disk(String),
    /// Anything else.
    Failed(String),
}

impl From<NodeError> for Ended {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::Removed { .. } => Self::Removed,
            error if error.is_disk() => Self::Disk(error.to_string()),
            error => Self::Failed(error.to_string()),
        }
    }
}

impl Host {
    pub(crate) fn new(
        name: &'static str,
        place: usize,
        role: Role,
        home: PathBuf,
        seed: u64,
        common: Arc<Common>,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            place,
            role,
            disk: Mutex::new((SimDisk::new(), 0)),
            home,
            seed,
            clock_off: Arc::default(),
            token: Mutex::new(None),
            boots: AtomicU64::new(0),
            common,
            now: Mutex::new(Life::default()),
        })
    }

    /// Puts an empty disk in, for a node that nobody knows.
    pub(crate) fn new_disk(&self) {
        let mut disk = self.disk.lock().unwrap();
        *disk = (SimDisk::new(), disk.1 + 1);
    }

    pub(crate) fn disk(&self) -> SimDisk {
        self.disk.lock().unwrap().0.clone()
    }

    /// The data directory. It is there for the lock only; everything else goes to the simulated disk
    /// under the same path.
    pub(crate) fn dir(&self) -> PathBuf {
        self.home.join(format!("{}-{}", self.name, self.disk.lock().unwrap().1))
    }

    pub(crate) fn node(&self) -> Option<NodeId> {
        self.now.lock().unwrap().status.as_ref().map(|status| status.node)
    }

    /// What the machine does from power on.
    pub(crate) async fn live(self: Arc<Self>) {
        let ended = self.run().await.unwrap_or_else(|ended| ended);
        tracing::info!(host = self.name, ?ended, "ended");
        self.now.lock().unwrap().ended = Some(ended);
    }

    async fn run(self: &Arc<Self>) -> Result<Ended, Ended> {
        let boot = self.boots.fetch_add(1, Ordering::Relaxed) + 1;
        let (disk, disks) = self.disk.lock().unwrap().clone();
        let mut random = StdRng::seed_from_u64(self.seed ^ (boot << 8) ^ ((self.place as u64) << 48));
        let disk = Arc::new(disk.boot());
        let socket = SimSocket::bind(self.place, self.common.network.clone());
        let _bound = Bound(socket.clone());
        let founder = self.place == 0 && disks == 0;
        let join = if founder { None } else { Some(self.token().await) };
        let others = (0..self.common.places).filter(|place| *place != self.place);
        let config = NodeConfig {
            dir: DataDir::open(&self.dir()).map_err(NodeError::from)?,
            name: self.name.to_owned(),
            role: self.role,
            ca: None,
            join,
            new_cluster: founder,
            bootstrap_expect: None,
            profile: TimingProfile::Lan,
            socket: Socket::Abstract { socket, runtime: Arc::new(SimRuntime), rng_seed: random.random() },
            advertise: vec![address(self.place)],
            http: None,
            seeds: if founder { Vec::new() } else { others.map(|it| address(it).to_string()).collect() },
            mdns: None,
            segment_bytes: SEGMENT_BYTES,
            keep_bytes: SEGMENT_BYTES,
            // A storm is too short for one; every read of a file would only move the schedules.
            scrub: ScrubConfig { interval: Duration::ZERO, max_rate: 1 },
        };
        let surroundings = self.surroundings(disk.clone(), random);
        let engine = MemoryEngine::open(disk, self.dir().join("engine")).await.map_err(NodeError::from)?;
        let engine = Arc::new(SimEngine::new(engine));
        let node = Node::start(config, surroundings, engine.clone()).await?;
        if let Some(founded) = node.founded() {
            *self.common.token.lock().unwrap() = Some(founded.token.clone());
        }
        self.now.lock().unwrap().engine = Some(engine.contents());
        loop {
            tokio::select! {
                biased;
                error = node.run() => return Err(error.into()),
                () = tokio::time::sleep(LOOK) => {}
            }
            self.look(&node, &engine);
            let orders = std::mem::take(&mut self.now.lock().unwrap().orders);
            for order in orders {
                match order {
                    Order::Stop => {
                        node.shutdown().await;
                        return Ok(Ended::Stopped);
                    }
                    order => drop(tokio::spawn(clients::serve(
                        self.clone(),
                        node.clone(),
                        engine.contents(),
                        order,
                    ))),
                }
            }
        }
    }

    fn surroundings(&self, disk: Arc<SimDisk>, random: StdRng) -> Surroundings {
        let (random, off) = (Mutex::new(random), self.clock_off.clone());
        let now = move || EPOCH_NS + machine::now().as_nanos() as i64 + off.load(Ordering::Relaxed);
        Surroundings {
            disk,
            clock: Arc::new(now),
            entropy: Arc::new(move |bytes| random.lock().unwrap().fill_bytes(bytes)),
        }
    }

    async fn token(&self) -> JoinToken {
        loop {
            let own = self.token.lock().unwrap().clone();
            let first = || self.common.token.lock().unwrap().clone().filter(|it| it.role() == self.role);
            if let Some(token) = own.or_else(first) {
                return token;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn look(&self, node: &Node, engine: &SimEngine) {
        let (status, view) = (node.own_status(), node.view().borrow().clone());
        let tokens = || node.api_tokens().iter().map(|token| token.id()).collect();
        self.common.ledger.lock().unwrap().observe(self.name, &status, &view, tokens);
        let mut life = self.now.lock().unwrap();
        (life.status, life.view, life.installed) = (Some(status), Some(view), engine.installed());
    }
}
