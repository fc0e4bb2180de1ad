use std::collections::BTreeMap;

use proptest::prelude::*;
use shared_proto::model::{
    DeviceId, EventTime, Generation, Identity, MachineId, Quality, SensorId, Sequence,
};

use super::*;

fn reading() -> Reading {
    let identity = Identity {
        device_id: DeviceId::new("gw-7").expect("a valid name"),
        generation: Generation(1),
        sequence: Sequence(1),
    };
    Reading {
        machine_id: Some(MachineId::new("press-1").expect("a valid name")),
        unit: Some("Cel".into()),
        quality: Some(Quality::Good),
        identity: Some(identity),
        features: BTreeMap::from([("rms".to_owned(), 2.5)]),
        ..bare()
    }
}

fn bare() -> Reading {
    Reading::new(
        SensorId::new("press-1/o'il").expect("a valid name"),
        EventTime::from_micros(0),
        MetricType::new("temperature").expect("a valid name"),
        101.0,
    )
}

fn filter(text: &str) -> Filter {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn each_field_and_comparison_holds_as_written() {
    let check = |text: &str, expected: bool| {
        assert_eq!(filter(text).matches(&reading()), expected, "{text}");
    };
    check("metric_type = temperature", true);
    check("metric_type = 'temperature'", true);
    check("metric_type != temperature", false);
    check("sensor_id = 'press-1/o''il'", true);
    check("machine_id=press-1", true);
    check("unit != bar", true);
    check("quality = good", true);
    check("device_id = gw-8", false);
    check("value > 100", true);
    check("value > 101", false);
    check("value >= 101", true);
    check("value < 101.5", true);
    check("value<=1e2", false);
    check("value = 101", true);
    check("value != 101.0", false);
    check("value > -5", true);
    check("features.rms >= 2.5", true);
    check("features.peak != 1", false);
}

#[test]
fn and_binds_closer_than_or_and_parentheses_closest() {
    let check = |text: &str, expected: bool| {
        assert_eq!(filter(text).matches(&reading()), expected, "{text}");
    };
    check("value > 0 or value > 0 and value < 0", true);
    check("(value > 0 or value > 0) and value < 0", false);
    check("value < 0 AND value < 0 OR value > 0", true);
    check("((value > 0))", true);
}

#[test]
fn field_that_is_absent_makes_its_comparison_false_as_in_sql() {
    for field in ["machine_id", "unit", "quality", "device_id"] {
        for operator in ["=", "!="] {
            let text = format!("{field} {operator} x");
            assert!(!filter(&text).matches(&bare()), "{text}");
        }
    }
    assert!(!filter("features.rms < 9 or features.rms >= 9").matches(&bare()));
}

#[test]
fn what_is_left_for_a_metric_type_does_not_ask_for_it_again() {
    let metric = |name: &str| MetricType::new(name).expect("a valid name");
    let hot = filter("metric_type = temperature and value > 100 or metric_type = pressure");
    let left = hot.given(&metric("temperature")).expect("some match");
    assert_eq!(left.root, Some(filter("value > 100").root));
    assert_eq!(hot.given(&metric("pressure")), Some(Residual { root: None }));
    assert_eq!(hot.given(&metric("vibration")), None);
}

#[test]
fn each_fault_is_named_with_its_place() {
    let check = |text: &str, expected: &str| {
        let error = text.parse::<Filter>().expect_err(text);
        assert_eq!(error.to_string(), expected, "{text}");
    };
    check("", "at byte 0: the end of the filter where a field or \"(\" should be");
    check("value >", "at byte 7: the end of the filter where a number should be");
    check("value > hot", "at byte 8: hot where a finite number should be");
    check("value > NaN", "at byte 8: NaN where a finite number should be");
    check("value > 'x'", "at byte 8: 'x' where a finite number should be");
    check("value 5", "at byte 6: 5 where a comparison (= != > >= < <=) should be");
    check("value ! 5", "at byte 6: ! where a comparison (= != > >= < <=) should be");
    check(
        "value = 5 value = 6",
        "at byte 10: value where \"and\", \"or\" or the end of the filter should be",
    );
    check(
        "(value = 5",
        "at byte 10: the end of the filter where \"and\", \"or\" or \")\" should be",
    );
    check("unit > bar", "at byte 0: unit is a text and knows = and != alone");
    check("unit = 'bar", "at byte 7: a text without its closing quote where 'text' should be");
    check(
        "value > 5 ;",
        "at byte 10: ';' where a field, a comparison, a number or a text should be",
    );
    check(
        "temperature > 5",
        "at byte 0: readings have no field \"temperature\", they have metric_type, sensor_id, machine_id, unit, quality, \
         device_id, value and features.NAME",
    );
    let deep = format!("{}value = 1{}", "(".repeat(33), ")".repeat(33));
    check(&deep, "more than 32 parentheses stand inside one another: write the filter flatter");
    let terms = vec!["value = 1"; 257].join(" or ");
    check(&terms, "the filter has more than 256 comparisons: make several rules of it");
    let long = "x".repeat(4097);
    check(&long, "the filter has 4097 bytes, at most 4096 are allowed: make several rules of it");
}

#[test]
fn filters_at_their_limits_are_read() {
    let deep = format!("{}value = 1{}", "(".repeat(32), ")".repeat(32));
    assert_eq!(filter(&deep), filter("value = 1"));
    assert!(filter(&vec!["value = 1"; 256].join(" or ")).to_string().len() < TEXT_BYTES_MAX);
}

/// What is read back from a state file.
fn restored(filter: &Filter) -> Filter {
    let saved = serde_json::to_string(filter).expect("serialisable");
    serde_json::from_str(&saved).unwrap_or_else(|error| panic!("{saved}: {error}"))
}

#[test]
fn filters_that_are_longer_in_full_than_what_may_be_written_are_restored() {
    let sensors: Vec<_> = (0..170).map(|number| format!("sensor_id=press-{number:03}")).collect();
    let sensors = filter(&sensors.join(" or "));
    assert!(sensors.to_string().len() > TEXT_BYTES_MAX);
    assert_eq!(restored(&sensors), sensors);
    // As large numbers were saved before they had exponents.
    let large = filter(&vec!["value < 1e300"; 14].join(" or "));
    let saved = vec![format!("value < {}", 1e300); 14].join(" or ");
    assert!(saved.len() > TEXT_BYTES_MAX);
    let saved = serde_json::to_string(&saved).expect("serialisable");
    assert_eq!(serde_json::from_str::<Filter>(&saved).expect("restorable"), large);
    assert_eq!(restored(&large), large);
}

/// On each level what needs most parentheses in full.
fn nested(levels: usize) -> String {
    (0..levels).fold("value=1 and value=2 or value=3".to_owned(), |inner, _| {
        format!("({inner}) and value=4 or value=5")
    })
}

#[test]
fn deepest_filter_that_may_be_written_is_restored_and_a_deeper_one_is_refused() {
    let deepest = filter(&nested(DEPTH_MAX));
    let in_full = deepest.to_string();
    let refused = FilterError::TooDeep { limit: DEPTH_MAX };
    assert_eq!(in_full.parse::<Filter>(), Err(refused.clone()), "as a person's text");
    assert_eq!(nested(DEPTH_MAX + 1).parse::<Filter>(), Err(refused));
    assert_eq!(restored(&deepest), deepest);
    assert_eq!(restored(&deepest).to_string(), in_full);
    let deeper = serde_json::to_string(&format!("(({in_full}))")).expect("serialisable");
    let error = serde_json::from_str::<Filter>(&deeper).expect_err("no filter in full");
    assert!(error.to_string().starts_with("more than 65 parentheses"), "{error}");
    let endless = serde_json::to_string(&"(".repeat(1_000_000)).expect("serialisable");
    assert!(serde_json::from_str::<Filter>(&endless).is_err());
}

#[test]
fn numbers_are_written_with_an_exponent_only_where_that_is_shorter() {
    let check = |text: &str, expected: &str| {
        assert_eq!(filter(text).to_string(), expected);
        assert_eq!(restored(&filter(text)), filter(text));
    };
    check("value > 1e3", "value > 1000");
    check("value > -0.001", "value > -0.001");
    check("value > 1e300", "value > 1e300");
    check("value > -5e-324", "value > -5e-324");
    check("value > 2.2250738585072014e-308", "value > 2.2250738585072014e-308");
}

#[test]
fn metric_types_named_and_what_decides_a_match_are_known() {
    let metric = MetricType::new("temperature").expect("a valid name");
    let named = filter("metric_type = a or (metric_type != b and value > 1) or unit = c");
    assert_eq!(named.metric_types().into_iter().collect::<Vec<_>>(), ["a", "b"]);
    let check = |text: &str, is_everything: bool, is_by_sender: bool| {
        let left = filter(text).given(&metric).expect("some match");
        assert_eq!(
            (left.is_everything(), left.is_by_sender()),
            (is_everything, is_by_sender),
            "{text}"
        );
    };
    check("metric_type = temperature", true, true);
    check("metric_type != pressure or value > 1", true, true);
    check("sensor_id = a or (machine_id = b and unit = c)", false, true);
    check("sensor_id = a and value > 1", false, false);
    check("features.rms > 1", false, false);
    check("sensor_id = a or quality = good", false, false);
}

fn check_matched_types(text: &str, expected: Option<&[&str]>) {
    let filter = filter(text);
    let found: Option<Vec<&str>> =
        filter.matched_metric_types().map(|types| types.into_iter().collect());
    assert_eq!(found, expected.map(<[&str]>::to_vec), "{text}");
}

#[test]
fn metric_types_that_can_match_are_known_or_any() {
    let check = check_matched_types;
    check("metric_type = a", Some(&["a"]));
    check("metric_type != a", None);
    for other in [
        "sensor_id = a",
        "machine_id != a",
        "unit = a",
        "quality = good",
        "device_id = a",
        "value > 1",
        "value = 1",
        "value != 1",
        "features.rms < 1",
    ] {
        check(other, None);
        check(&format!("metric_type = a and {other}"), Some(&["a"]));
        check(&format!("metric_type = a or {other}"), None);
    }
    check("metric_type = a or metric_type = b", Some(&["a", "b"]));
    check("metric_type = a and metric_type = b", Some(&[]));
    check("metric_type = a and metric_type != b", Some(&["a"]));
    check("metric_type = a and metric_type != a", Some(&[]));
    check("metric_type != a and metric_type != b", None);
    check("metric_type = a or metric_type != b", None);
    check("metric_type = a or metric_type != a", None);
    // Names that no reading can have.
    check("metric_type = ''", Some(&[]));
}

#[test]
fn metric_types_that_can_match_are_known_through_parentheses() {
    let check = check_matched_types;
    let two = "(metric_type = a or metric_type = b)";
    check(&format!("value > 1 and {two} and unit = c"), Some(&["a", "b"]));
    check(&format!("{two} and metric_type != a"), Some(&["b"]));
    check(&format!("{two} and (metric_type = b or metric_type = c)"), Some(&["b"]));
    check(&format!("{two} and (metric_type = b or value > 1)"), Some(&["a", "b"]));
    check(&format!("{two} and value > 1 or metric_type = c"), Some(&["a", "b", "c"]));
    check(&format!("{two} and value > 1 or value > 9"), None);
    check("metric_type = a and (value > 1 or (metric_type = b and unit = c))", Some(&["a"]));
    check("(metric_type = a or metric_type != b) and metric_type = b", Some(&[]));
}

fn node() -> impl Strategy<Value = Node> {
    nodes((4, 24), "[a-z' é(=]{0,6}", -1e3..1e3_f64)
}

fn nodes(
    (depth, size): (u32, u32),
    text: &'static str,
    number: impl Strategy<Value = f64> + 'static,
) -> impl Strategy<Value = Node> {
    let text = (0..6_usize, any::<bool>(), text).prop_map(|(field, is_equal, text)| {
        Node::Term(Term::Text { field: TextField::ALL[field], is_equal, text })
    });
    let number = (any::<bool>(), 0..6_usize, number).prop_map(|(is_value, which, number)| {
        let feature = NumberField::Feature("rms-2.x".to_owned());
        let field = if is_value { NumberField::Value } else { feature };
        Node::Term(Term::Number { field, comparison: Comparison::ALL[which], number })
    });
    prop_oneof![text, number].prop_recursive(depth, size, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(Node::All),
            prop::collection::vec(inner, 2..4).prop_map(Node::Any),
        ]
    })
}

