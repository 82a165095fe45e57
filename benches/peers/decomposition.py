"""Relevance over HTTP against lxt, and a relevance pass against a gradient pass of the same rows.

    ENV/bin/python benches/peers/decomposition.py target/release/explaind SERVICE_BENCH [--quick]

`scripts/bench decomposition` does all of it.
"""
import tempfile, warnings
from pathlib import Path

import torch
from lxt.efficient import monkey_patch
from transformers.models.bert import modeling_bert

from common import (FOLDER, SENTENCES, Passes, Service, arguments, head, in_turn, median, ratio, row, timed,
                    tokenizer, torch_model)
from gradients import minilm

warnings.filterwarnings("ignore")
SHAPES = [(1, 25), (16, 25), (50, 32), (8, 128)]
COMPOSITES = ["attn-lrp", "cp-lrp", "lrp-0", "epsilon", "gamma", "alpha-beta", "z-plus", "deep-taylor"]


def passes(bench, rounds):
    """Every relevance pass tells heads, neurons and layers as well: there is no cheaper one without them."""
    head("pass", "model", "rows x tokens", "gradient ms", "relevance and components ms", "by gradient",
         "≤ 1.5, a pass", "≤ 2, with components")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        minilm(folder)
        for name, place in [("bundled", FOLDER), ("MiniLM-L6 shape", folder)]:
            engine = Passes(bench, place)
            for rows, tokens in SHAPES:
                for composite in COMPOSITES if (rows, tokens) == (16, 25) else COMPOSITES[:1]:
                    gradient, relevance = in_turn(
                        3 * rounds, lambda: engine.run("gradient", rows, tokens),
                        lambda: engine.run(composite, rows, tokens))
                    cost = ratio(relevance, gradient)
                    row(composite, name, f"{rows} x {tokens}", f"{median(gradient):.1f}", f"{median(relevance):.1f}",
                        f"{cost:.2f}", *("yes" if cost <= bound else "**no**" for bound in (1.5, 2)))
            engine.close()


def explanations(binary, rounds):
    reader, service = tokenizer(), Service(binary)
    monkey_patch(modeling_bert, verbose=False)
    model = torch_model("eager")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    ours, with_components, theirs, gaps = [], [], [], []
    for text in SENTENCES:
        ids = torch.tensor([reader.encode(text).ids])

        def peer():
            def work():
                embeds = model.bert.embeddings.word_embeddings(ids).detach().requires_grad_()
                logits = model(inputs_embeds=embeds).logits[0]
                logits.max().backward()
                return (embeds * embeds.grad).sum(-1)[0]
            taken, peer.relevance = timed(work)
            return taken

        def call(parameters):
            taken, answer = timed(lambda: service.explain(
                "lrp", text, output="logit", granularity="token", parameters=parameters))
            call.scores = [it["score"] for it in answer["results"][0]["explanations"][0]["attributions"]]
            return taken

        a, b, c = in_turn(3 * rounds, lambda: call({}),
                          lambda: call({"components": ["heads", "neurons", "layers"]}), peer)
        ours += a
        with_components += b
        theirs += c
        # Special tokens come last in the answer, first and last in the text.
        found = torch.tensor(call.scores)
        found = torch.cat([found[-2:-1], found[:-2], found[-1:]])
        gaps.append(float((found - peer.relevance).abs().max() / peer.relevance.abs().max()))
    service.close()
    head("explanation, ms a text", "service", "lxt in PyTorch", "times faster", "largest difference", "target", "met")
    for name, times in [("attn-lrp", ours), ("attn-lrp with heads, neurons, layers", with_components)]:
        faster = ratio(theirs, times)
        row(name, f"{median(times):.1f}", f"{median(theirs):.1f}", f"{faster:.2f}", f"{max(gaps):.1e}", "≥ 1.5",
            "yes" if faster >= 1.5 and max(gaps) < 1e-3 else "**no**")


if __name__ == "__main__":
    binary, bench, rounds = arguments()
    passes(bench, rounds)
    print()
    explanations(binary, rounds)
