"""Trains tokenizer.json: byte-level BPE in the structure of DeepSeek's files.

The pre-tokenizer is the DeepSeek sequence of Splits. Words with their leading
space become single tokens, digits always stand alone, and all 256 bytes are in
the vocabulary, so that any text has tokens.
"""

import json
import pathlib
import unicodedata

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from . import problems

BEGIN = "<｜begin▁of▁sentence｜>"
END = "<｜end▁of▁sentence｜>"
BPE_VOCABULARY = 2046  # at most; 2048 with the two special tokens
CORPUS_STEPS = 200
CORPUS_STEP_TEXTS = 256
CORPUS_SEED = "invar tokenizer"

CHAT_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}"
    "{% set add_generation_prompt = false %}{% endif %}"
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{{ 'User: ' + message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}"
    "{{ message['content'] + '\\n\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}")


def chat_prompt(user: str) -> str:
    """The text after BOS; the answer follows as ` ` + answer, then EOS."""
    return f"User: {user}\n\nAssistant:"


def _cased_letters() -> str:
    """The letters with case below U+2000, as ranges of a regex class."""
    ranges, start = [], None
    for code in range(0x2000):
        cased = unicodedata.category(chr(code)) in ("Lu", "Ll", "Lt")
        if cased and start is None:
            start = code
        elif not cased and start is not None:
            last = code - 1
            ranges.append(chr(start) if start == last
                          else f"{chr(start)}-{chr(last)}")
            start = None
    return "".join(ranges)


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    patterns = (
        "[\r\n]",
        f"\\s?[{_cased_letters()}]+",
        "\\s?[!-/:-~！-／：-～‘-‟　-。]+",
        "\\s+$",
        "[一-龥ࠀ-一가-퟿]+")
    splits = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
              for pattern in patterns]
    return pre_tokenizers.Sequence(
        splits + [pre_tokenizers.Digits(individual_digits=True),
                  pre_tokenizers.ByteLevel(add_prefix_space=False,
                                           use_regex=False)])


def _corpus():
    excluded = problems.excluded_hashes()
    for step in range(CORPUS_STEPS):
        for user, answer in problems.training_texts(
                step, CORPUS_STEP_TEXTS, excluded, CORPUS_SEED):
            yield f"{chat_prompt(user)} {answer}"


def train(directory: pathlib.Path) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel(
        add_prefix_space=True, trim_offsets=True, use_regex=True)
    tokenizer.post_processor = processors.ByteLevel(
        add_prefix_space=True, trim_offsets=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_VOCABULARY, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(_corpus(), trainer)
    # Added afterwards, so that their ids follow those of the BPE.
    tokenizer.add_special_tokens([
        tokenizers.AddedToken(text, normalized=False, special=True)
        for text in (BEGIN, END)])

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(directory / "tokenizer_config.json", {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": _added_token(BEGIN),
        "clean_up_tokenization_spaces": False,
        "eos_token": _added_token(END),
        "legacy": True,
        "model_max_length": 4096,
        "pad_token": _added_token(END),
        "tokenizer_class": "LlamaTokenizerFast",
        "unk_token": None,
        "use_default_system_prompt": False,
        "chat_template": CHAT_TEMPLATE})
    _write_json(directory / "generation_config.json", {
        "_from_model_config": True,
        "bos_token_id": tokenizer.token_to_id(BEGIN),
        "do_sample": False,
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(END)})
    return tokenizer


def load(directory: pathlib.Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))


def _added_token(text: str) -> dict:
    return {"__type": "AddedToken", "content": text, "lstrip": False,
            "normalized": False, "rstrip": False, "single_word": False}


def _write_json(path: pathlib.Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n",
                    encoding="utf-8")
