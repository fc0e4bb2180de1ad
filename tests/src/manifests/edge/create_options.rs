//! `createOptions`: the body of Docker's "create a container" (Engine API 1.41), as text in pieces of at most 512 characters. What is
//! deployed here uses the members below; others are faults until somebody has said what they are for.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

/// What a value in a twin took once, and what tools still cut the text into.
const PIECE_CHARACTERS_MAX: usize = 512;
/// What tools write.
const PIECES_MAX: usize = 8;
/// Docker refuses shorter ones, and takes 0 as its default.
const HEALTH_NANOSECONDS_MIN: u64 = 1_000_000;
/// Without a limit the files of a chatty container fill the disk.
const LOG_LIMITS: [&str; 2] = ["max-size", "max-file"];

/// What a container is made with.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase", default)]
pub struct CreateOptions {
    /// `user:group`.
    pub user: Option<String>,
    hostname: Option<String>,
    cmd: Vec<String>,
    exposed_ports: BTreeMap<String, Map<String, Value>>,
    /// Seconds from SIGTERM to SIGKILL.
    pub stop_timeout: Option<u32>,
    /// Asked by the Docker engine; edgeAgent shows it and acts on it with `on-unhealthy` alone.
    pub healthcheck: Option<HealthCheck>,
    /// What it has of the host.
    pub host_config: HostConfig,
}

/// How a container's health is asked for, in nanoseconds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub struct HealthCheck {
    /// `CMD` and the command.
    pub test: Vec<String>,
    interval: u64,
    timeout: u64,
    start_period: u64,
    retries: u32,
}

/// What a container has of the host.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase", default)]
pub struct HostConfig {
    binds: Vec<String>,
    port_bindings: BTreeMap<String, Vec<PortBinding>>,
    tmpfs: BTreeMap<String, String>,
    /// No file system but binds and tmpfs can be written to.
    pub readonly_rootfs: bool,
    /// Capabilities that it does not get.
    pub cap_drop: Vec<String>,
    /// For example `no-new-privileges`.
    pub security_opt: Vec<String>,
    /// Bytes.
    pub memory: Option<u64>,
    memory_swap: Option<u64>,
    /// Processes and threads.
    pub pids_limit: Option<u32>,
    /// Resource limits.
    pub ulimits: Vec<Ulimit>,
    devices: Vec<Device>,
    group_add: Vec<String>,
    log_config: Option<LogConfig>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct PortBinding {
    host_port: String,
    #[serde(default)]
    host_ip: String,
}

/// A resource limit by Docker's name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub struct Ulimit {
    /// Without `RLIMIT_`, in small letters.
    pub name: String,
    /// In force.
    pub soft: u64,
    /// Up to which it may be raised.
    pub hard: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Device {
    path_on_host: String,
    path_in_container: String,
    cgroup_permissions: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct LogConfig {
    r#type: String,
    config: BTreeMap<String, String>,
}

/// A folder of the host in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// On the host.
    pub source: String,
    /// In the container.
    pub target: String,
    /// Whether the container cannot write to it.
    pub is_read_only: bool,
}

/// Puts the pieces together and reads them.
pub(super) fn read(settings: &BTreeMap<String, String>) -> Result<CreateOptions, String> {
    let mut text = String::new();
    for index in 0..PIECES_MAX {
        let name = piece_name(index);
        let Some(piece) = settings.get(&name) else { break };
        if piece.chars().count() > PIECE_CHARACTERS_MAX {
            return Err(format!("{name} is longer than {PIECE_CHARACTERS_MAX} characters"));
        }
        text.push_str(piece);
    }
    let known: Vec<String> = (0..PIECES_MAX).map(piece_name).collect();
    let pieces = settings.keys().filter(|name| known.contains(name)).count();
    // A piece after one that is missing, or beyond the last, is not read.
    let read = known.iter().take_while(|name| settings.contains_key(*name)).count();
    let beyond = |name: &&String| *name != "image" && !known.contains(name);
    if pieces != read || settings.keys().any(|name| beyond(&name)) {
        return Err("its pieces are not createOptions, createOptions01 … 07".to_owned());
    }
    serde_json::from_str(&text).map_err(|error| format!("createOptions: {error}"))
}

fn piece_name(index: usize) -> String {
    if index == 0 { "createOptions".to_owned() } else { format!("createOptions{index:02}") }
}

impl CreateOptions {
    /// Folders of the host.
    ///
    /// # Errors
    /// One that is no `source:target[:ro|rw]` of absolute paths.
    pub fn binds(&self) -> Result<Vec<Bind>, String> {
        self.host_config.binds.iter().map(|text| bind(text)).collect()
    }

