//! Where labels are already, so that none covers another.

use super::svg::width_of;

/// Around a text, so that two beside each other stay two.
const MARGIN: f64 = 2.0;

/// What a label or a mark covers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
}

impl Area {
    /// Of a text around its middle `x`, on the baseline `y`.
    pub(super) fn of_text(x: f64, y: f64, size: f64, text: &str) -> Self {
        let half = width_of(text, size) / 2.0 + MARGIN;
        Self { left: x - half, right: x + half, top: y - size, bottom: y + 0.25 * size }
    }

    /// Of a circle.
    pub(super) fn of_circle((x, y): (f64, f64), radius: f64) -> Self {
        Self { left: x - radius, right: x + radius, top: y - radius, bottom: y + radius }
    }

    /// Of both and what is between.
    pub(super) fn with(self, other: Self) -> Self {
        Self {
            left: self.left.min(other.left),
            right: self.right.max(other.right),
            top: self.top.min(other.top),
            bottom: self.bottom.max(other.bottom),
        }
    }

    fn covers(&self, other: &Self) -> bool {
        let beside = self.right <= other.left || other.right <= self.left;
        let above = self.bottom <= other.top || other.bottom <= self.top;
        !beside && !above
    }
}

/// What is covered so far.
#[derive(Debug, Default)]
pub(super) struct Room(Vec<Area>);

impl Room {
    /// Takes an area, whatever is there.
    pub(super) fn cover(&mut self, area: Area) {
        self.0.push(area);
    }

    /// Takes the first area that covers nothing, and says which; `None` if there is no room.
    pub(super) fn take<T>(&mut self, places: impl IntoIterator<Item = (T, Area)>) -> Option<T> {
        let is_free = |area: &Area| !self.0.iter().any(|taken| taken.covers(area));
        let (place, area) = places.into_iter().find(|(_, area)| is_free(area))?;
        self.0.push(area);
        Some(place)
    }
}
