"""docker-compose up serves the embedded model."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOST_CERTIFICATES = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")


def run(*arguments, **options):
    return subprocess.run(
        [str(one) for one in arguments], capture_output=True, text=True, **options)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def compose_command():
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    return ["docker", "compose"]


@pytest.fixture
def tree(tmp_path):
    """The committed tree, as a clone would have it."""
    if shutil.which("docker") is None or run("docker", "info").returncode != 0:
        pytest.skip("no container engine runs on this machine")
    tree = tmp_path / "tree"
    run("git", "clone", "-q", ROOT, tree, check=True)
    # Where this machine trusts authorities of its own, so must the build.
    if HOST_CERTIFICATES.exists():
        shutil.copy(HOST_CERTIFICATES, tree / "deploy/certificates/host.crt")
    return tree


def test_compose_serves_the_embedded_model(tree):
    api, admin = free_ports(2)
    settings = {**os.environ, "INVAR_API_PORT": str(api),
                "INVAR_ADMIN_PORT": str(admin)}
    compose = [*compose_command(), "-p", f"invar-test-{os.getpid()}", "-f",
               tree / "deploy/docker-compose.yml"]
    try:
        up = run(*compose, "up", "--build", "-d", env=settings)
        assert up.returncode == 0, up.stdout[-3000:] + up.stderr[-3000:]
        deadline = time.monotonic() + 120
        inside = [*compose, "exec", "-T", "scheduler"]
        while run(*inside, "invar", "check").returncode != 0:
            assert time.monotonic() < deadline, run(*compose, "logs").stdout[-3000:]
            time.sleep(1)
        user = run(*inside, "id", "-u")
        assert user.stdout.strip() not in ("", "0")
        answer = run(*inside, "invar", "generate", "--json", "--chat",
                     "What is 2 + 3?")
        assert answer.returncode == 0, answer.stderr
        assert json.loads(answer.stdout)["text"]
        # The evaluation inside gives the recorded bits.
        record = json.loads(
            (ROOT / "tests/integration/smoke.json").read_text())
        done = run(*inside, "invar", "eval", "mgsm", "--concurrency", "32", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["digest"] == record["digest"]
    finally:
        run(*compose, "down", "-v", "-t", "5")
