#![cfg(feature = "tflite")]

use std::fs;

use edge_core::features::FeatureExtractor;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::metadata::Commissioning;
use super::*;

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("model/bundles/motor-v1")
}

/// A copy of the committed bundle, changed; a changed model gets its new hash.
fn altered(change: impl FnOnce(&mut Value, &mut Vec<u8>)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read(committed().join(METADATA_FILE)).unwrap();
    let mut metadata: Value = serde_json::from_slice(&text).unwrap();
    let original = fs::read(committed().join(MODEL_FILE)).unwrap();
    let mut model = original.clone();
    change(&mut metadata, &mut model);
    if model != original && metadata["model-sha256"] != "keep" {
        metadata["model-sha256"] = json!(hex(&Sha256::digest(&model)));
    } else if metadata["model-sha256"] == "keep" {
        metadata["model-sha256"] = json!(hex(&Sha256::digest(&original)));
    }
    fs::write(dir.path().join(METADATA_FILE), metadata.to_string()).unwrap();
    fs::write(dir.path().join(MODEL_FILE), model).unwrap();
    dir
}

fn refused(dir: &Path) -> BundleError {
    Bundle::load(dir).expect_err("a damaged bundle must be refused")
}

#[track_caller]
fn refused_with(change: impl FnOnce(&mut Value, &mut Vec<u8>), expected: &str) {
    let error = refused(altered(change).path()).to_string();
    assert!(error.contains(expected), "{error:?} does not say {expected:?}");
}

/// Overwrites the weights without a parser of the format: whatever reads as a float of a weight's size. Offsets and
/// enums are tiny integers, subnormal as floats, and stay; so does 1.0, the constant of the graph's logarithm. Returns how
/// many were overwritten.
fn overwrite_weights(model: &mut [u8], value: f32) -> usize {
    let mut changed = 0;
    for chunk in model.as_chunks_mut::<4>().0 {
        let float = f32::from_le_bytes(*chunk);
        if (1e-4..=8.0).contains(&float.abs()) && float != 1.0 {
            *chunk = value.to_le_bytes();
            changed += 1;
        }
    }
    changed
}

#[test]
fn committed_bundle_loads_and_passes_its_self_test() {
    let bundle = Bundle::load(&committed()).unwrap();
    assert_eq!(bundle.identity(), "motor@1.0.0");
    assert_eq!(bundle.metadata().input.window_samples, 2048);
    assert!(bundle.metadata().healthy_reference.contains_key("1800-rpm"));
    let mut scorer = bundle.scorer().unwrap();
    let mut extractor = bundle.extractor().unwrap();
    let still = scorer.score(extractor.extract(&[0.9; 2048]).unwrap()).unwrap();
    assert!(still < bundle.threshold(), "a machine at rest scores {still}");
}

#[test]
fn each_committed_bundle_passes_its_self_test_and_is_small() {
    let bundles = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/bundles");
    let mut loaded = Vec::new();
    for entry in std::fs::read_dir(bundles).expect("listed") {
        let folder = entry.expect("an entry").path();
        let bundle = Bundle::load(&folder).expect("passes");
        let files = [MODEL_FILE, METADATA_FILE].map(|file| folder.join(file));
        let bytes = files.map(|file| std::fs::metadata(file).expect("there").len());
        assert!(bytes.iter().sum::<u64>() <= 200_000, "{}: {bytes:?}", folder.display());
        loaded.push((bundle.metadata().name.clone(), bundle.metadata().axis.clone()));
    }
    loaded.sort();
    let expected = [("motor", ""), ("motor-line", "X"), ("motor-shape", "Z")];
    assert_eq!(loaded, expected.map(|(name, axis)| (name.to_owned(), axis.to_owned())));
}

#[test]
fn scorer_moves_to_another_thread_and_answers_the_same() {
    let bundle = Bundle::load(&committed()).unwrap();
    let vector = &bundle.metadata().self_test.scores[0];
    let features = vector.as_features(&bundle.metadata().features.order);
    let mut scorer = bundle.scorer().unwrap();
    let here = scorer.score(&features).unwrap();
    let there = std::thread::spawn(move || scorer.score(&features).unwrap()).join().unwrap();
    assert_eq!(here, there);
}

#[test]
fn any_flipped_byte_of_the_model_is_refused() {
    for place in [0, 5, 1000, 4000, 7999] {
        refused_with(
            |metadata, model| {
                model[place] ^= 1;
                metadata["model-sha256"] = json!("keep");
            },
            "model.tflite has sha256",
        );
    }
}

#[test]
fn truncated_empty_and_oversized_models_are_refused() {
    refused_with(|_, model| model.truncate(model.len() / 2), "is no model that TensorFlow Lite");
    refused_with(|_, model| model.clear(), "is no model that TensorFlow Lite");
    refused_with(|_, model| model.fill(0x5a), "is no model that TensorFlow Lite");
    refused_with(|_, model| model.resize((1 << 20) + 1, 0), "is larger than 1048576 bytes");
}

