"""The experiment of the README: is an evaluation's score a function of the model?

    python3 tests/gpu/flaky_evaluation.py [--modes DETERMINISTIC,FAST] [--device cuda:0]

Evaluates the embedded model so many times in each mode, at mixed concurrency,
and counts the distinct transcripts: of whole runs, and question by question.
With --workers 2 the answers come from two workers on the device. Prints a table
in Markdown; exit code 1 if runs of mode DETERMINISTIC differ. Needs the build
(INVAR_BIN_DIR, default build/bin) and pytest, whose fixtures start processes.
"""

import argparse
import collections
import json
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "integration"))
from conftest import Deployment  # noqa: E402

CONCURRENCY = [64, 4, 250, 16, 128]


def evaluate(one, runs):
    """The JSON of each run, and each question's transcripts."""
    results, transcripts = [], collections.defaultdict(set)
    for run in range(runs):
        output = one.folder / f"run{run}.jsonl"
        result = one.json("eval", "mgsm", "--concurrency",
                          CONCURRENCY[run % len(CONCURRENCY)], "--output", output)
        results.append(result)
        for number, line in enumerate(output.read_text().splitlines()):
            transcripts[number].add(line)
        print(f"  concurrency {CONCURRENCY[run % len(CONCURRENCY)]:3}: score "
              f"{result['score']:.4f}, digest {result['digest'][:16]}", flush=True)
    return results, transcripts


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


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--modes", default="DETERMINISTIC,FAST")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--kv", default="FP8_E5M2")
    options = parser.parse_args()
    rows, failed = [], False
    for mode in options.modes.split(","):
        results, transcripts = run_mode(mode, options)
        scores = sorted(result["score"] for result in results)
        digests = {result["digest"] for result in results}
        unstable = sum(len(lines) > 1 for lines in transcripts.values())
        most = max(len(lines) for lines in transcripts.values())
        failed |= mode == "DETERMINISTIC" and len(digests) > 1
        rows.append(f"| {mode} | {scores[0]:.3f} to {scores[-1]:.3f} | "
                    f"{len(digests)} of {len(results)} | {unstable} of "
                    f"{len(transcripts)} | {most} |")
        print(json.dumps({"mode": mode, "scores": [r["score"] for r in results],
                          "digests": sorted(digests),
                          "fingerprint": results[0]["fingerprint"]}))
    print("\n| mode | scores | distinct runs | questions with several answers | most answers of one |")
    print("|---|---|---|---|---|")
    print("\n".join(rows))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
