"""Receipts that a stranger can check: whole evaluations verified, every altered
field found, another fingerprint named by its field, scoring equal to writing."""

import concurrent.futures
import json
import struct

import grpc
from deployment import BIN
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from invar.v1 import inference_pb2 as pb
from invar.v1 import inference_pb2_grpc, numerics_pb2, record_pb2

RESCORED = 200


def bits(values):
    return [struct.pack("<f", value) for value in values]


def write_record(service, path, *flags):
    done = service.invar(
        "generate", "--chat", "What is 2 + 3?", "--seed", 7, "--temperature",
        0.75, "--logit-bias", "5=0.5", "--stop", "zzzz", "--max-tokens", 24,
        "--receipt", path, *flags)
    assert done.returncode == 0, done.stderr
    return json_format.Parse(path.read_text(), record_pb2.GenerationRecord())


def verify(service, path, *flags):
    done = service.invar("verify", path, "--json", *flags)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def changed(field, value):
    """Another value of a field's type."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return value[1:] if value else "altered"
    if field.type == FieldDescriptor.TYPE_FLOAT:
        return struct.unpack("<f", struct.pack(
            "<I", struct.unpack("<I", struct.pack("<f", value))[0] ^ 1))[0]
    return value ^ 1


def alterations(message, path=""):
    """(path, change) of every field of a message: `change` is to be applied to
    another message of the same content."""
    for field in message.DESCRIPTOR.fields:
        name = path + field.name
        value = getattr(message, field.name)
        repeated = hasattr(value, "__len__") and not isinstance(value, str)
        if field.message_type and field.message_type.GetOptions().map_entry:
            yield name, lambda one, f=field.name: getattr(one, f).update({9: 1.5})
        elif repeated and len(value) == 0:
            extra = "x" if field.type == FieldDescriptor.TYPE_STRING else 1
            yield name, lambda one, f=field.name, x=extra: getattr(one, f).append(x)
        elif repeated:
            yield name, lambda one, f=field.name: getattr(one, f).pop()
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner, change in alterations(value, name + "."):
                yield inner, lambda one, f=field.name, c=change: c(getattr(one, f))
        else:
            new = changed(field, value)
            yield name, lambda one, f=field.name, x=new: setattr(one, f, x)


def test_a_receipt_altered_in_any_field_is_found(service, tmp_path):
    record = write_record(service, tmp_path / "r.json")
    receipt = record.response.answers[0].completion.receipt
    paths, lines = [], []
    for path, change in alterations(receipt):
        altered = record_pb2.GenerationRecord()
        altered.CopyFrom(record)
        change(altered.response.answers[0].completion.receipt)
        assert altered != record, path
        paths.append(path)
        lines.append(json_format.MessageToJson(
            altered, preserving_proto_field_name=True, indent=None))
    assert len(paths) >= 7 + 12  # The receipt's fields, and the sampling's.
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    code, found = verify(service, tmp_path / "all.jsonl")
    assert code == 1
    assert found["differ"] == len(paths) and found["cannot_tell"] == 0
    for path, finding in zip(paths, found["findings"]):
        assert f"completion.receipt.{path}" in finding["detail"]
    # And unaltered, in a crowd of its like.
    (tmp_path / "same.jsonl").write_text((tmp_path / "r.json").read_text() * 30)
    assert verify(service, tmp_path / "same.jsonl")[0] == 0


def test_the_receipt_is_in_the_trailing_metadata_too(stub):
    request = pb.GenerateRequest(text="2 + 2 =")
    request.sampling.n = 2
    call = stub.Generate(request, timeout=60)
    final = [event.final for event in call if event.HasField("final")][0]
    receipts = [
        numerics_pb2.Receipt.FromString(value)
        for key, value in call.trailing_metadata() if key == "invar-receipt-bin"]
    assert receipts == [one.receipt for one in final.completions]


def test_a_whole_evaluation_is_verified_by_one_command(service, tmp_path):
    done = service.invar(
        "eval", "mgsm", "--limit", 60, "--receipts", tmp_path / "m.jsonl")
    assert done.returncode == 0, done.stderr
    code, found = verify(service, tmp_path / "m.jsonl", "--concurrency", 16)
    assert code == 0, found
    assert found["identical"] == 60
    # One log-probability, by its last bit.
    lines = (tmp_path / "m.jsonl").read_text().splitlines()
    record = json_format.Parse(lines[41], record_pb2.GenerationRecord())
    answer = record.response.answers[0]
    answer.logprobs[5] = changed(
        pb.Answer.DESCRIPTOR.fields_by_name["logprobs"], answer.logprobs[5])
    lines[41] = json_format.MessageToJson(record, indent=None)
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    code, found = verify(service, tmp_path / "m.jsonl")
    assert code == 1 and found["identical"] == 59
    assert found["findings"][0]["line"] == 42
    position = record.response.usage.prompt_tokens + 5
    assert f"position {position} (output token 5)" in found["findings"][0]["detail"]


def test_another_fingerprint_cannot_tell_and_names_the_field(
        service, deploy, tmp_path):
    write_record(service, tmp_path / "r.json")
    other = deploy(kv_dtype="BF16").start()
    code, found = verify(other, tmp_path / "r.json")
    assert code == 3 and found["cannot_tell"] == 1
    assert "differs in plan.kv.dtype: " in found["findings"][0]["detail"]
    # Its worker is killed: nobody can tell, and nothing is said to differ.
    write_record(other, tmp_path / "o.json")
    assert verify(other, tmp_path / "o.json")[0] == 0
    other.workers["w1"].kill()
    other.workers["w1"].wait()
    code, found = verify(other, tmp_path / "o.json", "--patience", 1)
    assert code == 3, found
    other.scheduler.stop()
    done = other.invar("verify", tmp_path / "o.json")  # Does not wait to connect.
    assert done.returncode == 3 and "no server at" in done.stderr


def test_the_selftest_passes(service):
    done = service.invar("selftest", "--json", "--seed", 20)
    assert done.returncode == 0, done.stdout + done.stderr
    test = json.loads(done.stdout)
    assert len(test["dimensions"]) >= 9
    for row in test["dimensions"]:
        assert row["differing_bits"] == 0 and row["cells"] > 0, row
        assert row["note"] == "", row


def test_the_selftest_finds_a_worker_that_breaks_its_plan(deploy):
    """Its attention splits by the batch (tests/contract/planted), so that its
    plan and its fingerprint are those of one that keeps the contract."""
    one = deploy()
    one.start_scheduler()
    one.start_worker(binary=BIN.parent / "tests" / "worker_planted_batch")
    one.wait_ready()
    done = one.invar("selftest", "--json", "--seed", 20)
    assert done.returncode == 1, done.stdout + done.stderr
    differing = {row["dimension"] for row in json.loads(done.stdout)["dimensions"]
                 if row["differing_bits"] > 0}
    assert {"concurrency", "sampling", "scoring"} <= differing


def test_rescoring_equals_generation(service):
    """200 answers, half of them sampled: prompt_logprobs of prompt + answer are
    the log-probabilities that writing it gave, bit for bit."""

    def rescore(stub, i):
        chat = pb.Chat(messages=[pb.ChatMessage(
            role="user", content=f"Ada has {i} bags of {i % 13 + 2} eggs. How many?")])
        ids = list(stub.Tokenize(pb.TokenizeRequest(chat=chat)).token_ids)
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids))
        request.stopping.max_tokens = 160
        request.output.logprobs = True
        if i % 2:
            request.sampling.temperature = 0.5 + i % 7 / 4
            request.sampling.seed = i
        answer = stub.GenerateOnce(
            pb.GenerateOnceRequest(request=request), timeout=300).answers[0]
        score = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=ids + list(answer.token_ids)))
        score.stopping.max_tokens = 0
        score.output.prompt_logprobs = True
        scored = stub.GenerateOnce(
            pb.GenerateOnceRequest(request=score), timeout=300).prompt_logprobs
        assert len(scored) == len(ids) + len(answer.token_ids) - 1
        assert bits(scored[len(ids) - 1:]) == bits(answer.logprobs), f"answer {i}"
        return len(answer.token_ids)

    with grpc.insecure_channel(service.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            compared = sum(pool.map(lambda i: rescore(stub, i), range(RESCORED)))
    print(f"{RESCORED} answers, {compared} log-probabilities, no bit differs")
    assert compared > 10 * RESCORED
