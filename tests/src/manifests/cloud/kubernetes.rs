//! What must hold between the objects of an overlay, beyond the schema of each.

use std::collections::BTreeSet;

use serde_json::Value;

/// Container and objects of the program.
pub const PROGRAM: &str = "cloud-aggregator";
/// Where the configuration is mounted.
pub const CONFIGURATION: &str = "/etc/cloud-aggregator";
/// Where secrets are mounted.
pub const SECRETS: &str = "/run/secrets/cloud-aggregator";
/// What a stop may take longer than the drain.
const GRACE_SECONDS: u64 = 5;
/// One of the user's in the image.
const USER: u64 = 1000;

/// The objects of an overlay.
#[derive(Debug)]
pub struct Objects<'a>(&'a [Value]);

impl<'a> Objects<'a> {
    /// All that Kustomize gives.
    #[must_use]
    pub fn new(objects: &'a [Value]) -> Self {
        Self(objects)
    }

    /// The object of a kind and name; null if there is none.
    #[must_use]
    pub fn get(&self, kind: &str, name: &str) -> &'a Value {
        let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
        self.0.iter().find(is_it).unwrap_or(&Value::Null)
    }

    /// The one container of the program.
    #[must_use]
    pub fn container(&self) -> &'a Value {
        &self.pod()["containers"][0]
    }

    /// Specification of the program's pods.
    #[must_use]
    pub fn pod(&self) -> &'a Value {
        &self.get("Deployment", PROGRAM)["spec"]["template"]["spec"]
    }

    /// The configuration file that the pods see; empty if there is none.
    #[must_use]
    pub fn configuration(&self) -> &'a str {
        let name = &self.volume("configuration")["configMap"]["name"];
        let map = self.get("ConfigMap", name.as_str().unwrap_or_default());
        map["data"]["cloud-aggregator.toml"].as_str().unwrap_or_default()
    }

    /// Variables of the container.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        list(&self.container()["env"])
            .map(|variable| (text(&variable["name"]), text(&variable["value"])))
            .collect()
    }

    fn volume(&self, name: &str) -> &'a Value {
        list(&self.pod()["volumes"]).find(|volume| volume["name"] == name).unwrap_or(&Value::Null)
    }

    /// Names of the files below [`SECRETS`].
    #[must_use]
    pub fn secret_files(&self) -> BTreeSet<String> {
        let volume = self.volume("secrets");
        let class = volume["csi"]["volumeAttributes"]["secretProviderClass"].as_str();
        let class = self.get("SecretProviderClass", class.unwrap_or_default());
        let objects = class["spec"]["parameters"]["objects"].as_str().unwrap_or_default();
        let projected = list(&volume["projected"]["sources"])
            .flat_map(|source| list(&source["secret"]["items"]))
            .filter_map(|item| item["path"].as_str());
        vault_files(objects).chain(projected).map(str::to_owned).collect()
    }

    /// Everything that does not fit together.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        self.check_security(&mut faults);
        self.check_probes(&mut faults);
        self.check_selectors(&mut faults);
        self.check_network(&mut faults);
        self.check_scaling(&mut faults);
        self.check_secrets(&mut faults);
        faults
    }

    fn check_security(&self, faults: &mut Vec<String>) {
        let (pod, container) = (self.pod(), self.container());
        let (of_pod, own) = (&pod["securityContext"], &container["securityContext"]);
        let mut must = |holds: bool, text: &str| {
            if !holds {
                faults.push(format!("security: {text}"));
            }
        };
        must(of_pod["runAsNonRoot"] == true && of_pod["runAsUser"] == USER, "another user");
        must(of_pod["seccompProfile"]["type"] == "RuntimeDefault", "no seccomp profile");
        must(own["readOnlyRootFilesystem"] == true, "the root file system can be written");
        must(own["allowPrivilegeEscalation"] == false, "privileges can be gained");
        must(own["capabilities"]["drop"] == serde_json::json!(["ALL"]), "capabilities are kept");
        must(own["capabilities"]["add"].is_null(), "capabilities are added");
        must(pod["automountServiceAccountToken"] == false, "the cluster's token is mounted");
        must(pod["hostNetwork"].is_null(), "the node's network");
        must(list(&pod["containers"]).count() == 1, "not one container");
        must(container["resources"]["limits"]["memory"].is_string(), "no limit of memory");
        must(container["resources"]["requests"]["cpu"].is_string(), "no request of CPU");
        let image = container["image"].as_str().unwrap_or_default();
        let version = image.rsplit_once(':').map(|(_, version)| version);
        must(version.is_some_and(|version| version != "latest"), "an image without a version");
        let enforced = &self.0.iter().find(|object| object["kind"] == "Namespace");
        let enforced = enforced.map(|found| &found["metadata"]["labels"]);
        let level = enforced.map(|labels| &labels["pod-security.kubernetes.io/enforce"]);
        must(level.is_some_and(|level| level == "restricted"), "the namespace takes any pod");
    }

    fn check_probes(&self, faults: &mut Vec<String>) {
        let container = self.container();
        let port_of = |name: &str| {
            list(&container["ports"])
                .find(|port| port["name"] == name)
                .and_then(|port| port["containerPort"].as_u64())
        };
        let listens = |variable: &str| {
            let found = self.environment().into_iter().find(|(name, _)| name == variable);
            found.and_then(|(_, value)| value.strip_prefix("0.0.0.0:")?.parse().ok())
        };
        for (name, variable) in
            [("admin", "AGGREGATOR__ADMIN__LISTEN"), ("api", "AGGREGATOR__API__LISTEN")]
        {
            if port_of(name).is_none() || port_of(name) != listens(variable) {
                faults.push(format!("{variable} is not the port {name}"));
            }
        }
        for (probe, path) in [
            ("startupProbe", "/healthz"),
            ("livenessProbe", "/healthz"),
            ("readinessProbe", "/readyz"),
        ] {
            let get = &container[probe]["httpGet"];
            if get["path"] != path || get["port"] != "admin" {
                faults.push(format!("{probe} does not ask {path}"));
            }
        }
        let drain = self.environment();
        let drain = drain.iter().find(|(name, _)| name == "AGGREGATOR__SHUTDOWN__DRAIN_TIMEOUT");
        let drain: Option<u64> = drain.and_then(|(_, value)| value.strip_suffix('s')?.parse().ok());
        let grace = self.pod()["terminationGracePeriodSeconds"].as_u64();
        if drain.zip(grace).is_none_or(|(drain, grace)| grace < drain + GRACE_SECONDS) {
            faults.push(format!("a stop gets {grace:?} s and needs {drain:?} s and a margin"));
        }
    }

    fn check_selectors(&self, faults: &mut Vec<String>) {
        let deployment = self.get("Deployment", PROGRAM);
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        let budget = self.get("PodDisruptionBudget", PROGRAM);
        let service = self.get("Service", PROGRAM);
        let monitor = self.get("PodMonitor", PROGRAM);
        for (who, selector) in [
            ("Deployment", &deployment["spec"]["selector"]["matchLabels"]),
            ("PodDisruptionBudget", &budget["spec"]["selector"]["matchLabels"]),
            ("Service", &service["spec"]["selector"]),
            ("PodMonitor", &monitor["spec"]["selector"]["matchLabels"]),
        ] {
            if !selects(selector, labels) {
                faults.push(format!("{who} does not select the pods"));
            }
        }
        if service["spec"]["ports"][0]["targetPort"] != "api" {
            faults.push("Service does not lead to the port api".to_owned());
        }
        if monitor["spec"]["podMetricsEndpoints"][0]["port"] != "admin" {
            faults.push("PodMonitor does not read the port admin".to_owned());
        }
    }

    fn check_network(&self, faults: &mut Vec<String>) {
        let all = &self.get("NetworkPolicy", "deny-all")["spec"];
        let is_empty = all["podSelector"] == serde_json::json!({});
        if !is_empty || !all["ingress"].is_null() || !all["egress"].is_null() {
            faults.push("deny-all lets something through".to_owned());
        }
        if all["policyTypes"] != serde_json::json!(["Ingress", "Egress"]) {
            faults.push("deny-all is for one direction".to_owned());
        }
        let policies = self.0.iter().filter(|object| object["kind"] == "NetworkPolicy");
        let rules: Vec<&Value> = policies
            .flat_map(|policy| {
                let spec = &policy["spec"];
                list(&spec["ingress"]).chain(list(&spec["egress"]))
            })
            .collect();
        for rule in &rules {
            let has_peers = list(&rule["from"]).chain(list(&rule["to"])).count() > 0;
            if !has_peers || list(&rule["ports"]).count() == 0 {
                faults.push(format!("a rule is open to all: {rule}"));
            }
        }
        let ports: BTreeSet<u64> = rules
            .iter()
            .flat_map(|rule| list(&rule["ports"]))
            .filter_map(|port| port["port"].as_u64())
            .collect();
        let kafka = self.broker_port();
        for (port, what) in [(Some(53), "names"), (kafka, "Kafka"), (Some(9465), "metrics")] {
            if port.is_none_or(|port| !ports.contains(&port)) {
                faults.push(format!("no rule lets {what} through ({port:?})"));
            }
        }
    }

    /// Value of a key of the configuration: these files write one in a line.
    fn setting(&self, key: &str) -> Option<&'a str> {
        let line = |line: &'a str| line.strip_prefix(key)?.trim_start().strip_prefix("= \"");
        self.configuration().lines().find_map(line)?.strip_suffix('"')
    }

    fn broker_port(&self) -> Option<u64> {
        self.setting("brokers")?.rsplit_once(':')?.1.parse().ok()
    }

    fn check_scaling(&self, faults: &mut Vec<String>) {
        let scaled = &self.get("ScaledObject", PROGRAM)["spec"];
        let target = &scaled["scaleTargetRef"];
        if target["name"] != PROGRAM || target["kind"] != "Deployment" {
            faults.push("ScaledObject scales something else".to_owned());
        }
        if !self.get("Deployment", PROGRAM)["spec"]["replicas"].is_null() {
            faults.push("Deployment sets replicas, which KEDA does".to_owned());
        }
        let trigger = &scaled["triggers"][0];
        let metadata = &trigger["metadata"];
        for (key, setting) in [("consumerGroup", "group"), ("bootstrapServers", "brokers")] {
            if metadata[key].as_str().is_none() || metadata[key].as_str() != self.setting(setting) {
                faults.push(format!("{key} is not kafka.{setting}"));
            }
        }
        let mechanism = self.setting("\"sasl.mechanisms\"");
        let expected = match mechanism {
            Some("PLAIN") => Some("plaintext"),
            Some("SCRAM-SHA-512") => Some("scram_sha512"),
            Some(_) | None => None,
        };
        if expected.is_none() || metadata["sasl"].as_str() != expected {
            faults.push(format!("sasl is not {mechanism:?} of the configuration"));
        }
        let name = trigger["authenticationRef"]["name"].as_str().unwrap_or_default();
        let user = &self.get("TriggerAuthentication", name)["spec"]["configMapTargetRef"][0];
        let map = self.get("ConfigMap", user["name"].as_str().unwrap_or_default());
        let user = map["data"][user["key"].as_str().unwrap_or_default()].as_str();
        if user.is_none() || user != self.setting("\"sasl.username\"") {
            faults.push(format!("KEDA's user {user:?} is not that of the configuration"));
        }
    }

    fn check_secrets(&self, faults: &mut Vec<String>) {
        for object in self.0 {
            if object["kind"] == "Secret" {
                faults.push("a secret stands in the manifests".to_owned());
            }
        }
        let asked: BTreeSet<String> = self
            .configuration()
            .split('"')
            .filter_map(|text| text.strip_prefix(SECRETS)?.strip_prefix('/'))
            .map(str::to_owned)
            .collect();
        let given = self.secret_files();
        if asked != given || asked.is_empty() {
            faults.push(format!("the configuration reads {asked:?}, mounted are {given:?}"));
        }
        for (name, path) in [("configuration", CONFIGURATION), ("secrets", SECRETS)] {
            let mounted = list(&self.container()["volumeMounts"])
                .any(|mount| mount["name"] == name && mount["mountPath"] == path);
            if !mounted || self.volume(name).is_null() {
                faults.push(format!("{name} is not at {path}"));
            }
        }
        if self.configuration().is_empty() {
            faults.push("there is no configuration".to_owned());
        }
    }
}

/// Names of the files in a list of Key Vault objects: the alias, else the name.
fn vault_files(objects: &str) -> impl Iterator<Item = &str> {
    let name = |object| field(object, "objectAlias:").or_else(|| field(object, "objectName:"));
    objects.split("- |").skip(1).filter_map(name)
}

fn field<'a>(object: &'a str, key: &str) -> Option<&'a str> {
    object.lines().find_map(|line| line.trim().strip_prefix(key)).map(str::trim)
}

fn selects(selector: &Value, labels: &Value) -> bool {
    let Some(selector) = selector.as_object() else { return false };
    !selector.is_empty() && selector.iter().all(|(key, value)| labels[key] == *value)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
