"""LIME and Kernel SHAP over HTTP against the Python libraries lime and shap, with the same weights in PyTorch.

    ENV/bin/python benches/peers/surrogates.py target/release/explaind SERVICE_BENCH [--quick]

At the same number of samples, and at the same error: the service is asked for fewer samples until its error
against long-run (LIME) or exact (Shapley) values is no larger than the library's at 1,000.
"""
import itertools, logging, math, re, warnings

import numpy as np
import torch
from lime.lime_text import LimeTextExplainer
import shap

from common import SENTENCES, Service, arguments, head, in_turn, median, ratio, row, timed, tokenizer, torch_model

warnings.filterwarnings("ignore")
logging.getLogger("shap").setLevel(logging.ERROR)
SHORT = [
    "A lean, tense and beautifully shot thriller that never wastes a word.",
    "Nothing about this remake suggests that anyone enjoyed the original series.",
    "The acting is fine but the story never finds its reason.",
]
LONG = 15000
BUDGETS = (128, 192, 256, 384, 512, 768, 1000)


class Peer:
    def __init__(self):
        self.model, self.reader = torch_model(), tokenizer()
        self.reader.enable_padding()

    def probabilities(self, texts):
        """As users write it: batches of 64, padded to the longest."""
        out = []
        with torch.no_grad():
            for start in range(0, len(texts), 64):
                batch = self.reader.encode_batch(list(texts[start:start + 64]))
                ids = torch.tensor([it.ids for it in batch])
                mask = torch.tensor([it.attention_mask for it in batch])
                out.append(torch.softmax(self.model(input_ids=ids, attention_mask=mask).logits, -1).numpy())
        return np.concatenate(out).astype(np.float64)


def spans(service, text):
    answer = service.explain("leave-one-out", text)["results"][0]["explanations"][0]
    return [(it["start"], it["end"]) for it in answer["attributions"]]


def scores(answer):
    return np.array([it["score"] for it in answer["results"][0]["explanations"][0]["attributions"]])


def report(name, text_results, target_same, target_error):
    ours, theirs, equal, errors, peers, sizes = (list(it) for it in zip(*text_results))
    flat = lambda lists: [it for one in lists for it in one]
    same, error = ratio(flat(theirs), flat(ours)), ratio(flat(theirs), flat(equal))
    yes = lambda met: "yes" if met else "**no**"
    row(f"{name}, 1,000 samples", f"{median(flat(ours)):.0f}", f"{median(flat(theirs)):.0f}", f"{same:.2f}",
        f"≥ {target_same}", yes(same >= target_same))
    row(f"{name}, equal error ({median(sizes):.0f} samples; mean squared error {np.mean(errors):.1e} against "
        f"{np.mean(peers):.1e})", f"{median(flat(equal)):.0f}", f"{median(flat(theirs)):.0f}", f"{error:.2f}",
        f"≥ {target_error}", yes(error >= target_error))


def compare(service, method, text, parameters, rounds, library, truth, library_error):
    """Times at 1,000 samples, and at the smallest budget whose error is no larger than the library's."""
    def call(samples):
        return timed(lambda: service.explain(
            method, text, target="positive", output="probability",
            parameters={**parameters, "samples": samples}))[0]

    def error(samples):
        runs = [scores(service.explain(method, text, target="positive", output="probability", seed=seed,
                                       parameters={**parameters, "samples": samples})) for seed in range(3)]
        return float(np.mean([np.mean((it - truth) ** 2) for it in runs]))

    size, mse = 1000, error(1000)
    for budget in BUDGETS:
        found = error(budget)
        if found <= library_error:
            size, mse = budget, found
            break
    a, b, c = in_turn(rounds, lambda: call(1000), library, lambda: call(size))
    return a, b, c, mse, library_error, size


def lime(peer, service, rounds):
    results = []
    for text in SENTENCES:
        positive = lambda texts: peer.probabilities(texts)
        seed = itertools.count()

        def library():
            explainer = LimeTextExplainer(bow=False, random_state=next(seed), feature_selection="none")
            taken, fit = timed(lambda: explainer.explain_instance(
                text, positive, labels=(1,), num_samples=1000, num_features=100))
            library.weights = fit.as_map()[1]
            library.places = fit.domain_mapper.indexed_string
            return taken

        # The service's features, in the order of the text, are lime's words.
        parameters = {"operation": "delete"}
        long = scores(service.explain("lime", text, target="positive", output="probability", seed=99,
                                      parameters={**parameters, "samples": LONG}))
        found = []
        for _ in range(3):
            library()
            weights = np.zeros(len(long))
            for place, weight in library.weights:
                weights[place] = weight
            found.append(weights)
        library_error = float(np.mean([np.mean((it - np.mean(found, 0)) ** 2) for it in found]) * 1.5)
        results.append(compare(service, "lime", text, parameters, rounds, library, long, library_error))
    report("lime", results, 2.0, 4.0)


def kernel(peer, service, rounds):
    results = []
    for text in SHORT:
        places = spans(service, text)
        encoding = peer.reader.encode(text)
        ids = np.array(encoding.ids)
        owner = np.full(len(ids), -1)
        for at, (start, end) in enumerate(encoding.offsets):
            for feature, (first, last) in enumerate(places):
                if not encoding.special_tokens_mask[at] and first <= start and end <= last:
                    owner[at] = feature
        hidden = peer.reader.token_to_id("[MASK]")

        def worth(presence):
            presence = np.asarray(presence) > 0.5
            out = []
            with torch.no_grad():
                for start in range(0, len(presence), 64):
                    part = presence[start:start + 64]
                    rows = np.where((owner[None] >= 0) & ~part[:, owner.clip(0)], hidden, ids[None])
                    logits = peer.model(input_ids=torch.from_numpy(rows)).logits
                    out.append(torch.softmax(logits, -1)[:, 1].numpy())
            return np.concatenate(out).astype(np.float64)

        n = len(places)
        exact = scores(service.explain("exact-shap", text, target="positive", output="probability"))
        seeds = itertools.count()

        def library():
            np.random.seed(next(seeds))
            explainer = shap.KernelExplainer(worth, np.zeros((1, n)))
            taken, values = timed(lambda: explainer.shap_values(np.ones((1, n)), nsamples=1000, l1_reg=False, silent=True))
            library.values = np.asarray(values).reshape(-1)
            return taken

        errors = []
        for _ in range(3):
            library()
            errors.append(float(np.mean((library.values - exact) ** 2)))
        results.append(compare(service, "kernel-shap", text, {}, rounds, library, exact, float(np.mean(errors))))
    report("shap.KernelExplainer", results, 1.6, 4.0)


if __name__ == "__main__":
    binary, _, rounds = arguments()
    peer, service = Peer(), Service(binary)
    head("ms a text", "service over HTTP", "library", "times faster", "target", "met")
    lime(peer, service, max(2, rounds // 3))
    kernel(peer, service, max(2, rounds // 3))
    service.close()
