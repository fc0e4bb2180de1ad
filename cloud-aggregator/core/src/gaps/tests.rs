use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const MINUTE: Micros = Micros::from_seconds(60);

fn limits() -> GapLimits {
    GapLimits {
        patience: MINUTE,
        given_up_after: Micros::from_seconds(86_400),
        devices_max: 10,
        generations_per_device_max: 2,
        ranges_max: 1_000,
        gaps_per_generation_max: 10,
    }
}

fn at(minutes: i64) -> ProcessingTime {
    ProcessingTime::from_micros(minutes * MINUTE.get())
}

fn device(name: &str) -> DeviceId {
    DeviceId::new(name).expect("a valid name")
}

fn ranges(ranges: &[(u64, u64)]) -> Ranges {
    ranges.iter().copied().collect()
}

fn page(first: u64, last: u64, delivered: u64) -> LedgerPage {
    LedgerPage { first, last, delivered, elsewhere: Ranges::default() }
}

/// One device, one generation.
struct Scene {
    watch: GapWatch,
    limits: GapLimits,
}

impl Scene {
    fn new() -> Self {
        Self { watch: GapWatch::default(), limits: limits() }
    }

    fn seen(&mut self, minutes: i64, numbers: &[(u64, u64)]) {
        let (id, numbers) = (device("gw-07"), ranges(numbers));
        self.watch.handle_seen(&id, Generation(1), &numbers, at(minutes), &self.limits);
    }

    fn page(&mut self, minutes: i64, page: &LedgerPage) {
        self.watch.handle_page(&device("gw-07"), Generation(1), page, at(minutes), &self.limits);
    }

    fn loss(&mut self, minutes: i64, first: u64, last: u64, records: Option<u64>) {
        let loss = ToldLoss { first, last, records };
        self.watch.handle_loss(&device("gw-07"), Generation(1), loss, at(minutes), &self.limits);
    }

    /// First, last, records and why it is closed.
    fn poll(&mut self, minutes: i64) -> Vec<(u64, u64, u64, Option<GapClosed>)> {
        let changes = self.watch.poll(at(minutes), &self.limits);
        changes.iter().map(|one| (one.first, one.last, one.records, one.closed)).collect()
    }
}

#[test]
fn what_is_missing_for_longer_than_the_patience_is_one_gap_reported_once_and_closed_once() {
    let mut scene = Scene::new();
    scene.seen(0, &[(1, 10), (15, 17), (20, 30)]);
    scene.page(0, &page(1, 30, 30));
    assert_eq!(scene.poll(0), []);
    assert_eq!(scene.poll(1), [(11, 19, 6, None)]);
    assert_eq!(scene.poll(100), []);
    let figures = scene.watch.figures();
    assert_eq!((figures.open, figures.missing), (1, 6));
    scene.seen(101, &[(11, 14)]);
    assert_eq!(scene.poll(101), []);
    assert_eq!(scene.watch.figures().missing, 2);
    scene.seen(102, &[(12, 19)]);
    assert_eq!(scene.poll(102), [(11, 19, 6, Some(GapClosed::Received))]);
    assert_eq!(scene.poll(200), []);
    assert_eq!(scene.watch.figures().open, 0);
}

#[test]
fn records_that_come_within_the_patience_are_no_gap() {
    let mut scene = Scene::new();
    scene.seen(0, &[(1, 10)]);
    scene.page(0, &page(1, 30, 30));
    assert_eq!(scene.poll(0), []);
    scene.seen(0, &[(11, 30)]);
    assert_eq!(scene.poll(5), []);
    assert_eq!(scene.poll(50), []);
}

#[test]
fn what_the_device_has_not_delivered_is_owed_and_not_missing() {
    let mut scene = Scene::new();
    scene.seen(0, &[(1, 10)]);
    scene.page(0, &page(1, 30, 10));
    assert_eq!(scene.poll(0), []);
    assert_eq!(scene.poll(9), []);
    assert_eq!(scene.watch.figures().owed, 20);
    scene.page(10, &page(31, 31, 31));
    assert_eq!(scene.poll(10), []);
    assert_eq!(scene.poll(11), [(11, 31, 21, None)]);
}

