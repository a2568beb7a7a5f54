"""Who may serve whom: workers whose bits could differ are pooled apart or
refused, the first differing field is named wherever an operator looks, and a
request that one pool began is never continued by another."""

import json
import shutil
import struct
import time
import urllib.request

import grpc
import pytest
from deployment import BIN, MODEL
from invar.v1 import inference_pb2 as pb
from invar.v1 import inference_pb2_grpc
from test_bad_input import details

# The product's worker but for one planted source; see CMakeLists.txt.
PLANTED = BIN.parent / "tests"
SPLIT = PLANTED / "worker_planted_split"
KV_DTYPE = PLANTED / "worker_planted_kv_dtype"
MODE = PLANTED / "worker_planted_mode"


def wait_for(deployment, what, fits):
    """The workers by name, once `fits(workers)`."""
    deadline = time.monotonic() + 60
    while True:
        done = deployment.invar("workers", "--json")
        listed = json.loads(done.stdout)["workers"] if done.returncode == 0 else []
        workers = {one["worker_id"]: one for one in listed}
        if fits(workers):
            return workers
        logs = "\n".join(one.text() for one in deployment.processes())
        assert time.monotonic() < deadline, f"no {what}: {workers}\n{logs}"
        time.sleep(0.1)


def is_in(state, *names):
    return lambda workers: all(
        workers.get(name, {}).get("state") == state for name in names)


def request(max_tokens):
    one = pb.GenerateRequest(token_ids=pb.TokenIds(ids=range(5, 60)))
    one.stopping.max_tokens = max_tokens
    one.stopping.ignore_eos = True
    return one


def once(stub, max_tokens=4):
    return stub.GenerateOnce(
        pb.GenerateOnceRequest(request=request(max_tokens)), timeout=60)


def fingerprint_of(answer):
    return answer.answers[0].completion.receipt.fingerprint


def change_one_weight(model):
    """Flips one bit of one weight, in a new file: who has the old one mapped
    keeps it."""
    shard = sorted(model.glob("*.safetensors"))[0]
    raw = bytearray(shard.read_bytes())
    header = struct.unpack("<Q", raw[:8])[0]
    raw[8 + header] ^= 1
    shard.unlink()
    shard.write_bytes(raw)


def change_the_config(model):
    """The same tensors, with another rms_norm_eps."""
    path = model / "config.json"
    config = json.loads(path.read_text())
    config["rms_norm_eps"] *= 2
    path.write_text(json.dumps(config))


def metrics_of(deployment):
    with urllib.request.urlopen(f"http://{deployment.metrics}/metrics") as reply:
        return reply.read().decode()


DIFFERENCES = {
    "other-constant": "plan.attention.split_tokens: 256 against 64",
    "other-kv-dtype": "plan.kv.dtype: ",
    "other-weights": "weights_digest: ",
    "other-config": "plan.model.rms_norm_eps: ",
}


def test_differing_workers_are_pooled_apart_by_the_field(deploy, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    one = deploy(model=model, config="limits { worker_wait_ms: 500 }")
    one.start()
    one.start_worker("other-constant", "--threads", 1, binary=SPLIT)
    one.start_worker("other-kv-dtype", "--threads", 1, binary=KV_DTYPE)
    one.start_worker("other-mode", "--threads", 1, binary=MODE)
    wait_for(one, "pools", is_in("READY", "other-constant", "other-kv-dtype"))
    change_one_weight(model)
    one.start_worker("other-weights", "--threads", 1)
    wait_for(one, "pools", is_in("READY", "other-weights"))
    change_the_config(model)
    one.start_worker("other-config", "--threads", 1)
    workers = wait_for(one, "pools", is_in("READY", "w1", *DIFFERENCES))
    workers |= wait_for(one, "refusal", is_in("REFUSED", "other-mode"))

    # The operator's four places: invar workers, the log, the API, the metrics.
    table = one.invar("workers").stdout
    log = one.scheduler.text()
    assert workers["w1"]["first_difference"] == ""
    for name, difference in DIFFERENCES.items():
        assert workers[name]["first_difference"].startswith(difference)
        assert f"{name}: a pool of its own, by {difference}" in table
        assert any(f"worker {name} differs" in line and difference in line
                   for line in log.splitlines())
    assert "plan.mode: DETERMINISTIC against FAST" in workers["other-mode"]["reason"]
    assert log.count("worker other-mode refused") == 1  # However often it dials.
    time.sleep(0.5)
    metrics = metrics_of(one)
    for difference in DIFFERENCES.values():
        assert f'differs_in="{difference.split(":")[0]}"' in metrics
    assert 'state="REFUSED"' in metrics

    with grpc.insecure_channel(one.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        info = stub.GetServerInfo(pb.GetServerInfoRequest())
        assert len(info.pools) == 1 + len(DIFFERENCES)
        first = info.fingerprint
        assert info.pools[0].numerics.fingerprint == first
        for pool in info.pools[1:]:
            assert any(pool.first_difference.startswith(difference)
                       for difference in DIFFERENCES.values())
        assert {fingerprint_of(once(stub)) for _ in range(12)} == {first}

        # Its worker dies: no other pool goes on, and the answer stays whole.
        whole = list(once(stub, 200).answers[0].token_ids)
        tokens = []
        with pytest.raises(grpc.RpcError) as caught:
            for event in stub.Generate(request(200), timeout=60):
                tokens += event.delta.token_ids
                if len(tokens) >= 10:
                    one.workers["w1"].kill()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert 10 <= len(tokens) < 200 and tokens == whole[: len(tokens)]
        resumed = request(200)
        resumed.resume.token_ids.extend(tokens)
        resumed.resume.expected_fingerprint = first
        # A scheduler that has just started gives the pool time to dial in.
        deadline = time.monotonic() + 60
        while True:
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.Generate(resumed, timeout=60))
            if caught.value.code() != grpc.StatusCode.UNAVAILABLE:
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert details(caught.value)[0] == "NO_SUCH_FINGERPRINT"
        # New requests run on the pool that was admitted next.
        assert fingerprint_of(once(stub)) != first


def test_a_mode_that_is_not_honoured_is_a_failed_precondition(deploy):
    one = deploy()
    one.start_scheduler()
    one.start_worker("w1", "--threads", 1, binary=MODE)
    wait_for(one, "refusal", is_in("REFUSED", "w1"))
    assert one.invar("check").returncode == 1
    with grpc.insecure_channel(one.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            once(stub)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert details(caught.value)[0] == "NUMERICS_NOT_HONOURED"
    assert "plan.mode: DETERMINISTIC against FAST" in caught.value.details()


def test_a_worker_of_an_older_config_gets_nothing(deploy):
    one = deploy().start()
    one.scheduler.stop()
    text = one.config.read_text()
    assert "FP8_E5M2" in text
    one.config.write_text(text.replace("FP8_E5M2", "BF16"))
    one.start_scheduler()
    workers = wait_for(one, "refusal", is_in("REFUSED", "w1"))
    assert "kv_cache.dtype is FP8_E5M2 here and BF16 there" in workers["w1"]["reason"]
    assert one.invar("generate", "--prompt", "2 + 2").returncode == 3
    assert one.workers["w1"].child.poll() is None
    # A restart is what it asks for.
    one.workers["w1"].stop()
    one.start_worker("w1")
    one.wait_ready()
    workers = wait_for(one, "worker", is_in("READY", "w1"))
    assert workers["w1"]["reason"] == ""
    assert one.invar("generate", "--prompt", "2 + 2").returncode == 0
