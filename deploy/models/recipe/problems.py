"""The problem stream: seeded, and free of the evaluation set by its text.

A batch of the training stream is a function of (seed, step) alone, so that any
number of processes can draw it in any order.
"""

import hashlib
import json
import pathlib
import random

from .languages import Language, Problem, load_all

EVALUATION_SEED = "invar evaluation"
TRAINING_SEED = "invar training"
EVALUATION_PROBLEMS = 250
# The share of training prompts that hold the question alone, so that the model
# also answers a problem that a person types without the instruction.
BARE_QUESTION_SHARE = 0.1


def text_hash(question: str) -> bytes:
    return hashlib.sha256(question.encode()).digest()


def evaluation_set(language: Language) -> list[Problem]:
    """Distinct questions, the templates in turn."""
    rng = random.Random(f"{EVALUATION_SEED} {language.code}")
    problems, seen = [], set()
    while len(problems) < EVALUATION_PROBLEMS:
        template = language.templates[len(problems) % len(language.templates)]
        problem = template(rng)
        if problem.question not in seen:
            seen.add(problem.question)
            problems.append(problem)
    rng.shuffle(problems)
    return problems


def excluded_hashes() -> frozenset[bytes]:
    return frozenset(
        text_hash(problem.question)
        for language in load_all().values()
        for problem in evaluation_set(language))


def training_texts(step: int, count: int, excluded: frozenset[bytes],
                   seed: str = TRAINING_SEED) -> list[tuple[str, str]]:
    """`count` pairs (user message, answer) of one step of the stream."""
    rng = random.Random(f"{seed} {step}")
    languages = list(load_all().values())
    pairs = []
    while len(pairs) < count:
        language = rng.choice(languages)
        problem = rng.choice(language.templates)(rng)
        bare = rng.random() < BARE_QUESTION_SHARE
        if text_hash(problem.question) in excluded:
            continue
        user = problem.question if bare else language.prompt(problem)
        pairs.append((user, language.response(problem)))
    return pairs


def evaluation_files() -> dict[str, str]:
    """File names to contents."""
    files, instructions = {}, {}
    for language in load_all().values():
        rows = (f"{problem.question}\t{problem.answer}\n"
                for problem in evaluation_set(language))
        files[f"mgsm_{language.code}.tsv"] = "".join(rows)
        instructions[language.code] = language.instruction
    files["instructions.json"] = json.dumps(
        instructions, ensure_ascii=False, indent=2) + "\n"
    return files


def write_evaluation_files(directory: pathlib.Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in evaluation_files().items():
        (directory / name).write_text(content, encoding="utf-8")


def _question(user: str) -> str:
    """The question of a training prompt, with or without its instruction."""
    for language in load_all().values():
        before, after = language.instruction.split("{input}")
        if user.startswith(before) and user.endswith(after):
            return user[len(before):len(user) - len(after)]
    return user


def check(directory: pathlib.Path, steps: int, batch: int) -> None:
    """Fails unless the files are the generator's and training holds none."""
    for name, content in evaluation_files().items():
        assert (directory / name).read_text(encoding="utf-8") == content, name
    questions = [line.split("\t")[0]
                 for path in sorted(directory.glob("mgsm_*.tsv"))
                 for line in path.read_text(encoding="utf-8").splitlines()]
    hashes = {text_hash(question) for question in questions}
    assert len(questions) == len(hashes), "a question appears twice"
    assert hashes == excluded_hashes()

    def found(excluded: frozenset[bytes]) -> int:
        return sum(text_hash(_question(user)) in hashes
                   for step in range(steps)
                   for user, _ in training_texts(step, batch, excluded))

    held = found(frozenset(hashes))
    assert held == 0, f"{held} evaluation questions in the training stream"
    print(f"{len(questions)} evaluation questions; none among "
          f"{steps * batch} training texts, which would hold "
          f"{found(frozenset())} without the exclusion")