#[test]
fn waveforms_are_not_missing() {
    let mut scene = Scene::new();
    scene.seen(0, &[(1, 4), (8, 9)]);
    scene.page(0, &LedgerPage { elsewhere: ranges(&[(5, 6)]), ..page(1, 9, 9) });
    assert_eq!(scene.poll(0), []);
    assert_eq!(scene.poll(1), [(7, 7, 1, None)]);
}

#[test]
fn told_losses_are_no_gap_and_close_one_that_they_explain() {
    let mut scene = Scene::new();
    scene.seen(0, &[(1, 4), (12, 20)]);
    scene.page(0, &page(1, 20, 20));
    scene.loss(0, 5, 9, Some(5));
    assert_eq!(scene.poll(0), []);
    assert_eq!(scene.poll(1), [(10, 11, 2, None)]);
    scene.loss(2, 8, 14, None);
    assert_eq!(scene.poll(2), [(10, 11, 2, Some(GapClosed::ToldLost))]);
}

#[test]
fn loss_explains_no_more_records_than_it_tells_of() {
    let mut scene = Scene::new();
    scene.seen(0, &[(1, 4), (12, 20)]);
    scene.page(0, &page(1, 20, 20));
    scene.loss(0, 5, 11, Some(5));
    assert_eq!(scene.poll(0), []);
    assert_eq!(scene.poll(1), [(10, 11, 2, None)]);
}

#[test]
fn what_was_before_the_first_page_is_not_judged_unless_it_is_the_first_of_all() {
    let mut scene = Scene::new();
    scene.page(0, &page(50, 60, 60));
    scene.poll(0);
    assert_eq!(scene.poll(9), []);
    scene.page(10, &page(61, 62, 62));
    scene.poll(10);
    assert_eq!(scene.poll(11), [(61, 62, 2, None)]);
}

#[test]
fn gap_whose_records_never_come_is_given_up() {
    let mut scene = Scene::new();
    scene.page(0, &page(1, 2, 2));
    scene.poll(0);
    assert_eq!(scene.poll(1), [(1, 2, 2, None)]);
    assert_eq!(scene.poll(1440), []);
    assert_eq!(scene.poll(1441), [(1, 2, 2, Some(GapClosed::GivenUp))]);
}

#[test]
fn oldest_gap_is_given_up_for_one_too_many() {
    let mut scene = Scene::new();
    scene.limits.gaps_per_generation_max = 2;
    for number in 0..3 {
        let last = 10 * (number + 1);
        scene.seen(i64::try_from(number).expect("small") * 2, &[(last - 8, last)]);
        scene.page(i64::try_from(number).expect("small") * 2, &page(last - 9, last, last));
        scene.poll(i64::try_from(number).expect("small") * 2);
        let opened = (last - 9, last - 9, 1, None);
        let changes = scene.poll(i64::try_from(number).expect("small") * 2 + 1);
        if number < 2 {
            assert_eq!(changes, [opened]);
        } else {
            assert_eq!(changes, [(1, 1, 1, Some(GapClosed::GivenUp)), opened]);
        }
    }
    assert_eq!(scene.watch.figures().open, 2);
}

#[test]
fn ranges_are_limited_and_what_is_not_judged_is_counted() {
    let mut scene = Scene::new();
    scene.limits.ranges_max = 10;
    scene.page(0, &page(1, 100, 100));
    let every_second: Vec<_> = (1..=10).map(|number| (2 * number, 2 * number)).collect();
    scene.seen(0, &every_second);
    assert_eq!(scene.watch.figures().unjudged, 0);
    scene.seen(0, &[(22, 22)]);
    let unjudged = scene.watch.figures().unjudged;
    assert_eq!(unjudged, 6, "1, 3, 5, 7, 9 and 11 are not judged any more");
    scene.seen(0, &[(13, 100)]);
    scene.poll(0);
    assert_eq!(scene.poll(1), []);
}

