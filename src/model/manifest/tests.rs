//! This file is where folders, sound and broken, meet the manifest.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::model::labels::{Activation, Output};

/// One field of a protobuf message that holds bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let size = u8::try_from(content.len()).unwrap();
    assert!(size < 0x80 && number < 16);
    [&[number << 3 | 2, size], content].concat()
}

/// A model whose graph has one initializer, kept in `location`.
fn model_with_weights_in(location: &str) -> Vec<u8> {
    let entry =
        |key: &str, value: &str| field(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat());
    let tensor = [field(8, b"w"), entry("location", location), entry("offset", "0")].concat();
    field(7, &field(5, &tensor))
}

/// A folder with a graph of no nodes, a WordLevel tokenizer, and the given `config.json`.
fn folder(config: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, "model.onnx", &field(7, b""));
    write_json(&folder, "config.json", config);
    let tokens = [("[PAD]", 0), ("[UNK]", 1), ("[CLS]", 2), ("[SEP]", 3), ("[MASK]", 4)];
    let added: Vec<Value> =
        tokens.iter().map(|(token, id)| json!({"id": id, "content": token, "special": true})).collect();
    let vocab = json!({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "good": 5});
    let model = json!({"type": "WordLevel", "unk_token": "[UNK]", "vocab": vocab});
    write_json(&folder, "tokenizer.json", &json!({"added_tokens": added, "model": model}));
    folder
}

fn write(folder: &TempDir, name: &str, content: &[u8]) {
    let file = folder.path().join(name);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, content).unwrap();
}

fn write_json(folder: &TempDir, name: &str, content: &Value) {
    write(folder, name, content.to_string().as_bytes());
}

fn read(folder: &TempDir) -> Manifest {
    Manifest::read(folder.path(), None).unwrap()
}

