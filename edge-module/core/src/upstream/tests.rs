//! By example, then against a model that looks at the whole history each time.

use proptest::prelude::*;

use super::*;

const SETTINGS: UpstreamSettings = UpstreamSettings {
    ways: Ways::KafkaThenHub,
    hub_after: Duration::from_secs(60),
    ask_interval: Some(Duration::from_secs(10)),
};

#[expect(clippy::disallowed_methods, reason = "a first instant has to come from somewhere")]
fn start() -> Instant {
    Instant::now()
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A switch that has gone to the hub at `now`.
fn at_hub(switch: &mut Switch, now: Instant) {
    assert_eq!(switch.poll(now), Some(Step::Leave(Upstream::Kafka)));
    assert_eq!(switch.active(), None);
    assert_eq!(switch.poll(now), Some(Step::Leave(Upstream::Kafka)), "until it is done");
    switch.handle_settled();
    assert_eq!(switch.active(), None);
    assert_eq!(switch.poll(now), Some(Step::Use(Upstream::Hub)));
    assert_eq!(switch.active(), Some(Upstream::Hub));
}

#[test]
fn records_go_to_the_hub_after_the_silence_and_back_when_kafka_answers() {
    let now = start();
    let mut switch = Switch::new(SETTINGS);
    switch.handle_hub(true);
    switch.handle_owed(true, now);
    assert_eq!(switch.poll_timeout(), Some(now + seconds(60)));
    assert_eq!(switch.poll(now + seconds(60) - Duration::from_nanos(1)), None);
    at_hub(&mut switch, now + seconds(60));
    assert_eq!(switch.poll_timeout(), Some(now + seconds(70)));
    assert_eq!(switch.poll(now + seconds(69)), None);
    assert_eq!(switch.poll(now + seconds(70)), Some(Step::Ask));
    assert_eq!(switch.poll(now + seconds(90)), None, "one question at a time");
    switch.handle_kafka(false, now + seconds(75));
    assert_eq!(switch.poll(now + seconds(85)), Some(Step::Ask));
    switch.handle_kafka(true, now + seconds(86));
    assert_eq!(switch.poll(now + seconds(86)), Some(Step::Leave(Upstream::Hub)));
    switch.handle_settled();
    assert_eq!(switch.poll(now + seconds(87)), Some(Step::Use(Upstream::Kafka)));
    assert_eq!(switch.active(), Some(Upstream::Kafka));
    assert_eq!(switch.poll(now + seconds(87 + 59)), None, "silence counts anew");
}

#[test]
fn kafka_is_not_left_where_nothing_is_owed_or_the_hub_is_away() {
    let now = start();
    let mut switch = Switch::new(SETTINGS);
    switch.handle_owed(true, now);
    assert_eq!(switch.poll(now + seconds(1_000)), None, "no hub");
    assert_eq!(switch.poll_timeout(), None);
    switch.handle_owed(false, now + seconds(1_000));
    switch.handle_hub(true);
    assert_eq!(switch.poll(now + seconds(2_000)), None, "nothing owed");
    switch.handle_owed(true, now + seconds(2_000));
    switch.handle_delivered(now + seconds(2_030));
    assert_eq!(switch.poll(now + seconds(2_089)), None, "delivered meanwhile");
    at_hub(&mut switch, now + seconds(2_090));
}

#[test]
fn one_way_alone_is_never_left() {
    let now = start();
    for (ways, only) in [(Ways::Kafka, Upstream::Kafka), (Ways::Hub, Upstream::Hub)] {
        let mut switch = Switch::new(UpstreamSettings { ways, ..SETTINGS });
        switch.handle_hub(true);
        switch.handle_owed(true, now);
        assert_eq!(switch.poll(now + seconds(1_000_000)), None);
        assert_eq!(switch.poll_timeout(), None);
        assert_eq!(switch.active(), Some(only));
    }
}

#[test]
fn without_a_way_back_the_hub_is_used_to_the_end() {
    let now = start();
    let mut switch = Switch::new(UpstreamSettings { ask_interval: None, ..SETTINGS });
    switch.handle_hub(true);
    switch.handle_owed(true, now);
    at_hub(&mut switch, now + seconds(60));
    assert_eq!(switch.poll(now + seconds(1_000_000)), None);
    assert_eq!(switch.poll_timeout(), None);
}

#[test]
fn a_kafka_that_answers_and_takes_nothing_is_tried_less_and_less() {
    let mut now = start();
    let mut switch = Switch::new(SETTINGS);
    switch.handle_hub(true);
    switch.handle_owed(true, now);
    let mut waits = Vec::new();
    for round in 0..12 {
        now += seconds(60);
        at_hub(&mut switch, now);
        let asked = switch.poll_timeout().expect("it is asked");
        waits.push((asked - now).as_secs());
        now = asked;
        assert_eq!(switch.poll(now), Some(Step::Ask));
        switch.handle_kafka(true, now);
        switch.handle_settled();
        assert_eq!(switch.poll(now), Some(Step::Use(Upstream::Kafka)));
        if round == 10 {
            switch.handle_delivered(now);
        }
    }
    assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1_280, 2_560, 3_600, 3_600, 10]);
}

/// What a caller sees.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    Owed(bool),
    Delivered,
    Hub(bool),
    Kafka(bool),
    Settled,
}

fn seen() -> impl Strategy<Value = Seen> {
    prop_oneof![
        any::<bool>().prop_map(Seen::Owed),
        Just(Seen::Delivered),
        prop::bool::weighted(0.8).prop_map(Seen::Hub),
        any::<bool>().prop_map(Seen::Kafka),
        Just(Seen::Settled),
    ]
}

type Entry = Result<Seen, Step>;

