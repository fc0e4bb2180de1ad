//! The plant of the demo as configuration files of the two programs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::machine::MachineName;

/// Length of the counting window in seconds. In a plant it is a minute; a minute is long for a reader.
pub const WINDOW_SECONDS: u32 = 5;
/// A temperature above it is counted.
pub const HOT_ABOVE: f64 = 100.0;
/// More of them than this in one window are an anomaly.
pub const COUNT_MORE_THAN: u64 = 5;
/// A pressure above it stops the fan, in bar.
pub const PRESSURE_LIMIT: f64 = 8.0;
/// A temperature above it stops the pump, in degrees Celsius.
pub const TEMPERATURE_LIMIT: f64 = 130.0;
/// Samples of a vibration window; those of the model's bundle, too.
pub const WINDOW_SAMPLES: u64 = 2_048;
/// Name of this gateway.
pub const DEVICE: &str = "gateway-1";

/// How vibration is judged.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// The model bundle; `None`: limits alone.
    pub bundle: Option<PathBuf>,
    /// RMS that stops a machine whatever the model says, in the sensor's unit.
    pub rms_limit: f64,
}

/// What the edge module's file needs to know.
pub struct EdgeConfiguration<'a> {
    /// Folder for the journal.
    pub data_dir: &'a Path,
    /// The broker.
    pub mqtt_port: u16,
    /// `bootstrap.servers`.
    pub kafka: &'a str,
    /// Health and metrics.
    pub admin_port: u16,
    /// How vibration is judged.
    pub judgement: &'a Judgement,
    /// All machines; the last one is protected by limits alone.
    pub machines: [MachineName; 3],
}

impl EdgeConfiguration<'_> {
    /// The file's text.
    #[must_use]
    pub fn text(&self) -> String {
        let bundle = self.judgement.bundle.as_ref().map_or_else(String::new, |path| quoted(path));
        let mut text = format!(
            "# Written by the demo. Every other setting has its default.\n\n\
             [device]\nid = \"{DEVICE}\"\ndata-dir = {}\n\n\
             [mqtt]\nport = {}\n\n\
             [vibration]\nwindow-samples = {WINDOW_SAMPLES}\nhop-samples = {WINDOW_SAMPLES}\n\n\
             [model]\nbundle-dir = {}\n\n\
             # Changes below 1 % are not sent, at least one reading in 5 s is.\n\
             [deadband]\npercent = 1.0\nheartbeat = \"5s\"\n\n\
             # The demo's books are those of the lake, which keeps no waveforms.\n\
             [waveforms]\nenabled = false\n\n\
             [kafka]\nbrokers = \"{}\"\n# Late after 2 s, so that the demo has something to show.\n\
             historical-after = \"2s\"\nproperties = {{ \"reconnect.backoff.max.ms\" = \"500\" }}\n\n\
             [admin]\nlisten = \"127.0.0.1:{}\"\n",
            quoted(self.data_dir),
            self.mqtt_port,
            if bundle.is_empty() { "\"\"" } else { &bundle },
            self.kafka,
            self.admin_port,
        );
        for (place, name) in self.machines.iter().enumerate() {
            text += &self.machine(name, place + 1 < self.machines.len());
        }
        text
    }

    fn machine(&self, name: MachineName, with_model: bool) -> String {
        let mut text = format!("\n[[machines]]\nid = \"{name}\"\n");
        if with_model && self.judgement.bundle.is_some() {
            text += &format!("scored-sensors = [\"{name}/bearing\"]\nvotes = 3\nof = 5\n");
        }
        let limits = [
            ("vibration-zone-d", "bearing", "rms", self.judgement.rms_limit),
            ("temperature-high", "temperature", "value", TEMPERATURE_LIMIT),
            ("pressure-high", "pressure", "value", PRESSURE_LIMIT),
        ];
        for (rule, sensor, quantity, above) in limits {
            // Writing to a String never fails.
            write!(
                text,
                "  [[machines.limits]]\n  name = \"{rule}\"\n  sensor = \"{name}/{sensor}\"\n  \
                 quantity = \"{quantity}\"\n  above = {above:?}\n"
            )
            .ok();
        }
        text
    }
}

/// Text of the aggregator's file.
#[must_use]
pub fn cloud_text(kafka: &str, lake: &Path, webhook: &str, admin_port: u16) -> String {
    format!(
        "# Written by the demo. Every other setting has its default.\n\n\
         [kafka]\nbrokers = \"{kafka}\"\nproperties = {{ \"reconnect.backoff.max.ms\" = \"500\" }}\n\n\
         [lake]\nlocation = {}\n\n\
         [trigger]\nprocessing-time = \"1s\"\n\n\
         [[rules]]\nname = \"temperature-above-100\"\nfilter = \"metric_type = temperature and value > {HOT_ABOVE:?}\"\n\
         # A minute in a plant.\nwindow = \"{WINDOW_SECONDS}s\"\n\
         threshold = \"count > {COUNT_MORE_THAN}\"\nseverity = 2\n\n\
         [counting]\nallowed-lateness = \"2s\"\nidle-timeout = \"5s\"\n\n\
         # The report holds each alert against its window.\n[alerting]\ngroup-by = \"window\"\n\n\
         [alerts]\ntopic = \"alerts\"\nwebhook-url = \"{webhook}\"\n\n\
         [admin]\nlisten = \"127.0.0.1:{admin_port}\"\n",
        quoted(lake),
    )
}

/// A path as a TOML string.
fn quoted(path: &Path) -> String {
    format!("{:?}", path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_with_and_without_the_model_are_written_as_such() {
        let judgement = Judgement { bundle: Some(PathBuf::from("/b")), rms_limit: 0.1 };
        let configuration = EdgeConfiguration {
            data_dir: Path::new("/d"),
            mqtt_port: 1,
            kafka: "127.0.0.1:2",
            admin_port: 3,
            judgement: &judgement,
            machines: ["press-1", "pump-2", "fan-3"],
        };
        let text = configuration.text();
        assert_eq!(text.matches("[[machines]]").count(), 3);
        assert_eq!(text.matches("scored-sensors").count(), 2);
        assert!(!text.contains("fan-3/bearing\"]"), "{text}");
        assert!(text.contains("bundle-dir = \"/b\"") && text.contains("above = 8.0"), "{text}");
    }
}