/// The refusal of a folder, with its temporary path taken out.
fn refusal(folder: &TempDir) -> String {
    let error = Manifest::read(folder.path(), None).unwrap_err().to_string();
    error.replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn the_bundled_model_is_read_as_it_is() {
    let sst2 = Manifest::read(Path::new("models/sst2"), None).unwrap();
    assert_eq!(sst2.max_length, Some(512));
    assert_eq!(sst2.config.hidden_size, Some(384));
    let s = &sst2.special;
    assert_eq!((s.pad, s.unk, s.cls, s.sep, s.mask), (Some(0), Some(1), Some(2), Some(3), Some(4)));
    let labels = sst2.labels(Some(2)).unwrap();
    assert_eq!(labels.names(), ["negative", "positive"]);
    assert_eq!(labels.activation(), Activation::Softmax);
    // By coreutils' sha256sum.
    assert_eq!(sst2.digest().unwrap(), "c01c33d990e6626ccb75bb8229eacd47ef3456236e202e8247813a6d67351e49");
}

#[test]
fn labels_come_in_numeric_order_and_a_gap_is_refused() {
    let names: Value = (0..12).rev().map(|i| (i.to_string(), json!(format!("n{i}")))).collect();
    let labels = read(&folder(&json!({"id2label": names}))).labels(Some(12)).unwrap();
    assert_eq!((labels.names()[2].as_str(), labels.names()[10].as_str()), ("n2", "n10"));

    let refused = |labels: Value| refusal(&folder(&json!({"id2label": labels})));
    assert_eq!(refused(json!({"0": "a", "2": "b"})), "config.json at `/id2label`: label 1 is missing");
    assert_eq!(refused(json!({"a/b": "a"})), "config.json at `/id2label/a~1b`: expected an index as its key");
    assert_eq!(refused(json!({"01": "a"})), "config.json at `/id2label/01`: expected an index as its key");
    assert_eq!(refused(json!({"0": 7})), "config.json at `/id2label/0`: expected a string");
    assert_eq!(refused(json!({})), "config.json at `/id2label`: expected at least one label");
    assert_eq!(refused(json!(["a"])), "config.json at `/id2label`: expected an object from index to name");
}

#[test]
fn labels_without_names_are_numbered_by_the_file_or_else_by_the_graph() {
    let by_file = read(&folder(&json!({"num_labels": 3}))).labels(None).unwrap();
    assert_eq!(by_file.names(), ["LABEL_0", "LABEL_1", "LABEL_2"]);
    let silent = read(&folder(&json!({})));
    assert_eq!(silent.labels(Some(2)).unwrap().names(), ["LABEL_0", "LABEL_1"]);
    let misfit = |error| match error {
        ManifestError::Field { misfit, .. } => misfit,
        other => panic!("{other}"),
    };
    assert_eq!(misfit(silent.labels(None).unwrap_err()), Misfit::NoLabels);
    let three = read(&folder(&json!({"num_labels": 3})));
    assert_eq!(misfit(three.labels(Some(2)).unwrap_err()), Misfit::LabelCount { declared: 3, found: 2 });
    let odds = json!({"num_labels": 3, "id2label": {"0": "a"}});
    assert!(refusal(&folder(&odds)).starts_with("config.json at `/num_labels`: 3 labels are declared"));
}

#[test]
fn the_problem_type_chooses_the_activation() {
    let activation = |problem: Value, count: usize| {
        let config = json!({"problem_type": problem, "num_labels": count});
        read(&folder(&config)).labels(None).unwrap().activation()
    };
    assert_eq!(activation(json!("single_label_classification"), 2), Activation::Softmax);
    assert_eq!(activation(json!("multi_label_classification"), 2), Activation::Sigmoid);
    assert_eq!(activation(json!("multi_label_classification"), 1), Activation::Sigmoid);
    assert_eq!(activation(json!("regression"), 2), Activation::Identity);
    assert_eq!(activation(Value::Null, 2), Activation::Softmax);
    assert_eq!(activation(Value::Null, 1), Activation::Identity);
    assert!(refusal(&folder(&json!({"problem_type": "ranking"}))).contains("at `/problem_type`: expected"));
}

#[test]
fn the_shorter_of_positions_and_tokenizer_limits_the_length() {
    let length = |config: Value, tokenizer_config: Value| {
        let folder = folder(&config);
        write_json(&folder, "tokenizer_config.json", &tokenizer_config);
        read(&folder).max_length
    };
    let bert = json!({"model_type": "bert", "max_position_embeddings": 48, "pad_token_id": 0});
    assert_eq!(length(bert.clone(), json!({})), Some(48));
    assert_eq!(length(bert.clone(), json!({"model_max_length": 40})), Some(40));
    assert_eq!(length(bert, json!({"model_max_length": 1e30})), Some(48));
    let sentinel: Value = serde_json::from_str("1000000000000000019884624838656").unwrap();
    assert_eq!(length(json!({}), json!({"model_max_length": sentinel})), None);
    assert_eq!(length(json!({"n_positions": 1024}), json!({})), Some(1024));
}

#[test]
fn models_that_count_positions_from_the_padding_lose_those_before_it() {
    for kind in ["roberta", "xlm-roberta", "camembert", "mpnet"] {
        let config = json!({"model_type": kind, "max_position_embeddings": 514, "pad_token_id": 1});
        let manifest = read(&folder(&config));
        assert_eq!((manifest.max_length, manifest.config.position_offset), (Some(512), 2), "{kind}");
    }
    let silent = json!({"model_type": "roberta", "max_position_embeddings": 514});
    assert_eq!(read(&folder(&silent)).max_length, Some(512));
    let none = json!({"model_type": "roberta", "max_position_embeddings": 2});
    let refused = "config.json at `/max_position_embeddings`: no position is left for a token, since positions start at 2";
    assert_eq!(refusal(&folder(&none)), refused);
}

#[test]
fn a_model_may_have_neither_padding_nor_mask() {
    let folder = folder(&json!({"model_type": "gpt2"}));
    let added = json!([{"id": 1, "content": "<|endoftext|>", "special": true}]);
    let model = json!({"type": "BPE", "vocab": {"a": 0, "<|endoftext|>": 1}, "merges": []});
    write_json(&folder, "tokenizer.json", &json!({"added_tokens": added, "model": model}));
    let special = read(&folder).special;
    assert_eq!(special, SpecialTokens { all: [1].into(), ..SpecialTokens::default() });
}

#[test]
fn special_tokens_are_read_as_text_as_object_and_from_the_post_processor() {
    let folder = folder(&json!({"pad_token_id": 3}));
    let names = json!({"pad_token": "[PAD]", "unk_token": {"content": "good"}, "padding_side": "left"});
    write_json(&folder, "tokenizer_config.json", &names);
    write_json(&folder, "special_tokens_map.json", &json!({"mask_token": "[MASK]", "unk_token": "[UNK]"}));
    let vocab = json!([["<unk>", -1.5], ["[PAD]", 0.0], ["good", -2.0], ["[MASK]", 0.0], ["[UNK]", 0.0]]);
    let single =
        json!([{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}}]);
    let specials = json!({"<s>": {"ids": [8]}, "</s>": {"ids": [9]}});
    let processor = json!({"type": "TemplateProcessing", "single": single, "special_tokens": specials});
    let sequence = json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, processor]});
    let model = json!({"type": "Unigram", "unk_id": 0, "vocab": vocab});
    write_json(&folder, "tokenizer.json", &json!({"post_processor": sequence, "model": model}));
    let manifest = read(&folder);
    let s = &manifest.special;
    assert_eq!((s.pad, s.unk, s.mask, s.cls, s.sep), (Some(3), Some(2), Some(3), Some(8), Some(9)));
    assert_eq!(manifest.padding_side, Side::Left);
}