/// As a person writes it: parentheses only where they are needed.
fn written(node: &Node) -> String {
    match node {
        Node::Term(term) => term.to_string(),
        Node::Any(nodes) => nodes.iter().map(written).collect::<Vec<_>>().join(" or "),
        Node::All(nodes) => {
            let parts = nodes.iter().map(|node| match node {
                Node::Any(_) => format!("({})", written(node)),
                Node::Term(_) | Node::All(_) => written(node),
            });
            parts.collect::<Vec<_>>().join(" and ")
        }
    }
}

proptest! {
    #[test]
    fn whatever_is_accepted_is_restored_as_it_was(
        root in nodes((24, 200), "[a-z' é(=]{0,40}", prop::num::f64::NORMAL),
    ) {
        let filter = Filter { root };
        prop_assert_eq!(&restored(&filter), &filter);
        if let Ok(accepted) = written(&filter.root).parse::<Filter>() {
            prop_assert_eq!(&restored(&accepted), &accepted);
        }
    }

    #[test]
    fn text_of_a_filter_reads_back_as_the_same_condition(root in node(), value in -1e3..1e3_f64) {
        let filter = Filter { root };
        let again: Filter = filter.to_string().parse().expect("its own text");
        prop_assert_eq!(again.to_string(), filter.to_string());
        let reading = Reading { value, ..reading() };
        prop_assert_eq!(again.matches(&reading), filter.matches(&reading));
        let left = filter.given(&reading.metric_type);
        prop_assert_eq!(left.is_some_and(|left| left.matches(&reading)), filter.matches(&reading));
    }

    #[test]
    fn metric_types_that_can_match_are_those_that_leave_something_to_ask(root in node()) {
        let filter = Filter { root };
        let types = filter.matched_metric_types();
        // Longer than any that the filter names.
        prop_assert_eq!(types.is_none(), filter.can_match("another-type"));
        for name in filter.metric_types() {
            if let Some(types) = &types {
                prop_assert_eq!(types.contains(name), filter.can_match(name));
            }
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
        if let Ok(filter) = text.parse::<Filter>() {
            prop_assert_eq!(&restored(&filter), &filter);
        }
    }
}