#[test]
fn devices_and_generations_are_limited() {
    let limits = GapLimits { devices_max: 2, generations_per_device_max: 2, ..limits() };
    let mut watch = GapWatch::default();
    for (minute, name) in (0..).zip(["a", "b", "a", "c"]) {
        let one = ranges(&[(1, 1)]);
        watch.handle_seen(&device(name), Generation(1), &one, at(minute), &limits);
    }
    assert_eq!(watch.devices.keys().map(DeviceId::as_str).collect::<Vec<_>>(), ["a", "c"]);
    for generation in [2, 3] {
        let one = ranges(&[(1, 1)]);
        watch.handle_seen(&device("a"), Generation(generation), &one, at(9), &limits);
    }
    let generations: Vec<_> = watch.devices["a"].generations.keys().map(|one| one.0).collect();
    assert_eq!(generations, [2, 3]);
}

#[test]
fn gaps_of_a_generation_or_device_that_is_forgotten_are_given_up_once() {
    let limits = GapLimits { devices_max: 1, generations_per_device_max: 1, ..limits() };
    let mut watch = GapWatch::default();
    let (a, b) = (device("a"), device("b"));
    let change = |generation, (first, last, records), since, closed| {
        let device_id = a.clone();
        let generation = Generation(generation);
        GapChange { device_id, generation, first, last, records, since: at(since), closed }
    };
    watch.handle_page(&a, Generation(1), &page(1, 2, 2), at(0), &limits);
    assert_eq!(watch.poll(at(0), &limits), []);
    assert_eq!(watch.poll(at(1), &limits), [change(1, (1, 2, 2), 1, None)]);
    watch.handle_seen(&a, Generation(2), &ranges(&[(1, 1)]), at(2), &limits);
    assert_eq!(watch.figures().open, 0);
    // A restart comes in between.
    let saved = serde_json::to_string(&watch).expect("serialisable");
    let mut watch: GapWatch = serde_json::from_str(&saved).expect("restorable");
    let given_up = Some(GapClosed::GivenUp);
    assert_eq!(watch.poll(at(2), &limits), [change(1, (1, 2, 2), 1, given_up)]);
    assert_eq!(watch.poll(at(3), &limits), []);
    watch.handle_page(&a, Generation(2), &page(1, 2, 2), at(4), &limits);
    assert_eq!(watch.poll(at(4), &limits), []);
    assert_eq!(watch.poll(at(5), &limits), [change(2, (2, 2, 1), 5, None)]);
    watch.handle_seen(&b, Generation(1), &ranges(&[(1, 1)]), at(6), &limits);
    assert_eq!(watch.poll(at(6), &limits), [change(2, (2, 2, 1), 5, given_up)]);
    assert_eq!(watch.poll(at(60), &limits), []);
}

#[test]
fn nothing_is_judged_while_rows_are_left_to_be_read() {
    let mut scene = Scene::new();
    scene.page(0, &page(1, 10, 10));
    scene.watch.set_behind(true);
    assert_eq!(scene.poll(0), []);
    assert_eq!(scene.poll(30), []);
    scene.seen(30, &[(1, 8)]);
    scene.watch.set_behind(false);
    assert_eq!(scene.poll(30), [], "the patience begins when all is read");
    assert_eq!(scene.poll(31), [(9, 10, 2, None)]);
}

#[test]
fn sums_of_the_largest_numbers_stop_at_the_end_of_their_range() {
    let mut watch = GapWatch::default();
    let limits = GapLimits { ranges_max: 10, ..limits() };
    let devices = ["a", "b", "c"].map(device);
    for id in &devices {
        watch.handle_page(id, Generation(1), &page(0, u64::MAX, 0), at(0), &limits);
    }
    assert_eq!(watch.figures().owed, u64::MAX);
    for id in &devices {
        watch.handle_page(id, Generation(1), &page(0, u64::MAX, u64::MAX), at(0), &limits);
    }
    assert_eq!(watch.figures().owed, 0);
    assert_eq!(watch.poll(at(0), &limits), []);
    let opened = watch.poll(at(1), &limits);
    let opened: Vec<_> = opened.iter().map(|gap| (gap.first, gap.last, gap.records)).collect();
    assert_eq!(opened, [(1, u64::MAX, u64::MAX); 3]);
    assert_eq!(watch.figures().missing, u64::MAX);
    for id in &devices {
        watch.handle_seen(id, Generation(1), &ranges(&[(0, u64::MAX)]), at(2), &limits);
    }
    let closed = watch.poll(at(2), &limits);
    assert!(closed.iter().all(|gap| gap.closed == Some(GapClosed::Received)), "{closed:?}");
    assert_eq!((closed.len(), watch.figures().open), (3, 0));
    // More ranges than there may be, at the far end.
    let scattered: Vec<_> = (1..=11).map(|number| u64::MAX - 2 * number).rev().collect();
    for id in &devices {
        watch.handle_page(id, Generation(2), &page(1, u64::MAX, u64::MAX), at(3), &limits);
        let scattered = Ranges::from_numbers(scattered.clone());
        watch.handle_seen(id, Generation(2), &scattered, at(3), &limits);
    }
    assert_eq!(watch.figures().unjudged, u64::MAX);
}

