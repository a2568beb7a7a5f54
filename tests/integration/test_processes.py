"""What a person sees when something is wrong around the processes."""

import json
import shutil
import struct
import subprocess
import time

import grpc
import pytest
from deployment import BIN, MODEL, Process, free_ports
from invar.v1 import inference_pb2 as pb
from invar.v1 import inference_pb2_grpc
from test_bad_input import details


def copy_model(folder):
    target = folder / "model"
    shutil.copytree(MODEL, target)
    return target


def lines(process):
    return [line for line in process.text().splitlines() if line.strip()]


def test_no_worker_is_unavailable_with_a_retry(deploy):
    one = deploy()
    one.start_scheduler()
    assert one.invar("check", "--wait", "0.1").returncode in (1, 3)
    with grpc.insecure_channel(one.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5]))
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Generate(request, timeout=30, wait_for_ready=True))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert details(caught.value)[0] == "NO_WORKER"
    # The worker may come later.
    one.start_worker()
    one.wait_ready()


@pytest.mark.parametrize("field", ["api", "worker_link", "admin", "metrics"])
def test_a_port_in_use(deploy, field):
    one = deploy().start()
    taken = {"api": one.address, "worker_link": one.link, "admin": one.admin,
             "metrics": one.metrics}[field]
    two = deploy()
    text = two.config.read_text()
    ours = {"api": two.address, "worker_link": two.link, "admin": two.admin,
            "metrics": two.metrics}[field]
    two.config.write_text(text.replace(ours, taken))
    process = two.start_scheduler()
    assert process.wait() == 1
    assert taken in lines(process)[-1] and f"listen.{field}" in lines(process)[-1]
    assert one.invar("check").returncode == 0


@pytest.mark.parametrize("text, expected", [
    ("limit { }", ":1:7: "),
    ("limits { max_queue: 3 }", "max_queue"),
    ("limits { max_attempts: 99 }", "limits.max_attempts is 99"),
    ("model { path: 3 }", ":1:15: "),
    ("determinism { mode: MAYBE }", "MAYBE"),
])
def test_a_wrong_config(tmp_path, text, expected):
    config = tmp_path / "c.textproto"
    if "model" not in text:
        text = text + f'\nmodel {{ path: "{MODEL}" }}'
    config.write_text(text)
    process = Process(tmp_path / "log", BIN / "invar-scheduler", "--config", config)
    assert process.wait() == 2
    assert len(lines(process)) == 1 and expected in process.text()


def test_a_gpu_that_is_not_there(tmp_path):
    process = Process(tmp_path / "log", BIN / "invar-worker", "--scheduler",
                      "127.0.0.1:1", "--device", "cuda:99")
    assert process.wait() == 1
    assert len(lines(process)) == 1
    # A build without CUDA, a machine without a driver, one of fewer GPUs.
    assert any(text in process.text() for text in
               ("no CUDA backend", "no NVIDIA driver is installed", "there is no cuda:99"))


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece"])
def test_a_tokenizer_of_another_kind(deploy, tmp_path, kind):
    model = copy_model(tmp_path)
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["type"] = kind
    path.write_text(json.dumps(tokenizer))
    process = deploy(model=model).start_scheduler()
    assert process.wait() == 1
    assert "tokenizer.json" in lines(process)[-1] and kind in lines(process)[-1]


def shard_of(model):
    return sorted(model.glob("*.safetensors"))[0]


def edit_header(shard, edit):
    """Rewrites a safetensors header, its length kept by padding."""
    raw = shard.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + size])
    edit(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) <= size + 4096
    shard.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size:])


def truncate(model):
    shard = shard_of(model)
    shard.write_bytes(shard.read_bytes()[:-100])


def overlap(model):
    def edit(header):
        names = sorted(n for n in header if n != "__metadata__")
        first, second = header[names[0]], header[names[1]]
        size = second["data_offsets"][1] - second["data_offsets"][0]
        begin = first["data_offsets"][0]
        second["data_offsets"] = [begin, begin + size]
    edit_header(shard_of(model), edit)


