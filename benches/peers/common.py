"""What the comparisons share: the bundled model in PyTorch, the service, and taking turns."""
import http.client, json, os, re, statistics, subprocess, sys, time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from tokenizers import Tokenizer
from transformers import BertConfig, BertForSequenceClassification

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "models/sst2"
THREADS = 2
torch.set_num_threads(THREADS)

SENTENCES = [
    "The first hour is a delight, full of wit and odd details, but the film then forgets what made it fun.",
    "A lean, tense and beautifully shot thriller that makes the most of its single location and its two leads.",
    "Nothing about this remake suggests that anyone involved had seen, let alone enjoyed, the original series.",
    "The acting is fine and the songs are good, yet the story never finds a reason to be told.",
]


def torch_model(attention="sdpa"):
    """The bundled model with the very weights of its ONNX file."""
    graph = onnx.load(FOLDER / "model.onnx").graph
    arrays = {it.name: numpy_helper.to_array(it).astype(np.float32) for it in graph.initializer}
    state, products = {}, []
    for name, array in arrays.items():
        if name.startswith("onnx::MatMul_"):
            products.append((int(re.findall(r"_(\d+)", name)[0]), array))
        else:
            state[re.sub(r"^m\.|_f16$", "", name)] = torch.from_numpy(array.copy())
    config = BertConfig.from_pretrained(FOLDER, attn_implementation=attention)
    places = ["attention.self.query", "attention.self.key", "attention.self.value",
              "attention.output.dense", "intermediate.dense", "output.dense"]
    for at, (_, array) in enumerate(sorted(products, key=lambda it: it[0])):
        layer, place = divmod(at, len(places))
        state[f"bert.encoder.layer.{layer}.{places[place]}.weight"] = torch.from_numpy(array.T.copy())
    model = BertForSequenceClassification(config)
    missing, unknown = model.load_state_dict(state, strict=False)
    assert not unknown and all("position_ids" in it for it in missing), (missing, unknown)
    return model.eval()


def tokenizer():
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


class Service:
    """`explaind serve` with the bundled model, and one kept-alive connection to it."""

    def __init__(self, binary):
        log = subprocess.DEVNULL
        command = [binary, "serve", f"--model=sst2={FOLDER}", "--addr=127.0.0.1:0", "--max-timeout-ms=600000"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
        line = self.process.stdout.readline()
        address = re.search(r"http://([\d.]+):(\d+)", line)
        self.connection = http.client.HTTPConnection(address[1], int(address[2]))

    def explain(self, method, text, **fields):
        body = json.dumps({"inputs": text, "timeout_ms": 600000, **fields})
        self.connection.request("POST", f"/explain/{method}", body, {"content-type": "application/json"})
        answer = self.connection.getresponse()
        body = json.loads(answer.read())
        assert answer.status == 200, body
        return body

    def close(self):
        self.process.kill()
        self.process.wait()


class Passes:
    """Single passes of any model through the engine: `service pass FOLDER`."""

    def __init__(self, bench, folder):
        self.process = subprocess.Popen(
            [bench, "pass", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout.readline() == "ready\n"

    def run(self, what, rows, tokens):
        self.process.stdin.write(f"{what} {rows} {tokens}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.kill()
        self.process.wait()


def timed(work):
    start = time.perf_counter()
    result = work()
    return (time.perf_counter() - start) * 1e3, result


def in_turn(rounds, *candidates):
    """Milliseconds of each candidate, which return their own time; the first round warms up."""
    times = [[] for _ in candidates]
    for number in range(rounds + 1):
        for candidate, kept in zip(candidates, times):
            # PyTorch's threads spin for a while after a call.
            time.sleep(0.02)
            taken = candidate()
            if number:
                kept.append(taken)
    return times


def ratio(of, by):
    return statistics.median(a / b for a, b in zip(of, by))


def median(values):
    return statistics.median(values)


def row(*cells):
    print("| " + " | ".join(str(it) for it in cells) + " |", flush=True)


def head(*cells):
    row(*cells)
    print("|" + "---|" * len(cells))


def arguments():
    """The service's binary, the bench's binary, and the number of rounds."""
    quick = "--quick" in sys.argv
    paths = [it for it in sys.argv[1:] if not it.startswith("--")]
    return paths[0], paths[1], (2 if quick else 15)
