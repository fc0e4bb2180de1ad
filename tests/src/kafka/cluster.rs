//! Several brokers, each a controller too, with what plants run: replication 3, `min.insync.replicas` 2.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{LOGGING, admin, format_storage, launch, path_text, wait_until_it_answers};
use crate::ports::free_port;
use crate::process::ChildProcess;

/// Brokers of a cluster.
const BROKERS: usize = 3;

#[derive(Debug)]
struct Node {
    dir: PathBuf,
    port: u16,
    process: ChildProcess,
}

/// Three running brokers.
#[derive(Debug)]
pub struct KafkaCluster {
    nodes: Vec<Node>,
}

impl KafkaCluster {
    /// Formats storage below `dir`, starts the brokers and waits until all take requests.
    ///
    /// # Errors
    /// The jars or Java are missing, or they are not up within 90 s.
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        let mut ports = Vec::with_capacity(BROKERS);
        for _ in 0..BROKERS {
            ports.push((free_port()?, free_port()?));
        }
        let voters: Vec<String> = (1..)
            .zip(&ports)
            .map(|(id, (_, controller))| format!("{id}@127.0.0.1:{controller}"))
            .collect();
        let mut nodes = Vec::with_capacity(BROKERS);
        for (index, (port, controller)) in ports.iter().copied().enumerate() {
            let dir = dir.join(format!("broker-{}", index + 1));
            write_config(&dir, index + 1, port, controller, &voters.join(","))?;
            format_storage(&dir, &path_text(&dir.join("server.properties"))?)?;
            nodes.push((dir, port));
        }
        let start = |(dir, port): (PathBuf, u16)| {
            let process = launch(&dir)?;
            anyhow::Ok(Node { dir, port, process })
        };
        let nodes = nodes.into_iter().map(start).collect::<anyhow::Result<Vec<Node>>>()?;
        let mut cluster = Self { nodes };
        cluster.wait_for_brokers()?;
        Ok(cluster)
    }

    /// `bootstrap.servers` with all brokers.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        let servers: Vec<String> =
            self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        servers.join(",")
    }

    /// Creates topics with so many partitions and three replicas each.
    ///
    /// # Errors
    /// The brokers refuse.
    pub fn create_topics(&self, names: &[&str], partitions: i32) -> anyhow::Result<()> {
        admin::create_topics(&self.bootstrap(), names, partitions, BROKERS as i32)
    }

    /// Ends a broker, counted from 0, as a power cut would.
    ///
    /// # Errors
    /// There is no such broker, or the operating system refuses.
    pub fn kill(&mut self, broker: usize) -> anyhow::Result<()> {
        self.nodes.get_mut(broker).context("no such broker")?.process.kill()
    }

    /// Starts a killed broker again and waits until it is one of the cluster.
    ///
    /// # Errors
    /// It is not within 90 s.
    pub fn restart(&mut self, broker: usize) -> anyhow::Result<()> {
        let node = self.nodes.get_mut(broker).context("no such broker")?;
        node.process = launch(&node.dir)?;
        self.wait_for_brokers()
    }

    fn wait_for_brokers(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            let own = format!("127.0.0.1:{}", node.port);
            wait_until_it_answers(&own, &mut node.process, BROKERS)?;
        }
        Ok(())
    }
}

fn write_config(
    dir: &Path,
    id: usize,
    port: u16,
    controller: u16,
    voters: &str,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("log4j2.xml"), LOGGING)?;
    // A broker that was killed is to be noticed in seconds.
    let properties = format!(
        "process.roles=broker,controller\nnode.id={id}\ncontroller.quorum.voters={voters}\n\
         controller.listener.names=CONTROLLER\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port}\ninter.broker.listener.name=PLAINTEXT\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\nlog.dirs={}\n\
         num.partitions=3\ndefault.replication.factor=3\nmin.insync.replicas=2\n\
         offsets.topic.replication.factor=3\noffsets.topic.num.partitions=3\n\
         transaction.state.log.replication.factor=3\ntransaction.state.log.min.isr=2\n\
         share.coordinator.state.topic.replication.factor=3\ngroup.initial.rebalance.delay.ms=0\n\
         auto.create.topics.enable=false\nbroker.session.timeout.ms=4000\n\
         broker.heartbeat.interval.ms=500\nreplica.lag.time.max.ms=5000\n",
        dir.join("data").display()
    );
    std::fs::write(dir.join("server.properties"), properties)?;
    Ok(())
}