#[test]
fn missing_files_are_named() {
    let empty = tempfile::tempdir().unwrap();
    let error = refused(empty.path());
    assert!(error.to_string().contains("bundle.json cannot be read"), "{error}");
    let dir = altered(|_, _| ());
    fs::remove_file(dir.path().join(MODEL_FILE)).unwrap();
    let error = refused(dir.path());
    assert!(error.to_string().contains("model.tflite cannot be read"), "{error}");
}

#[test]
fn a_pipe_in_place_of_a_file_is_refused_and_not_waited_for() {
    let dir = altered(|_, _| ());
    let path = dir.path().join(MODEL_FILE);
    fs::remove_file(&path).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    let error = refused(dir.path());
    assert!(error.to_string().contains("is no regular file"), "{error}");
}

#[test]
fn a_model_that_the_library_gives_up_on_is_refused() {
    // The binding crate panics at a tensor whose name is not UTF-8.
    let change = |_: &mut Value, model: &mut Vec<u8>| {
        let name = b"keras_tensor";
        // The last one is the tensor's own; before it stands that of the signature.
        let at = model.windows(name.len()).rposition(|found| found == name).expect("a name");
        model[at] = 0xff;
    };
    refused_with(change, "has given up");
}

#[test]
fn model_whose_weights_are_nan_is_refused() {
    let dir = altered(|_, model| assert!(overwrite_weights(model, f32::NAN) > 500));
    let error = refused(dir.path());
    assert!(
        matches!(error, BundleError::SelfTestScore { source: ScoreError::NotFinite, .. }),
        "{error}"
    );
}

#[test]
fn model_whose_weights_are_lost_is_refused_as_constant() {
    let dir = altered(|_, model| assert!(overwrite_weights(model, 0.0) > 500));
    let error = refused(dir.path());
    assert!(matches!(error, BundleError::ConstantOutput(_)), "{error}");
}

#[test]
fn model_that_answers_otherwise_than_recorded_is_refused() {
    refused_with(
        |metadata, _| {
            let score = metadata["self-test"]["scores"][0]["score"].as_f64().unwrap();
            metadata["self-test"]["scores"][0]["score"] = json!(score + 0.001);
        },
        "the model or the library computes differently",
    );
}

#[test]
fn model_of_another_shape_is_refused() {
    refused_with(
        |metadata, _| {
            metadata["features"]["order"].as_array_mut().unwrap().pop();
            for test in metadata["self-test"]["scores"].as_array_mut().unwrap() {
                test["features"].as_array_mut().unwrap().pop();
            }
        },
        "model.tflite has the input Float32 [1, 10], the bundle needs Float32 [1, 9]",
    );
}

#[test]
fn features_computed_otherwise_than_recorded_are_refused() {
    refused_with(
        |metadata, _| metadata["self-test"]["windows"][1]["features"]["kurtosis"] = json!(2.0),
        "self-test window \"impulses on a resonance\": kurtosis is",
    );
}

#[test]
fn metadata_out_of_range_is_refused_with_its_key() {
    let check = |pointer: &str, value: Value, expected: &str| {
        refused_with(
            |metadata, _| *metadata.pointer_mut(pointer).expect(pointer) = value,
            expected,
        );
    };
    check("/format", json!(2), "format is 2, this program reads 1");
    check("/features/definition", json!(3), "features.definition is 3");
    check("/features/definition", json!(0), "features.definition is 0");
    check(
        "/features/order/0",
        json!("line"),
        "features.order names line, features.line-hz does not say",
    );
    check("/features/order/0", json!("colour"), "\"colour\" is not a feature");
    check("/features/order/0", json!("band-08"), "features.order names band-08");
    check("/threshold", json!(1.5), "threshold is 1.5, it must be above 0, at most 1");
    check("/threshold", json!(0.0), "threshold is 0, it must be above 0, at most 1");
    check("/threshold", json!(1.0), "self-test.scores are all below the threshold");
    check("/false-alarm-rate", json!(-0.1), "false-alarm-rate is -0.1, it must be 0 to 1");
    check("/input/sample-rate-hz", json!(0.0), "input.sample-rate-hz is 0, it must be above 0");
    check("/input/hop-samples", json!(0), "input.hop-samples is 0, it must be above 0");
    check("/input/window-samples", json!(2), "a window of 2 samples: 4 to 1048576 are allowed");
    check("/self-test/scores", json!([]), "self-test.scores has 0 entries, at least 6 are needed");
    check("/self-test/score-tolerance", json!(0.5), "self-test.score-tolerance is 0.5");
    check("/output", json!("probability"), "unknown variant `probability`");
    check("/name", json!("two words"), "name is two words, it must be 1 to 64 letters");
}

#[test]
fn a_step_that_is_no_length_is_refused() {
    for wrong in [json!(0.0), json!(-1.0)] {
        let change = |metadata: &mut Value, _: &mut Vec<u8>| metadata["input"]["step-max"] = wrong;
        refused_with(change, "it must be above 0");
    }
    let line = Bundle::load(&committed().with_file_name("motor-line-v1")).expect("committed");
    assert_eq!(line.metadata().input.step_max, Some(0.001));
}

