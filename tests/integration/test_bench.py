"""invar bench against the real processes: counts and digests, never times."""

import json

LOAD = ["bench", "--input-tokens", "80:120", "--output-tokens", "2:8"]


def test_equal_requests_digest_equally_in_every_loop(service):
    closed = service.json(*LOAD, "--requests", 12, "--concurrency", 4)
    open_loop = service.json(
        *LOAD, "--requests", 12, "--rate", 40, "--warmup", 3, "--slo", "e2e:600000"
    )
    for report in (closed, open_loop):
        assert report["requests"]["sent"] == report["requests"]["succeeded"] == 12
        assert report["requests"]["errors"] == {}
        assert 12 * 80 <= report["tokens"]["input"] <= 12 * 120
        assert report["itl_ms"]["count"] == report["tokens"]["output"] - 12
        assert report["fingerprints"] == [report["server"]["fingerprint"]]
        assert report["server"]["plan"]
        assert report["workers"]["count"] == 1
    assert closed["tokens"]["output"] == open_loop["tokens"]["output"]
    assert len(closed["digest"]) == 64
    assert closed["digest"] == open_loop["digest"]
    assert open_loop["goodput"]["requests"] == 12
    other = service.json(*LOAD, "--requests", 12, "--seed", 1)
    assert other["digest"] != closed["digest"]


def test_repeats_are_identical_to_the_bit_and_hit_the_cache(service):
    report = service.json(
        *LOAD, "--requests", 6, "--repeats", 3, "--determinism-check", "--temperature", 1,
        "--logprobs", "--prefix-tokens", 70, "--prefix-share", 0.5, "--concurrency", 5,
    )
    assert report["determinism"] == {
        "requests": 6, "answers": 18, "identical": True, "differences": [],
    }
    assert report["tokens"]["cached"] > 0
    service.wait_idle()


def test_text_and_files_are_prompts_too(service, tmp_path):
    text = service.json(*LOAD, "--requests", 4, "--text")
    assert text["requests"]["succeeded"] == 4
    lines = [
        {"text": "2 + 2 =", "output_tokens": 3},
        {"chat": "How many?"},
        {"token_ids": [5, 6, 7]},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    file = service.json("bench", "--dataset", path, "--requests", 6, "--output-tokens", 4)
    assert file["requests"]["succeeded"] == 6
    assert file["tokens"]["output"] == 2 * (3 + 4 + 4)
