"""LIME and Kernel SHAP over HTTP against the Python libraries lime and shap, with the same weights in PyTorch.

    ENV/bin/python benches/peers/surrogates.py target/release/explaind SERVICE_BENCH [--quick]

At the same number of samples, and at the same error: the service is given the fewest samples of a geometric ladder
at which its mean squared error is no larger than the library's at 1,000. Errors are against exact Shapley values,
or against a LIME run of many more samples; all texts of a method share one number of samples.
"""
import logging, re, warnings

import numpy as np
import torch
from lime.lime_text import LimeTextExplainer
import shap
from torch.nn.utils.rnn import pad_sequence

from common import SENTENCES, Service, arguments, head, in_turn, median, ratio, row, timed, tokenizer, torch_model

warnings.filterwarnings("ignore")
logging.getLogger("shap").setLevel(logging.ERROR)
LONG = [*SENTENCES[:3], "The hotel is close to the station, which is the only kind thing I can say about our stay there."]
SHORT = [
    "A lean, tense and beautifully shot thriller that never wastes a word.",
    "Nothing about this remake suggests that anyone enjoyed the original.",
    "The acting is fine but the story never finds its reason.",
]
SAMPLES = 1000
LADDER = (125, 149, 177, 210, 250, 297, 354, 420, 500, 595, 707, 841, 1000)
BATCH = 64


class Peer:
    """The model as users of the libraries call it."""

    def __init__(self):
        self.model, self.reader = torch_model(), tokenizer()
        self.reader.enable_padding()
        self.rows = self.tokens = 0

    def positive(self, ids, mask):
        self.rows += ids.shape[0]
        self.tokens += ids.numel()
        with torch.no_grad():
            return torch.softmax(self.model(input_ids=ids, attention_mask=mask).logits, -1).numpy()

    def of_texts(self, texts):
        """Batches of texts, padded to the longest."""
        out = []
        for start in range(0, len(texts), BATCH):
            batch = self.reader.encode_batch(list(texts[start:start + BATCH]))
            out.append(self.positive(torch.tensor([it.ids for it in batch]),
                                     torch.tensor([it.attention_mask for it in batch])))
        return np.concatenate(out).astype(np.float64)


class Explained:
    """One text: what the service and the library say about it, and the values both are held against."""

    def __init__(self, service, method, text, parameters, granularity):
        self.service, self.method, self.text = service, method, text
        self.parameters, self.granularity = parameters, granularity
        self.seed = 0

    def answer(self, method, seed, **parameters):
        return self.service.explain(method, self.text, target="positive", output="probability", seed=seed,
                                    granularity=self.granularity, parameters=parameters)

    def scores(self, samples, seed):
        answer = self.answer(self.method, seed, samples=samples, **self.parameters)
        self.usage = answer["usage"]
        return scores(answer)

    def time(self, samples):
        self.seed += 1
        return timed(lambda: self.scores(samples, self.seed))[0]

    def error(self, samples, seeds):
        return mean_square([self.scores(samples, seed) for seed in range(seeds)], self.truth)

    def library_time(self):
        self.seed += 1
        return timed(lambda: self.library(self.seed))[0]

    def library_error(self, seeds):
        return mean_square([self.library(seed) for seed in range(seeds)], self.truth)


def scores(answer):
    return np.array([it["score"] for it in answer["results"][0]["explanations"][0]["attributions"]])


def mean_square(found, truth):
    return float(np.mean([np.mean((it - truth) ** 2) for it in found]))


def lime(peer, service, text, reference, regression):
    """Both delete words by position; what is between words stays."""
    words = [[it.start(), it.end()] for it in re.finditer(r"\w+", text)]
    it = Explained(service, "lime", text, {"operation": "delete", "regression": regression}, {"spans": words})
    it.truth = scores(it.answer("lime", 99, operation="delete", samples=reference))

    def library(seed):
        explainer = LimeTextExplainer(bow=False, mask_string="", random_state=seed, feature_selection="none")
        fit = explainer.explain_instance(
            text, peer.of_texts, labels=(1,), num_samples=SAMPLES, num_features=len(words))
        weights = np.zeros(len(words))
        for place, weight in fit.as_map()[1]:
            weights[place] = weight
        return weights

    it.library = library
    return it


