//! `explaind inspect` from outside: what it says of a model, and of a file that is none.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

const BUNDLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/sst2");

fn inspect(folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_explaind"))
        .arg("inspect")
        .arg(folder)
        .output()
        .expect("the program runs")
}

/// The bundled model with other bytes for a graph.
fn folder(graph: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::os::unix::fs::symlink(Path::new(BUNDLED).join(file), folder.path().join(file)).expect("a link");
    }
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, graph).expect("a file");
    (folder, path)
}

fn methods(output: &Output) -> Vec<(bool, String)> {
    let listing = String::from_utf8_lossy(&output.stdout);
    let lines = listing.lines().skip_while(|it| *it != "methods").skip(1);
    lines
        .filter_map(|it| it.trim().split_once(' '))
        .map(|it| (it.0 == "yes", it.1.trim().to_owned()))
        .collect()
}

#[test]
fn every_method_is_listed_with_whether_the_model_allows_it() {
    let output = inspect(Path::new(BUNDLED));
    assert!(output.status.success(), "{output:?}");
    let listed = methods(&output);
    let all: Vec<&str> = explaind::explain::registry::METHODS.iter().map(|it| it.about().slug).collect();
    assert_eq!(listed.iter().map(|it| &it.1).collect::<Vec<_>>(), all);
    assert!(listed.iter().all(|it| it.0), "{listed:?}");
    let refused = inspect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/refuse/bert-int8-dynamic"));
    let listed = methods(&refused);
    let says = |slug: &str| listed.iter().find(|it| it.1 == slug).map(|it| it.0);
    assert_eq!((says("leave-one-out"), says("saliency")), (Some(true), Some(false)));
}

#[test]
fn a_graph_that_cannot_be_read_fails_by_name_and_no_method_is_claimed() {
    let whole = std::fs::read(Path::new(BUNDLED).join("model.onnx")).expect("the bundled graph");
    for graph in [&b""[..], b"no protobuf at all", &whole[..whole.len() / 2]] {
        let (_kept, path) = folder(graph);
        let output = inspect(path.parent().expect("a folder"));
        let (said, error) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{said}{error}");
        let reason = error.split_once(&path.display().to_string()).map(|it| it.1.trim());
        assert!(reason.is_some_and(|it| it.len() > 20), "neither file nor reason in {error:?}");
        assert!(!said.contains("yes"), "{said}");
    }
}

#[test]
fn a_folder_that_does_not_open_allows_no_method_and_is_told_why() {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/refuse");
    for (name, why) in [("bert-label-only", "logits"), ("bert-embeds-input", "input_ids")] {
        let output = inspect(&zoo.join(name));
        let (said, error) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{said}{error}");
        assert!(error.contains("does not open") && error.contains(why), "{error}");
        assert!(said.contains("  nodes ") && methods(&output).iter().all(|it| !it.0), "{said}");
    }
}
