#!/usr/bin/env python3
"""Makes the tokenizer's test vectors with the reference implementation.

Writes, beside itself:
  tokenizer.json, tokenizer_config.json  a small byte-level BPE in DeepSeek's
                    structure, trained on the sentences below
  vectors.json      {"variants": [{"name", "patch", "cases", "decodes"}]}:
                    for the tokenizer with the top-level keys of "patch"
                    replaced, what the reference encodes and decodes
  model_vectors.json  the same "cases" and "decodes" for the model in the tree

Needs PyPI tokenizers (0.23.3 made the committed files). Run it again only to
add cases: python3 scheduler/tokenizer/testdata/make_vectors.py
"""

import json
import pathlib
import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent
MODEL = HERE.parents[2] / "deploy/models/invar-gsm-20m"
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"

SENTENCES = [
    "User: Janet sells 16 eggs for $2 each, then 3,450.75 more.\n\n",
    "Assistant: First, 16 - 3 - 4 = 9. So she makes 9 * 2 = $18.\n",
    "The answer's 18; it's what they'll say, we've seen I'm sure.\r\n",
    "Answer: 18\n\n  \n\t indented   text  with    spaces   \n",
    "数学问题：小明有三个苹果。答案是多少？　全角１２３，ＡＢＣ。",
    "日本語のテキストとカタカナ、ひらがな。답은 열여덟입니다.",
    "Ответ: восемнадцать. Ένα δύο τρία. Réponse: café déjà vu, ß.",
    "উত্তর: ১৮ సమాధానం: 18 คำตอบ: ๑๘ जवाब ١٨ שלום עולם مرحبا",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]; } // code",
    "👩‍👩‍👧 🇩🇪 👍🏽 😀😀 ½ ² Ⅷ e\u0301 ﬁ",
]

LETTERS = (
    "[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶ-ͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-Ⴥ"
    "Ḁ-ἕἘ-Ἕἠ-ὅ]+"
)

# The character that writes each byte, in byte-level vocabularies.
BYTE_SYMBOLS = [chr(b) for b in range(256)]
for i, b in enumerate([*range(0x21), *range(0x7F, 0xA1), 0xAD]):
    BYTE_SYMBOLS[b] = chr(256 + i)


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern},
            "behavior": behavior, "invert": invert}


def byte_level(prefix_space=False, use_regex=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix_space,
            "trim_offsets": True, "use_regex": use_regex}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


DEEPSEEK = sequence(
    split("[\r\n]"),
    split("\\s?" + LETTERS),
    split("\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"),
    split("\\s+$"),
    split("[一-龥ࠀ-一가-\ud7ff]+"),
    {"type": "Digits", "individual_digits": True},
    byte_level(),
)


def added(id, content, **flags):
    token = dict(id=id, content=content, single_word=False, lstrip=False,
                 rstrip=False, normalized=False, special=False)
    token.update(flags)
    return token


