//! A Redis Cluster of real servers, set up without Redis's own tools.

use std::time::{Duration, Instant};

use redis::{Connection, Value, cmd};

use super::certificates::Authority;
use super::servers::{Encryption, Server, plain_port};
use super::wait::until;

/// The number of hash slots.
pub const SLOTS: u16 = 16_384;

/// How long a node may be silent before the others consider it failed, in milliseconds.
const NODE_TIMEOUT: &str = "1000";

/// Longer than the time for which nodes retry a handshake.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// Masters, each with the same number of replicas. Dropping it stops all nodes.
#[derive(Debug)]
pub struct Cluster {
    /// Masters first.
    nodes: Vec<Server>,
    encryption: Option<Encryption>,
    /// The nodes that announce another port than their own, with that port.
    announced: Vec<(usize, u16)>,
}

impl Cluster {
    /// Starts three masters, each with a replica.
    pub fn start() -> Cluster {
        Cluster::with_replicas(&[])
    }

    /// Starts three masters.
    pub fn without_replicas() -> Cluster {
        Cluster::with(&[])
    }

    /// Starts three masters with extra arguments.
    pub fn with(extra: &[&str]) -> Cluster {
        Cluster::of(3, 0, None, extra)
    }

    /// Starts three masters, each with a replica, with extra arguments.
    pub fn with_replicas(extra: &[&str]) -> Cluster {
        Cluster::of(3, 1, None, extra)
    }

    /// Starts three masters, each with a replica. They use TLS with clients and with each other.
    pub fn encrypted(authority: &Authority) -> Cluster {
        Cluster::of(3, 1, Some(Encryption::by(authority)), &[])
    }

    fn of(masters: u16, replicas: u16, encryption: Option<Encryption>, extra: &[&str]) -> Cluster {
        let node = |_| start_node(encryption.as_ref(), extra);
        let nodes: Vec<Server> = (0..masters * (1 + replicas)).map(node).collect();
        let cluster = Cluster { nodes, encryption, announced: Vec::new() };
        cluster.join(masters);
        cluster
    }

    /// Introduces the first node to the others.
    fn meet(&self) {
        let [first, others @ ..] = &self.nodes[..] else { panic!("a cluster has nodes") };
        let mut first = connection(first);
        for other in others {
            let meet = ["MEET", "127.0.0.1", &other.port().to_string(), &bus_port(other)];
            expect_ok(cmd("CLUSTER").arg(&meet).query(&mut first));
        }
    }

    /// Introduces the nodes, and waits until they know each other.
    fn wait_until_known(&self) {
        self.meet();
        let mut met = Instant::now();
        let count = self.nodes.len();
        let knows_all = |node: &Server| node.ask("CLUSTER INFO").contains(&format!("cluster_known_nodes:{count}\r\n"));
        until("the nodes of a cluster know each other", || {
            // A node that does not respond in time, for lack of processor time, is forgotten.
            if met.elapsed() > HANDSHAKE {
                self.meet();
                met = Instant::now();
            }
            self.nodes.iter().all(knows_all)
        });
    }

    /// Makes the nodes know each other and agree on the slots.
    fn join(&self, masters: u16) {
        for (number, node) in (0..masters).zip(&self.nodes) {
            let first = u32::from(number) * u32::from(SLOTS) / u32::from(masters);
            let last = u32::from(number + 1) * u32::from(SLOTS) / u32::from(masters) - 1;
            let mut node = connection(node);
            expect_ok(cmd("CLUSTER").arg("SET-CONFIG-EPOCH").arg(number + 1).query(&mut node));
            expect_ok(cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(first).arg(last).query(&mut node));
        }
        self.wait_until_known();
        let (masters, replicas) = self.nodes.split_at(usize::from(masters));
        for (replica, master) in replicas.iter().zip(masters.iter().cycle()) {
            let id: String = cmd("CLUSTER").arg("MYID").query(&mut connection(master)).expect("the id of a node");
            // This node has to learn first that the other one is a master.
            let replicate = || cmd("CLUSTER").arg("REPLICATE").arg(&id).query::<()>(&mut connection(replica)).is_ok();
            until("a node is a replica", replicate);
        }
        self.wait_until_healthy();
    }

