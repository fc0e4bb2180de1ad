//! The Logic Apps: an alert as a card in Teams and a mail, once.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e_tests::workflow::{Reply, Report, Settings, Status, run};
use serde_json::{Value, json};

use super::examples::{
    ALERT_ID, Answers, LOGIC_APPS, alert_mut, called, definition, digest, ensure_same,
    ensure_status, fired, only_call, read, resolved, run_once, settings, wrapped,
};

const TABLE: &str = "https://plantactions.table.core.windows.net/alertclaims";

fn parameters() -> Settings {
    settings(&[
        (
            "$connections",
            json!({
                "teams": {"connectionId": "/connections/teams"},
                "office365": {"connectionId": "/connections/office365"},
                "eventhubs": {"connectionId": "/connections/eventhubs"},
            }),
        ),
        ("teamId", json!("team-1")),
        ("channelId", json!("19:abc@thread.tacv2")),
        ("mailRecipients", json!("kim@example.com;lee@example.com")),
        ("claimsTable", json!(TABLE)),
    ])
}

/// An event as the trigger of a definition gets it.
fn trigger_body(path: &str, event: &Value) -> Value {
    if path == LOGIC_APPS[0] {
        event.clone()
    } else {
        json!([{"ContentData": STANDARD.encode(event.to_string()), "Properties": {}}])
    }
}

fn tell(path: &str, event: &Value, answers: &Answers) -> anyhow::Result<Report> {
    run_once(path, &trigger_body(path, event), &parameters(), answers).context(path.to_owned())
}

fn card(report: &Report) -> anyhow::Result<Value> {
    let text = &only_call(report, "Post_card")?["body"]["messageBody"];
    serde_json::from_str(text.as_str().context("the card is text")?).context("the card")
}

fn mail(report: &Report) -> anyhow::Result<&Value> {
    Ok(&only_call(report, "Send_mail")?["body"])
}

fn facts(card: &Value) -> Vec<(&str, &str)> {
    let facts = card["body"][2]["facts"].as_array().into_iter().flatten();
    facts
        .map(|fact| {
            (fact["title"].as_str().unwrap_or_default(), fact["value"].as_str().unwrap_or_default())
        })
        .collect()
}

/// Every way through a Logic App.
pub(super) fn executed(path: &str) -> anyhow::Result<BTreeSet<String>> {
    let down = Answers::default().with("Post_card", 502, json!({})).silent("Send_mail");
    let mut executed = BTreeSet::new();
    for event in [fired("Sev0", false), resolved(), digest(3, 1)] {
        for answers in [&Answers::default(), &down] {
            executed.extend(tell(path, &event, answers)?.executed);
        }
    }
    Ok(executed)
}

#[test]
fn the_two_definitions_differ_in_their_trigger_only() -> anyhow::Result<()> {
    let [mut http, mut event_hub] = [read(LOGIC_APPS[0])?, read(LOGIC_APPS[1])?];
    for definition in [&mut http, &mut event_hub] {
        definition["triggers"].take();
        definition["actions"]["Event"]["inputs"].take();
    }
    event_hub["parameters"].as_object_mut().context("no parameters")?.remove("eventHubName");
    event_hub["parameters"].as_object_mut().context("no parameters")?.remove("consumerGroup");
    ensure_same(&http, &event_hub)
}

/// A card as Teams should get it.
fn expected_card(title: &str, style: &str, text: &str, facts: &[(&str, &str)]) -> Value {
    let facts: Vec<_> =
        facts.iter().map(|(title, value)| json!({"title": title, "value": value})).collect();
    json!({
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "msteams": {"width": "Full"},
        "fallbackText": title,
        "body": [
            {"type": "Container", "style": style, "bleed": true, "items": [
                {"type": "TextBlock", "text": title, "weight": "Bolder", "size": "Large",
                 "wrap": true}]},
            {"type": "TextBlock", "text": text, "wrap": true},
            {"type": "FactSet", "facts": facts},
        ],
    })
}

fn expected_mail(subject: &str, importance: &str, text: &str, facts: &[(&str, &str)]) -> Value {
    let rows: String = facts
        .iter()
        .map(|(title, value)| {
            let value = value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            format!("<tr><th align=\"left\">{title}</th><td>{value}</td></tr>")
        })
        .collect();
    json!({
        "To": "kim@example.com;lee@example.com",
        "Subject": subject,
        "Importance": importance,
        "Body": format!("<p>{text}</p><table>{rows}</table>"),
    })
}

