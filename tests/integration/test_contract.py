"""The contract over gRPC: the log-probabilities of a text are the same bits
alone, among strangers, as prefill and as decode, and after a restart."""

import concurrent.futures
import struct

import pytest
from invar.v1 import inference_pb2 as pb

TEXT = "User: Ann has 3 bags with 14 apples each. How many apples?\n\nAssistant:"


def bits(values):
    return [struct.pack("<f", value) for value in values]


def generate(stub, ids, max_tokens, index=None, prompt_logprobs=False):
    """Greedy; a stranger (index set) samples with parameters of its own."""
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids))
    request.stopping.max_tokens = max_tokens
    request.stopping.ignore_eos = True
    request.output.logprobs = True
    request.output.prompt_logprobs = prompt_logprobs
    if index is not None:
        request.sampling.temperature = 0.5 + index / 16
        request.sampling.seed = index
    answer = stub.GenerateOnce(pb.GenerateOnceRequest(request=request), timeout=120)
    return answer


def reference(stub):
    ids = list(stub.Tokenize(pb.TokenizeRequest(text=TEXT)).token_ids)
    answer = generate(stub, ids, 48, prompt_logprobs=True)
    return ids, answer


def assert_same(one, other):
    assert list(one.answers[0].token_ids) == list(other.answers[0].token_ids)
    assert bits(one.answers[0].logprobs) == bits(other.answers[0].logprobs)
    assert bits(one.prompt_logprobs) == bits(other.prompt_logprobs)


def test_alone_and_among_32_strangers(stub):
    ids, alone = reference(stub)
    assert len(alone.answers[0].logprobs) == 48
    assert len(alone.prompt_logprobs) == len(ids) - 1
    with concurrent.futures.ThreadPoolExecutor(33) as pool:
        strangers = [
            pool.submit(generate, stub, ids[: 2 + i % (len(ids) - 2)], 20 + i, i)
            for i in range(32)
        ]
        crowded = [
            pool.submit(generate, stub, ids, 48, None, True).result() for _ in range(3)
        ]
        for one in strangers:
            one.result()
    for one in crowded:
        assert_same(alone, one)


def test_scoring_equals_generation(stub):
    ids, alone = reference(stub)
    output = list(alone.answers[0].token_ids)
    scored = generate(stub, ids + output, 0, prompt_logprobs=True)
    assert bits(scored.prompt_logprobs) == bits(alone.prompt_logprobs) + bits(
        alone.answers[0].logprobs
    )


def test_sampling_depends_on_seed_and_position_alone(stub):
    ids, _ = reference(stub)
    one = generate(stub, ids, 40, 3)
    assert_same(one, generate(stub, ids, 40, 3))
    other = generate(stub, ids, 40, 4)
    assert list(one.answers[0].token_ids) != list(other.answers[0].token_ids)


def test_resume_writes_the_same_rest(stub):
    ids, _ = reference(stub)
    whole = generate(stub, ids, 40, 5)
    tokens = list(whole.answers[0].token_ids)
    fingerprint = whole.answers[0].completion.receipt.fingerprint
    for cut in (1, 17, 39):
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids))
        request.stopping.max_tokens = 40
        request.stopping.ignore_eos = True
        request.sampling.temperature = 0.5 + 5 / 16
        request.sampling.seed = 5
        request.resume.token_ids.extend(tokens[:cut])
        request.resume.expected_fingerprint = fingerprint
        rest = stub.GenerateOnce(pb.GenerateOnceRequest(request=request))
        assert list(rest.answers[0].token_ids) == tokens[cut:]
        assert (
            rest.answers[0].completion.receipt.output_digest
            == whole.answers[0].completion.receipt.output_digest
        )


@pytest.mark.parametrize("dtype", ["FP8_E4M3", "BF16", "FP32"])
def test_every_kv_dtype(deploy, stub, dtype):
    """Each keeps the contract; each is another pool."""
    import grpc
    from invar.v1 import inference_pb2_grpc

    one = deploy(kv_dtype=dtype).start()
    with grpc.insecure_channel(one.address) as channel:
        other = inference_pb2_grpc.InferenceServiceStub(channel)
        ids, alone = reference(other)
        output = list(alone.answers[0].token_ids)
        scored = generate(other, ids + output, 0, prompt_logprobs=True)
    assert bits(scored.prompt_logprobs) == bits(alone.prompt_logprobs) + bits(
        alone.answers[0].logprobs
    )
    _, e5m2 = reference(stub)
    ours = alone.answers[0].completion.receipt.fingerprint
    assert ours != e5m2.answers[0].completion.receipt.fingerprint


def test_after_a_restart_and_with_one_thread(deploy):
    import grpc
    from invar.v1 import inference_pb2_grpc

    one = deploy().start()
    with grpc.insecure_channel(one.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        _, before = reference(stub)
        one.workers["w1"].stop()
        one.start_worker("w2", "--threads", "1")
        one.wait_ready()
        _, after = reference(stub)
    assert_same(before, after)


def test_a_killed_workers_answer_goes_on(deploy):
    """SIGKILL in the middle of an answer: the other worker writes the rest."""
    import grpc
    from invar.v1 import inference_pb2_grpc

    one = deploy().start()
    with grpc.insecure_channel(one.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        ids, _ = reference(stub)
        undisturbed = generate(stub, ids, 400, 7)
        one.start_worker("w2")
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids))
        request.stopping.max_tokens = 400
        request.stopping.ignore_eos = True
        request.output.logprobs = True
        request.sampling.temperature = 0.5 + 7 / 16
        request.sampling.seed = 7
        tokens, logprobs, killed = [], [], False
        for event in stub.Generate(request, timeout=120):
            tokens += event.delta.token_ids
            logprobs += event.delta.logprobs
            if len(tokens) >= 20 and not killed:
                while len(stub_workers(one)) < 2:
                    pass
                one.workers["w1"].kill()
                killed = True
        assert killed
    assert tokens == list(undisturbed.answers[0].token_ids)
    assert bits(logprobs) == bits(undisturbed.answers[0].logprobs)


def stub_workers(deployment):
    """The admitted workers."""
    import grpc
    from invar.v1 import admin_pb2, admin_pb2_grpc

    with grpc.insecure_channel(deployment.admin) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        workers = stub.ListWorkers(admin_pb2.ListWorkersRequest()).workers
        return [one for one in workers if one.state == admin_pb2.WorkerInfo.READY]
