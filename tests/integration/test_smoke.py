"""The evaluation as a user runs it, against one recorded result.

The record holds on every x86-64-v3 machine: the CPU backend's bits do not
depend on the machine. A change that moves it is a change of numerics; record
the new one in the same commit, and say why:

  build/bin/invar eval mgsm --json   (with deploy/config/embedded.textproto)
"""

import json
import pathlib

RECORD = json.loads((pathlib.Path(__file__).parent / "smoke.json").read_text())
MIN_SCORE = "0.80"


def test_evaluation_is_the_recorded_one(deploy):
    one = deploy().start()
    alone = one.json("eval", "mgsm", "--concurrency", 1, "--min-score", MIN_SCORE)
    many = one.json("eval", "mgsm", "--concurrency", 64, "--min-score", MIN_SCORE)

    one.workers["w1"].stop()
    one.start_worker("w2", "--threads", "1")
    one.wait_ready()
    again = one.json("eval", "mgsm", "--concurrency", 16, "--min-score", MIN_SCORE)

    for run in (alone, many, again):
        assert run["n"] == RECORD["n"]
        assert run["digest"] == RECORD["digest"]
        assert run["correct"] == RECORD["correct"]
        assert run["score"] == RECORD["correct"] / RECORD["n"]
    assert alone["fingerprint"] == many["fingerprint"] == again["fingerprint"]


def test_too_low_a_score_exits_1(service):
    done = service.invar("eval", "mgsm", "--limit", 4, "--min-score", "1.01", "--json")
    assert done.returncode in (1, 2), done.stderr
    done = service.invar("eval", "mgsm", "--limit", 4, "--min-score", "0", "--json")
    assert done.returncode == 0, done.stderr
