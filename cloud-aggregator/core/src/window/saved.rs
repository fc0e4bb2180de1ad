//! Windows in a state file: arrays, because there may be a million of them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shared_proto::model::EventTime;

use super::{Point, RuleIndex, Window, Windows};
use crate::exact;
use crate::rule::Sum;

const CLOSED: u8 = 1;
const FOUND: u8 = 2;
const REPORTED: u8 = 4;
const DUE: u8 = 8;

/// Start, end, rule, flags, revision, count, earliest and latest match, highest and lowest value, sum.
#[derive(PartialEq, Serialize, Deserialize)]
struct SavedWindow(
    EventTime,
    EventTime,
    RuleIndex,
    u8,
    u32,
    u64,
    SavedPoint,
    SavedPoint,
    #[serde(with = "exact::number")] f64,
    #[serde(with = "exact::number")] f64,
    Sum,
);

#[derive(PartialEq, Serialize, Deserialize)]
struct SavedPoint(EventTime, #[serde(with = "exact::number")] f64);

impl From<Point> for SavedPoint {
    fn from(point: Point) -> Self {
        Self(point.time, point.value)
    }
}

impl From<SavedPoint> for Point {
    fn from(saved: SavedPoint) -> Self {
        Self { time: saved.0, value: saved.1 }
    }
}

impl From<&Window> for SavedWindow {
    fn from(window: &Window) -> Self {
        let flag = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        let flags = flag(window.is_closed, CLOSED)
            | flag(window.is_found, FOUND)
            | flag(window.is_reported, REPORTED)
            | flag(window.is_due, DUE);
        Self(
            window.start,
            window.end,
            window.rule,
            flags,
            window.revision,
            window.count,
            window.first.into(),
            window.last.into(),
            window.max_value,
            window.min_value,
            window.sum,
        )
    }
}

impl From<SavedWindow> for Window {
    fn from(saved: SavedWindow) -> Self {
        let flags = saved.3;
        Self {
            start: saved.0,
            end: saved.1,
            rule: saved.2,
            is_closed: flags & CLOSED != 0,
            is_found: flags & FOUND != 0,
            is_reported: flags & REPORTED != 0,
            is_due: flags & DUE != 0,
            is_changed: false,
            revision: saved.4,
            count: saved.5,
            first: saved.6.into(),
            last: saved.7.into(),
            max_value: saved.8,
            min_value: saved.9,
            sum: saved.10,
        }
    }
}

/// Equal when they are saved alike.
impl PartialEq for Windows {
    fn eq(&self, other: &Self) -> bool {
        let saved =
            |windows: &Self| windows.windows.iter().map(SavedWindow::from).collect::<Vec<_>>();
        saved(self) == saved(other)
    }
}

impl Serialize for Windows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.windows.iter().map(SavedWindow::from))
    }
}

impl<'de> Deserialize<'de> for Windows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let saved = Vec::<SavedWindow>::deserialize(deserializer)?;
        Ok(Self::from(saved.into_iter().map(Window::from).collect::<Vec<_>>()))
    }
}