def base():
    """Trained without splits, so that merges cross every boundary and the ids
    show where a pre-tokenizer cut."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [part for s in SENTENCES for part in (s, s[5:25], s[:30], s + " ")],
        trainers.BpeTrainer(
            vocab_size=700, show_progress=False, min_frequency=2,
            max_token_length=12,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    data = json.loads(tokenizer.to_str())
    n = len(data["model"]["vocab"])
    data["added_tokens"] = [
        added(n, BOS, special=True),
        added(n + 1, EOS, special=True),
        added(n + 2, "<|tool|>"),
        added(n + 3, "<|tool|>er", normalized=True),
    ]
    data["pre_tokenizer"] = DEEPSEEK
    data["normalizer"] = {"type": "Sequence", "normalizers": []}
    return data


def variants(data):
    n = len(data["model"]["vocab"])
    yield "deepseek", {}, 150
    for behavior in ("Isolated", "Removed", "MergedWithPrevious",
                     "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            name = f"{behavior} invert={invert}"
            yield f"regex {name}", {"pre_tokenizer": sequence(
                split("[\\s,.]", behavior, invert), byte_level())}, 12
            yield f"empty matches {name}", {"pre_tokenizer": sequence(
                split("[a-e ]*", behavior, invert), byte_level())}, 12
            yield f"string {name}", {"pre_tokenizer": sequence(
                split(" ", behavior, invert, "String"), byte_level())}, 12
    for pattern in [
        "\\s+$", "^.", "$", "^\\s*|\\s+$", "[^\\s\\w]+", "\\w+|\\S", "[\\w]+",
        "\\d+|\\D",
        "\\p{N}{1,3}", "\\p{Han}+|\\P{L}", "[\\p{L}\\p{M}]+|\\p{^L}",
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
        "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
        "(?<=\\d)(?=(?:\\d{3})+(?!\\d))", "a+?|(?>e+)s?|[-x.]+",
        "\\x{4e00}|\\u3002|[\\x20-\\x{2f}]", "(?i)the|k", "\\p{Lu}\\p{Ll}*+",
        "[\\t\\n\\f\\r ]{2,}", "\\.|\\-|\\$|\\[|\\]", "(a|b)+|(?:c|d)??e",
    ]:
        yield f"pattern {pattern}", {"pre_tokenizer": sequence(
            split(pattern), byte_level())}, 14
    yield "digits", {"pre_tokenizer": sequence(
        {"type": "Digits", "individual_digits": False}, byte_level())}, 12
    for prefix_space in (False, True):
        for use_regex in (False, True):
            yield (f"byte level {prefix_space} {use_regex}",
                   {"pre_tokenizer": byte_level(prefix_space, use_regex)}, 16)
    yield "prefix space to pieces", {"pre_tokenizer": sequence(
        split("[,\\s]"), byte_level(True, True))}, 16
    whole = dict(data["model"], ignore_merges=True,
                 merges=data["model"]["merges"][:40])
    yield "ignore_merges", {"model": whole}, 20
    assert data["model"]["vocab"].keys().isdisjoint(["swer", "Ġword"])
    yield "added tokens that strip", {"added_tokens": [
        added(data["model"]["vocab"]["the"], "the", normalized=True,
              rstrip=True),
        added(n, BOS, special=True, lstrip=True, rstrip=True),
        added(n + 1, EOS, special=True, rstrip=True),
        added(n + 2, "<|tool|>", lstrip=True),
        added(n + 3, "swer", normalized=True), added(n + 4, "Ġword")]}, 40


SPACES = (" \t\n\r\x0b\x0c\x85\xa0\u1680\u180e\u2003\u200b\u2028\u202f"
          "\u3000\ufeff")
PIECES = [BOS, EOS, "<|tool|>", "<|tool|>er", "<|tool", "<｜", "the", "Ġword", "swer",
          "\x00", "\x07", "\x1b", "\x7f", "\ufffd", "\U0010ffff", "ſK", "<?>", "’", "…"]
ALPHABET = sorted(set("".join(SENTENCES)))


def text(rng):
    out = []
    for _ in range(rng.choice([1, 2, 3, 6, 10])):
        r = rng.random()
        sentence = rng.choice(SENTENCES)
        at = rng.randrange(len(sentence))
        if r < 0.5:
            out.append(sentence[at:at + rng.choice([2, 6, 15])])
        elif r < 0.7:
            out.append(rng.choice(SPACES) * rng.choice([1, 1, 2, 4]))
        elif r < 0.85:
            out.append(rng.choice(PIECES))
        else:
            out.append("".join(rng.choices(ALPHABET, k=3)))
    return "".join(out)


FIXED = ["", " ", "  ", "\n", "\r\n", "a\n", " \n ", "a \n\n  b", "  \n x",
         "User: hi\n\nAssistant:", "it's 12,345.678 kg", "\u3000。\u3000",
         BOS + "User: " + EOS, "<|tool|>er <|tool|>x", "e\u0301\u0301",
         "aaaaaaaaaaaaaaaa", "x" + " " * 9 + "\u2191"]


def vectors(tokenizer, rng, count):
    cases = []
    fixed = FIXED if count >= 100 else rng.sample(FIXED, k=7)
    for value in fixed + [text(rng) for _ in range(count)]:
        for parse_special in (False, True):
            tokenizer.encode_special_tokens = not parse_special
            ids = tokenizer.encode(value, add_special_tokens=False).ids
            if parse_special and ids == cases[-1]["ids"]:
                continue
            cases.append({"text": value, "parse_special": parse_special,
                          "ids": ids})
    decodes = []
    for i in range(count // 3 if count >= 40 else 0):
        ids = rng.choices(range(tokenizer.get_vocab_size()), k=1 + i % 7)
        if i % 3 == 0:  # single bytes: most form no character
            ids = rng.choices(range(256), k=1 + i % 9)
        for skip in (False, True):
            decodes.append({"ids": ids, "skip_special": skip, "text":
                            tokenizer.decode(ids, skip_special_tokens=skip)})
    return {"cases": cases, "decodes": decodes}


def write(name, data):
    (HERE / name).write_text(
        json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n",
        encoding="utf-8")


def main():
    rng = random.Random(20)
    data = base()
    write("tokenizer.json", data)
    write("tokenizer_config.json", {
        "add_bos_token": True, "bos_token": {"__type": "AddedToken",
        "content": BOS}, "eos_token": EOS, "unk_token": None,
        "tokenizer_class": "LlamaTokenizerFast"})
    out = []
    for name, patch, count in variants(data):
        tokenizer = Tokenizer.from_str(json.dumps({**data, **patch}))
        if name == "ignore_merges":  # say which model keys change
            patch = {"model": {"ignore_merges": True, "merges": 40}}
        out.append({"name": name, "patch": patch,
                    **vectors(tokenizer, rng, count)})
    write("vectors.json", {"variants": out})
    write("model_vectors.json", vectors(
        Tokenizer.from_file(str(MODEL / "tokenizer.json")), rng, 130))


if __name__ == "__main__":
    main()
