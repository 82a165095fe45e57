//! Who may name whom, how long a file may be, and that every file says what it is.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Code lines a file may have: no tests, no comments, no blank lines.
const LONGEST: usize = 500;

/// ONNX's messages, written down as its schema has them: nobody reads them top-down.
const MESSAGES: &str = "src/compile/onnx/proto.rs";

struct Source {
    path: String,
    text: String,
}

impl Source {
    /// Lines of code up to the file's own tests.
    fn code(&self) -> impl Iterator<Item = &str> {
        let lines = self.text.lines().map(str::trim);
        lines.take_while(|it| *it != "#[cfg(test)]").filter(|it| !it.is_empty() && !it.starts_with("//"))
    }

    fn is_in(&self, folder: &str) -> bool {
        self.path.starts_with(folder)
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    collect(&root.join("src"), &mut found);
    collect(&root.join("tests"), &mut found);
    let read = |path: PathBuf| Source {
        path: path.strip_prefix(root).expect("below the root").display().to_string(),
        text: fs::read_to_string(&path).expect("a source is UTF-8"),
    };
    found.into_iter().map(read).collect()
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
}

/// Files outside of `home` whose code says one of `words`.
fn strangers(home: &[&str], words: &[&str]) -> Vec<String> {
    let offends = |it: &Source| it.code().any(|line| words.iter().any(|word| line.contains(word)));
    sources()
        .into_iter()
        .filter(|it| it.is_in("src/") && !home.iter().any(|home| it.is_in(home)) && offends(it))
        .map(|it| it.path)
        .collect()
}

const NOBODY: [&str; 0] = [];

#[test]
fn only_the_door_knows_http() {
    let words = ["axum", "tower_http", "hyper::", "StatusCode", "HeaderMap", "crate::api", "IntoResponse"];
    assert_eq!(strangers(&["src/api/", "src/cli/"], &words), NOBODY);
}

#[test]
fn only_the_runtime_names_onnx_runtime() {
    assert_eq!(strangers(&["src/runtime/"], &["use ort::", " ort::", "(ort::", "<ort::", "ort_sys"]), NOBODY);
}

#[test]
fn the_compiler_is_pure() {
    let words = [
        "std::fs",
        "fs::read",
        "File::open",
        "std::env",
        "env::var",
        "std::net",
        "async fn",
        ".await",
        "Mutex",
        "RwLock",
        "Instant::now",
        "SystemTime",
        "crate::config",
        "crate::runtime",
        "crate::model",
        "crate::explain",
    ];
    let impure: Vec<String> = sources()
        .into_iter()
        .filter(|it| it.is_in("src/compile/"))
        .filter(|it| it.code().any(|line| words.iter().any(|word| line.contains(word))))
        .map(|it| it.path)
        .collect();
    assert_eq!(impure, NOBODY);
}

#[test]
fn models_do_not_know_who_asks_them() {
    let words = ["crate::explain", "crate::api", "crate::cli"];
    let offends = |it: &Source| it.code().any(|line| words.iter().any(|word| line.contains(word)));
    let upward = sources().into_iter().filter(|it| it.is_in("src/model/") || it.is_in("src/runtime/"));
    let upward: Vec<String> = upward.filter(offends).map(|it| it.path).collect();
    assert_eq!(upward, NOBODY);
}

#[test]
fn methods_do_not_know_each_other() {
    let sources = sources();
    let stem = |path: &str| Path::new(path).file_stem().map(|it| it.to_string_lossy().into_owned());
    let methods: Vec<(&Source, String)> = sources
        .iter()
        .filter(|it| it.is_in("src/explain/") && it.code().any(|line| line.contains("METHOD: &dyn Method")))
        .filter_map(|it| Some((it, stem(&it.path)?)))
        .collect();
    assert!(!methods.is_empty());
    for (source, own) in &methods {
        for (_, other) in methods.iter().filter(|(_, other)| other != own) {
            let path = format!("{other}::");
            let named = source.code().any(|line| line.contains(&path));
            assert!(!named, "{} names {other}", source.path);
        }
    }
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<String> =
        sources().into_iter().filter(|it| !it.text.starts_with("//! ")).map(|it| it.path).collect();
    assert_eq!(silent, NOBODY);
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    let long: Vec<String> = sources()
        .into_iter()
        .filter(|it| it.is_in("src/") && it.path != MESSAGES)
        .map(|it| (it.code().count(), it.path))
        .filter(|(lines, _)| *lines > LONGEST)
        .map(|(lines, path)| format!("{path}: {lines} lines"))
        .collect();
    assert_eq!(long, NOBODY);
}
