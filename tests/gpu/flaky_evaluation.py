"""The experiment of the README: is an evaluation's score a function of the model?

    python3 tests/gpu/flaky_evaluation.py [--modes DETERMINISTIC,FAST] [--device cuda:0]

Evaluates the embedded model so many times in each mode, at mixed concurrency,
and counts the distinct transcripts of whole runs, the questions that got
several answers, and those whose log-probabilities differ in a bit: a model as
sure of itself as this one seldom changes a token.
With --workers 2 the answers come from two workers on the device. Prints a table
in Markdown; exit code 1 if runs of mode DETERMINISTIC differ, from each other or
from the record of their architecture in digests.json: the digest of all
transcripts, and one of all tokens with the bits of their log-probabilities.
--record writes both there instead, if all runs are equal. Needs the build
(INVAR_BIN_DIR, default build/bin).
"""

import argparse
import collections
import hashlib
import json
import pathlib
import struct
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "integration"))
import digests as recorded  # noqa: E402
from deployment import Deployment  # noqa: E402

CONCURRENCY = [64, 4, 250, 16, 128]


def log_prob_digest(answers):
    """SHA-256 of a run's answers in order of their questions, a line each:
    the prompt's digest, the token ids, the bits of their log-probabilities."""
    lines = [f"{question} {' '.join(map(str, ids))} {struct.pack(f'<{len(bits)}f', *bits).hex()}"
             for question, ids, bits in answers]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def evaluate(one, runs):
    """The JSON of each run, with the architecture and the digest of its
    log-probabilities; each question's answers, and their log-probabilities."""
    results = []
    texts = collections.defaultdict(set)
    log_probs = collections.defaultdict(set)
    for run in range(runs):
        records = one.folder / f"run{run}.jsonl"
        result = one.json("eval", "mgsm", "--concurrency",
                          CONCURRENCY[run % len(CONCURRENCY)], "--receipts", records)
        results.append(result)
        answers = []
        for line in records.read_text().splitlines():
            record = json.loads(line)
            result["architecture"] = record["numerics"]["architecture"]
            answer = record["response"]["answers"][0]
            question = answer["completion"]["receipt"]["prompt_digest"]
            texts[question].add(tuple(answer["token_ids"]))
            log_probs[question].add(tuple(answer["logprobs"]))
            assert len(answer["logprobs"]) == len(answer["token_ids"]) > 0
            answers.append((question, answer["token_ids"], answer["logprobs"]))
        result["log_prob_digest"] = log_prob_digest(answers)
        print(f"  concurrency {CONCURRENCY[run % len(CONCURRENCY)]:3}: score "
              f"{result['score']:.4f}, digest {result['digest'][:16]}, with "
              f"log-probabilities {result['log_prob_digest'][:16]}", flush=True)
    return results, texts, log_probs


def run_mode(mode, options):
    with tempfile.TemporaryDirectory() as folder:
        one = Deployment(folder, config=f"determinism {{ mode: {mode} }}\n",
                         kv_dtype=options.kv, device=options.device)
        try:
            one.start_scheduler()
            for i in range(options.workers):
                one.start_worker(f"w{i + 1}")
            one.wait_ready()
            print(f"{mode} on {options.device}, {options.workers} workers", flush=True)
            return evaluate(one, options.runs)
        finally:
            one.stop()


def settle(result, options):
    """Compares a run's digests with the record, or records them; what is wrong."""
    problems = []
    for name, digest in [("transcripts", result["digest"]),
                         ("log_probabilities", result["log_prob_digest"])]:
        path = f"{result['architecture']}/evaluation/{options.kv}/{name}"
        if options.record:
            recorded.record(path, digest, options.digests)
            print(f"recorded {path}: {digest}")
        elif wrong := recorded.problem(path, digest, "run flaky_evaluation.py --record",
                                       options.digests):
            problems.append(wrong)
    return problems


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--modes", default="DETERMINISTIC,FAST")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--kv", default="FP8_E5M2")
    parser.add_argument("--record", action="store_true",
                        help="write what DETERMINISTIC gives into the file of digests")
    parser.add_argument("--digests", type=pathlib.Path, default=recorded.FILE)
    options = parser.parse_args()
    if options.record and "DETERMINISTIC" not in options.modes.split(","):
        parser.error("--record needs DETERMINISTIC among --modes")
    rows, problems = [], []
    for mode in options.modes.split(","):
        results, texts, log_probs = run_mode(mode, options)
        scores = sorted(result["score"] for result in results)
        digests = {result["digest"] for result in results}
        unstable, bits = [sum(len(of_one) > 1 for of_one in several.values())
                          for several in (texts, log_probs)]
        bit_digests = {result["log_prob_digest"] for result in results}
        if mode == "DETERMINISTIC":
            if len(digests) > 1 or len(bit_digests) > 1 or bits > 0:
                problems.append(f"{len(results)} runs of DETERMINISTIC have "
                                f"{len(digests)} digests of transcripts and "
                                f"{len(bit_digests)} with log-probabilities")
            else:
                problems += settle(results[0], options)
        rows.append(f"| {mode} | {scores[0]:.3f} to {scores[-1]:.3f} | "
                    f"{len(digests)} of {len(results)} | {unstable} of "
                    f"{len(texts)} | {bits} of {len(texts)} |")
        print(json.dumps({"mode": mode, "scores": [r["score"] for r in results],
                          "digests": sorted(digests),
                          "log_prob_digests": sorted(bit_digests),
                          "fingerprint": results[0]["fingerprint"]}))
    print("\n| mode | scores | distinct runs | questions with several answers | with several log-probabilities |")
    print("|---|---|---|---|---|")
    print("\n".join(rows))
    for problem in problems:
        print(f"FAILED: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