    /// Waits until every running node sees a healthy cluster with all running nodes.
    pub fn wait_until_healthy(&self) {
        let running = || self.nodes.iter().filter(|node| node.is_running());
        let count = running().count();
        let is_healthy = |node: &Server| {
            let listed = slots(node).into_iter().map(|range| range.nodes).collect::<Vec<_>>().concat();
            let others: std::collections::BTreeSet<u16> = listed.into_iter().collect();
            node.ask("CLUSTER INFO").contains("cluster_state:ok\r\n")
                && others.len() == count
                && !node.ask("INFO replication").contains("master_link_status:down")
        };
        until("the cluster is healthy", || running().all(is_healthy));
    }

    /// Returns the URL of a store, with one node as its seed. `options` is the URL's query.
    pub fn url(&self, options: &str) -> String {
        self.url_with_seeds(&[self.running().port()], options)
    }

    /// Returns the URL of a store with the nodes at these ports as its seeds.
    pub fn url_with_seeds(&self, ports: &[u16], options: &str) -> String {
        let seeds: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let seeds = seeds.join(",");
        match &self.encryption {
            Some(encryption) => format!("rediss+cluster://{seeds}?tls_ca={}&{options}", encryption.ca.display()),
            None => format!("redis+cluster://{seeds}?{options}"),
        }
    }

    pub fn nodes(&self) -> &[Server] {
        &self.nodes
    }

    /// Returns the index of the node that has a key.
    pub fn owner(&self, key: &str) -> usize {
        self.owner_of_slot(self.slot(key))
    }

    pub fn owner_of_slot(&self, slot: u16) -> usize {
        let range = slots(self.running()).into_iter().find(|range| range.has(slot));
        self.master_of(&range.expect("a slot with an owner"))
    }

    /// Returns the index of the node that has each of these keys. Faster than [`owner`](Cluster::owner) for each.
    pub fn owners(&self, keys: &[&str]) -> Vec<usize> {
        let ranges = slots(self.running());
        let mut pipe = redis::pipe();
        keys.iter().for_each(|key| _ = pipe.cmd("CLUSTER").arg("KEYSLOT").arg(key));
        let slots: Vec<u16> = pipe.query(&mut connection(self.running())).expect("the slots of keys");
        let owner = |slot| ranges.iter().find(|range| range.has(slot)).expect("a slot with an owner");
        slots.into_iter().map(|slot| self.master_of(owner(slot))).collect()
    }

    fn master_of(&self, range: &Range) -> usize {
        let port = range.nodes[0];
        (0..self.nodes.len()).find(|node| self.listed_port(*node) == port).expect("a node of this cluster")
    }

    fn running(&self) -> &Server {
        self.nodes.iter().find(|node| node.is_running()).expect("a node that runs")
    }

    pub fn slot(&self, key: &str) -> u16 {
        cmd("CLUSTER").arg("KEYSLOT").arg(key).query(&mut connection(self.running())).expect("the slot of a key")
    }

    fn agrees(&self, slot: u16, owner: usize) -> bool {
        let owner = self.listed_port(owner);
        let views = self.nodes.iter().filter(|node| node.is_running()).map(|node| {
            let range = slots(node).into_iter().find(|range| range.has(slot));
            let info = node.ask("CLUSTER INFO");
            let epoch = info.lines().find(|line| line.starts_with("cluster_current_epoch:")).map(str::to_owned);
            (range.map(|range| range.nodes[0]), epoch)
        });
        let views: std::collections::BTreeSet<_> = views.collect();
        views.len() == 1 && views.first().is_some_and(|(port, _)| *port == Some(owner))
    }