#[test]
fn margin_of_commissioning_is_read_and_may_be_absent() {
    let commissioning = |bundle: &Path| Bundle::load(bundle).unwrap().metadata().commissioning;
    let bundles = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/bundles");
    let check = |name: &str, margin_logit, judges_level| {
        let expected = Commissioning { margin_logit, judges_level };
        assert_eq!(commissioning(&bundles.join(name)), Some(expected), "{name}");
    };
    check("motor-v1", 1.614, false);
    check("motor-shape-v2", 2.3821, false);
    check("motor-line-v1", 2.2114, true);
    let dir =
        altered(|metadata, _| drop(metadata.as_object_mut().unwrap().remove("commissioning")));
    assert_eq!(commissioning(dir.path()), None);
}

#[test]
fn margin_of_commissioning_has_limits() {
    let with =
        |margin: Value| altered(|metadata, _| metadata["commissioning"]["margin-logit"] = margin);
    for margin in [json!(0.01), json!(2), json!(50.0)] {
        Bundle::load(with(margin).path()).unwrap();
    }
    for margin in [json!(-2.0), json!(0.0), json!(0.0099), json!(50.01), json!(1e300)] {
        let found = margin.as_f64().unwrap();
        let expected = format!("commissioning.margin-logit is {found}, it must be 0.01 to 50");
        let error = refused(with(margin).path()).to_string();
        assert!(error.contains(&expected), "{error:?} does not say {expected:?}");
    }
}

#[test]
fn commissioning_that_is_incomplete_or_of_another_form_is_refused() {
    let check = |commissioning: Value, expected: &str| {
        refused_with(|metadata, _| metadata["commissioning"] = commissioning, expected);
    };
    check(json!({"margin-logit": 2.2}), "missing field `judges-level`");
    check(json!({"judges-level": true}), "missing field `margin-logit`");
    check(json!({"margin-logit": "2.2", "judges-level": true}), "invalid type: string");
    check(json!({"margin-logit": null, "judges-level": true}), "invalid type: null");
    check(json!({"margin-logit": 2.2, "judges-level": 1}), "invalid type: integer");
    check(
        json!({"margin-logit": 2.2, "judges-level": true, "colour": 1}),
        "unknown field `colour`",
    );
}

#[test]
fn unknown_missing_and_broken_keys_are_refused() {
    refused_with(|metadata, _| metadata["colour"] = json!(1), "unknown field `colour`");
    refused_with(
        |metadata, _| drop(metadata.as_object_mut().unwrap().remove("threshold")),
        "missing field `threshold`",
    );
    let dir = altered(|_, _| ());
    fs::write(dir.path().join(METADATA_FILE), "{\"format\":1").unwrap();
    let error = refused(dir.path()).to_string();
    assert!(error.contains("bundle.json: EOF while parsing"), "{error}");
}

#[test]
fn sensor_of_another_rate_window_or_unit_is_refused() {
    let bundle = Bundle::load(&committed()).unwrap();
    let check = |rate_hz, samples, unit, expected: Option<&str>| {
        let found = bundle.check_sensor("press-1/bearing", rate_hz, samples, unit);
        assert_eq!(found.err().map(|error| error.to_string()).as_deref(), expected);
    };
    check(20_000.0, 2048, Some("V"), None);
    check(20_019.0, 2048, None, None);
    check(
        20_021.0,
        2048,
        None,
        Some("model motor@1.0.0 was trained at 20000 Hz, sensor press-1/bearing delivers 20021 Hz"),
    );
    check(
        f64::NAN,
        2048,
        None,
        Some("model motor@1.0.0 was trained at 20000 Hz, sensor press-1/bearing delivers NaN Hz"),
    );
    check(
        20_000.0,
        1024,
        None,
        Some(
            "model motor@1.0.0 needs windows of 2048 samples, those of sensor press-1/bearing have 1024",
        ),
    );
    check(
        20_000.0,
        2048,
        Some("g"),
        Some("model motor@1.0.0 was trained on samples in V, sensor press-1/bearing delivers g"),
    );
}

#[test]
fn features_without_the_bands_of_the_model_have_no_score() {
    let bundle = Bundle::load(&committed()).unwrap();
    let mut scorer = bundle.scorer().unwrap();
    let mut extractor = FeatureExtractor::new(64, 20_000.0, &[]).unwrap();
    let features = extractor.extract(&[0.0; 64]).unwrap();
    assert_eq!(scorer.score(features), Err(ScoreError::FeatureMissing(FeatureName::Band(0))));
}

#[test]
fn scores_stay_between_0_and_1() {
    let check = |logit: f64, expected: Option<f64>| {
        assert_eq!(AnomalyScore::from_logit(logit).map(AnomalyScore::value), expected, "{logit}");
    };
    check(0.0, Some(0.5));
    check(1e6, Some(1.0));
    check(-1e6, Some(0.0));
    check(f64::NAN, None);
    assert_eq!(AnomalyScore::new(1.0 + f64::EPSILON), None);
    assert_eq!(AnomalyScore::new(-0.1), None);
}
