//! What a rule's violation has led to, so that each is acted on once and none is forgotten.

use super::action::Suppression;
use super::settings::RuleAction;

/// What was done about a violation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Response {
    /// There is none, or nothing was done yet.
    #[default]
    None,
    /// It was reported as suppressed.
    Suppressed,
    /// People were told.
    Alarm,
    /// It tripped, or was recorded in the trip that was latched already.
    Trip,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Stop the machine.
    Trip,
    /// Report what would have stopped it.
    Suppressed(Suppression),
    /// Tell people.
    Alarm,
    /// Tell them that it is over.
    AlarmCleared,
}

impl Response {
    /// Answers what a rule must do now. A trip rule that is violated, in force and finds the interlock armed trips,
    /// whatever was done before.
    pub(super) fn respond(
        &mut self,
        is_violated: bool,
        action: RuleAction,
        suppression: Option<Suppression>,
        is_armed: bool,
    ) -> Option<Effect> {
        if !is_violated {
            return match std::mem::take(self) {
                Self::Alarm => Some(Effect::AlarmCleared),
                Self::None | Self::Suppressed | Self::Trip => None,
            };
        }
        match (action, suppression) {
            (RuleAction::Trip, None) => {
                let was = std::mem::replace(self, Self::Trip);
                (is_armed || was != Self::Trip).then_some(Effect::Trip)
            }
            (RuleAction::Trip, Some(by)) => {
                // What tripped before it was shelved is known.
                let is_known = *self != Self::None;
                *self = Self::Suppressed;
                (!is_known).then_some(Effect::Suppressed(by))
            }
            (RuleAction::Alarm, None | Some(Suppression::DryRun)) => {
                (std::mem::replace(self, Self::Alarm) != Self::Alarm).then_some(Effect::Alarm)
            }
            (RuleAction::Alarm, Some(Suppression::Startup | Suppression::Shelved)) => None,
        }
    }
}