def lie(model):
    def edit(header):
        name = sorted(n for n in header if n != "__metadata__")[0]
        header[name]["shape"] = [one * 2 for one in header[name]["shape"]] or [2]
    edit_header(shard_of(model), edit)


def huge_header(model):
    shard = shard_of(model)
    raw = shard.read_bytes()
    shard.write_bytes(struct.pack("<Q", 2**62) + raw[8:])


def missing_shard(model):
    shard_of(model).unlink()


@pytest.mark.parametrize(
    "damage", [truncate, overlap, lie, huge_header, missing_shard])
def test_a_damaged_checkpoint_is_refused_before_ready(deploy, tmp_path, damage):
    model = copy_model(tmp_path)
    name = shard_of(model).name
    damage(model)
    one = deploy(model=model)
    one.start_scheduler()
    worker = one.start_worker()
    assert worker.wait(60) == 1
    errors = [line for line in lines(worker) if " error " in line]
    assert len(errors) == 1 and name in errors[0], worker.text()
    assert one.invar("check").returncode == 1
    assert name in one.scheduler.text()  # The operator sees it there too.


@pytest.mark.parametrize("kv_bytes, expected", [
    (1 << 16, "but one block of this model takes 221184: raise it"),
    # More than a process can address.
    (1 << 50, "but the device has less room beside the model: lower it"),
])
def test_a_cache_that_does_not_fit(deploy, kv_bytes, expected):
    one = deploy(kv_bytes=kv_bytes)
    one.start_scheduler()
    worker = one.start_worker()
    assert worker.wait(60) == 1
    errors = [line for line in lines(worker) if " error " in line]
    assert len(errors) == 1, worker.text()
    assert f"kv_cache.memory_bytes is {kv_bytes}, {expected}" in errors[0]
    assert one.invar("check").returncode == 1
    assert expected in one.scheduler.text()  # The operator sees it there too.


def test_the_worker_leaves_and_comes_back(deploy):
    one = deploy().start()
    one.workers["w1"].stop()
    assert one.workers["w1"].child.returncode == 0
    one.start_worker("w1")
    one.wait_ready()
    assert one.invar("generate", "--chat", "What is 2 + 3?").returncode == 0


def test_metrics_and_health(service):
    import urllib.request

    with urllib.request.urlopen(f"http://{service.metrics}/metrics") as reply:
        text = reply.read().decode()
    assert "invar_num_requests_running" in text


@pytest.mark.parametrize("binary", ["invar", "invar-scheduler", "invar-worker"])
def test_usage(tmp_path, binary):
    good = Process(tmp_path / "help", BIN / binary, "--help")
    assert good.wait() == 0
    assert binary in good.text() and len(good.text()) > 300
    bad = Process(tmp_path / "bad", BIN / binary, "--no-such-flag")
    assert bad.wait() == 2
    assert len(lines(bad)) <= 2 and "no-such-flag" in bad.text()


def test_exit_codes(service):
    assert service.invar("generate", "--max-tokens", "-1", "--prompt", "x").returncode == 2
    assert service.invar("nonsense").returncode == 2
    assert service.invar("generate").returncode == 2
    nobody = service.invar("--address", "127.0.0.1:1", "check")
    assert nobody.returncode == 3 and "127.0.0.1:1" in nobody.stderr


def test_scoring_prints_one_json_object(service):
    scored = service.json(
        "generate", "--token-ids", "5,6,7", "--max-tokens", "0", "--prompt-logprobs")
    assert len(scored["prompt_logprobs"]) == 2
    assert all(isinstance(one, float) for one in scored["prompt_logprobs"])