/// What card and mail say of the example, after the times.
const FACTS: [(&str, &str); 10] = [
    ("Machine", "press-1"),
    ("Sensor", "press-1/oil"),
    ("Rule", "temperature-above-100"),
    ("Severity", "Sev2"),
    ("Window", "2026-03-01 08:15:00 to 2026-03-01 08:16:00 UTC"),
    ("Findings", "1"),
    ("Observed", "6 (count > 5)"),
    ("Trip", "none"),
    ("Detail", "none"),
    ("Alert", ALERT_ID),
];
const FIRED: (&str, &str) = ("Fired", "2026-03-01 08:15:30 UTC");

#[test]
fn an_alert_that_fires_is_a_card_and_a_mail() -> anyhow::Result<()> {
    let title = "[Sev2] temperature-above-100 on press-1";
    let text = "Six readings of press-1/oil were over 100 in one minute.";
    let facts = [&[FIRED][..], &FACTS].concat();
    for path in LOGIC_APPS {
        let report = tell(path, &fired("Sev2", false), &Answers::default())?;
        ensure_status(&report, Status::Succeeded)?;
        ensure_same(&card(&report)?, &expected_card(title, "warning", text, &facts))?;
        ensure_same(mail(&report)?, &expected_mail(title, "Normal", text, &facts))?;
    }
    Ok(())
}

#[test]
fn teams_and_outlook_are_called_as_their_references_say() -> anyhow::Result<()> {
    for path in LOGIC_APPS {
        let report = tell(path, &fired("Sev2", false), &Answers::default())?;
        let mut post = only_call(&report, "Post_card")?.clone();
        post["body"]["messageBody"].take();
        post["retryPolicy"].take();
        ensure_same(
            &post,
            &json!({
                "host": {"connection": {"name": "/connections/teams"}},
                "method": "post",
                "path": "/v1.0/teams/conversation/adaptivecard/poster/Flow%20bot/location/Channel",
                "body": {"recipient": {"groupId": "team-1", "channelId": "19:abc@thread.tacv2"},
                         "messageBody": null},
                "retryPolicy": null,
            }),
        )?;
        let mut send = only_call(&report, "Send_mail")?.clone();
        send["body"].take();
        send["retryPolicy"].take();
        ensure_same(
            &send,
            &json!({
                "host": {"connection": {"name": "/connections/office365"}},
                "method": "post",
                "path": "/v2/Mail",
                "body": null,
                "retryPolicy": null,
            }),
        )?;
    }
    Ok(())
}

#[test]
fn only_what_is_severe_and_new_is_urgent() -> anyhow::Result<()> {
    for (severity, historical, importance, style) in [
        ("Sev0", false, "High", "attention"),
        ("Sev1", false, "High", "attention"),
        ("Sev2", false, "Normal", "warning"),
        ("Sev4", false, "Normal", "warning"),
        ("Sev0", true, "Normal", "default"),
        ("Sev3", true, "Normal", "default"),
    ] {
        for path in LOGIC_APPS {
            let report = tell(path, &fired(severity, historical), &Answers::default())?;
            let (mail, card) = (mail(&report)?, card(&report)?);
            ensure!(mail["Importance"] == importance, "{severity} {historical}: {mail}");
            ensure!(card["body"][0]["style"] == style, "{severity} {historical}: {card}");
            let late = mail["Subject"].as_str().context("text")?.starts_with("Late news: ");
            ensure!(late == historical, "{severity} {historical}: {mail}");
        }
    }
    Ok(())
}

#[test]
fn an_alert_that_is_over_looks_different() -> anyhow::Result<()> {
    let title = "Resolved: temperature-above-100 on press-1";
    let text = "Nothing was found on press-1 for ten minutes.";
    let mut facts = [&[FIRED, ("Resolved", "2026-03-01 09:00:00 UTC")][..], &FACTS].concat();
    facts[7] = ("Findings", "4");
    let mut late = resolved();
    alert_mut(&mut late)["alertContext"]["historical"] = json!(true);
    for path in LOGIC_APPS {
        let report = tell(path, &resolved(), &Answers::default())?;
        ensure_same(&card(&report)?, &expected_card(title, "good", text, &facts))?;
        ensure_same(mail(&report)?, &expected_mail(title, "Low", text, &facts))?;

        let report = tell(path, &late, &Answers::default())?;
        let title = format!("Late news: {title}");
        ensure_same(&card(&report)?, &expected_card(&title, "good", text, &facts))?;
        ensure_same(mail(&report)?, &expected_mail(&title, "Low", text, &facts))?;
    }
    Ok(())
}

