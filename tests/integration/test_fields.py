"""Each field of a request does what the API says of it, from a client's call to
the kernels and back."""

import pytest
from invar.v1 import inference_pb2 as pb

QUESTION = "A recipe for 3 people needs 5 eggs. Ada cooks for 12 people. How many eggs does Ada need?"


def ask(**fields):
    """A request; fields are named part__field."""
    request = pb.GenerateRequest()
    request.chat.messages.add(role="user", content=QUESTION)
    request.stopping.max_tokens = 80
    for name, value in fields.items():
        part, field = name.split("__")
        target = getattr(request, part)
        if isinstance(value, list):
            getattr(target, field).extend(value)
        elif isinstance(value, dict):
            getattr(target, field).update(value)
        else:
            setattr(target, field, value)
    return request


def whole(stub, **fields):
    return stub.GenerateOnce(pb.GenerateOnceRequest(request=ask(**fields)), timeout=60)


def first(stub, **fields):
    return whole(stub, **fields).answers[0]


@pytest.fixture(scope="module")
def plain(stub):
    """The greedy answer, which ends by itself."""
    answer = first(stub)
    assert answer.completion.finish.reason == pb.Finish.STOP
    assert len(answer.text) > 40
    return answer


def test_a_stop_string_ends_the_text_before_it(stub, plain):
    stop = plain.text[20:25]
    before = plain.text[: plain.text.index(stop)]
    answer = first(stub, stopping__stop_strings=["not in it", stop])
    assert answer.text == before
    assert answer.completion.finish.stop_string == stop
    # No token after the one that completes it.
    assert len(answer.token_ids) < len(plain.token_ids)
    assert answer.token_ids == plain.token_ids[: len(answer.token_ids)]
    answer = first(stub, stopping__stop_strings=[stop], stopping__include_stop_text=True)
    assert answer.text == before + stop


def test_text_that_could_begin_a_stop_string_is_held_back(stub, plain):
    """A stop string whose end never comes: all text arrives, late."""
    stop = plain.text[-4:] + "!"
    said, tokens = "", 0
    for event in stub.Generate(ask(stopping__stop_strings=[stop]), timeout=60):
        if not event.HasField("delta"):
            continue
        said += event.delta.text
        tokens += len(event.delta.token_ids)
        if tokens < len(plain.token_ids):
            assert not any(said.endswith(stop[:k]) for k in range(1, 5))
    assert said == plain.text


def test_stop_ids_and_min_tokens(stub, plain):
    ids = list(plain.token_ids)
    stop = max(ids, key=ids.count)
    places = [i + 1 for i, one in enumerate(ids) if one == stop]
    assert len(places) > 1
    answer = first(stub, stopping__stop_token_ids=[stop])
    assert list(answer.token_ids) == ids[: places[0]]
    assert answer.completion.finish.stop_token_id == stop
    answer = first(
        stub, stopping__stop_token_ids=[stop], stopping__min_tokens=places[0]
    )
    assert list(answer.token_ids) == ids[: places[1]]
    answer = first(stub, stopping__ignore_eos=True)
    assert len(answer.token_ids) == 80
    assert list(answer.token_ids[: len(ids)]) == ids


@pytest.mark.parametrize("field, value", [("top_k", 1), ("top_p", 1e-9), ("min_p", 1.0)])
def test_a_choice_of_one_is_the_greedy_one(stub, plain, field, value):
    hot = dict(sampling__temperature=5.0, sampling__seed=7)
    assert first(stub, **hot).token_ids != plain.token_ids
    assert first(stub, **hot, **{f"sampling__{field}": value}).token_ids == plain.token_ids


def test_biases_and_penalties(stub, plain):
    banned = plain.token_ids[0]
    answer = first(stub, sampling__logit_bias={banned: -100.0})
    assert banned not in answer.token_ids
    forced = first(stub, sampling__logit_bias={77: 100.0}, stopping__max_tokens=4)
    assert list(forced.token_ids) == [77] * 4
    # The model is sure of its greedy answer; a hot one shows each of them.
    hot = dict(sampling__temperature=5.0, sampling__seed=7)
    without = first(stub, **hot)
    for field in ["presence_penalty", "frequency_penalty", "repetition_penalty"]:
        answer = first(stub, **hot, **{f"sampling__{field}": 2.0})
        assert answer.token_ids != without.token_ids, field


def test_samples_have_seeds_of_their_own(stub):
    fields = dict(sampling__temperature=3.0, sampling__seed=3, stopping__max_tokens=20)
    reply = whole(stub, sampling__n=4, **fields)
    assert len({tuple(one.token_ids) for one in reply.answers}) == 4
    assert reply.usage.output_tokens == sum(len(one.token_ids) for one in reply.answers)
    fields["sampling__seed"] = reply.answers[2].completion.receipt.seed
    assert first(stub, **fields).token_ids == reply.answers[2].token_ids


def test_log_probabilities(stub, plain):
    fields = dict(
        output__logprobs=True, output__top_logprobs=5, output__prompt_logprobs=True
    )
    reply = whole(stub, **fields)
    answer = reply.answers[0]
    assert answer.token_ids == plain.token_ids
    assert len(reply.prompt_logprobs) == reply.usage.prompt_tokens - 1
    assert len(answer.logprobs) == len(answer.top_logprobs) == len(answer.token_ids)
    for token, value, top in zip(answer.token_ids, answer.logprobs, answer.top_logprobs):
        assert len(top.token_ids) == 5
        assert list(top.logprobs) == sorted(top.logprobs, reverse=True)
        assert (top.token_ids[0], top.logprobs[0]) == (token, value)
    # Of the raw logits, whatever the sampling.
    answer = first(stub, **fields, sampling__temperature=5.0, sampling__top_k=1)
    assert answer.token_ids == plain.token_ids
    assert answer.logprobs == reply.answers[0].logprobs
    scored = whole(stub, output__prompt_logprobs=True, stopping__max_tokens=0)
    assert scored.prompt_logprobs == reply.prompt_logprobs
    assert not scored.answers[0].token_ids
