"""Serving figures of DeepSeek-V2-Lite's full shape, as a client sees them.

    python3 tests/gpu/serving.py FOLDER [--weights fp8] [--mode DETERMINISTIC] [--json FILE]

Starts a scheduler and a worker on a GPU over a random checkpoint in
FOLDER/WEIGHTS (made if it is not there: 16 GB in FP8, 31 GB in bf16), and runs
`invar bench` against them: closed loops, Poisson arrivals, a shared prefix, and
a determinism check. Prints a table in Markdown; exit code 1 if a request failed
or a bit differs. Needs the build (INVAR_BIN_DIR, default build/bin). The
checkpoint borrows the embedded model's tokenizer; prompts are token ids, so
nothing else depends on it.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "integration"))
import deployment  # noqa: E402

CONFIG = """
determinism {{ mode: {mode} }}
limits {{
  max_running_sequences: 256
  max_step_tokens: 8192
  max_context_tokens: 16384
  max_queued_requests: 4096
}}
"""
KV_BYTES = 12 << 30

# Name, flags of `invar bench`.
LOADS = [
    ("closed, 1 at once", "--concurrency 1 --requests 6 --input-tokens 1024 --output-tokens 256"),
    ("closed, 32", "--concurrency 32 --requests 64 --input-tokens 1024 --output-tokens 256"),
    ("closed, 128", "--concurrency 128 --requests 256 --input-tokens 1024 --output-tokens 256"),
    ("closed, 256", "--concurrency 256 --requests 512 --input-tokens 1024 --output-tokens 256"),
    ("Poisson, 8 a second", "--rate 8 --requests 120 --input-tokens 512:1536 --output-tokens 64:256"),
    ("Poisson, 24 a second", "--rate 24 --requests 360 --input-tokens 512:1536 --output-tokens 64:256"),
    ("closed, 64, 3/4 of the prompt shared",
     "--concurrency 64 --requests 256 --input-tokens 1024 --prefix-tokens 768 --output-tokens 64"),
    ("determinism check, twice each",
     "--determinism-check --concurrency 64 --requests 64 --input-tokens 64:1024 "
     "--output-tokens 32:128 --temperature 1 --logprobs"),
]


def checkpoint(folder, weights):
    path = folder / weights
    if not (path / "config.json").exists():
        subprocess.run([deployment.BIN / "full_shape_checkpoint", path, weights], check=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(deployment.MODEL / name, path / name)
    return path


def row(name, result):
    ttft, itl = result["ttft_ms"], result["itl_ms"]
    tokens, requests = result["tokens"], result["requests"]
    cached = f", {tokens['cached_share']:.0%} cached" if tokens["cached"] else ""
    return (f"| {name}{cached} | {requests['succeeded']} | "
            f"{tokens['input_per_second']:,.0f} | {tokens['output_per_second']:,.0f} | "
            f"{ttft['p50']:.0f} / {ttft['p95']:.0f} / {ttft['p99']:.0f} | "
            f"{itl['p50']:.1f} / {itl['p95']:.1f} / {itl['p99']:.1f} | "
            f"{result['e2e_ms']['p50'] / 1000:.2f} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--weights", default="fp8", choices=["fp8", "bf16"])
    parser.add_argument("--mode", default="DETERMINISTIC")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--kv", default="FP8_E4M3")
    parser.add_argument("--json", type=pathlib.Path, help="append each run's JSON here")
    parser.add_argument("--only", default="", help="loads whose name contains this")
    options = parser.parse_args()
    deployment.READY_SECONDS = 240
    model = checkpoint(options.folder, options.weights)
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as folder:
        one = deployment.Deployment(folder, model=model, kv_dtype=options.kv,
                                  kv_bytes=KV_BYTES, device=options.device,
                                  config=CONFIG.format(mode=options.mode))
        try:
            one.start()
            for name, flags in LOADS:
                if options.only not in name:
                    continue
                done = one.invar("bench", "--json", "--warmup", 2, *flags.split())
                if not done.stdout:
                    print(f"{name}: {done.stderr}", file=sys.stderr)
                    failed = True
                    continue
                result = json.loads(done.stdout)
                failed |= done.returncode != 0 or bool(result["requests"]["errors"])
                rows.append(row(name, result))
                print(rows[-1], flush=True)
                if result["determinism"]:
                    print(f"  {result['determinism']['answers']} answers, identical: "
                          f"{result['determinism']['identical']}")
                if result["requests"]["errors"]:
                    print(f"  errors: {result['requests']['errors']}")
                if options.json:
                    with options.json.open("a") as out:
                        out.write(json.dumps({"load": name, **result}) + "\n")
        finally:
            one.stop()
            if failed:
                for process in one.processes():
                    print(process.text()[-4000:], file=sys.stderr)
    print(f"\n{options.weights} weights, {options.kv} cache, mode {options.mode}\n\n"
          "| load | requests | input tokens/s | output tokens/s | first token ms, p50 / p95 / p99 | "
          "between tokens ms, p50 / p95 / p99 | whole answer s, p50 |\n|---|---|---|---|---|---|---|")
    print("\n".join(rows))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
