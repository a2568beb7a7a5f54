"""Many requests over real processes: pressure on the KV cache, cancels,
deadlines and disconnects at random. Nothing leaks, nobody dies, and an answer
that nobody disturbed has the bits that it always has.

INVAR_FULL=1: 10,000 requests instead of a few hundred."""

import concurrent.futures
import os
import random
import urllib.request

import grpc
from deployment import free_ports
from invar.v1 import inference_pb2 as pb
from invar.v1 import inference_pb2_grpc
from test_contract import assert_same

SEED = 20
REQUESTS = 10_000 if os.environ.get("INVAR_FULL") else 300
CLIENTS = 24
# One answer in so many is compared with a run before the chaos.
NEIGHBOUR_EVERY = 25
NEIGHBOUR = 1_000_000  # the first of their numbers
# A block of the embedded model: 6 layers, 64 tokens, 576 bytes.
BLOCK_BYTES = 6 * 64 * 576


def text_request(index, max_tokens):
    draw = random.Random(SEED * 1_000_003 + index)
    ids = [draw.randrange(1000) for _ in range(draw.randrange(1, 150))]
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids))
    request.stopping.max_tokens = max_tokens
    request.stopping.ignore_eos = True
    request.output.logprobs = True
    request.sampling.temperature = draw.choice([0.0, 0.7, 1.0])
    request.sampling.seed = index
    return request


def once(stub, request):
    return stub.GenerateOnce(pb.GenerateOnceRequest(request=request), timeout=300)


def test_pressure_on_the_cache_moves_no_bit(deploy):
    """64 streams in a cache too small for them: the bits of an unlimited run."""
    def run(one):
        with grpc.insecure_channel(one.address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            with concurrent.futures.ThreadPoolExecutor(64) as pool:
                answers = list(
                    pool.map(lambda i: once(stub, text_request(i, 120)), range(64))
                )
        one.wait_idle()
        return answers

    ample = deploy().start()
    expected = run(ample)
    ample.stop()
    tight = deploy()
    text = tight.config.read_text()
    assert "memory_bytes: 268435456" in text
    # 64 streams of up to 5 blocks each want about three times as much.
    text = text.replace("268435456", str(72 * BLOCK_BYTES))
    tight.config.write_text(text)
    tight.start_scheduler()
    metrics = f"127.0.0.1:{free_ports(1)[0]}"
    tight.start_worker("w1", "--metrics", metrics)
    tight.wait_ready()
    for one, other in zip(run(tight), expected):
        assert len(one.answers[0].logprobs) == 120
        assert_same(one, other)
    assert metric(metrics, "invar_preemptions_total") > 0


def metric(address, name):
    with urllib.request.urlopen(f"http://{address}/metrics") as reply:
        for line in reply.read().decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[-1])
    raise AssertionError(f"{address} has no metric {name}")


def disturb(address, index):
    """Begins a request and ends it in a way drawn from the index."""
    draw = random.Random(SEED * 7_000_003 + index)
    how = draw.choice(["cancel", "deadline", "disconnect", "finish"])
    deadline = draw.uniform(0.001, 0.5) if how == "deadline" else 300
    after = draw.randrange(0, 12)
    channel = grpc.insecure_channel(
        address, options=[("grpc.use_local_subchannel_pool", 1)]
    )
    try:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request = text_request(index, draw.randrange(1, 60))
        call = stub.Generate(request, timeout=deadline)
        for seen, _ in enumerate(call):
            if seen >= after and how == "cancel":
                call.cancel()
            if seen >= after and how == "disconnect":
                channel.close()
        return how, None
    except grpc.RpcError as error:
        return how, error.code()
    except ValueError:  # A call of a channel that was closed under it.
        return how, grpc.StatusCode.CANCELLED
    finally:
        channel.close()


# A busy machine, or a sanitizer's build, may be late with a heartbeat; whether
# it is, is not the question here.
PATIENT = "limits { heartbeat_timeout_ms: 60000 worker_wait_ms: 120000 }"


def test_cancels_deadlines_and_disconnects_leave_nothing_behind(deploy):
    one = deploy(config=PATIENT).start()
    with grpc.insecure_channel(one.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        calm = [once(stub, text_request(NEIGHBOUR + i, 80)) for i in range(4)]

        def work(index):
            if index % NEIGHBOUR_EVERY == 0:
                which = index // NEIGHBOUR_EVERY % len(calm)
                try:
                    answer = once(stub, text_request(NEIGHBOUR + which, 80))
                except grpc.RpcError as error:
                    return "neighbour", error.code()
                assert_same(answer, calm[which])
                return "neighbour", None
            return disturb(one.address, index)

        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            outcomes = list(pool.map(work, range(REQUESTS)))
    allowed = {
        "neighbour": {None},
        "finish": {None},
        "cancel": {None, grpc.StatusCode.CANCELLED},
        "disconnect": {None, grpc.StatusCode.CANCELLED},
        "deadline": {None, grpc.StatusCode.DEADLINE_EXCEEDED},
    }
    wrong = [one for one in outcomes if one[1] not in allowed[one[0]]]
    logs = "".join(process.text() for process in one.processes())
    assert not wrong, f"{len(wrong)}: {wrong[:5]}\n{logs}"
    # Each way of ending did occur.
    assert {code for _, code in outcomes} >= {
        None, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
    one.wait_idle(seconds=30)
    assert all(process.child.poll() is None for process in one.processes())
    # Leaving, each accounts for what it held: a sanitizer's build says here
    # what it leaked.
    one.stop()
    for process in one.processes():
        assert process.child.returncode == 0, process.text()
