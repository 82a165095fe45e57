//! What stays resident over many requests, with our settings and with ONNX Runtime's own, and what one large
//! request takes while it runs.

use explaind::{explain::random, model::Model};
use rand_chacha::rand_core::Rng;
use serde_json::json;

use crate::{
    bare::{encoded, review},
    host::Host,
    measure::{line, memory, reset_peak, row, table},
};

/// Prints resident memory on the way through `requests` requests and after one of the largest kind, for both arrangements.
pub fn soak(model: &Model, requests: u64) {
    let marks: Vec<u64> = [0, 1, 2, 5, 10].iter().map(|tenths| requests * tenths / 10).collect();
    let mut head = vec!["resident MiB after requests".to_owned()];
    head.extend(marks.iter().map(u64::to_string));
    head.push("last by first tenth".to_owned());
    head.push("then one text of 400 tokens, integrated gradients".to_owned());
    table(&head.iter().map(String::as_str).collect::<Vec<_>>());
    for (name, defaults) in [("arena and memory pattern off", false), ("ONNX Runtime's defaults", true)] {
        let host = Host::start(defaults);
        let sizes: Vec<f64> = marks.windows(2).map(|it| send(model, &host, it[0]..it[1])).collect();
        let mut cells = vec![name.to_owned(), "-".to_owned()];
        cells.extend(sizes.iter().map(|it| format!("{it:.1}")));
        cells.push(format!("{:.3}", sizes[sizes.len() - 1] / sizes[0]));
        let body = json!({ "inputs": long(model, 400), "timeout_ms": 600_000 });
        host.client().post("/explain/integrated-gradients", &body);
        cells.push(format!("{:.1}", memory(host.process(), "VmRSS:")));
        row(&cells);
    }
}

/// Sends the requests over two connections and tells the service's resident memory after them.
fn send(model: &Model, host: &Host, numbers: std::ops::Range<u64>) -> f64 {
    let sentence = review(model, 25);
    std::thread::scope(|scope| {
        for part in 0..2 {
            let (numbers, sentence) = (numbers.clone(), &sentence);
            scope.spawn(move || {
                let mut client = host.client();
                for number in numbers.filter(|number| number % 2 == part) {
                    let draw = random::stream(2, number).next_u64();
                    // From 1 to about 440 words, short ones as likely as long ones on a logarithmic scale.
                    let words = (440f64.ln() * (draw >> 11) as f64 / (1u64 << 53) as f64).exp() as usize;
                    let text: Vec<&str> = sentence.split(' ').cycle().take(words.max(1)).collect();
                    let path =
                        if words < 60 && number % 10 < 2 { "/explain/leave-one-out" } else { "/predict" };
                    client.exchange(path, &json!({ "inputs": text.join(" ") }).to_string());
                }
            });
        }
    });
    memory(host.process(), "VmRSS:")
}

/// The most that LIME with 5,000 samples of a text of 400 tokens takes on top of an idle service.
pub fn lime(model: &Model, samples: usize) {
    let host = Host::start(false);
    let mut client = host.client();
    client.post("/predict", &json!({ "inputs": review(model, 25) }));
    let idle = memory(host.process(), "VmRSS:");
    reset_peak(host.process());
    let text = long(model, 400);
    let parameters = json!({ "samples": samples });
    let body = json!({ "inputs": text, "timeout_ms": 600_000, "parameters": parameters });
    let answer = client.post("/explain/lime", &body);
    let passes = answer["usage"]["forward_passes"].as_u64().expect("usage tells");
    let more = memory(host.process(), "VmHWM:") - idle;
    let what = format!("LIME, {samples} samples of 400 tokens ({passes} passes): peak above idle");
    line(&what, format!("{more:.0} MiB (idle {idle:.0} MiB)"), "≤ 150 MB", more * 1.048_576 <= 150.0);
}

/// A review of at least `tokens` tokens.
fn long(model: &Model, tokens: usize) -> String {
    let sentence = review(model, 25);
    let words: Vec<&str> = sentence.split(' ').collect();
    (1..)
        .map(|count| words.iter().cycle().take(count).copied().collect::<Vec<_>>().join(" "))
        .find(|text| encoded(model, text).len() >= tokens)
        .expect("texts grow")
}
