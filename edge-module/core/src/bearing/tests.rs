use proptest::prelude::*;

use super::*;

const SKF_6205: BearingGeometry = BearingGeometry {
    rolling_elements: 9,
    element_diameter: 7.94,
    pitch_diameter: 39.04,
    contact_angle_deg: 0.0,
};

#[test]
fn a_6205_has_the_frequencies_of_its_catalogue() {
    let found = SKF_6205.frequencies().unwrap();
    let expected = [(found.cage, 0.398), (found.outer, 3.585), (found.inner, 5.415)];
    for (found, expected) in expected.into_iter().chain([(found.element, 2.357)]) {
        assert!((found - expected).abs() < 0.0006, "{found}, expected {expected}");
    }
    assert_eq!(found.lines()[3], ("2 BSF", 2.0 * found.element));
}

#[test]
fn a_contact_angle_brings_the_races_together() {
    let flat = SKF_6205.frequencies().unwrap();
    let angular = BearingGeometry { contact_angle_deg: 40.0, ..SKF_6205 }.frequencies().unwrap();
    assert!(angular.outer > flat.outer && angular.inner < flat.inner, "{angular:?}");
    assert!(angular.element > flat.element && angular.cage > flat.cage, "{angular:?}");
}

#[test]
fn each_fault_is_named_with_its_value() {
    let check = |geometry: BearingGeometry, expected: &[&str]| {
        let texts: Vec<String> = geometry.faults().iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), expected.len(), "{texts:?}");
        for (text, expected) in texts.iter().zip(expected) {
            assert!(text.starts_with(expected), "{text:?}, expected {expected:?}");
        }
        assert_eq!(geometry.frequencies().is_err(), !expected.is_empty());
    };
    check(SKF_6205, &[]);
    for count in [0, 1, ROLLING_ELEMENTS_MAX + 1] {
        let expected = format!("rolling-elements is {count}:");
        check(BearingGeometry { rolling_elements: count, ..SKF_6205 }, &[&expected]);
    }
    for length in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let both = BearingGeometry { element_diameter: length, pitch_diameter: length, ..SKF_6205 };
        check(both, &["element-diameter is", "pitch-diameter is"]);
    }
    for angle in [-0.1, 90.0, f64::NAN] {
        check(BearingGeometry { contact_angle_deg: angle, ..SKF_6205 }, &["contact-angle-deg is"]);
    }
    check(BearingGeometry { element_diameter: 13.4, ..SKF_6205 }, &["9 elements of diameter 13.4"]);
    check(BearingGeometry { element_diameter: 13.3, ..SKF_6205 }, &[]);
}

#[test]
fn the_angle_may_be_left_out_and_nothing_else() {
    let text = r#"{ "rolling-elements": 9, "element-diameter": 7.94, "pitch-diameter": 39.04 }"#;
    assert_eq!(serde_json::from_str::<BearingGeometry>(text).unwrap(), SKF_6205);
    let text = r#"{ "rolling-elements": 9, "element-diameter": 7.94, "pitch": 39.04 }"#;
    assert!(serde_json::from_str::<BearingGeometry>(text).is_err());
}

proptest! {
    #[test]
    fn both_races_together_see_each_element_once_a_turn(
        rolling_elements in 2_u32..40,
        share in 0.05_f64..0.95,
        contact_angle_deg in 0.0_f64..80.0,
    ) {
        let chord = (std::f64::consts::PI / f64::from(rolling_elements)).sin();
        let geometry = BearingGeometry {
            rolling_elements,
            element_diameter: share * chord,
            pitch_diameter: 1.0,
            contact_angle_deg,
        };
        let found = geometry.frequencies().unwrap();
        prop_assert!((found.outer + found.inner - f64::from(rolling_elements)).abs() < 1e-9);
        prop_assert!((found.outer - f64::from(rolling_elements) * found.cage).abs() < 1e-9);
        prop_assert!(found.cage > 0.0 && found.cage <= 0.5 && found.element > 0.0);
    }
}
