"""Bad input gets the right code and field, and touches nobody else."""

import threading
import time

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from invar.v1 import inference_pb2 as pb
from invar.v1 import inference_pb2_grpc

BIG = 2**31 - 1


def details(error):
    """(reason, [fields]) of an RpcError."""
    reason, fields = "", []
    for key, value in error.trailing_metadata():
        if key != "grpc-status-details-bin":
            continue
        for any_ in status_pb2.Status.FromString(value).details:
            info = error_details_pb2.ErrorInfo()
            bad = error_details_pb2.BadRequest()
            if any_.Unpack(info):
                assert info.domain == "invar"
                reason = info.reason
            elif any_.Unpack(bad):
                fields += [one.field for one in bad.field_violations]
    return reason, fields


def ok_request(**fields):
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5, 6, 7]))
    request.stopping.max_tokens = 4
    request.MergeFrom(pb.GenerateRequest(**fields))
    return request


def sampling(**fields):
    return ok_request(sampling=pb.Sampling(**fields))


def stopping(**fields):
    return ok_request(stopping=pb.Stopping(**fields))


INVALID = grpc.StatusCode.INVALID_ARGUMENT
REFUSED = grpc.StatusCode.FAILED_PRECONDITION
CASES = {
    "no prompt": (pb.GenerateRequest(), INVALID, "prompt"),
    "empty text": (pb.GenerateRequest(text=""), INVALID, "text"),
    "empty chat": (pb.GenerateRequest(chat=pb.Chat()), INVALID, "chat.messages"),
    "empty ids": (
        pb.GenerateRequest(token_ids=pb.TokenIds()), INVALID, "token_ids.ids"),
    "unknown role": (
        pb.GenerateRequest(chat=pb.Chat(
            messages=[pb.ChatMessage(role="tool", content="x")])),
        INVALID, "chat.messages[0].role"),
    "id too large": (
        pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5, BIG])),
        INVALID, "token_ids.ids[1]"),
    "id negative": (
        pb.GenerateRequest(token_ids=pb.TokenIds(ids=[-1])),
        INVALID, "token_ids.ids[0]"),
    "stop id too large": (
        stopping(stop_token_ids=[5, BIG]), INVALID, "stopping.stop_token_ids[1]"),
    "too many stop ids": (
        stopping(stop_token_ids=[5] * 65), INVALID, "stopping.stop_token_ids"),
    "empty stop string": (
        stopping(stop_strings=["a", ""]), INVALID, "stopping.stop_strings[1]"),
    "too many stop strings": (
        stopping(stop_strings=["a"] * 17), INVALID, "stopping.stop_strings"),
    "long stop string": (
        stopping(stop_strings=["a" * 257]), INVALID, "stopping.stop_strings[0]"),
    "max_tokens negative": (
        stopping(max_tokens=-1), INVALID, "stopping.max_tokens"),
    "min over max": (stopping(min_tokens=9), INVALID, "stopping.min_tokens"),
    "temperature NaN": (
        sampling(temperature=float("nan")), INVALID, "sampling.temperature"),
    "temperature negative": (
        sampling(temperature=-0.1), INVALID, "sampling.temperature"),
    "temperature huge": (
        sampling(temperature=1e30), INVALID, "sampling.temperature"),
    "temperature infinite": (
        sampling(temperature=float("inf")), INVALID, "sampling.temperature"),
    "top_k negative": (sampling(top_k=-1), INVALID, "sampling.top_k"),
    "top_p 0": (sampling(top_p=0), INVALID, "sampling.top_p"),
    "top_p NaN": (sampling(top_p=float("nan")), INVALID, "sampling.top_p"),
    "min_p 2": (sampling(min_p=2), INVALID, "sampling.min_p"),
    "n 0": (sampling(n=0), INVALID, "sampling.n"),
    "n 17": (sampling(n=17), INVALID, "sampling.n"),
    "presence_penalty 3": (
        sampling(presence_penalty=3), INVALID, "sampling.presence_penalty"),
    "frequency_penalty NaN": (
        sampling(frequency_penalty=float("nan")), INVALID,
        "sampling.frequency_penalty"),
    "repetition_penalty 0": (
        sampling(repetition_penalty=0), INVALID, "sampling.repetition_penalty"),
    "repetition_penalty 2.1": (
        sampling(repetition_penalty=2.1), INVALID,
        "sampling.repetition_penalty"),
    "bias of no token": (
        sampling(logit_bias={BIG: 1.0}), INVALID, f"sampling.logit_bias[{BIG}]"),
    "bias 101": (
        sampling(logit_bias={5: 101}), INVALID, "sampling.logit_bias[5]"),
    "biases beyond the limit": (
        sampling(logit_bias={i: 1.0 for i in range(1025)}), INVALID,
        "sampling.logit_bias"),
    "resume tokens of several answers": (
        ok_request(sampling=pb.Sampling(n=2), resume=pb.ResumeFrom(
            token_ids=[5], expected_fingerprint="00ff")),
        INVALID, "resume.token_ids"),
    "top_logprobs alone": (
        ok_request(output=pb.Output(top_logprobs=2)), INVALID,
        "output.top_logprobs"),
    "top_logprobs huge": (
        ok_request(output=pb.Output(logprobs=True, top_logprobs=21)), INVALID,
        "output.top_logprobs"),
    "model": (
        ok_request(model="other"), grpc.StatusCode.NOT_FOUND, "model"),
    "request_id long": (
        ok_request(request_id="x" * 129), INVALID, "request_id"),
    "request_id control": (ok_request(request_id="a\nb"), INVALID, "request_id"),
    "resume without fingerprint": (
        ok_request(resume=pb.ResumeFrom(token_ids=[5])), INVALID,
        "resume.expected_fingerprint"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_code_and_the_field(service, stub, case):
    request, code, field = CASES[case]
    lines = service.scheduler.text().count("\n")
    for call in (
        lambda: list(stub.Generate(request, timeout=30)),
        lambda: stub.GenerateOnce(pb.GenerateOnceRequest(request=request), timeout=30),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == code, caught.value.details()
        assert details(caught.value)[1] == [field]
        assert field in caught.value.details()
    assert service.scheduler.text().count("\n") == lines + 2  # One a call.
    service.wait_idle()


@pytest.mark.parametrize("prompt, max_tokens", [(3, 10**6), (5000, 1), (4096, 1)])
def test_too_long_is_out_of_range(service, stub, prompt, max_tokens):
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5] * prompt))
    request.stopping.max_tokens = max_tokens
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(request, timeout=30))
    assert caught.value.code() == grpc.StatusCode.OUT_OF_RANGE
    assert details(caught.value)[0] == "TOO_LONG"
    service.wait_idle()