def test_two_schedulers_share_a_worker(deploy):
    one, two = deploy(), deploy()
    # Only where they listen differs: that is no part of a worker's config.
    one.start_scheduler()
    two.start_scheduler()
    one.start_worker("w1", "--scheduler", two.link)
    one.wait_ready()
    two.wait_ready()
    shares = [service.worker_info().free_sequences for service in (one, two)]
    assert sum(shares) == 64 and min(shares) > 0
    answers = [service.json("generate", "--chat", "What is 2 + 3?")
               for service in (one, two)]
    assert answers[0]["token_ids"] == answers[1]["token_ids"]
    # One scheduler's end does not touch the other.
    one.scheduler.stop()
    again = two.json("generate", "--chat", "What is 2 + 3?")
    assert again["token_ids"] == answers[0]["token_ids"]


def test_a_scheduler_with_another_config_is_declined(deploy):
    one, two = deploy(), deploy(kv_dtype="BF16")
    one.start_scheduler()
    worker = one.start_worker("w1", "--scheduler", two.link)
    one.wait_ready()
    two.start_scheduler()
    deadline = time.monotonic() + 20
    while "kv_cache.dtype" not in two.scheduler.text():
        assert time.monotonic() < deadline, two.scheduler.text() + worker.text()
        time.sleep(0.1)
    assert one.invar("check").returncode == 0
    assert two.invar("check").returncode == 1


def test_mode_fast_is_another_pool(deploy, service):
    fast = deploy(config="determinism { mode: FAST }").start()
    theirs = fast.json("generate", "--chat", "What is 2 + 3?")["receipt"]
    ours = service.json("generate", "--chat", "What is 2 + 3?")["receipt"]
    assert theirs["fingerprint"] != ours["fingerprint"]


def test_a_trace_reaches_every_log(deploy):
    one = deploy().start()
    traces = {flags: digit * 32 for flags, digit in [("01", "a"), ("00", "b")]}
    with grpc.insecure_channel(one.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5]))
        request.stopping.max_tokens = 2
        for flags, trace in traces.items():
            header = f"00-{trace}-{'1' * 16}-{flags}"
            list(stub.Generate(request, metadata=[("traceparent", header)]))
        bad = pb.GenerateRequest()
        for header in (f"00-{'c' * 32}-{'1' * 16}-00", f"00-{'d' * 32}"):
            with pytest.raises(grpc.RpcError):
                list(stub.Generate(bad, metadata=[("traceparent", header)]))
    one.stop()
    scheduler, worker = (process.text() for process in one.processes())
    assert f"(trace {traces['01']})" in scheduler
    assert f"(trace {traces['01']})" in worker
    # Not recorded by its caller: only worth a line when something is wrong.
    assert traces["00"] not in scheduler + worker
    assert f"(trace {'c' * 32})" in scheduler
    # Not a trace context.
    assert "d" * 32 not in scheduler


def test_a_worker_answers_health_checks(deploy):
    one = deploy()
    health = f"127.0.0.1:{free_ports(1)[0]}"
    one.start_worker("w1", "--health", health)
    ask = [BIN / "invar", "check", "--worker", "--address", health]
    # No scheduler yet: alive, and not ready.
    deadline = time.monotonic() + 30
    while True:
        alive = subprocess.run(ask, capture_output=True, text=True)
        if alive.returncode != 3 or time.monotonic() > deadline:
            break
    assert alive.returncode == 1, alive.stderr
    assert alive.stdout.splitlines() == [
        "server: SERVING", "invar.worker.v1.WorkerLinkService: NOT_SERVING"]
    one.start_scheduler()
    assert subprocess.run([*ask, "--wait", "60"]).returncode == 0
    one.scheduler.stop()
    deadline = time.monotonic() + 10
    while subprocess.run(ask, capture_output=True).returncode == 0:
        assert time.monotonic() < deadline
    # Another worker on that port says so, and which flag.
    other = one.start_worker("w2", "--health", health)
    assert other.wait() == 1
    assert "--health" in other.text()
