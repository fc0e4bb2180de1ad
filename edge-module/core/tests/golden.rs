//! The features agree with those that the model was trained on: `tests/golden/features.json` comes from
//! `python -m machine_model golden` in `edge-module/model`.

use std::collections::BTreeMap;

use edge_core::features::{FEATURE_DEFINITION, FeatureExtractor};

/// Relative, or below 1 absolute. Both sides compute in f64; they differ in the order of their sums and, for kurtosis of
/// tiny signals, in nothing that matters.
const TOLERANCE: f64 = 1e-9;

#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Golden {
    definition: u32,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Case {
    label: String,
    sample_rate_hz: f64,
    band_edges_hz: Vec<f64>,
    line_hz: Option<(f64, f64)>,
    samples: Vec<f32>,
    features: BTreeMap<String, f64>,
}

#[test]
fn features_equal_those_of_the_training_code() {
    let golden: Golden = serde_json::from_str(include_str!("golden/features.json")).unwrap();
    assert_eq!(golden.definition, FEATURE_DEFINITION);
    assert!(golden.cases.len() >= 5);
    for case in &golden.cases {
        let mut extractor =
            FeatureExtractor::new(case.samples.len(), case.sample_rate_hz, &case.band_edges_hz)
                .unwrap();
        if let Some((low, high)) = case.line_hz {
            extractor = extractor.with_line(low, high).unwrap();
        }
        let features = extractor.extract(&case.samples).unwrap();
        assert_eq!(features.iter().count(), case.features.len(), "{}", case.label);
        for (name, expected) in &case.features {
            let found = features.get_by_text(name).unwrap();
            assert!(
                (found - expected).abs() <= TOLERANCE * expected.abs().max(1.0),
                "{}: {name} is {found}, the training code has {expected}",
                case.label
            );
        }
    }
}