/// Everything that happened, by the second.
#[derive(Debug, Default)]
struct History(Vec<(u64, Entry)>);

impl History {
    fn first_after(&self, from: usize, fits: impl Fn(&Entry) -> bool) -> Option<usize> {
        let found = self.0.iter().skip(from).position(|(_, it)| fits(it));
        found.map(|index| from + index)
    }

    fn last(&self, fits: impl Fn(&Entry) -> bool) -> Option<usize> {
        self.0.iter().rposition(|(_, it)| fits(it))
    }

    /// The way in use, and from which entry on.
    fn used(&self) -> (Upstream, usize) {
        match self.last(|it| matches!(it, Err(Step::Use(_)))) {
            Some(index) if self.0[index].1 == Err(Step::Use(Upstream::Hub)) => {
                (Upstream::Hub, index)
            }
            Some(index) => (Upstream::Kafka, index),
            None => (Upstream::Kafka, 0),
        }
    }

    /// When something came to be owed, was delivered last, or Kafka was used again: the latest of them.
    fn silent_since(&self) -> Option<u64> {
        let paid = self.last(|it| *it == Ok(Seen::Owed(false))).unwrap_or(0);
        let owed = self.first_after(paid, |it| *it == Ok(Seen::Owed(true)))?;
        let is_mark =
            |it: &Entry| [Ok(Seen::Delivered), Err(Step::Use(Upstream::Kafka))].contains(it);
        let mark = self.last(is_mark).filter(|mark| *mark > owed).unwrap_or(owed);
        Some(self.0[mark].0)
    }

    fn is_hub_connected(&self) -> bool {
        let last = self.last(|it| matches!(it, Ok(Seen::Hub(_))));
        last.is_some_and(|index| self.0[index].1 == Ok(Seen::Hub(true)))
    }

    /// Returns to Kafka that ended without a delivery, in a row.
    fn vain_returns(&self) -> u32 {
        let (mut vain, mut is_kafka, mut may_be_vain) = (0, true, false);
        for (_, it) in &self.0 {
            match it {
                Ok(Seen::Delivered) if is_kafka => (vain, may_be_vain) = (0, false),
                Err(Step::Leave(Upstream::Kafka)) => is_kafka = false,
                Err(Step::Use(Upstream::Hub)) => vain += u32::from(may_be_vain),
                Err(Step::Use(Upstream::Kafka)) => (is_kafka, may_be_vain) = (true, true),
                Ok(_) | Err(Step::Leave(Upstream::Hub) | Step::Ask) => {}
            }
        }
        vain
    }

    /// What is to be done at this second.
    fn expected(&self, now: u64) -> Option<Step> {
        let (upstream, since) = self.used();
        if let Some(left) = self.first_after(since, |it| *it == Err(Step::Leave(upstream))) {
            let other = match upstream {
                Upstream::Kafka => Upstream::Hub,
                Upstream::Hub => Upstream::Kafka,
            };
            let is_settled = self.first_after(left, |it| *it == Ok(Seen::Settled)).is_some();
            return Some(if is_settled { Step::Use(other) } else { Step::Leave(upstream) });
        }
        match upstream {
            Upstream::Kafka => {
                let is_away = self.silent_since().is_some_and(|since| now - since >= 60);
                (is_away && self.is_hub_connected()).then_some(Step::Leave(Upstream::Kafka))
            }
            Upstream::Hub => {
                let asked = self.last(|it| *it == Err(Step::Ask)).filter(|asked| *asked > since);
                let due = match asked {
                    None => {
                        let wait = (10_u64 << self.vain_returns().min(20)).min(3_600);
                        self.0[since].0 + wait
                    }
                    Some(asked) => {
                        let is_answer = |it: &Entry| matches!(it, Ok(Seen::Kafka(_)));
                        let answer = &self.0[self.first_after(asked, is_answer)?];
                        if answer.1 == Ok(Seen::Kafka(true)) {
                            return Some(Step::Leave(Upstream::Hub));
                        }
                        answer.0 + 10
                    }
                };
                (due <= now).then_some(Step::Ask)
            }
        }
    }
}

proptest! {
    #[test]
    fn it_does_what_the_whole_history_says(
        events in prop::collection::vec((0_u64..40, seen()), 1..200),
    ) {
        let begin = start();
        let mut switch = Switch::new(SETTINGS);
        let mut history = History::default();
        let mut second = 0;
        for (wait, seen) in events {
            second += wait;
            let now = begin + seconds(second);
            match seen {
                Seen::Owed(is_owed) => switch.handle_owed(is_owed, now),
                Seen::Delivered => switch.handle_delivered(now),
                Seen::Hub(is_connected) => switch.handle_hub(is_connected),
                Seen::Kafka(answers) => switch.handle_kafka(answers, now),
                Seen::Settled => switch.handle_settled(),
            }
            history.0.push((second, Ok(seen)));
            loop {
                let is_due = switch.poll_timeout().is_some_and(|at| at <= now);
                let step = switch.poll(now);
                prop_assert_eq!(step, history.expected(second), "{:?}", history);
                let timed = [Step::Ask, Step::Leave(Upstream::Kafka)];
                let is_timed = step.is_some_and(|step| timed.contains(&step));
                prop_assert!(!is_due || is_timed, "due without a step: {:?}", step);
                let Some(step) = step else { break };
                history.0.push((second, Err(step)));
                let used = if let Step::Use(upstream) = step { Some(upstream) } else { None };
                if used.is_some() {
                    prop_assert_eq!(switch.active(), used);
                }
                if matches!(step, Step::Leave(_)) {
                    prop_assert_eq!(switch.active(), None, "nothing is sent while a way is left");
                    break;
                }
            }
        }
    }
}
