//! The files of a test suite for JSON parsers, posted as input and as body.

use serde_json::Value;
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::service::Service;

/// Name and bytes of every file. The names begin with what a parser has to do: `y` accept, `n` refuse, `i` as it likes.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let bytes = |hex: &str| -> Vec<u8> {
        let digits: Vec<char> = hex.chars().collect();
        let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("hexadecimal");
        digits.chunks(2).map(byte).collect()
    };
    let file = |line: &'static str| {
        let (name, content) = line.split_once(' ').unwrap_or((line, ""));
        match content.split_once(" * ") {
            Some((unit, count)) => (name, bytes(unit).repeat(count.parse().expect("a count"))),
            None => (name, bytes(content)),
        }
    };
    include_str!("json_test_suite.txt").lines().filter(|line| !line.starts_with('#')).map(file).collect()
}

/// The same with each number as a float: PostgreSQL keeps the value of a number, and not how it was written.
fn by_value(json: &Value) -> Value {
    match json {
        Value::Number(number) => number.as_f64().into(),
        Value::Array(elements) => elements.iter().map(by_value).collect(),
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), by_value(value))).collect(),
        other => other.clone(),
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_file_of_a_json_test_suite_is_taken_or_refused_and_breaks_nothing(pool: PgPool) {
    let service = Service::start(&pool);
    let path = format!("/api/v1/workflows/{}/execute", service.one_step_workflow().await);
    let headers = [("content-type", "application/json")];
    let files = files();
    assert_eq!(files.len(), 318);
    for (name, content) in files {
        let around = |before: &str, after: &str| [before.as_bytes(), &content, after.as_bytes()].concat();
        for body in [content.clone(), around(r#"{"input_data":"#, "}")] {
            let answer = service.send("POST", &path, &headers, body).await;
            let status = answer.status.as_u16();
            assert!(matches!(status, 202 | 422), "{name}: {}", answer.text);
            assert!(status == 422 || !name.starts_with('n'), "{name} is taken");
        }
        let answer = service.send("POST", &path, &headers, around(r#"{"input_data":{"value":"#, "}}")).await;
        // What PostgreSQL cannot keep is refused, and says so.
        let has_nul = answer.text.contains("string_nul");
        match (name.as_bytes()[0], answer.status.as_u16()) {
            (b'n' | b'i', 422) => {}
            (b'y', 422) if has_nul => assert!(String::from_utf8_lossy(&content).contains("\\u0000"), "{name}"),
            (b'y' | b'i', 202) => {
                let run_id = answer.json()["run_id"].as_str().expect("a run_id").to_owned();
                let run = service.get(&format!("/api/v1/runs/{run_id}")).await.expect(200);
                if let Ok(sent) = serde_json::from_slice::<Value>(&content) {
                    assert_eq!(by_value(&run["input_data"]["value"]), by_value(&sent), "{name}");
                }
            }
            (_, status) => panic!("{name}: {status} {}", answer.text),
        }
    }
}
