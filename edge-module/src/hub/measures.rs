//! What is measured of the proof that is shown to a hub, and of the clock that it rests on.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::{error, warn};

use crate::telemetry;

/// No certificate.
const NEVER: i64 = i64::MAX;

/// When the certificate that was read last ends, and whether somebody was told.
#[derive(Debug)]
pub(super) struct Expiry {
    ends_unix: AtomicI64,
    is_told: AtomicBool,
}

impl Default for Expiry {
    fn default() -> Self {
        Self { ends_unix: AtomicI64::new(NEVER), is_told: AtomicBool::new(false) }
    }
}

impl Expiry {
    /// Another one may end later.
    pub(super) fn set(&self, ends_unix: i64) {
        if self.ends_unix.swap(ends_unix, Ordering::Relaxed) != ends_unix {
            self.is_told.store(false, Ordering::Relaxed);
        }
    }

    /// Measures, and tells once of each certificate that ends within `warning`.
    pub(super) fn tell(&self, warning: Duration) {
        let ends = self.ends_unix.load(Ordering::Relaxed);
        let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) else { return };
        if ends == NEVER {
            return;
        }
        let left = ends.saturating_sub_unsigned(now.as_secs());
        metrics::gauge!(telemetry::HUB_CERTIFICATE_EXPIRES).set(left as f64);
        let is_near = left < i64::try_from(warning.as_secs()).unwrap_or(i64::MAX);
        if !is_near || self.is_told.swap(true, Ordering::Relaxed) {
            return;
        }
        let days = left / 86_400;
        if left < 0 {
            error!("iot-hub.certificate-file has ended: put another one in its place");
        } else {
            warn!(days, "iot-hub.certificate-file ends soon: put another one in its place");
        }
    }
}