/// A digest of 50 alerts: the eleventh is over, the twelfth has no machine and a name that looks like HTML.
fn mixed_digest() -> Value {
    let mut event = digest(50, 12);
    let alerts = &mut event["data"]["alerts"];
    alerts[10]["essentials"]["monitorCondition"] = json!("Resolved");
    alerts[10]["essentials"]["resolvedDateTime"] = json!("2026-03-01T08:16:40.000000Z");
    alerts[11]["alertContext"]["machineId"] = Value::Null;
    alerts[11]["alertContext"]["sensorId"] = json!("<oil> & water");
    alerts[11]["essentials"]["description"] = json!("<b>5 > 4</b> & more");
    event
}

#[test]
fn a_digest_is_one_mail_and_one_short_card() -> anyhow::Result<()> {
    let title = "62 alerts from 2026-03-01 08:00:00 to 2026-03-01 08:05:00 UTC";
    let more = "12 more are in the table alerts only.";
    let text =
        "So many that they come together. The first ten; all that were listed are in the mail.";
    let sentences: Vec<_> = (0..10).map(|index| format!("Alert {index}.")).collect();
    let facts: Vec<_> = sentences.iter().map(|text| ("Sev2 Fired", text.as_str())).collect();
    let mut expected = expected_card(title, "default", text, &facts);
    expected["body"]
        .as_array_mut()
        .context("an array")?
        .push(json!({"type": "TextBlock", "text": more, "wrap": true, "isSubtle": true}));
    let rows: String = (0..50)
        .map(|index| match index {
            10 => "<tr><td>Sev2</td><td>Resolved</td><td>2026-03-01 08:16:40</td>\
                   <td>press-10</td><td>Alert 10.</td></tr>"
                .to_owned(),
            11 => "<tr><td>Sev2</td><td>Fired</td><td>2026-03-01 08:15:30</td>\
                   <td>&lt;oil&gt; &amp; water</td>\
                   <td>&lt;b&gt;5 &gt; 4&lt;/b&gt; &amp; more</td></tr>"
                .to_owned(),
            other => format!(
                "<tr><td>Sev2</td><td>Fired</td><td>2026-03-01 08:15:30</td>\
                 <td>press-{other}</td><td>Alert {other}.</td></tr>"
            ),
        })
        .collect();
    for path in LOGIC_APPS {
        let report = tell(path, &mixed_digest(), &Answers::default())?;
        ensure_status(&report, Status::Succeeded)?;
        ensure_same(&card(&report)?, &expected)?;
        ensure_same(
            mail(&report)?,
            &json!({
                "To": "kim@example.com;lee@example.com",
                "Subject": title,
                "Importance": "Normal",
                "Body": format!("<p>{title}</p><table>{rows}</table><p>{more}</p>"),
            }),
        )?;
        let claim = &only_call(&report, "Claim_mail")?["body"]["PartitionKey"];
        ensure!(*claim == "digest-team-1772352000000000", "{claim}");
    }
    Ok(())
}

#[test]
fn a_digest_with_a_severe_new_alert_is_urgent() -> anyhow::Result<()> {
    for (severity, condition, historical, expected) in [
        ("Sev0", "Fired", false, "High"),
        ("Sev1", "Fired", false, "High"),
        ("Sev1", "Fired", true, "Normal"),
        ("Sev1", "Resolved", false, "Normal"),
        ("Sev2", "Fired", false, "Normal"),
    ] {
        let mut event = digest(3, 0);
        let alert = &mut event["data"]["alerts"][2];
        alert["essentials"]["severity"] = json!(severity);
        alert["essentials"]["monitorCondition"] = json!(condition);
        alert["alertContext"]["historical"] = json!(historical);
        let report = tell(LOGIC_APPS[0], &event, &Answers::default())?;
        let importance = &mail(&report)?["Importance"];
        ensure!(*importance == expected, "{severity} {condition} {historical}: {importance}");
        let style = &card(&report)?["body"][0]["style"];
        let expected = if expected == "High" { "attention" } else { "default" };
        ensure!(*style == expected, "{severity} {condition} {historical}: {style}");
    }
    Ok(())
}