def kernel(peer, service, text, operation):
    """Both put mask tokens in the place of words, or leave them out: then batches are padded to the longest row."""
    it = Explained(service, "kernel-shap", text, {"operation": operation}, "word")
    exact = it.answer("exact-shap", 0, operation=operation)
    it.truth = scores(exact)
    places = [(one["start"], one["end"]) for one in exact["results"][0]["explanations"][0]["attributions"]]
    encoding = peer.reader.encode(text)
    ids = np.array(encoding.ids)
    owner = np.full(len(ids), -1)
    for at, (start, end) in enumerate(encoding.offsets):
        for feature, (first, last) in enumerate(places):
            if not encoding.special_tokens_mask[at] and first <= start and end <= last:
                owner[at] = feature
    hidden, gap = peer.reader.token_to_id("[MASK]"), peer.reader.token_to_id("[PAD]")

    def worth(presence):
        presence = np.asarray(presence) > 0.5
        out = []
        for start in range(0, len(presence), BATCH):
            part = presence[start:start + BATCH]
            absent = (owner[None] >= 0) & ~part[:, owner.clip(0)]
            if operation == "mask":
                rows = torch.from_numpy(np.where(absent, hidden, ids[None]))
                shown = torch.ones_like(rows)
            else:
                kept = [torch.from_numpy(ids[~row]) for row in absent]
                rows = pad_sequence(kept, batch_first=True, padding_value=gap)
                shown = pad_sequence([torch.ones_like(it) for it in kept], batch_first=True)
            out.append(peer.positive(rows, shown)[:, 1])
        return np.concatenate(out).astype(np.float64)

    n = len(places)

    def library(seed):
        np.random.seed(seed)
        explainer = shap.KernelExplainer(worth, np.zeros((1, n)))
        values = explainer.shap_values(np.ones((1, n)), nsamples=SAMPLES, l1_reg=False, silent=True)
        return np.asarray(values).reshape(-1)

    it.library = library
    return it


def fewest(errors_at, library_error):
    """The first step of the ladder at which the error is no larger, by bisection: errors fall as samples grow."""
    low, high = 0, len(LADDER) - 1
    while low < high:
        middle = (low + high) // 2
        if errors_at(LADDER[middle]) <= library_error:
            high = middle
        else:
            low = middle + 1
    return LADDER[low]


def report(name, peer, all, rounds, seeds, target_same, target_error):
    library_error = float(np.mean([it.library_error(seeds) for it in all]))
    kept = {}

    def error_at(samples):
        if samples not in kept:
            kept[samples] = float(np.mean([it.error(samples, 2 * seeds) for it in all]))
        return kept[samples]

    size = fewest(error_at, library_error)
    ours, theirs, equal = [], [], []
    for it in all:
        a, b, c = in_turn(rounds, lambda: it.time(SAMPLES), it.library_time, lambda: it.time(size))
        ours, theirs, equal = ours + a, theirs + b, equal + c
    yes = lambda met: "yes" if met else "**no**"
    same, error = ratio(theirs, ours), ratio(theirs, equal)
    row(f"{name}, {SAMPLES:,} samples", f"{median(ours):.0f}", f"{median(theirs):.0f}", f"{same:.2f}",
        f"{error_at(SAMPLES):.1e}", f"{library_error:.1e}", f"≥ {target_same}", yes(same >= target_same))
    row(f"{name}, equal error ({size} samples for {SAMPLES:,})", f"{median(equal):.0f}", f"{median(theirs):.0f}",
        f"{error:.2f}", f"{error_at(size):.1e}", f"{library_error:.1e}", f"≥ {target_error}",
        yes(error >= target_error and error_at(size) <= library_error))
    return [name, *work(peer, all)]


def work(peer, all):
    """Rows and tokens of one text at 1,000 samples, and what a token costs: the model alone, in both."""
    rows, tokens, computed = [], [], []
    for it in all:
        it.scores(SAMPLES, seed=7)
        rows.append(it.usage["forward_passes"])
        tokens.append(it.usage["tokens"])
    peer.rows = peer.tokens = 0
    for it in all:
        it.library(7)
    return (f"{np.mean(rows):.0f}", f"{np.mean(tokens):.0f}", f"{peer.rows / len(all):.0f}",
            f"{peer.tokens / len(all):.0f}")


if __name__ == "__main__":
    binary, _, rounds = arguments()
    rounds, seeds, texts, reference = (1, 1, 1, 2000) if rounds < 5 else (3, 3, 4, 10_000)
    peer, service = Peer(), Service(binary)
    head("ms a text", "service over HTTP", "library", "times faster", "error of the service", "of the library",
         "target", "met")
    shares = []
    for regression, name in [("linear", "lime"), ("interactions", 'lime, `regression: "interactions"`')]:
        all = [lime(peer, service, it, reference, regression) for it in LONG[:texts]]
        shares.append(report(name, peer, all, rounds, seeds, 2.0, 4.0))
    for operation, done in [("mask", "words masked"), ("delete", "words deleted")]:
        all = [kernel(peer, service, it, operation) for it in SHORT[:texts]]
        shares.append(report(f"shap.KernelExplainer, {done}", peer, all, rounds, seeds, 1.6, 4.0))
    print()
    head("work of a text, 1,000 samples", "rows of the service", "its computed tokens", "rows of the library",
         "its computed tokens")
    for it in shares:
        row(*it)
    service.close()
