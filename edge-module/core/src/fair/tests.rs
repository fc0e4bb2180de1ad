//! Examples, then random runs against plain lists.

use proptest::prelude::*;

use super::*;

const LIMITS: FairLimits = FairLimits { items_max: 3, weight_max: 100, keys_max: 4 };

#[test]
fn a_flood_gives_back_its_own_oldest_and_waits_for_its_turn() {
    let mut queue = FairQueue::new(LIMITS);
    let mut shed = Vec::new();
    for number in 0..10 {
        shed.extend(queue.push("loud", 1, number));
    }
    assert_eq!(shed, [0, 1, 2, 3, 4, 5, 6]);
    assert!(queue.push("quiet", 1, 100).is_empty());
    assert_eq!(queue.pop(), Some(("loud", 7)));
    assert_eq!(queue.pop(), Some(("quiet", 100)));
    assert_eq!(queue.pop(), Some(("loud", 8)));
    assert_eq!(queue.pop(), Some(("loud", 9)));
    assert_eq!(queue.pop(), None);
    assert!(queue.is_empty());
}

#[test]
fn weight_counts_and_a_single_heavy_item_passes() {
    let mut queue = FairQueue::new(LIMITS);
    assert!(queue.push("a", 1000, 'x').is_empty());
    assert_eq!(queue.push("a", 60, 'y'), ['x']);
    assert_eq!(queue.push("a", 60, 'z'), ['y']);
    assert_eq!(queue.len(), 1);
}

#[test]
fn a_key_too_many_gets_its_item_back() {
    let mut queue = FairQueue::new(LIMITS);
    for key in 0..4 {
        assert!(queue.push(key, 1, key).is_empty());
    }
    assert_eq!(queue.push(4, 1, 99), [99]);
    assert_eq!(queue.pop(), Some((0, 0)));
    assert!(queue.push(4, 1, 99).is_empty());
}

#[test]
fn unfinished_work_stays_first_of_its_key_and_lets_the_others_go() {
    let mut queue = FairQueue::new(LIMITS);
    assert!(queue.push("a", 10, 1).is_empty());
    assert!(queue.push("a", 10, 2).is_empty());
    assert!(queue.push("b", 10, 3).is_empty());
    let (key, item) = queue.pop().expect("waits");
    queue.put_back(key, 5, item);
    assert_eq!(queue.pop(), Some(("b", 3)));
    assert_eq!(queue.pop(), Some(("a", 1)));
    queue.put_back("c", 1, 7);
    assert!(queue.waits(&"c"));
    assert_eq!(queue.pop(), Some(("a", 2)));
    assert_eq!(queue.pop(), Some(("c", 7)));
}

#[derive(Clone, Debug)]
enum Step {
    Push { key: u8, weight: usize },
    Pop,
    PopAndPutBack,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..6, 1_usize..60).prop_map(|(key, weight)| Step::Push { key, weight }),
        2 => Just(Step::Pop),
        1 => Just(Step::PopAndPutBack),
    ]
}

/// The slow, obvious book: one list, searched each time.
#[derive(Default)]
struct Model {
    items: Vec<(u8, usize, u64)>,
    /// Items of others served since a key began to wait or was served.
    waited: BTreeMap<u8, usize>,
}

impl Model {
    fn of(&self, key: u8) -> Vec<(usize, u64)> {
        let of_key =
            |(other, weight, item): &(u8, usize, u64)| (*other == key).then_some((*weight, *item));
        self.items.iter().filter_map(of_key).collect()
    }

    fn keys(&self) -> usize {
        self.waited.len()
    }

    fn remove(&mut self, item: u64) -> (u8, usize) {
        let at = self.items.iter().position(|(_, _, other)| *other == item).expect("known");
        let (key, weight, _) = self.items.remove(at);
        if self.of(key).is_empty() {
            self.waited.remove(&key);
        }
        (key, weight)
    }

    fn push(&mut self, key: u8, weight: usize, item: u64) -> Vec<u64> {
        if !self.waited.contains_key(&key) && self.keys() >= LIMITS.keys_max {
            return vec![item];
        }
        self.waited.entry(key).or_insert(0);
        self.items.push((key, weight, item));
        let mut shed = Vec::new();
        loop {
            let own = self.of(key);
            let total: usize = own.iter().map(|(weight, _)| weight).sum();
            if own.len() <= 1 || (own.len() <= LIMITS.items_max && total <= LIMITS.weight_max) {
                return shed;
            }
            shed.push(own[0].1);
            self.remove(own[0].1);
        }
    }

    /// Checks that it was this key's turn and that the item was its oldest.
    fn serve(&mut self, key: u8, item: u64) -> (u8, usize) {
        assert_eq!(self.of(key)[0].1, item, "not the oldest of its key");
        let keys = self.keys();
        for (other, waited) in &mut self.waited {
            if *other == key {
                *waited = 0;
            } else {
                *waited += 1;
                assert!(*waited <= LIMITS.keys_max + keys, "key {other} starves");
            }
        }
        self.remove(item)
    }
}

proptest! {
    #[test]
    fn nothing_is_lost_unseen_and_nobody_starves(steps in prop::collection::vec(step(), 0..400)) {
        let mut queue = FairQueue::new(LIMITS);
        let mut model = Model::default();
        for (item, step) in (0_u64..).zip(steps) {
            match step {
                Step::Push { key, weight } => {
                    prop_assert_eq!(queue.push(key, weight, item), model.push(key, weight, item));
                }
                Step::Pop | Step::PopAndPutBack => match queue.pop() {
                    None => prop_assert!(model.items.is_empty()),
                    Some((key, found)) => {
                        let (_, weight) = model.serve(key, found);
                        if matches!(step, Step::PopAndPutBack) {
                            queue.put_back(key, weight, found);
                            model.items.insert(0, (key, weight, found));
                            model.waited.entry(key).or_insert(0);
                        }
                    }
                },
            }
            prop_assert_eq!(queue.len(), model.items.len());
            prop_assert_eq!(queue.is_empty(), model.items.is_empty());
        }
    }

    #[test]
    fn between_two_turns_of_a_waiting_key_each_other_key_has_at_most_one(
        counts in prop::collection::vec(1_usize..4, 1..=4),
    ) {
        let mut queue = FairQueue::new(LIMITS);
        for (key, count) in counts.iter().enumerate() {
            for item in 0..*count {
                prop_assert!(queue.push(key, 1, item).is_empty());
            }
        }
        let served: Vec<usize> = std::iter::from_fn(|| queue.pop()).map(|(key, _)| key).collect();
        for round in 0..3 {
            let expected: Vec<usize> =
                (0..counts.len()).filter(|key| counts[*key] > round).collect();
            let before: usize = counts.iter().map(|count| (*count).min(round)).sum();
            prop_assert_eq!(&served[before..before + expected.len()], expected.as_slice());
        }
    }
}
