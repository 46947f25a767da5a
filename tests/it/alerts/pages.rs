//! Checks of the board and the runbooks: each alert has a section and each section an alert, and each panel of the
//! board has a valid query and an explanation.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
};

use serde_json::Value;

use super::{BOARD, RULES, RUNBOOKS, TESTS, alerts, promtool, read, run};

#[test]
fn each_alert_has_a_runbook_and_each_runbook_an_alert() {
    let (rules, runbooks) = (read(RULES), read(RUNBOOKS));
    let named: BTreeSet<&str> = alerts(&rules).into_iter().collect();
    let told: BTreeSet<&str> = runbooks
        .lines()
        .filter_map(|line| line.trim_start_matches('#').strip_prefix(" "))
        .filter(|title| title.starts_with("EtcdRelay"))
        .collect();
    assert_eq!(named, told, "the alerts, and the headings of the runbooks");
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().expect("a name");
        let anchor = format!("runbook_url: {RUNBOOKS}#{}", name.to_lowercase());
        assert!(rule.contains(&anchor), "{name} has no `{anchor}`");
        assert!(rule.contains("severity: page") || rule.contains("severity: ticket"), "{name} has no severity");
        for annotation in ["summary:", "description:"] {
            assert!(rule.contains(annotation), "{name} has no {annotation}");
        }
    }
    // It fires somewhere in the unit tests, with its severity.
    let tests = read(TESTS);
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().expect("a name");
        let severity = if rule.contains("severity: page") { "page" } else { "ticket" };
        let fires = format!("alertname=\"{name}\",severity=\"{severity}\"");
        assert!(tests.contains(&fires), "{TESTS} does not see that {name} fires as a {severity}");
    }
    for section in runbooks.split("\n## EtcdRelay").skip(1) {
        let name = section.lines().next().expect("a name");
        for part in ["**Clients:**", "**Confirm:**", "**Causes:**", "**Do:**", "**Escalate:**", "**Do not:**"] {
            assert!(section.contains(part), "EtcdRelay{name} does not say {part}");
        }
    }
}

#[test]
fn each_panel_of_the_board_is_explained_and_has_its_place() {
    let board: Value = serde_json::from_str(&read(BOARD)).expect("JSON");
    let runbooks = read(RUNBOOKS).to_lowercase();
    let (mut ids, mut places) = (BTreeSet::new(), Vec::new());
    for panel in board["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}: the id is given twice");
        let place = |side: &str| panel["gridPos"][side].as_u64().expect("a place");
        let (x, y, w, h) = (place("x"), place("y"), place("w"), place("h"));
        assert!(x + w <= 24 && w > 0 && h > 0, "{title} is beside the board");
        for (other, (ox, oy, ow, oh)) in &places {
            let apart = x + w <= *ox || ox + ow <= x || y + h <= *oy || oy + oh <= y;
            assert!(apart, "{title} lies on {other}");
        }
        places.push((title, (x, y, w, h)));
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].as_str().is_some_and(|text| text.len() > 20), "{title} is not explained");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        if panel["type"] == "text" {
            continue;
        }
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty(), "{title} shows nothing");
        let names: BTreeSet<_> = targets.iter().map(|target| target["refId"].as_str().expect("a name")).collect();
        assert_eq!(names.len(), targets.len(), "{title}: queries of one name");
        for link in panel["links"].as_array().into_iter().flatten() {
            let url = link["url"].as_str().expect("a URL");
            let (_, anchor) = url.split_once("#").expect("an anchor");
            assert!(runbooks.contains(&format!("## {anchor}\n")), "{title}: there is no runbook {anchor}");
        }
    }
    assert!(places.len() > 30, "{} panels", places.len());
}

/// promtool parses each query of panels, variables and annotations, as the expression of a rule.
#[test]
fn each_query_of_the_board_is_valid() {
    let Some(promtool) = promtool() else { return };
    let board: Value = serde_json::from_str(&read(BOARD)).expect("JSON");
    let mut queries = BTreeMap::new();
    collect(&board, "", &mut queries);
    assert!(queries.len() > 40, "{} queries", queries.len());
    let mut rules = "groups:\n  - name: board\n    rules:\n".to_owned();
    for (index, query) in queries.values().enumerate() {
        let query = query.replace("$__rate_interval", "5m").replace("$__range", "1h").replace("$__interval", "15s");
        write!(rules, "      - record: query:{index}\n        expr: {}\n", Value::from(query)).expect("text");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("board.yaml");
    fs::write(&file, rules).expect("written");
    run(&promtool, &["check", "rules", "--lint=none"], &file);
}

/// All values of `expr`, by their paths.
fn collect(value: &Value, path: &str, queries: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field.as_str() {
                    Some(query) if name == "expr" => drop(queries.insert(path.to_owned(), query.to_owned())),
                    _ => collect(field, &format!("{path}/{name}"), queries),
                }
            }
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| collect(item, &format!("{path}/{index}"), queries));
        }
        _ => {}
    }
}