    /// Kills a node, like a crash.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// Starts a killed node again at the same address, with the data and the topology that it has saved. It may still
    /// be loading them.
    pub fn restart(&mut self, node: usize) {
        self.nodes[node].restart();
    }

    /// Starts another node, which is introduced to the others and has no slots. Returns its index.
    pub fn add_master(&mut self) -> usize {
        self.nodes.push(start_node(self.encryption.as_ref(), &[]));
        self.wait_until_known();
        let new = self.nodes.len() - 1;
        until("the new node serves", || self.nodes[new].ask("CLUSTER INFO").contains("cluster_state:ok\r\n"));
        new
    }

    /// Makes a node give other nodes and clients this port instead of its own, and waits until all nodes give it.
    pub fn announce(&mut self, node: usize, port: u16) {
        let set = ["SET", "cluster-announce-port", &port.to_string()];
        expect_ok(cmd("CONFIG").arg(&set).query(&mut connection(&self.nodes[node])));
        let knows = |node: &Server| slots(node).iter().any(|range| range.nodes.contains(&port));
        until("the nodes know the announced port", || self.nodes.iter().all(knows));
        self.announced.push((node, port));
    }

    /// The port that a node has in the topology.
    fn listed_port(&self, node: usize) -> u16 {
        let announced = self.announced.iter().find(|(announcing, _)| *announcing == node);
        announced.map_or_else(|| plain_port(self.nodes[node].port()), |(_, port)| *port)
    }

    /// Promotes a replica without loss, by `CLUSTER FAILOVER`, and waits until all nodes know it as a master.
    pub fn promote(&self, replica: usize) {
        let port = self.listed_port(replica);
        let knows = |node: &Server| slots(node).iter().any(|range| range.nodes[0] == port);
        let mut asked: Option<Instant> = None;
        until("a replica is promoted", || {
            // The command is refused while the link to the master is down, and an election may fail.
            if asked.is_none_or(|asked| asked.elapsed() > HANDSHAKE) && !knows(&self.nodes[replica]) {
                let _ = cmd("CLUSTER").arg("FAILOVER").query::<()>(&mut connection(&self.nodes[replica]));
                asked = Some(Instant::now());
            }
            self.nodes.iter().filter(|node| node.is_running()).all(knows)
        });
    }

    /// Removes a node that has no slots, as `redis-cli --cluster del-node` does: it stays running, alone, and every
    /// other node forgets it.
    pub fn remove(&self, removed: usize) {
        let id: String =
            cmd("CLUSTER").arg("MYID").query(&mut connection(&self.nodes[removed])).expect("the id of a node");
        for (index, node) in self.nodes.iter().enumerate() {
            if index != removed && node.is_running() {
                // One that was removed before does not know it.
                let _ = cmd("CLUSTER").arg("FORGET").arg(&id).exec(&mut connection(node));
            }
        }
        expect_ok(cmd("CLUSTER").arg("RESET").query(&mut connection(&self.nodes[removed])));
    }

    /// Makes a node another one at the same address, without entries and slots, which does not know the others.
    pub fn replace(&self, replaced: usize) {
        let mut node = connection(&self.nodes[replaced]);
        expect_ok(cmd("FLUSHALL").query(&mut node));
        let former: String = cmd("CLUSTER").arg("MYID").query(&mut node).expect("the id of a node");
        expect_ok(cmd("CLUSTER").arg("RESET").arg("HARD").query(&mut node));
        for (index, other) in self.nodes.iter().enumerate() {
            if index != replaced {
                expect_ok(cmd("CLUSTER").arg("FORGET").arg(&former).query(&mut connection(other)));
            }
        }
    }

    /// Introduces a node to the others, and gives it slots that have no owner.
    pub fn assign(&self, node: usize, first: u16, last: u16) {
        self.wait_until_known();
        expect_ok(cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(first).arg(last).query(&mut connection(&self.nodes[node])));
        self.wait_until_healthy();
    }