#[test]
fn a_special_token_that_the_tokenizer_lacks_is_refused() {
    let folder = folder(&json!({}));
    write_json(&folder, "tokenizer_config.json", &json!({"mask_token": {"content": "<mask>"}}));
    let refused = "tokenizer_config.json at `/mask_token/content`: `<mask>` is not a token of tokenizer.json";
    assert_eq!(refusal(&folder), refused);
}

#[test]
fn a_padding_id_beyond_the_vocabulary_is_refused_and_minus_one_means_none() {
    let beyond = json!({"pad_token_id": 6, "vocab_size": 6});
    assert!(refusal(&folder(&beyond)).starts_with("config.json at `/pad_token_id`: expected the id"));
    assert_eq!(read(&folder(&json!({"pad_token_id": -1}))).config.pad_token_id, None);
}

#[test]
fn what_a_folder_lacks_is_named() {
    for name in ["model.onnx", "config.json", "tokenizer.json"] {
        let folder = folder(&json!({}));
        std::fs::remove_file(folder.path().join(name)).unwrap();
        assert_eq!(refusal(&folder), format!("{name}: the file is missing"));
    }
    let nowhere = Manifest::read(Path::new("no/such/folder"), None).unwrap_err();
    assert!(matches!(nowhere, ManifestError::NoFolder { .. }));
}

#[test]
fn a_quantised_model_is_taken_only_when_chosen() {
    let folder = folder(&json!({}));
    std::fs::remove_file(folder.path().join("model.onnx")).unwrap();
    write(&folder, "onnx/model_quantized.onnx", &field(7, b""));
    let refused = "model.onnx: the file is missing; the folder holds onnx/model_quantized.onnx: name the one to serve model.onnx";
    assert_eq!(refusal(&folder), refused);
    let chosen = Manifest::read(folder.path(), Some("onnx/model_quantized.onnx")).unwrap();
    assert!(chosen.graph.ends_with("onnx/model_quantized.onnx"));
    write(&folder, "onnx/model.onnx", &field(7, b""));
    assert!(read(&folder).graph.ends_with("onnx/model.onnx"));
}

