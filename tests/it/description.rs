//! The API's description: current in the repository, the same from the server and the command line.

use std::collections::BTreeSet;
use std::path::Path;

use crate::harness::{Server, command};

fn printed() -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = command(folder.path()).arg("openapi").output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_committed_description_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.yaml");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == printed(), "openapi.yaml is not current: run `cargo run -- openapi > openapi.yaml`");
}

#[test]
fn no_schema_asks_for_two_types_at_once() {
    let text = printed();
    let lines: Vec<&str> = text.lines().collect();
    let all_of = lines.iter().enumerate().filter(|(_, line)| line.trim_end().ends_with("allOf:"));
    for (at, line) in all_of {
        let indent = " ".repeat(line.len() - line.trim_start().len());
        let parts =
            lines[at + 1..].iter().take_while(|l| l.starts_with(&indent) && !l[indent.len()..].starts_with(|c: char| c.is_alphabetic()));
        let types: BTreeSet<&str> = parts.filter_map(|l| l[indent.len()..].strip_prefix("- type: ")).collect();
        assert!(types.len() <= 1, "line {}: nothing is of all types {types:?}", at + 1);
    }
}

#[tokio::test]
async fn the_server_serves_what_the_command_prints() {
    let server = Server::start();
    let got = server.get("/openapi.yaml").await;
    assert_eq!(got.header("content-type"), "application/yaml");
    assert_eq!(got.text(), printed());
    let page = server.get("/docs").await;
    assert!(page.header("content-type").starts_with("text/html") && page.text().contains("/v1/fine_tuning/jobs"));
}
