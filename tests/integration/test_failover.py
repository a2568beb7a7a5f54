"""Streams outlive the processes that write them: workers and schedulers are
killed, stopped and started again while many streams run, and each stream is,
to the bit, the one that nobody disturbed.

INVAR_FULL=1: 500 streams instead of 60, 200 instead of 30."""

import collections
import os
import random
import re
import signal
import struct
import subprocess
import time
import urllib.request

import pytest
from deployment import BIN
from invar.v1 import inference_pb2 as pb

STREAM_MANY = BIN.parent / "tests" / "stream_many"
FULL = bool(os.environ.get("INVAR_FULL"))
STREAMS = 500 if FULL else 60
RESTART_STREAMS = 200 if FULL else 30
SECONDS_BETWEEN_KILLS = 2
SCHEDULER_KILLS = 3 if FULL else 1

Stream = collections.namedtuple("Stream", "code resumes answer")


def make_request(index):
    """Half are sampled; stop strings, log-probabilities, penalties, several
    answers, scored prompts and min_tokens take turns."""
    draw = random.Random(f"failover {index}")
    ids = [draw.randrange(1000) for _ in range(draw.randrange(1, 120))]
    one = pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=ids), request_id=f"stream-{index}")
    one.stopping.max_tokens = draw.randrange(100, 220)
    one.stopping.ignore_eos = True
    if index % 2:
        one.sampling.temperature = draw.choice([0.7, 1.0])
        one.sampling.top_p = draw.choice([0.9, 1.0])
        if index % 3:  # Else the seed is made from the name.
            one.sampling.seed = index
    if index % 3 == 0:
        one.stopping.min_tokens = 60
        one.stopping.stop_strings.extend(["the", " 7", "er of"])
        one.stopping.include_stop_text = index % 2 == 0
    if index % 4 < 2:
        one.output.logprobs = True
        one.output.top_logprobs = index % 4 * 3
    if index % 5 == 0:
        one.sampling.frequency_penalty = 0.4
        one.sampling.repetition_penalty = 1.2
    if index % 7 == 0:
        one.output.prompt_logprobs = True
    if index % 8 == 3:
        one.sampling.n = 3
    return one


class StreamMany:
    """The C++ client's streams, all at once, in a process of their own."""

    def __init__(self, folder, addresses, requests):
        self.out = folder / "streams.out"
        inputs = folder / "streams.in"
        with open(inputs, "wb") as file:
            for one in requests:
                data = one.SerializeToString()
                file.write(struct.pack("<I", len(data)) + data)
        self.log = open(folder / "streams.log", "w+")
        self.began = time.monotonic()
        self.child = subprocess.Popen(
            [str(STREAM_MANY), addresses, str(inputs), str(self.out)],
            stderr=self.log)

    def running(self):
        return self.child.poll() is None

    def finish(self):
        try:
            assert self.child.wait(timeout=580) == 0
        finally:
            self.child.kill()
        self.seconds = time.monotonic() - self.began
        data, at, streams = self.out.read_bytes(), 0, []
        while at < len(data):
            code, resumes, size = struct.unpack_from("<III", data, at)
            answer = pb.GenerateOnceResponse.FromString(data[at + 12:at + 12 + size])
            # What was in a cache: no part of an answer.
            answer.usage.cached_tokens = 0
            streams.append(Stream(code, resumes, answer))
            at += 12 + size
        self.log.seek(0)
        assert all(one.code == 0 for one in streams), self.log.read()[:2000]
        return streams


def undisturbed(deployment, requests):
    run = StreamMany(deployment.folder, deployment.address, requests)
    streams = run.finish()
    assert not any(one.resumes for one in streams)
    reasons = collections.Counter(
        completion.completion.finish.reason
        for one in streams for completion in one.answer.answers)
    assert len(reasons) == 2, "stop strings and lengths both end answers"
    return streams


def assert_same(streams, expected, requests):
    assert len(streams) == len(expected) == len(requests)
    for one, other, request in zip(streams, expected, requests):
        # Their bytes, so that a log-probability counts by its bits.
        assert (one.answer.SerializeToString(deterministic=True)
                == other.answer.SerializeToString(deterministic=True)), request


def await_running(deployment, streams, at_least=1):
    """Waits until streams are under way at a worker, or are all done."""
    while streams.running():
        done = deployment.invar("workers", "--json")
        if done.returncode == 0:
            counts = re.findall(r'"running_sequences": ?(\d+)', done.stdout)
            if sum(map(int, counts)) >= at_least:
                return True
        time.sleep(0.05)
    return False


def tokens_written(deployment):
    with urllib.request.urlopen(f"http://{deployment.metrics}/metrics") as reply:
        return float(re.search(
            r"^invar_generation_tokens_total (\S+)$", reply.read().decode(),
            re.MULTILINE)[1])


def lost_sequences(deployment):
    return sum(map(int, re.findall(
        r"is gone \(.*\), (\d+) sequences with it", deployment.scheduler.text())))


def start_two_workers(deployment, *flags):
    for name in ("w1", "w2"):
        deployment.start_worker(name, *flags)
    deployment.wait_ready()


def kill_workers(deployment, streams, draw):
    """Kills a random worker every so often and starts it again."""
    kills = 0
    while await_running(deployment, streams):
        name = draw.choice(["w1", "w2"])
        deployment.workers[name].kill()
        deployment.workers[name].wait()
        deployment.start_worker(name)
        kills += 1
        time.sleep(SECONDS_BETWEEN_KILLS)
    return kills


