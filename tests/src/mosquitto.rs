//! A mosquitto broker of one's own: free port, own folder, no service.

use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::eventually::eventually;
use crate::process::ChildProcess;

const START_DEADLINE: Duration = Duration::from_secs(20);

/// Whether sessions and queued messages survive a restart of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// Kept in a file.
    On,
    /// Lost.
    Off,
}

/// A running broker.
#[derive(Debug)]
pub struct Mosquitto {
    port: u16,
    dir: PathBuf,
    process: ChildProcess,
}

impl Mosquitto {
    /// Starts a broker in `dir` that takes anybody on 127.0.0.1.
    ///
    /// # Errors
    /// mosquitto is not installed or does not listen within 20 s.
    pub fn start(dir: &Path, persistence: Persistence) -> anyhow::Result<Self> {
        Self::start_refusing(dir, persistence, &[])
    }

    /// Starts a broker that refuses anybody's subscription to these topics.
    ///
    /// # Errors
    /// As [`Self::start`], or its module for access lists is missing.
    pub fn start_refusing(
        dir: &Path,
        persistence: Persistence,
        refused: &[&str],
    ) -> anyhow::Result<Self> {
        let port = crate::ports::free_port()?;
        std::fs::create_dir_all(dir)?;
        let mut config = std::fs::File::create(dir.join("mosquitto.conf"))?;
        let persistence = match persistence {
            Persistence::On => "true",
            Persistence::Off => "false",
        };
        // As deployment-manifests/local/mosquitto.conf. Without a limit of messages in flight a slow subscriber's backlog waits in its socket, not in the broker.
        writeln!(
            config,
            "listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nmax_inflight_messages 0\n\
             max_queued_messages 1000000\npersistence {persistence}\npersistence_location {}/\n\
             autosave_interval 1\nuser root\nlog_dest stderr\nlog_type error\nlog_type warning",
            dir.display()
        )?;
        if !refused.is_empty() {
            let module = find_module("mosquitto_dynamic_security.so")?;
            let list = dir.join("access.json");
            std::fs::write(&list, access_list(refused).to_string())?;
            let (module, list) = (module.display(), list.display());
            writeln!(config, "plugin {module}\nplugin_opt_config_file {list}")?;
        }
        let process = launch(dir)?;
        let mut broker = Self { port, dir: dir.to_owned(), process };
        broker.wait_until_it_listens()?;
        Ok(broker)
    }

    /// Where clients connect.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it as a power cut would.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()
    }

    /// Ends it in an orderly way: with persistence it writes what it holds.
    ///
    /// # Errors
    /// It still runs after 20 s.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.process.terminate()?;
        self.process.wait(START_DEADLINE)?;
        Ok(())
    }

    /// Starts it again on the same port and folder, after it has ended.
    ///
    /// # Errors
    /// It does not listen within 20 s.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.process = launch(&self.dir)?;
        self.wait_until_it_listens()
    }

    fn wait_until_it_listens(&mut self) -> anyhow::Result<()> {
        let port = self.port;
        eventually("mosquitto listens", START_DEADLINE, || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map(drop)
        })
        .with_context(|| self.process.tail())
    }
}

/// What an access list says: anybody may do everything but subscribe to these topics.
fn access_list(refused: &[&str]) -> serde_json::Value {
    let refuse = |topic: &&str| serde_json::json!({ "acltype": "subscribeLiteral", "topic": topic, "allow": false });
    let refused: Vec<_> = refused.iter().map(refuse).collect();
    serde_json::json!({
        "defaultACLAccess": {
            "publishClientSend": true, "publishClientReceive": true, "subscribe": true,
            "unsubscribe": true
        },
        "anonymousGroup": "anybody",
        "groups": [{ "groupname": "anybody", "roles": [{ "rolename": "restricted" }] }],
        "roles": [{ "rolename": "restricted", "acls": refused }]
    })
}

/// One of the broker's modules, where the system keeps libraries.
fn find_module(name: &str) -> anyhow::Result<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path());
    folders
        .chain([PathBuf::from("/usr/lib"), PathBuf::from("/usr/local/lib")])
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is missing: it comes with mosquitto 2"))
}

fn launch(dir: &Path) -> anyhow::Result<ChildProcess> {
    let program = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/usr/bin/mosquitto"]
        .iter()
        .map(Path::new)
        .find(|path| path.exists())
        .context("mosquitto is missing: run `make setup`")?;
    let config = dir.join("mosquitto.conf");
    let config = config.to_str().context("the folder's path is not UTF-8")?;
    ChildProcess::start("mosquitto", dir, program, &["-c", config], &[])
}
