"""Integrated gradients over HTTP against Captum, and the gradient pass against PyTorch autograd.

    python3 -m venv ENV && ENV/bin/pip install -r benches/peers/requirements.txt
    ENV/bin/python benches/peers/gradients.py target/release/explaind SERVICE_BENCH [--quick]

`scripts/bench` does all of it.
"""
import shutil, subprocess, tempfile, warnings
from pathlib import Path

import torch
from captum.attr import IntegratedGradients
from transformers import BertConfig, BertForSequenceClassification

from common import (FOLDER, SENTENCES, Passes, Service, arguments, head, in_turn, median, ratio, row, timed,
                    tokenizer, torch_model)

warnings.filterwarnings("ignore")


def integrated(binary, rounds):
    model, reader, service = torch_model(), tokenizer(), Service(binary)
    words = model.bert.embeddings.word_embeddings.weight.detach()

    def forward(embeds, mask):
        return model(inputs_embeds=embeds, attention_mask=mask).logits

    captum = IntegratedGradients(forward)
    head("integrated gradients, ms a text", "service", "Captum, 50 steps", "times faster",
         "completeness error of the service", "of Captum", "target", "met")
    settings = [
        ("tolerance 0.01, from 4 steps", {"steps": 4, "tolerance": 0.01}, 3.0, True),
        ("tolerance 0.01, defaults", {"tolerance": 0.01}, 3.0, True),
        ("tolerance 0.01, graded, from 8 steps", {"rule": "graded", "steps": 8, "tolerance": 0.01}, 3.0, True),
        ("tolerance 0.0001, from 8 steps", {"steps": 8, "tolerance": 0.0001}, 3.0, True),
        ("50 steps", {"steps": 50, "tolerance": None}, 1.4, False),
    ]
    for name, parameters, target, error_counts in settings:
        ours, theirs, gaps, their_gaps = [], [], [], []
        for text in SENTENCES:
            ids = torch.tensor([reader.encode(text).ids])
            x, mask = words[ids], torch.ones_like(ids)
            base = x.clone()
            base[:, 1:-1] = words[0]
            with torch.no_grad():
                logits = forward(x, mask)[0]
                label = int(logits.argmax())
                difference = float(logits[label] - forward(base, mask)[0, label])

            def peer():
                taken, result = timed(lambda: captum.attribute(
                    x, base, target=label, additional_forward_args=mask, n_steps=50,
                    method="gausslegendre", internal_batch_size=50))
                peer.error = abs(float(result.sum()) - difference)
                return taken

            def service_call():
                taken, answer = timed(lambda: service.explain(
                    "integrated-gradients", text, output="logit", parameters={"baseline": "pad", **parameters}))
                explained = answer["results"][0]["explanations"][0]
                scores = sum(it["score"] for it in explained["attributions"])
                service_call.error = abs(scores - (explained["value"] - explained["base_value"]))
                assert abs(explained["value"] - float(logits[label])) < 1e-3
                return taken

            a, b = in_turn(rounds, service_call, peer)
            ours += a
            theirs += b
            gaps.append(service_call.error)
            their_gaps.append(peer.error)
        faster = ratio(theirs, ours)
        small = not error_counts or max(gaps) <= max(their_gaps)
        met = "yes" if faster >= target and small else "**no**"
        wanted = f"≥ {target}" + (", error no larger" if error_counts else "")
        row(name, f"{median(ours):.1f}", f"{median(theirs):.1f}", f"{faster:.2f}", f"{max(gaps):.2e}",
            f"{max(their_gaps):.2e}", wanted, met)
    service.close()


def minilm(folder):
    """A BERT of MiniLM-L6's shape with random weights, as the legacy exporter writes it."""
    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
                        vocab_size=30522, num_labels=2, attn_implementation="eager")
    model = BertForSequenceClassification(config).eval()
    ids = torch.ones(2, 7, dtype=torch.long)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    torch.onnx.export(
        model, (ids, ids, torch.zeros_like(ids)), str(folder / "model.onnx"), opset_version=17, dynamo=False,
        input_names=names, output_names=["logits"],
        dynamic_axes={**{name: {0: "batch", 1: "seq"} for name in names}, "logits": {0: "batch"}})
    config.to_json_file(folder / "config.json", use_diff=False)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FOLDER / name, folder / name)
    with_attention = lambda attention: BertForSequenceClassification.from_pretrained(
        None, config=BertConfig(**{**config.to_dict(), "attn_implementation": attention}),
        state_dict=model.state_dict()).eval()
    return with_attention("sdpa"), with_attention("eager")


def passes(bench, rounds):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        sdpa, eager = minilm(folder)
        engine = Passes(bench, folder)
        head("MiniLM-L6 shape, ms", "the file", "forward", "forward + gradient", "by the file", "PyTorch, sdpa", "by ours",
             "PyTorch, eager", "by ours", "target")
        for rows, tokens, target in [(50, 32, "≤ 1.9 x the file, ≥ 1.5 x PyTorch"), (50, 128, "≥ 1.8 x PyTorch")]:
            ids = torch.randint(1000, 3000, (rows, tokens))
            mask = torch.ones_like(ids)

            def autograd(model):
                def work():
                    embeds = model.bert.embeddings.word_embeddings(ids).detach().requires_grad_()
                    logits = model(inputs_embeds=embeds, attention_mask=mask).logits
                    return torch.autograd.grad(logits[:, 0].sum(), embeds)
                return timed(work)[0]

            file, forward, gradient, *theirs = in_turn(
                rounds, lambda: engine.run("file", rows, tokens), lambda: engine.run("forward", rows, tokens),
                lambda: engine.run("gradient", rows, tokens), lambda: autograd(sdpa), lambda: autograd(eager))
            beside = [cell for it in theirs for cell in (f"{median(it):.0f}", f"{ratio(it, gradient):.2f}")]
            row(f"[{rows}, {tokens}]", f"{median(file):.0f}", f"{median(forward):.0f}", f"{median(gradient):.0f}",
                f"{ratio(gradient, file):.2f}", *beside, target)
        engine.close()
        print()
        for command in (["derive", str(folder)], ["profile", str(folder), "13", "32"]):
            print(subprocess.run([bench, *command], capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    binary, bench, rounds = arguments()
    integrated(binary, rounds)
    print()
    passes(bench, rounds)