#[test]
fn restored_watch_goes_on() {
    let mut scene = Scene::new();
    scene.seen(0, &[(1, 4), (12, 20)]);
    scene.page(0, &page(1, 20, 20));
    scene.loss(0, 5, 9, Some(5));
    scene.poll(0);
    let saved = serde_json::to_string(&scene.watch).expect("serialisable");
    scene.watch = serde_json::from_str(&saved).expect("restorable");
    assert_eq!(scene.poll(1), [(10, 11, 2, None)]);
}

#[derive(Clone, Debug)]
enum Input {
    /// Numbers in the order of journalling that a row brings.
    Seen(Vec<u64>),
    /// Length of the next page, how many of its last numbers are not delivered, one that is elsewhere.
    Page(u64, u64, Option<u64>),
    Loss(u64, u64),
    Poll(i64),
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let input = prop_oneof![
        proptest::collection::vec(1_u64..80, 1..20).prop_map(Input::Seen),
        (1_u64..12, 0_u64..4, proptest::option::of(0_u64..12))
            .prop_map(|(a, b, c)| Input::Page(a, b, c)),
        (1_u64..80, 0_u64..4).prop_map(|(first, more)| Input::Loss(first, first + more)),
        (0_i64..3).prop_map(Input::Poll),
    ];
    proptest::collection::vec(input, 0..40)
}

/// A number that somebody may have made up.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..12, (0_u64..12).prop_map(|number| u64::MAX - number), any::<u64>()]
}

#[derive(Clone, Debug)]
enum Wild {
    Seen(u64, u64),
    Page(u64, u64, u64),
    Loss(u64, u64, Option<u64>),
    Poll(i64, bool),
}

fn wild() -> impl Strategy<Value = Wild> {
    prop_oneof![
        (number(), number()).prop_map(|(first, last)| Wild::Seen(first, last)),
        (number(), number(), number()).prop_map(|(a, b, c)| Wild::Page(a, b, c)),
        // What a device numbers from its beginning.
        (1_u64..12, 1_u64..12).prop_map(|(last, delivered)| Wild::Page(1, last, delivered)),
        (number(), number(), proptest::option::of(number()))
            .prop_map(|(a, b, c)| Wild::Loss(a, b, c)),
        (0_i64..3, proptest::bool::weighted(0.2)).prop_map(|(later, is)| Wild::Poll(later, is)),
    ]
}

/// Remembers everything.
#[derive(Default)]
struct Naive {
    seen: BTreeSet<u64>,
    told: BTreeSet<u64>,
    expected: BTreeSet<u64>,
    delivered: u64,
}