    /// Moves all slots of a node with their keys to another one, while they may be used.
    pub fn move_all_slots(&self, from: usize, to: usize) {
        let ranges = slots(&self.nodes[from]);
        let of_node = ranges.iter().filter(|range| self.master_of(range) == from);
        let moved: Vec<u16> = of_node.flat_map(|range| range.first..=range.last).collect();
        let [mut source, mut target] = [from, to].map(|node| connection(&self.nodes[node]));
        let id = |node: &mut Connection| cmd("CLUSTER").arg("MYID").query::<String>(node).expect("the id of a node");
        let (source_id, target_id) = (id(&mut source), id(&mut target));
        expect_ok(set_slots(&mut target, &moved, "IMPORTING", &source_id));
        expect_ok(set_slots(&mut source, &moved, "MIGRATING", &target_id));
        let mut count = redis::pipe();
        moved.iter().for_each(|slot| _ = count.cmd("CLUSTER").arg("COUNTKEYSINSLOT").arg(slot));
        let counts: Vec<usize> = count.query(&mut source).expect("the numbers of keys");
        for (slot, _) in moved.iter().zip(counts).filter(|(_, count)| *count > 0) {
            let [source, target] = [from, to].map(|node| connection(&self.nodes[node]));
            Move { cluster: self, slot: *slot, from, to, source, target }.migrate_all();
        }
        expect_ok(set_slots(&mut target, &moved, "NODE", &target_id));
        // It is refused once the source has learnt that it has no slots: then it is a replica of the target.
        let _ = set_slots(&mut source, &moved, "NODE", &target_id);
        until("the nodes agree on the owner of the slots", || self.agrees(moved[0], to));
    }

    /// Disconnects a replica from its master. It still serves the data that it has.
    pub fn disconnect_replica(&self, replica: usize) {
        let replica = &self.nodes[replica];
        let mut login = cmd("CONFIG");
        login.arg("SET").arg("masteruser").arg("nobody").arg("masterauth").arg("wrong");
        expect_ok(login.query(&mut connection(replica)));
        // The connections of all replicas are closed, and this one can no longer log in.
        for node in &self.nodes {
            let mut kill = cmd("CLIENT");
            let killed: redis::RedisResult<i64> =
                kill.arg("KILL").arg("TYPE").arg("replica").query(&mut connection(node));
            killed.expect("the number of closed connections");
        }
        until("a replica is cut off", || replica.ask("INFO replication").contains("master_link_status:down"));
    }

    /// Moves a slot with its keys to another node, as `redis-cli --cluster reshard` does.
    pub fn move_slot(&self, slot: u16, to: usize) {
        self.start_move(slot, to).finish();
    }

    /// Marks a slot as moving on its owner and on the target.
    pub fn start_move(&self, slot: u16, to: usize) -> Move<'_> {
        let from = self.owner_of_slot(slot);
        let mut moved = Move {
            cluster: self,
            slot,
            to,
            from,
            source: connection(&self.nodes[from]),
            target: connection(&self.nodes[to]),
        };
        let id = |node: &mut Connection| cmd("CLUSTER").arg("MYID").query::<String>(node).expect("the id of a node");
        let (source, target) = (id(&mut moved.source), id(&mut moved.target));
        set_slot(&mut moved.target, slot, "IMPORTING", &source);
        set_slot(&mut moved.source, slot, "MIGRATING", &target);
        moved
    }
}

/// A slot that is being moved.
pub struct Move<'c> {
    cluster: &'c Cluster,
    slot: u16,
    from: usize,
    to: usize,
    source: Connection,
    target: Connection,
}

