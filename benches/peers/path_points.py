"""How many points integrated gradients need: the rules of src/explain/gradient/quadrature.rs in float64.

    ENV/bin/python benches/peers/path_points.py [TSV] [COUNT]

Texts are those of `common.py`, then COUNT (60) of the TSV's second column, drawn from a fixed seed. Errors are against 16
panels of 20 Gauss-Legendre points: of the sum over tokens, and of the worst token.
"""
import csv, sys

import numpy as np
import torch

from common import SENTENCES, head, row, tokenizer, torch_model

CENTRE = WIDTH = 0.2


def gauss_legendre(steps):
    points, weights = np.polynomial.legendre.leggauss(steps)
    return (points + 1) / 2, weights / 2


def fejer(steps):
    parts = steps + 1
    angles, odd = np.pi * np.arange(1, parts) / parts, np.arange(1, parts // 2 + 1) * 2 - 1
    weights = 2 / parts * np.sin(angles) * (np.sin(np.outer(angles, odd)) / odd).sum(1)
    return np.sin(angles / 2) ** 2, weights


def graded(steps):
    even, weights = fejer(steps)
    start, end = np.arcsinh(-CENTRE / WIDTH), np.arcsinh((1 - CENTRE) / WIDTH)
    at = start + (end - start) * even
    weights = weights * np.cosh(at)
    return CENTRE + WIDTH * np.sinh(at), weights / weights.sum()


class Line:
    def __init__(self, model, words, ids, baseline):
        self.model, self.x = model, words[ids]
        self.start = self.x.clone()
        self.start[1:-1] = 0 if baseline is None else words[baseline]
        with torch.no_grad():
            self.label = int(model(inputs_embeds=self.x[None]).logits[0].argmax())

    def scores(self, points, weights, chunk=40):
        total, way = 0, self.x - self.start
        for at in range(0, len(points), chunk):
            share = torch.from_numpy(points[at:at + chunk])[:, None, None]
            place = (self.start + share * way).requires_grad_()
            slope, = torch.autograd.grad(
                self.model(inputs_embeds=place).logits[:, self.label].sum(), place)
            total = total + (torch.from_numpy(weights[at:at + chunk]) @ (slope * way).sum(-1)).numpy()
        return total


def main(texts):
    model, reader = torch_model().double(), tokenizer()
    model.requires_grad_(False)
    words = model.bert.embeddings.word_embeddings.weight
    fine = gauss_legendre(20)
    fine = (np.concatenate([(panel + fine[0]) / 16 for panel in range(16)]), np.tile(fine[1] / 16, 16))
    head("baseline", "rule", "points", "error of the sum: median", "9 of 10 below", "worst",
         "of the worst token: median", "9 of 10 below", "worst")
    for name in ("pad", "mask", "zero"):
        baseline = None if name == "zero" else reader.token_to_id(f"[{name.upper()}]")
        lines = [Line(model, words, reader.encode(text).ids, baseline) for text in texts]
        wanted = [line.scores(*fine) for line in lines]
        for rule in (gauss_legendre, fejer, graded):
            for steps in (16, 25, 32, 40, 50, 65):
                gaps = [line.scores(*rule(steps)) - it for line, it in zip(lines, wanted)]
                both = np.array([(abs(it.sum()), np.abs(it).max()) for it in gaps]).T
                cells = [f"{it:.1e}" for part in both for it in (*np.quantile(part, [0.5, 0.9]), part.max())]
                row(name, rule.__name__, steps, *cells)


if __name__ == "__main__":
    more = []
    if len(sys.argv) > 1:
        with open(sys.argv[1]) as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
        count = int(sys.argv[2]) if len(sys.argv) > 2 else 60
        more = [rows[at][1] for at in np.random.default_rng(1).permutation(len(rows))[:count]]
    main(SENTENCES + more)
