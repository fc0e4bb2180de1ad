use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::super::document::{part_of, reason_of, text_of, without_nulls};
use super::super::{difference, merge};
use super::map;

/// Small documents over few names, so that two of them meet often.
pub(super) fn documents(with_nulls: bool) -> impl Strategy<Value = Map<String, Value>> {
    let leaf = prop_oneof![
        if with_nulls { 2 } else { 0 } => Just(Value::Null),
        3 => (0..3_i64).prop_map(Value::from),
        1 => Just(json!(0.5)),
        1 => any::<bool>().prop_map(Value::from),
        1 => "[a-b]{0,2}".prop_map(Value::from),
        1 => prop::collection::vec(0..2_i64, 0..3).prop_map(Value::from),
    ];
    let values = leaf.prop_recursive(3, 16, 3, |inner| {
        prop::collection::btree_map("[a-c]", inner, 0..3)
            .prop_map(|members| Value::Object(members.into_iter().collect()))
    });
    prop::collection::btree_map("[a-d]", values, 0..4)
        .prop_map(|members| members.into_iter().collect())
}

#[test]
fn patch_is_applied_as_the_standard_shows() {
    // RFC 7386, appendix A, as far as both sides are objects.
    let check = |target: Value, patch: Value, expected: Value| {
        let mut target = map(target);
        merge(&mut target, &map(patch));
        assert_eq!(Value::Object(target), expected);
    };
    check(json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"}));
    check(json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"}));
    check(json!({"a": "b"}), json!({"a": null}), json!({}));
    check(json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"}));
    check(json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"}));
    check(json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]}));
    check(json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}}));
    check(json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]}));
    check(json!({"e": null}), json!({"a": 1}), json!({"a": 1, "e": null}));
    check(json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}}));
    check(json!({"a": 1}), json!({"a": {"b": {"c": null, "d": 1}}}), json!({"a": {"b": {"d": 1}}}));
}

#[test]
fn reason_is_what_the_hub_says_without_more() {
    let check = |body: &str, expected: &str| assert_eq!(reason_of(body.as_bytes()), expected);
    check("", "");
    check(r#"{"Message":"too many"}"#, "too many");
    check(r#"{"code":1}"#, r#"{"code":1}"#);
    check(" plain\u{7}text \n", "plain text");
    check(&"é".repeat(300), &"é".repeat(200));
    assert_eq!(reason_of(b"\xFFx"), "\u{FFFD}x");
}

proptest! {
    #[test]
    fn difference_leads_from_one_document_to_the_other(
        from in documents(false),
        to in documents(false),
    ) {
        let patch = difference(&from, &to);
        prop_assert_eq!(patch.is_empty(), from == to);
        let mut merged = from;
        merge(&mut merged, &patch);
        prop_assert_eq!(merged, to);
    }

    #[test]
    fn merged_documents_hold_no_nulls_and_a_patch_twice_is_once(
        from in documents(false),
        patch in documents(true),
    ) {
        let mut once = from;
        merge(&mut once, &patch);
        prop_assert_eq!(&without_nulls(&once), &once);
        let mut twice = once.clone();
        merge(&mut twice, &patch);
        prop_assert_eq!(twice, once);
    }

    #[test]
    fn parts_of_a_patch_make_up_the_patch(
        from in documents(false),
        patch in documents(true),
        bytes_max in 2_usize..40,
    ) {
        let mut whole = from.clone();
        merge(&mut whole, &patch);
        let (mut merged, mut rest) = (from, patch);
        while !rest.is_empty() {
            let part = part_of(&rest, bytes_max);
            prop_assert!(!part.is_empty());
            prop_assert!(part.len() == 1 || text_of(&part).len() <= bytes_max);
            rest.retain(|name, _| !part.contains_key(name));
            merge(&mut merged, &part);
        }
        prop_assert_eq!(merged, whole);
    }
}