def test_resume_of_another_fingerprint(stub):
    request = ok_request(
        resume=pb.ResumeFrom(token_ids=[5], expected_fingerprint="00ff"))
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(request, timeout=30))
    assert caught.value.code() == REFUSED
    assert details(caught.value)[0] == "NO_SUCH_FINGERPRINT"


def test_a_duplicate_in_flight(service, stub):
    first = ok_request(request_id="twin", stopping=pb.Stopping(max_tokens=300, ignore_eos=True))
    stream = stub.Generate(first, timeout=60)
    next(stream)
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(first, timeout=30))
    assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS
    stream.cancel()
    service.wait_idle()


class Neighbour:
    """A stream that goes on while others misbehave; must not change."""

    def __init__(self, stub):
        request = ok_request(
            stopping=pb.Stopping(max_tokens=200, ignore_eos=True),
            output=pb.Output(logprobs=True))
        self._stub, self._request = stub, request
        self.expected = self._run()
        self._thread = threading.Thread(target=self._repeat)
        self._stop = False
        self.runs = 0
        self.equal = True
        self._thread.start()

    def _run(self):
        tokens, logprobs = [], []
        for event in self._stub.Generate(self._request, timeout=120):
            tokens += event.delta.token_ids
            logprobs += event.delta.logprobs
        return tokens, logprobs

    def _repeat(self):
        while not self._stop or self.runs == 0:
            self.equal &= self._run() == self.expected
            self.runs += 1

    def finish(self):
        self._stop = True
        self._thread.join()
        assert self.runs > 0 and self.equal


def test_invalid_utf8_is_named_and_hurts_nobody_else(service, stub):
    neighbour = Neighbour(stub)
    text = b"\x12\x02\xff\xfe"  # field 2, of each request
    once = b"\x0a\x04" + text  # in field 1
    with grpc.insecure_channel(service.address) as channel:
        for method, payload, field in [
            ("Generate", text, "text"),
            ("GenerateOnce", once, "request.text"),
            ("Tokenize", text, "text"),
            ("Detokenize", b"\x0a\x02\xff\xfe", "model"),
        ]:
            path = f"/invar.v1.InferenceService/{method}"
            with pytest.raises(grpc.RpcError) as caught:
                # A stream of one, whatever the method's own kind.
                list(channel.unary_stream(path)(payload, timeout=30))
            assert caught.value.code() == INVALID
            assert details(caught.value) == ("BAD_FIELD", [field])
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.unary_stream("/invar.v1.InferenceService/Generate")(b"\x12\x7f"))
        assert caught.value.code() == INVALID
        assert details(caught.value)[0] == "BAD_MESSAGE"
    neighbour.finish()
    service.wait_idle()


def test_cancel_at_each_stage(service, stub):
    neighbour = Neighbour(stub)
    long = stopping(ignore_eos=True)
    long.stopping.max_tokens = 1500
    for after in (0, 0, 1, 2, 10):
        stream = stub.Generate(long, timeout=60)
        for _ in range(after):
            next(stream)
        stream.cancel()
    # In the middle of a long prefill.
    prefill = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5] * 3000))
    prefill.stopping.max_tokens = 10
    for delay in (0.0, 0.02, 0.2):
        stream = stub.Generate(prefill, timeout=60)
        time.sleep(delay)
        stream.cancel()
    # While it waits in the queue: more than can run.
    streams = [stub.Generate(long, timeout=60) for _ in range(100)]
    time.sleep(0.3)
    for one in streams:
        one.cancel()
    neighbour.finish()
    service.wait_idle()


def test_a_deadline_ends_a_request(service, stub):
    long = stopping(ignore_eos=True)
    long.stopping.max_tokens = 3000
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(long, timeout=0.5))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    service.wait_idle()


def test_a_client_that_stops_reading(deploy):
    """It is cancelled; its KV comes back; others go on."""
    one = deploy(
        config="limits { client_stall_ms: 1000 stream_buffer_bytes: 4096 }").start()
    options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    with grpc.insecure_channel(one.address, options) as slow, \
            grpc.insecure_channel(one.address) as quick:
        neighbour = Neighbour(inference_pb2_grpc.InferenceServiceStub(quick))
        request = stopping(ignore_eos=True)
        request.stopping.max_tokens = 3500
        request.output.logprobs = True
        request.output.top_logprobs = 20
        stream = inference_pb2_grpc.InferenceServiceStub(slow).Generate(
            request, timeout=120)
        next(stream)
        neighbour.finish()
        one.wait_idle(seconds=60)
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert caught.value.code() == grpc.StatusCode.CANCELLED