def test_workers_are_killed_under_the_streams(deploy):
    # By default a request that dies with two workers in a row, before either
    # gave it a token, is held responsible. Here the deaths are no request's
    # doing, and on a slow machine come about as fast as a worker computes again
    # what the one before it had; few sequences at once keep that short.
    one = deploy(config="limits { max_attempts: 16 max_running_sequences: 8 }")
    one.start_scheduler()
    start_two_workers(one)
    requests = [make_request(i) for i in range(STREAMS)]
    expected = undisturbed(one, requests)
    run = StreamMany(one.folder, one.address, requests)
    kills = kill_workers(one, run, random.Random(6))
    streams = run.finish()
    assert_same(streams, expected, requests)
    lost = lost_sequences(one)
    print(f"{STREAMS} streams in {run.seconds:.1f} s, {kills} workers killed, "
          f"{lost} sequences lost with one and gone on with")
    assert kills > 0 and lost > 0
    # The clients saw nothing of it.
    assert not any(stream.resumes for stream in streams)


def test_a_stopped_worker_is_noticed_and_comes_back(deploy):
    one = deploy()
    one.start_scheduler()
    start_two_workers(one)
    requests = [make_request(i) for i in range(40)]
    expected = undisturbed(one, requests)
    run = StreamMany(one.folder, one.address, requests)
    assert await_running(one, run, at_least=30)
    one.workers["w1"].kill(signal.SIGSTOP)
    assert_same(run.finish(), expected, requests)
    gone = re.findall(
        r"worker w1 is gone \(no heartbeat for ([\d.]+)s\), (\d+) seq",
        one.scheduler.text())
    assert gone, one.scheduler.text()
    silence, lost = float(gone[-1][0]), int(gone[-1][1])
    # The scheduler's own clock, from the last that it heard.
    print(f"noticed after {silence} s of silence, with {lost} sequences")
    assert silence < 3 and lost > 0
    admitted = one.scheduler.text().count("worker w1 admitted")
    one.workers["w1"].kill(signal.SIGCONT)
    deadline = time.monotonic() + 60
    while one.scheduler.text().count("worker w1 admitted") == admitted:
        assert time.monotonic() < deadline, one.workers["w1"].text()
        time.sleep(0.1)
    assert one.workers["w1"].child.poll() is None


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_scheduler_is_restarted_under_the_streams(deploy, how):
    one = deploy()
    one.start_scheduler()
    start_two_workers(one)
    count = RESTART_STREAMS if how == signal.SIGKILL else 24
    requests = [make_request(i) for i in range(count)]
    if how == signal.SIGTERM:
        for request in requests:  # Longer than it waits for streams to end.
            request.stopping.max_tokens *= 5
    expected = undisturbed(one, requests)
    run = StreamMany(one.folder, one.address, requests)
    kills = 0
    while kills < SCHEDULER_KILLS and await_running(one, run, at_least=16):
        one.scheduler.kill(how)
        one.scheduler.wait()
        one.start_scheduler()
        kills += 1
        time.sleep(SECONDS_BETWEEN_KILLS)
    streams = run.finish()
    assert_same(streams, expected, requests)
    resumes = sum(stream.resumes for stream in streams)
    print(f"{count} streams in {run.seconds:.1f} s, {kills} schedulers ended, "
          f"{resumes} tries to go on")
    assert kills > 0 and resumes > 0


def test_two_schedulers_and_two_workers(deploy):
    """Each worker dials both. One scheduler dies, then a worker: the streams
    go on at the other scheduler and the other worker."""
    one, two = deploy(), deploy()
    one.start_scheduler()
    two.start_scheduler()
    start_two_workers(one, "--scheduler", two.link)
    two.wait_ready()
    requests = [make_request(i) for i in range(40)]
    expected = undisturbed(one, requests)
    both = f"{one.address},{two.address}"
    run = StreamMany(one.folder, both, requests)
    assert await_running(one, run, at_least=20)
    one.scheduler.kill()
    assert await_running(two, run, at_least=10)
    one.workers["w2"].kill()
    streams = run.finish()
    assert_same(streams, expected, requests)
    resumed = sum(stream.resumes > 0 for stream in streams)
    print(f"{resumed} streams went on at the other scheduler, "
          f"{lost_sequences(two)} sequences at the other worker")
    assert resumed > 0 and lost_sequences(two) > 0
    # The command line has it from the library: the first is dead.
    one.address = both
    assert one.invar("generate", "--chat", "What is 2 + 3?").returncode == 0


def test_numerics_that_are_gone_are_not_replaced(deploy):
    """A begun answer is not continued by another pool, also not where the
    scheduler itself is a new one."""
    one = deploy().start()
    requests = [make_request(i) for i in range(8)]
    for request in requests:
        # None ends before the processes do, however slowly that is seen.
        request.stopping.max_tokens = 2000
    run = StreamMany(one.folder, one.address, requests)
    # Else they may not have begun, and may begin anew with other numerics.
    while tokens_written(one) < 400:
        assert run.running()
        time.sleep(0.02)
    for process in one.processes():
        process.kill()
        process.wait()
    text = one.config.read_text()
    one.config.write_text(text.replace("FP8_E5M2", "FP8_E4M3"))
    one.start_scheduler()
    one.start_worker("w1")
    with pytest.raises(AssertionError, match="is served by no worker"):
        run.finish()
