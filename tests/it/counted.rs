//! This file is where a classifier picks the tokens that close its texts out of the whole batch, as exports of
//! encoder-decoder classifiers do: `hidden[ids == eos].view(batch, -1, width)[:, -1]`.

use explaind::compile::graph::{Graph, Tensor};
use explaind::model::Model;
use explaind::runtime::{Extra, Row};
use serde_json::json;

use crate::models::derived;
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

fn open() -> Model {
    let piece = |name: &str, id: &str| json!({ name: { "id": id, "type_id": 0 } });
    let closed = |id| [piece("Sequence", id), piece("SpecialToken", "t2")];
    let pair = [closed("A"), closed("B")].concat();
    let closing = json!({
        "type": "TemplateProcessing", "single": closed("A"), "pair": pair,
        "special_tokens": { "t2": { "id": "t2", "ids": [CLOSING], "tokens": ["t2"] } },
    });
    let changed = [("tokenizer.json", "post_processor", closing)];
    let folder = derived("bert-legacy17", |it| *it = classifier(), &changed);
    Model::open("picks", folder.path(), &open_settings()).expect("a model")
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

/// The gradient of label `k` is `1 − tanh²` of component `k` of every token up to the last closing one.
#[test]
fn gradients_hold_however_often_a_row_closes() {
    let model = open();
    let graph = model.gradient().unwrap_or_else(|it| panic!("{it:?}"));
    let seeded = |row: Row| {
        let point: Vec<f32> = row.ids.iter().flat_map(|&id| graph.words.row(id)).copied().collect();
        let cotangent = Extra::Values([1.0, 1.0].into());
        Row { extras: vec![Extra::Values(point.into()), cotangent], ..row }
    };
    let outs = with_lane(|lane| lane.evaluate(&graph.gradient, rows().into_iter().map(seeded).collect()));
    for (row, out) in rows().iter().zip(outs.expect("gradients")) {
        let last = row.ids.iter().rposition(|&id| id == CLOSING).expect("a closing token");
        for (place, found) in out.values[1].iter().enumerate() {
            let slope = 1.0 - out.values[0][place % 2].powi(2);
            let expected = if place / 2 <= last { slope } else { 0.0 };
            assert!((found - expected).abs() < 1e-5, "{:?}: {found} instead of {expected}", row.ids);
        }
    }
}