#[test]
fn data_files_beside_the_model_are_found_and_hashed_with_it() {
    let folder = folder(&json!({}));
    let model = model_with_weights_in("model.onnx_data");
    write(&folder, "model.onnx", &model);
    let missing = "model.onnx: the data file `model.onnx_data` of tensor `w` is not a file beside the model";
    assert_eq!(refusal(&folder), missing);
    write(&folder, "model.onnx_data", b"weights");
    let manifest = read(&folder);
    assert_eq!(manifest.external, [folder.path().join("model.onnx_data")]);
    let whole = Sha256::digest([&model[..], b"weights"].concat());
    assert_eq!(manifest.digest().unwrap(), hex::encode(whole));
}

#[test]
fn a_data_file_outside_the_folder_is_refused_though_it_exists() {
    let folder = folder(&json!({}));
    write(&folder, "secret", b"weights");
    write(&folder, "onnx/model.onnx", &model_with_weights_in("../secret"));
    std::fs::remove_file(folder.path().join("model.onnx")).unwrap();
    assert!(refusal(&folder).contains("`../secret` of tensor `w` is not a file beside the model"));
}

#[test]
fn what_is_not_an_onnx_model_is_refused() {
    let folder = folder(&json!({}));
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    for (bytes, reason) in [
        (&b""[..], "it holds no graph"),
        (pointer.as_bytes(), "it is not a protobuf message"),
        (&[0x3a, 0x05, 0x00], "it is cut off"),
        (&[0xff; 12], "it is not a protobuf message"),
    ] {
        write(&folder, "model.onnx", bytes);
        assert_eq!(refusal(&folder), format!("model.onnx: not an ONNX model: {reason}"));
    }
}

#[test]
fn a_file_that_is_not_json_is_named_with_the_place() {
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "explaind.json"] {
        let folder = folder(&json!({}));
        write(&folder, name, b"{\n  \"a\": }");
        assert_eq!(refusal(&folder), format!("{name}: expected value at line 2 column 8"));
    }
}

#[test]
fn fields_of_the_wrong_kind_are_pointed_at() {
    for (file, content, refused) in [
        ("config.json", json!([]), "config.json at ``: expected an object"),
        ("config.json", json!({"model_type": 1}), "config.json at `/model_type`: expected a string"),
        (
            "config.json",
            json!({"max_position_embeddings": -5}),
            "config.json at `/max_position_embeddings`: expected a whole number of at least 1",
        ),
        (
            "tokenizer_config.json",
            json!({"model_max_length": 0}),
            "tokenizer_config.json at `/model_max_length`: expected a whole number of at least 1",
        ),
        (
            "tokenizer_config.json",
            json!({"padding_side": "up"}),
            "tokenizer_config.json at `/padding_side`: expected `left` or `right`",
        ),
        (
            "tokenizer_config.json",
            json!({"pad_token": 0}),
            "tokenizer_config.json at `/pad_token`: expected a token",
        ),
    ] {
        let folder = folder(&json!({}));
        write_json(&folder, file, &content);
        assert_eq!(refusal(&folder), refused);
    }
}

#[test]
fn the_settings_file_sets_the_temperature_and_refuses_what_it_does_not_know() {
    let folder = folder(&json!({"num_labels": 2}));
    assert_eq!(read(&folder).settings.temperature, 1.0);
    write_json(&folder, SETTINGS_FILE, &json!({"temperature": 2.0}));
    let labels = read(&folder).labels(None).unwrap();
    assert_eq!(labels.value(Output::LogOdds, &[3.0, 0.0], 0).unwrap(), 1.5);
    write_json(&folder, SETTINGS_FILE, &json!({"temprature": 2.0}));
    assert_eq!(refusal(&folder), "explaind.json at `/temprature`: unknown key");
    for bad in [json!(0), json!(-1.0), json!("2")] {
        write_json(&folder, SETTINGS_FILE, &json!({"temperature": bad}));
        assert!(refusal(&folder).starts_with("explaind.json at `/temperature`: expected a number"));
    }
}