#[test]
fn text_from_outside_breaks_neither_the_card_nor_the_mail() -> anyhow::Result<()> {
    let nasty = "a \"quote\", <script>&\\ @{parameters('teamId')} and 'more'\n";
    for path in LOGIC_APPS {
        for mut event in [fired("Sev2", false), resolved()] {
            let alert = alert_mut(&mut event);
            alert["essentials"]["description"] = json!(nasty);
            for member in ["rule", "detail", "machineId", "sensorId", "tripId", "threshold"] {
                alert["alertContext"][member] = json!(nasty);
            }
            let report = tell(path, &event, &Answers::default())?;
            ensure!(card(&report)?["body"][1]["text"] == nasty, "{:?}", card(&report)?);
            ensure!(facts(&card(&report)?).contains(&("Detail", nasty)), "{:?}", card(&report)?);
            let body = mail(&report)?["Body"].as_str().context("text")?;
            ensure!(!body.contains("<script"), "{body}");
            let expected =
                "<p>a \"quote\", &lt;script&gt;&amp;\\ @{parameters('teamId')} and 'more'\n</p>";
            ensure!(body.contains(expected), "{body}");
            // Once in the sentence and once in each of the six.
            ensure!(body.matches("&lt;script&gt;&amp;\\").count() == 7, "{body}");
        }
    }
    Ok(())
}

#[test]
fn an_alert_without_a_machine_names_the_sensor_and_without_both_the_subject() -> anyhow::Result<()>
{
    for path in LOGIC_APPS {
        for mut event in [fired("Sev2", false), resolved()] {
            event["subject"] = json!("plant");
            let title = |report: &Report| mail(report).map(|mail| mail["Subject"].clone());
            let ends = |title: Value, end: &str| {
                ensure!(title.as_str().is_some_and(|title| title.ends_with(end)), "{title}");
                anyhow::Ok(())
            };
            alert_mut(&mut event)["alertContext"]["machineId"] = Value::Null;
            let report = tell(path, &event, &Answers::default())?;
            ends(title(&report)?, " on press-1/oil")?;
            ensure!(facts(&card(&report)?).contains(&("Machine", "not known")), "{report:?}");
            let body = mail(&report)?["Body"].to_string();
            ensure!(body.contains(">Machine</th><td>not known<"), "{body}");

            alert_mut(&mut event)["alertContext"]["sensorId"] = Value::Null;
            let report = tell(path, &event, &Answers::default())?;
            ends(title(&report)?, " on plant")?;
            ends(card(&report)?["fallbackText"].clone(), " on plant")?;
            ends(card(&report)?["body"][0]["items"][0]["text"].clone(), " on plant")?;
            ensure!(facts(&card(&report)?).contains(&("Sensor", "not known")), "{report:?}");
            let body = mail(&report)?["Body"].to_string();
            ensure!(body.contains(">Sensor</th><td>not known<"), "{body}");
        }
    }
    Ok(())
}

#[test]
fn what_later_versions_add_and_a_value_that_is_no_number_stop_nothing() -> anyhow::Result<()> {
    for path in LOGIC_APPS {
        let mut event = fired("Sev2", false);
        event["traceparent"] = json!("00-1-2-01");
        alert_mut(&mut event)["essentials"]["more"] = json!({"deep": true});
        alert_mut(&mut event)["alertContext"]["observed"] = Value::Null;
        let report = tell(path, &event, &Answers::default())?;
        ensure_status(&report, Status::Succeeded)?;
        ensure!(facts(&card(&report)?).contains(&("Observed", " (count > 5)")), "{report:?}");
    }
    Ok(())
}