impl Move<'_> {
    /// Moves these keys.
    pub fn migrate<K: redis::ToRedisArgs>(&mut self, keys: &[K]) {
        let port = self.cluster.nodes[self.to].port();
        let mut migrate = cmd("MIGRATE");
        migrate.arg("127.0.0.1").arg(port).arg("").arg(0).arg(5_000).arg("KEYS").arg(keys);
        // The reply is NOKEY if another client has removed the keys.
        let _: String = migrate.query(&mut self.source).expect("keys are moved");
    }

    fn migrate_all(&mut self) {
        loop {
            let result = cmd("CLUSTER").arg("GETKEYSINSLOT").arg(self.slot).arg(2).query(&mut self.source);
            let keys: Vec<Vec<u8>> = result.expect("the keys of a slot");
            if keys.is_empty() {
                break;
            }
            self.migrate(&keys);
        }
    }

    /// Moves the remaining keys, and announces the slot's new owner to every node.
    pub fn finish(mut self) {
        self.migrate_all();
        let id: String = cmd("CLUSTER").arg("MYID").query(&mut self.target).expect("the id of a node");
        set_slot(&mut self.target, self.slot, "NODE", &id);
        set_slot(&mut self.source, self.slot, "NODE", &id);
        for (index, node) in self.cluster.nodes.iter().enumerate() {
            if index != self.from && index != self.to && node.is_running() {
                // A replica learns it from its master.
                let _ = cmd("CLUSTER").arg("SETSLOT").arg(self.slot).arg("NODE").arg(&id).exec(&mut connection(node));
            }
        }
        // Otherwise the next move could start from an outdated view.
        until("the nodes agree on the owner of a slot", || self.cluster.agrees(self.slot, self.to));
    }
}

/// Starts a node that knows no other one.
fn start_node(encryption: Option<&Encryption>, extra: &[&str]) -> Server {
    let tls: &[&str] = if encryption.is_some() { &["--tls-cluster", "yes", "--tls-replication", "yes"] } else { &[] };
    let timing = ["--cluster-node-timeout", NODE_TIMEOUT, "--repl-diskless-sync-delay", "0"];
    Server::cluster_node(encryption, &[tls, &timing, extra].concat())
}

fn set_slot(node: &mut Connection, slot: u16, state: &str, id: &str) {
    expect_ok(cmd("CLUSTER").arg("SETSLOT").arg(slot).arg(state).arg(id).query(node));
}

fn set_slots(node: &mut Connection, slots: &[u16], state: &str, id: &str) -> redis::RedisResult<()> {
    let mut set = redis::pipe();
    slots.iter().for_each(|slot| _ = set.cmd("CLUSTER").arg("SETSLOT").arg(slot).arg(state).arg(id).ignore());
    set.query(node)
}

/// A range of slots, and the ports of the nodes that have it, the master's first.
struct Range {
    first: u16,
    last: u16,
    nodes: Vec<u16>,
}

impl Range {
    fn has(&self, slot: u16) -> bool {
        (self.first..=self.last).contains(&slot)
    }
}

fn slots(node: &Server) -> Vec<Range> {
    type Node = (Value, u16, Value, Value);
    let ranges: Vec<Vec<Value>> = cmd("CLUSTER").arg("SLOTS").query(&mut connection(node)).expect("the slots");
    let range = |range: Vec<Value>| {
        let (numbers, nodes) = range.split_at(2);
        let number = |value: &Value| redis::from_redis_value(value.clone()).expect("a slot");
        let port = |node: &Value| redis::from_redis_value::<Node>(node.clone()).expect("a node").1;
        Range { first: number(&numbers[0]), last: number(&numbers[1]), nodes: nodes.iter().map(port).collect() }
    };
    ranges.into_iter().map(range).collect()
}

fn bus_port(node: &Server) -> String {
    let info: Vec<String> =
        cmd("CONFIG").arg("GET").arg("cluster-port").query(&mut connection(node)).expect("a setting");
    info[1].clone()
}

/// Connects to a node without TLS, even where clients use TLS.
fn connection(node: &Server) -> Connection {
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", plain_port(node.port()))).expect("a URL");
    let connection = client.get_connection().expect("a node that runs");
    connection.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    connection
}

fn expect_ok(outcome: redis::RedisResult<()>) {
    outcome.expect("the node executes the command");
}
