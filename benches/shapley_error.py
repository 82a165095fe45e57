"""Makes the games of the Shapley error table, and the errors of shap.KernelExplainer on them.

    python -m venv ENV && ENV/bin/pip install onnxruntime tokenizers shap==0.51.0
    ENV/bin/python benches/shapley_error.py MODEL_FOLDER SENTENCES OUT_FOLDER
    EXPLAIND_GAMES=OUT_FOLDER cargo bench --bench shapley_error

SENTENCES is a JSON-lines file with a "text" in each line. Sentences of 10 to 14 words are taken (6, 5, 5, 3 and 3
of them), every set of their words is evaluated with the others replaced by [MASK], and the predicted label's
probability and log-odds become one game each.
"""
import json, logging, math, re, sys, warnings
from pathlib import Path

import numpy as np
import onnxruntime
import shap
from tokenizers import Tokenizer

logging.getLogger("shap").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")
BUDGETS = (128, 256, 512, 1024)


def words(text):
    return [m.span() for m in re.finditer(r"\w+(?:[-']\w+)*", text)]


def pick(lines):
    texts = [json.loads(line)["text"] for line in lines]
    want = {10: 6, 11: 5, 12: 5, 13: 3, 14: 3}
    for i in np.random.RandomState(0).permutation(len(texts)):
        n = len(words(texts[i]))
        if want.get(n, 0) > 0:
            want[n] -= 1
            yield texts[i]


def all_logits(session, tokenizer, text):
    spans, encoding, mask = words(text), tokenizer.encode(text), tokenizer.token_to_id("[MASK]")
    ids, n = np.array(encoding.ids), len(spans)
    owner = np.full(len(ids), -1)
    for token, (start, end) in enumerate(encoding.offsets):
        for word, (first, last) in enumerate(spans):
            if start < end and start < last and end > first:
                owner[token] = word
    present = ((np.arange(1 << n)[:, None] >> np.arange(n)) & 1).astype(bool)
    logits = []
    for part in np.array_split(present, max(1, len(present) // 256)):
        keep = np.where(owner >= 0, part[:, np.maximum(owner, 0)], True)
        rows = np.where(keep, ids[None], mask).astype(np.int64)
        feed = {"input_ids": rows, "attention_mask": np.ones_like(rows), "token_type_ids": np.zeros_like(rows)}
        logits.append(session.run(["logits"], feed)[0])
    return np.concatenate(logits).astype(float)


def exact(n, worth):
    codes = np.arange(1 << n)
    sizes = np.array([bin(code).count("1") for code in codes])
    weight = np.array([math.factorial(s) * math.factorial(n - s - 1) / math.factorial(n) for s in range(n)])
    without = [codes[(codes >> i) & 1 == 0] for i in range(n)]
    return np.array([(weight[sizes[c]] * (worth[c | 1 << i] - worth[c])).sum() for i, c in enumerate(without)])


def peer_error(n, worth, samples, values):
    errors = []
    for seed in range(10):
        np.random.seed(seed)
        explainer = shap.KernelExplainer(lambda x: worth[x.astype(int) @ (1 << np.arange(n))], np.zeros((1, n)))
        found = explainer.shap_values(np.ones((1, n)), nsamples=samples, l1_reg=False, silent=True)[0]
        errors.append(((found - values) ** 2).mean())
    return float(np.mean(errors))


def main(model, sentences, out):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(f"{model}/model.onnx", options)
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    Path(out).mkdir(parents=True, exist_ok=True)
    for place, text in enumerate(pick(open(sentences))):
        logits, n = all_logits(session, tokenizer, text), len(words(text))
        target = int(logits[-1].argmax())
        exponent = np.exp(logits - logits.max(1, keepdims=True))
        probability = (exponent / exponent.sum(1, keepdims=True))[:, target]
        for output, worth in (("probability", probability), ("log_odds", np.log(probability / (1 - probability)))):
            worth = np.round(worth, 6)
            values = exact(n, worth)
            game = {
                "text": text, "output": output, "players": n, "exact": [round(v, 9) for v in values],
                "shap_mse": {str(m): peer_error(n, worth, m, values) for m in BUDGETS},
                "worth": worth.tolist(),
            }
            Path(out, f"{place:02}-{output}.json").write_text(json.dumps(game))
            print(place, output, n, text, flush=True)


main(*sys.argv[1:])