impl Naive {
    fn missing(&self) -> BTreeSet<u64> {
        let missing = |number: &u64| {
            *number <= self.delivered && !self.seen.contains(number) && !self.told.contains(number)
        };
        self.expected.iter().copied().filter(missing).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// However rows, pages, losses and looks are mixed: in the end the open gaps hold what is missing, each number once, and
    /// every gap that opened is open or was closed.
    #[test]
    fn open_gaps_are_what_a_model_without_limits_misses(inputs in inputs()) {
        let mut scene = Scene::new();
        scene.limits.gaps_per_generation_max = 1_000;
        let mut naive = Naive::default();
        let (mut next, mut minutes, mut changes) = (1, 0, Vec::new());
        for input in inputs {
            match input {
                Input::Seen(numbers) => {
                    naive.seen.extend(&numbers);
                    let numbers: Vec<_> = numbers.iter().map(|number| (*number, *number)).collect();
                    scene.seen(minutes, &numbers);
                }
                Input::Page(length, owed, elsewhere) => {
                    let last = next + length - 1;
                    let elsewhere = elsewhere.filter(|place| *place < length).map(|place| next + place);
                    naive.expected.extend((next..=last).filter(|number| Some(*number) != elsewhere));
                    let delivered = last.saturating_sub(owed);
                    naive.delivered = naive.delivered.max(delivered);
                    let elsewhere = elsewhere.into_iter().map(|number| (number, number)).collect();
                    scene.page(minutes, &LedgerPage { elsewhere, ..page(next, last, delivered) });
                    next = last + 1;
                }
                Input::Loss(first, last) => {
                    // A device tells of what it has numbered.
                    if last < next {
                        naive.told.extend(first..=last);
                        scene.loss(minutes, first, last, None);
                    }
                }
                Input::Poll(later) => {
                    minutes += later;
                    changes.extend(scene.poll(minutes));
                }
            }
        }
        for _ in 0..4 {
            minutes += 1;
            changes.extend(scene.poll(minutes));
        }
        let open = scene.watch.open(usize::MAX);
        let numbers: Vec<u64> =
            open.iter().flat_map(|(_, _, missing)| missing.as_slice()).flat_map(|(a, b)| *a..=*b).collect();
        let set: BTreeSet<u64> = numbers.iter().copied().collect();
        prop_assert_eq!(set.len(), numbers.len());
        prop_assert_eq!(set, naive.missing());
        let opened = changes.iter().filter(|(.., closed)| closed.is_none()).count();
        prop_assert_eq!(opened, changes.len() - opened + scene.watch.figures().open);
    }

    /// Whatever numbers come, from however many devices: nothing overflows, and every gap that opened is open or was closed, once.
    #[test]
    fn each_gap_is_closed_once_also_if_its_device_is_forgotten(
        inputs in proptest::collection::vec((0_usize..4, 0_u64..4, wild()), 0..60),
    ) {
        let limits = GapLimits {
            devices_max: 2,
            generations_per_device_max: 2,
            gaps_per_generation_max: 2,
            ranges_max: 4,
            ..limits()
        };
        let devices = ["a", "b", "c", "d"].map(device);
        let (mut watch, mut minutes, mut changes) = (GapWatch::default(), 0, Vec::new());
        for (place, generation, input) in inputs {
            let (id, generation) = (&devices[place], Generation(generation));
            match input {
                Wild::Seen(first, last) => {
                    let numbers = ranges(&[(first, last)]);
                    watch.handle_seen(id, generation, &numbers, at(minutes), &limits);
                }
                Wild::Page(first, last, delivered) => {
                    let page = page(first, last, delivered);
                    watch.handle_page(id, generation, &page, at(minutes), &limits);
                }
                Wild::Loss(first, last, records) => {
                    let loss = ToldLoss { first, last, records };
                    watch.handle_loss(id, generation, loss, at(minutes), &limits);
                }
                Wild::Poll(later, is_behind) => {
                    let saved = serde_json::to_string(&watch).expect("serialisable");
                    watch = serde_json::from_str(&saved).expect("restorable");
                    minutes += later;
                    watch.set_behind(is_behind);
                    changes.extend(watch.poll(at(minutes), &limits));
                }
            }
        }
        watch.set_behind(false);
        changes.extend(watch.poll(at(minutes), &limits));
        let mut balance: BTreeMap<(DeviceId, Generation), i64> = BTreeMap::new();
        for change in &changes {
            let open = balance.entry((change.device_id.clone(), change.generation)).or_default();
            *open += if change.closed.is_none() { 1 } else { -1 };
        }
        for (id, generation, _) in watch.open(usize::MAX) {
            *balance.entry((id.clone(), generation)).or_default() -= 1;
        }
        prop_assert!(balance.values().all(|open| *open == 0), "{:?}", balance);
    }
}