#[test]
fn a_machine_event_names_its_trip_and_what_happened() -> anyhow::Result<()> {
    for path in LOGIC_APPS {
        for mut event in [fired("Sev0", false), resolved()] {
            let context = &mut alert_mut(&mut event)["alertContext"];
            context["tripId"] = json!("trip-7");
            context["detail"] = json!("limit: 9 mm/s");
            let report = tell(path, &event, &Answers::default())?;
            let card = card(&report)?;
            let facts = facts(&card);
            ensure!(facts.contains(&("Trip", "trip-7")), "{facts:?}");
            ensure!(facts.contains(&("Detail", "limit: 9 mm/s")), "{facts:?}");
            let body = mail(&report)?["Body"].to_string();
            ensure!(body.contains("<td>trip-7</td>"), "{body}");
            ensure!(body.contains("<td>limit: 9 mm/s</td>"), "{body}");
        }
    }
    Ok(())
}

/// The members that both requests to the table have.
fn expected_request(method: &str, uri: &str, headers: &Value, body: &Value) -> Value {
    let mut request = json!({
        "method": method,
        "uri": uri,
        "headers": {
            "Accept": "application/json;odata=nometadata",
            "x-ms-date": "Sun, 01 Mar 2026 08:15:31 GMT",
            "x-ms-version": "2020-12-06",
        },
        "authentication":
            {"type": "ManagedServiceIdentity", "audience": "https://storage.azure.com/"},
    });
    for (name, value) in headers.as_object().into_iter().flatten() {
        request["headers"][name] = value.clone();
    }
    if !body.is_null() {
        request["body"] = body.clone();
    }
    request
}

