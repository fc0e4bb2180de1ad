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

fn node() -> impl Strategy<Value = Node> {
    let text =
        (0..6_usize, any::<bool>(), "[a-z' é(=]{0,6}").prop_map(|(field, is_equal, text)| {
            Node::Term(Term::Text { field: TextField::ALL[field], is_equal, text })
        });
    let number =
        (any::<bool>(), 0..6_usize, -1e3..1e3_f64).prop_map(|(is_value, which, number)| {
            let feature = NumberField::Feature("rms-2.x".to_owned());
            let field = if is_value { NumberField::Value } else { feature };
            Node::Term(Term::Number { field, comparison: Comparison::ALL[which], number })
        });
    prop_oneof![text, number].prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(Node::All),
            prop::collection::vec(inner, 2..4).prop_map(Node::Any),
        ]
    })
}

proptest! {
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
    fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
        if let Ok(filter) = text.parse::<Filter>() {
            prop_assert!(filter.to_string().parse::<Filter>().is_ok());
        }
    }
}
