"""Makes the tokenizers of this folder: three small ones, each shaped like those of a family of real models.

    pip install tokenizers==0.22.2 sentencepiece==0.2.3
    python make.py
"""

import base64
import json
import tempfile
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent
TEXTS = [
    "The first hour is a delight, full of wit and odd details, but the film then forgets what made it fun.",
    "I don't think it's the worst of them; the café scene alone is worth the price of a ticket!",
    "A lean, tense and beautifully shot thriller that makes the most of its single location.",
    "Nothing here is new, and nothing needed to be: 3.5 stars out of 5, e.g. for the music.",
    "หนังเรื่องนี้ดีมาก ฉันชอบมันจริงๆ",
    "この映画はとても面白かったです。もう一度見たい。",
    "这部电影非常好看，我很喜欢。",
    "הסרט הזה נהדר, אהבתי אותו מאוד.",
    "هذا الفيلم رائع جدا وأنا أحبه.",
    "Der Film läuft über drei Stunden und ist großartig.",
    "It was great 😀 and sad 😢, all at once.",
]


def byte_level_bpe():
    """RoBERTa's shape: byte-level BPE, specials by RobertaProcessing, a mask that eats the space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"].append({
        "id": tokenizer.get_vocab_size(), "content": "<mask>", "single_word": False, "lstrip": True,
        "rstrip": False, "normalized": False, "special": True,
    })
    return document


def unigram():
    """XLM-RoBERTa's shape: Unigram after a compiled character map and Metaspace, specials by a template."""
    rules = {"\ufb01": "fi", "\u3000": " ", "\uff21": "A", "e\u0301": "\u00e9", "\u2026": "...", "\u337f": "株式会社",
             "\u200b": "", "\t": " "}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        hexes = lambda text: " ".join(f"{ord(it):04X}" for it in text)
        table = "".join(f"{hexes(old)}\t{hexes(new)}\n" for old, new in rules.items())
        (folder / "rules.tsv").write_text(table)
        (folder / "texts.txt").write_text("\n".join(TEXTS))
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "texts.txt"), model_prefix=str(folder / "m"), model_type="unigram", vocab_size=420,
            hard_vocab_limit=False, normalization_rule_tsv=str(folder / "rules.tsv"), minloglevel=2, num_threads=1,
        )
        model = sentencepiece_model_pb2.ModelProto.FromString((folder / "m.model").read_bytes())
    # As Transformers converts them: the specials first, then the pieces; Unigram's own control pieces go.
    vocab = [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0]]
    vocab += [[it.piece, it.score] for it in model.pieces[3:]] + [["<mask>", 0.0]]
    special = {0: "<s>", 1: "<pad>", 2: "</s>", 3: "<unk>", len(vocab) - 1: "<mask>"}
    charsmap = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
    template = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": id, "content": token, "single_word": False, "lstrip": token == "<mask>", "rstrip": False,
             "normalized": False, "special": True}
            for id, token in special.items()
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": charsmap},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": json.loads(template.__getstate__()),
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": False},
    }


def byte_fallback_bpe():
    """Llama's shape: BPE over the whole text without pre-tokenizer, so that a token may span words."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{it:02X}>" for it in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=620, special_tokens=["<unk>", "<s>", "</s>"] + bytes_, limit_alphabet=60, show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS[:4] * 3, trainer)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [it for it in document["added_tokens"] if it["content"] not in bytes_]
    template = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)],
    )
    document["post_processor"] = json.loads(template.__getstate__())
    return document


for make in [byte_level_bpe, unigram, byte_fallback_bpe]:
    text = json.dumps(make(), ensure_ascii=False, separators=(",", ":"))
    Tokenizer.from_str(text)
    (HERE / f"{make.__name__.replace('_', '-')}.json").write_text(text + "\n")