    pub(super) fn host_ports(&self) -> Vec<String> {
        let bound = self.host_config.port_bindings.iter();
        let of_all = bound.flat_map(|(port, bindings)| {
            let protocol = port.split_once('/').map_or("tcp", |(_, protocol)| protocol);
            bindings.iter().map(move |binding| format!("{}/{protocol}", binding.host_port))
        });
        of_all.collect()
    }

    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        match self.binds() {
            Ok(binds) => faults.extend(bind_faults(&binds)),
            Err(error) => faults.push(error),
        }
        for (port, bindings) in &self.host_config.port_bindings {
            if !self.exposed_ports.contains_key(port) {
                faults.push(format!("ExposedPorts lacks {port}, which is bound"));
            }
            let is_port = |text: &str| text.parse::<u16>().is_ok_and(|port| port > 0);
            if !bindings.iter().all(|it| is_port(&it.host_port) && it.host_ip.is_empty()) {
                faults.push(format!("PortBindings {port}: a host port, no address"));
            }
        }
        for port in self.exposed_ports.keys() {
            let number = port.strip_suffix("/tcp").or(port.strip_suffix("/udp"));
            if number.is_none_or(|number| number.parse::<u16>().is_err()) {
                faults.push(format!("ExposedPorts {port} is no number/tcp"));
            }
        }
        faults.extend(self.host_config.faults());
        if let Some(check) = &self.healthcheck {
            faults.extend(check.faults());
        }
        if self.hostname.as_ref().is_some_and(|name| name.is_empty() || name.len() > 63) {
            faults.push("Hostname has 1 to 63 characters".to_owned());
        }
        if self.cmd.iter().any(String::is_empty) {
            faults.push("Cmd has an empty argument".to_owned());
        }
        faults
    }
}

impl HostConfig {
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        match &self.log_config {
            Some(log) if log.r#type == "json-file" => {
                let missing = LOG_LIMITS.iter().filter(|limit| !log.config.contains_key(**limit));
                faults.extend(missing.map(|limit| format!("LogConfig has no {limit}")));
            }
            Some(log) => faults.push(format!("LogConfig {} is not json-file", log.r#type)),
            None => faults.push("LogConfig is missing: the log would fill the disk".to_owned()),
        }
        if self.memory != self.memory_swap {
            faults.push("MemorySwap is not Memory: the limit would be another".to_owned());
        }
        for limit in self.ulimits.iter().filter(|limit| limit.soft > limit.hard) {
            faults.push(format!("Ulimits {}: Soft is above Hard", limit.name));
        }
        for (path, options) in &self.tmpfs {
            if !path.starts_with('/') || !options.split(',').any(|it| it.starts_with("size=")) {
                faults.push(format!("Tmpfs {path}: an absolute path, with size="));
            }
        }
        for device in &self.devices {
            let paths = [&device.path_on_host, &device.path_in_container];
            let are_devices = paths.iter().all(|path| path.starts_with("/dev/"));
            if !are_devices || device.cgroup_permissions.contains('m') {
                faults.push(format!("Devices {}: below /dev, rw", device.path_on_host));
            }
        }
        if self.group_add.iter().any(|group| ["root", "0", "docker"].contains(&group.as_str())) {
            faults.push("GroupAdd: a group with all rights".to_owned());
        }
        faults
    }
}

impl HealthCheck {
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.test.first().map(String::as_str) != Some("CMD") || self.test.len() < 2 {
            faults.push("Healthcheck Test: CMD and a command, there is no shell".to_owned());
        }
        let times = [self.interval, self.timeout, self.start_period];
        if times.iter().any(|time| *time < HEALTH_NANOSECONDS_MIN) {
            faults.push("Healthcheck: times are nanoseconds, 1 ms at least".to_owned());
        }
        if self.timeout >= self.interval || self.retries == 0 {
            faults.push("Healthcheck: Timeout below Interval, Retries above 0".to_owned());
        }
        faults
    }
}

fn bind(text: &str) -> Result<Bind, String> {
    let (source, target, mode) = match text.split(':').collect::<Vec<_>>().as_slice() {
        [source, target] => (*source, *target, "rw"),
        [source, target, mode] => (*source, *target, *mode),
        [..] => return Err(format!("Binds {text} is no source:target")),
    };
    let is_absolute = |path: &str| path.starts_with('/') && !path.contains("/../");
    if !is_absolute(source) || !is_absolute(target) || !["ro", "rw"].contains(&mode) {
        return Err(format!("Binds {text}: absolute paths, then nothing, ro or rw"));
    }
    Ok(Bind { source: source.to_owned(), target: target.to_owned(), is_read_only: mode == "ro" })
}

fn bind_faults(binds: &[Bind]) -> Vec<String> {
    let mut faults = Vec::new();
    for (index, bind) in binds.iter().enumerate() {
        let is_of_all = ["/", "/etc", "/var", "/usr", "/dev", "/proc", "/sys", "/run"]
            .contains(&bind.source.trim_end_matches('/'));
        if is_of_all || bind.source.is_empty() || bind.source.ends_with("docker.sock") {
            faults.push(format!("Binds {}: more of the host than a module needs", bind.source));
        }
        if binds[..index].iter().any(|other| other.target == bind.target) {
            faults.push(format!("Binds {}: twice", bind.target));
        }
    }
    faults
}
