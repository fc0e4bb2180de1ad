//! One module of a manifest.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::create_options::{self, CreateOptions};

/// Longest name of a module at IoT Hub.
const NAME_CHARACTERS_MAX: usize = 128;
/// Seconds that our module needs to end: `shutdown.drain-timeout` (8 s) and what follows it.
const OUR_STOP_SECONDS_MIN: u32 = 15;
/// Who the program runs as in its image.
const OUR_USER: &str = "1000:1000";
/// RLIMIT_NICE of a nice value of -20, which is the default of `protection.nice`.
const OUR_NICE_LIMIT: u64 = 40;

/// A module, or a part of the runtime.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Module {
    version: Option<String>,
    r#type: String,
    status: Option<Status>,
    restart_policy: Option<RestartPolicy>,
    startup_order: Option<u32>,
    image_pull_policy: Option<ImagePullPolicy>,
    settings: BTreeMap<String, String>,
    #[serde(default)]
    env: BTreeMap<String, Variable>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum Status {
    Running,
    Stopped,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum RestartPolicy {
    Never,
    OnFailure,
    OnUnhealthy,
    Always,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum ImagePullPolicy {
    OnCreate,
    Never,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    value: String,
}

impl Module {
    /// Its environment.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<&str, &str> {
        self.env.iter().map(|(name, variable)| (name.as_str(), variable.value.as_str())).collect()
    }

    /// What its container is made with.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn create_options(&self) -> Result<CreateOptions, String> {
        create_options::read(&self.settings)
    }

    pub(super) fn is_from(&self, registry: &str) -> bool {
        let image = self.settings.get("image").and_then(|image| image.split_once('/'));
        image.is_some_and(|(address, _)| address == registry)
    }

    pub(super) fn host_ports(&self) -> Vec<String> {
        self.create_options().map(|options| options.host_ports()).unwrap_or_default()
    }

    pub(super) fn faults(&self, name: &str, schema_version: &str) -> Vec<String> {
        let mut faults = Vec::new();
        let is_name = |found: char| found.is_ascii_alphanumeric() || "-_".contains(found);
        if !(1..=NAME_CHARACTERS_MAX).contains(&name.len()) || !name.chars().all(is_name) {
            faults.push("is no name of a module".to_owned());
        }
        if self.r#type != "docker" {
            faults.push(format!("type {} is unknown", self.r#type));
        }
        // The runtime looks after itself.
        if name != "edgeAgent" {
            if self.status != Some(Status::Running) {
                faults.push("status is not running".to_owned());
            }
            if self.restart_policy != Some(RestartPolicy::Always) {
                faults.push("restartPolicy is not always".to_owned());
            }
        }
        if self.startup_order.is_some() && schema_version == "1.0" {
            faults.push("startupOrder needs schemaVersion 1.1".to_owned());
        }
        if self.image_pull_policy == Some(ImagePullPolicy::Never) {
            faults.push("imagePullPolicy never: a new gateway would have no image".to_owned());
        }
        if self.version.as_ref().is_some_and(String::is_empty) {
            faults.push("version is empty".to_owned());
        }
        match self.settings.get("image") {
            Some(image) => faults.extend(image_fault(image)),
            None => faults.push("settings has no image".to_owned()),
        }
        match self.create_options() {
            Ok(options) => faults.extend(options.faults()),
            Err(error) => faults.push(error),
        }
        faults.extend(self.env.iter().filter_map(|(name, it)| variable_fault(name, &it.value)));
        faults.into_iter().map(|fault| format!("{name}: {fault}")).collect()
    }
}

/// An image is named with its registry and a tag or digest, so that it is the same one tomorrow.
fn image_fault(image: &str) -> Option<String> {
    let is_of = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|it| it.is_ascii_alphanumeric() || more.contains(it))
    };
    let (name, version) = match image.split_once('@') {
        Some((name, digest)) => {
            let hex = digest.strip_prefix("sha256:").unwrap_or_default();
            let is_digest = hex.len() == 64 && hex.chars().all(|it| it.is_ascii_hexdigit());
            (name, is_digest.then_some(digest))
        }
        None => match image.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => {
                (name, Some(tag).filter(|tag| is_of(tag, "._-") && tag.len() <= 128))
            }
            Some(_) | None => (image, None),
        },
    };
    let parts: Vec<&str> = name.split('/').collect();
    let (registry, path) = parts.split_first()?;
    let has_registry = registry.contains('.') || registry.contains(':') || *registry == "localhost";
    let is_lower = |part: &&str| is_of(part, "._-") && part.to_ascii_lowercase() == **part;
    if !has_registry || path.is_empty() || !is_of(registry, ".:-") || !path.iter().all(is_lower) {
        return Some(format!("image {image}: registry/path:tag"));
    }
    match version {
        None => Some(format!("image {image} has no tag")),
        Some("latest") => Some(format!("image {image}: latest is another one tomorrow")),
        Some(_) => None,
    }
}

fn variable_fault(name: &str, value: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    let names_secret =
        ["password", "secret", "token", "sharedkey", "accesskey", "connectionstring"]
            .iter()
            .any(|word| lower.replace('_', "").contains(word));
    if names_secret && !lower.ends_with("_file") {
        return Some(format!("env {name}: a secret is readable in the twin; name a file"));
    }
    if name.starts_with("IOTEDGE_") {
        return Some(format!("env {name} is the runtime's own"));
    }
    value.is_empty().then(|| format!("env {name} is empty"))
}

/// What we promise of our own module beyond what IoT Edge asks.
pub(super) fn our_faults(module: &Module) -> Vec<String> {
    let Ok(options) = module.create_options() else { return Vec::new() };
    let mut faults = Vec::new();
    let mut must = |holds: bool, text: &str| {
        if !holds {
            faults.push(format!("{}: {text}", super::OUR_MODULE));
        }
    };
    let host = &options.host_config;
    must(options.user.as_deref() == Some(OUR_USER), "User is not 1000:1000");
    must(host.readonly_rootfs, "ReadonlyRootfs is not set");
    must(host.cap_drop == ["ALL"], "CapDrop is not ALL");
    must(host.security_opt.iter().any(|it| it == "no-new-privileges"), "no no-new-privileges");
    must(host.memory.is_some() && host.pids_limit.is_some(), "Memory and PidsLimit are missing");
    let nice = host.ulimits.iter().find(|limit| limit.name == "nice");
    must(nice.is_some_and(|it| it.soft >= OUR_NICE_LIMIT), "the stop path cannot go first");
    must(
        options.stop_timeout.is_some_and(|seconds| seconds >= OUR_STOP_SECONDS_MIN),
        "StopTimeout is shorter than the journal needs",
    );
    must(options.healthcheck.is_some(), "Healthcheck is missing");
    must(module.image_pull_policy == Some(ImagePullPolicy::OnCreate), "is pulled at each start");
    let binds = options.binds().unwrap_or_default();
    let data = binds.iter().find(|bind| bind.target == "/var/lib/edge-module");
    must(data.is_some_and(|bind| !bind.is_read_only), "no folder for the journal on the host");
    for (name, value) in module.environment() {
        let is_there = binds.iter().any(|bind| value.starts_with(&format!("{}/", bind.target)));
        must(!name.ends_with("_FILE") || is_there, &format!("env {name}: {value} is not bound"));
    }
    faults
}