fn without_retries(call: &Value) -> Value {
    let members = call.as_object().into_iter().flatten();
    members
        .filter(|(name, _)| *name != "retryPolicy")
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

#[test]
fn each_channel_claims_the_event_before_it_tells() -> anyhow::Result<()> {
    for path in LOGIC_APPS {
        let report = tell(path, &fired("Sev2", false), &Answers::default())?;
        let calls = called(&report);
        let place = |action| calls.iter().position(|call| *call == action);
        ensure!(calls.len() == 4, "{calls:?}");
        ensure!(place("Claim_mail") < place("Send_mail"), "{calls:?}");
        ensure!(place("Claim_teams") < place("Post_card"), "{calls:?}");
        for channel in ["mail", "teams"] {
            let claim = only_call(&report, &format!("Claim_{channel}"))?;
            ensure!(claim["retryPolicy"]["type"] == "none", "{claim}");
            let headers =
                json!({"Content-Type": "application/json", "Prefer": "return-no-content"});
            let body = json!({
                "PartitionKey": format!("{ALERT_ID}-1"), "RowKey": channel, "run": "run-1"});
            ensure_same(
                &without_retries(claim),
                &expected_request("POST", TABLE, &headers, &body),
            )?;
        }
    }
    Ok(())
}

#[test]
fn a_channel_that_fails_gives_its_claim_back_and_fails_the_run() -> anyhow::Result<()> {
    for path in LOGIC_APPS {
        for (channel, action, other) in
            [("teams", "Post_card", "Send_mail"), ("mail", "Send_mail", "Post_card")]
        {
            for (answers, status) in [
                (Answers::default().with(action, 502, json!({})), "Failed"),
                (Answers::default().silent(action), "TimedOut"),
            ] {
                let report = tell(path, &fired("Sev2", false), &answers)?;
                ensure_status(&report, Status::Failed)?;
                only_call(&report, other)?;
                let message = report.message.clone().context("no message")?;
                let word = if channel == "teams" { "Teams" } else { "mail" };
                ensure!(message.contains(&format!("{word}: {status}")), "{message}");
                ensure!(message.contains(": Succeeded"), "{message}");
                let uri = format!("{TABLE}(PartitionKey='{ALERT_ID}-1',RowKey='{channel}')");
                ensure_same(
                    &without_retries(only_call(&report, &format!("Give_back_{channel}"))?),
                    &expected_request("DELETE", &uri, &json!({"If-Match": "*"}), &Value::Null),
                )?;
            }
        }
    }
    Ok(())
}

#[test]
fn an_event_that_comes_again_is_told_once() -> anyhow::Result<()> {
    for path in LOGIC_APPS {
        let claimed = Answers::default().with("Claim_teams", 409, json!({})).with(
            "Claim_mail",
            409,
            json!({}),
        );
        let report = tell(path, &fired("Sev0", false), &claimed)?;
        ensure_status(&report, Status::Succeeded)?;
        let calls = called(&report);
        ensure!(!calls.contains(&"Post_card") && !calls.contains(&"Send_mail"), "{calls:?}");
    }
    Ok(())
}

#[test]
fn people_are_told_although_the_table_is_down() -> anyhow::Result<()> {
    for path in LOGIC_APPS {
        let down = Answers::default().with("Claim_teams", 503, json!({})).silent("Claim_mail");
        let report = tell(path, &fired("Sev0", false), &down)?;
        ensure_status(&report, Status::Succeeded)?;
        card(&report)?;
        mail(&report)?;
    }
    Ok(())
}

/// The table is played: a second insert of a key is refused until the row is deleted.
#[test]
fn a_run_submitted_again_tells_only_whom_it_missed() -> anyhow::Result<()> {
    for path in LOGIC_APPS {
        let (definition, parameters) = (definition(path)?, parameters());
        let body = trigger_body(path, &fired("Sev1", false));
        let mut rows = BTreeSet::new();
        let mut told = Vec::new();
        for teams_works in [false, true, true] {
            let mut answer = |call: &e2e_tests::workflow::Call| {
                let key = call.action.rsplit('_').next().unwrap_or_default().to_owned();
                let code = match call.action.as_str() {
                    "Post_card" if !teams_works => 502,
                    "Post_card" | "Send_mail" => {
                        told.push(call.action.clone());
                        200
                    }
                    claim if claim.starts_with("Claim_") => {
                        if rows.insert(key) {
                            204
                        } else {
                            409
                        }
                    }
                    _ => {
                        rows.remove(&key);
                        204
                    }
                };
                Reply::Answer(code, Value::Null)
            };
            let report = run(&definition, &body, &parameters, &mut answer)?.remove(0);
            let expected = if teams_works { Status::Succeeded } else { Status::Failed };
            ensure_status(&report, expected)?;
        }
        told.sort_unstable();
        ensure!(told == ["Post_card", "Send_mail"], "{told:?}");
    }
    Ok(())
}

#[test]
fn what_is_no_alert_fails_the_run_and_tells_nobody() -> anyhow::Result<()> {
    let mut unknown = fired("Sev2", false);
    unknown["type"] = json!("predictive-maintenance.alert.fired.v2");
    let mut severity = fired("Sev5", false);
    severity["subject"] = json!("press-2");
    let mut without = resolved();
    alert_mut(&mut without)["essentials"]
        .as_object_mut()
        .context("an object")?
        .remove("resolvedDateTime");
    for event in [unknown, severity, without, json!({"hello": "world"})] {
        for path in LOGIC_APPS {
            let report = tell(path, &event, &Answers::default())?;
            ensure_status(&report, Status::Failed)?;
            ensure!(report.calls.is_empty(), "{:?}", report.calls);
        }
    }
    Ok(())
}

#[test]
fn a_batch_of_the_event_hub_is_one_run_for_each_event() -> anyhow::Result<()> {
    let batch: Vec<_> = [fired("Sev0", false), resolved(), digest(2, 0)]
        .iter()
        .map(|event| json!({"ContentData": STANDARD.encode(event.to_string())}))
        .collect();
    let answers = Answers::default();
    let mut answer = |call: &e2e_tests::workflow::Call| answers.answer(call);
    let definition = definition(LOGIC_APPS[1])?;
    let reports = run(&definition, &Value::Array(batch), &parameters(), &mut answer)?;
    let subjects = reports
        .iter()
        .map(|report| Ok(mail(report)?["Subject"].clone()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(
        subjects
            == [
                "[Sev0] temperature-above-100 on press-1",
                "Resolved: temperature-above-100 on press-1",
                "2 alerts from 2026-03-01 08:00:00 to 2026-03-01 08:05:00 UTC",
            ],
        "{subjects:?}"
    );
    Ok(())
}

#[test]
fn a_body_that_was_wrapped_for_its_content_type_is_unwrapped() -> anyhow::Result<()> {
    let body = wrapped(&fired("Sev2", false));
    let report = run_once(LOGIC_APPS[0], &body, &parameters(), &Answers::default())?;
    ensure_status(&report, Status::Succeeded)?;
    ensure!(mail(&report)?["Subject"] == "[Sev2] temperature-above-100 on press-1", "{report:?}");
    Ok(())
}
