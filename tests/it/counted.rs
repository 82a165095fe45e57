//! This file is where a classifier picks the tokens that close its texts out of the whole batch, as exports of
//! encoder-decoder classifiers do: `hidden[ids == eos].view(batch, -1, width)[:, -1]`.

use std::fs;
use std::path::Path;

use explaind::compile::graph::{Graph, Tensor};
use explaind::compile::write;
use explaind::model::Model;
use explaind::runtime::Row;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::reference::with_lane;
use crate::support::open_settings;

const VOCABULARY: usize = 200;
/// The token that closes a text.
const CLOSING: u32 = 2;

/// Label `k` is the hyperbolic tangent of the sum of every token's component `k` up to the last closing token.
fn classifier() -> Graph {
    let text = "e = Gather(table, ids); c = CumSum(e, 1); h = Tanh(c); \
                q = Equal(ids, [2]); n = NonZero(q); p = Transpose(n); g = GatherND(h, p); \
                b = Shape(ids) {start: 0, end: 1}; r = Concat(b, [-1], [2]) {axis: 0}; v = Reshape(g, r); \
                logits = Gather(v, -1) {axis: 1}";
    let mut graph = Graph::parse(&text.replace("ids", "input_ids: int64[b, s]")).unwrap();
    graph.inputs.retain(|it| &*it.value != "table");
    let values: Vec<f32> =
        (0..VOCABULARY * 2).map(|it| ((it * 37 + 11) % 101) as f32 / 200.0 - 0.25).collect();
    graph.initializers.insert("table".into(), Tensor::from_f32(&[VOCABULARY, 2], &values));
    graph
}

/// A folder of the zoo with another graph, whose tokenizer closes every text.
fn folder(graph: &Graph) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/public/bert-legacy17");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let mut value: Value = serde_json::from_slice(&fs::read(zoo.join(file)).unwrap()).unwrap();
        if file == "tokenizer.json" {
            let piece = |name: &str, id: &str| json!({ name: { "id": id, "type_id": 0 } });
            let closed = |id| [piece("Sequence", id), piece("SpecialToken", "t2")];
            let pair = [closed("A"), closed("B")].concat();
            value["post_processor"] = json!({
                "type": "TemplateProcessing", "single": closed("A"), "pair": pair,
                "special_tokens": { "t2": { "id": "t2", "ids": [CLOSING], "tokens": ["t2"] } },
            });
        }
        fs::write(folder.path().join(file), value.to_string()).unwrap();
    }
    fs::write(folder.path().join("model.onnx"), write(graph)).unwrap();
    folder
}

fn open() -> Model {
    Model::open("picks", folder(&classifier()).path(), &open_settings()).expect("a model")
}

/// Rows of one length that hold the closing token once, twice and three times.
fn rows() -> Vec<Row> {
    let ids = [[5, 6, 7, 8, 2], [5, 2, 9, 8, 2], [9, 2, 2, 6, 2], [8, 8, 7, 6, 2], [5, 2, 2, 2, 9]];
    ids.into_iter().map(|it| Row::of(it, None)).collect()
}

#[test]
fn rows_that_close_unequally_often_share_no_batch() {
    let model = open();
    assert_eq!(model.forward.layout.counted, Some(CLOSING));
    assert!(model.warnings.iter().any(|it| it.contains("`t2`")), "{:?}", model.warnings);
    let together = with_lane(|lane| lane.evaluate(&model.forward, rows())).expect("logits");
    for (row, together) in rows().iter().zip(together) {
        let alone = model.forward.run(0, std::slice::from_ref(row)).expect("logits").remove(0);
        let gap = alone.values[0].iter().zip(&together.values[0]).map(|(a, b)| (a - b).abs());
        assert!(gap.fold(0.0, f32::max) < 1e-6, "{:?}: {together:?} instead of {alone:?}", row.ids);
    }
}
