"""Starts Invar's processes as a user would, on ports of their own."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Another build's programs, for example those of -DINVAR_SANITIZE=address.
BIN = pathlib.Path(os.environ.get("INVAR_BIN_DIR", ROOT / "build" / "bin"))
MODEL = ROOT / "deploy" / "models" / "invar-gsm-20m"
sys.path.insert(0, str(ROOT / "client" / "python"))

READY_SECONDS = 60


def free_ports(count):
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Process:
    """A child process whose log can be read while it runs."""

    def __init__(self, log, *arguments):
        self.log = pathlib.Path(log)
        with open(self.log, "ab") as out:
            self.child = subprocess.Popen(
                [str(one) for one in arguments], stdout=out, stderr=out, cwd=ROOT
            )

    def text(self):
        return self.log.read_text(errors="replace")

    def kill(self, how=signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            self.child.send_signal(how)

    def wait(self, seconds=20):
        return self.child.wait(timeout=seconds)

    def stop(self):
        if self.child.poll() is None:
            self.kill(signal.SIGTERM)
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.kill()
                self.wait()


class Deployment:
    """A scheduler and its workers."""

    def __init__(self, folder, model=MODEL, config="", kv_dtype="FP8_E5M2", device="cpu",
                 kv_bytes=256 << 20):
        self.folder = pathlib.Path(folder)
        self.device = device
        api, link, admin, metrics = free_ports(4)
        self.address = f"127.0.0.1:{api}"
        self.admin = f"127.0.0.1:{admin}"
        self.link = f"127.0.0.1:{link}"
        self.metrics = f"127.0.0.1:{metrics}"
        self.config = self.folder / "config.textproto"
        self.config.write_text(
            f'model {{ path: "{model}" name: "test" }}\n'
            f"kv_cache {{ dtype: {kv_dtype} memory_bytes: {kv_bytes} }}\n"
            f'listen {{ api: "{self.address}" worker_link: "{self.link}"'
            f' admin: "{self.admin}" metrics: "{self.metrics}" }}\n' + config
        )
        self.scheduler = None
        self.workers = {}

    def start_scheduler(self):
        self.scheduler = Process(
            self.folder / "scheduler.log",
            BIN / "invar-scheduler", "--config", self.config,
        )
        return self.scheduler

    def start_worker(self, name="w1", *flags, binary=BIN / "invar-worker"):
        self.workers[name] = Process(
            self.folder / f"{name}.log",
            binary, "--scheduler", self.link, "--device", self.device,
            "--worker-id", name, "--metrics", "", *flags,
        )
        return self.workers[name]

    def start(self):
        self.start_scheduler()
        self.start_worker()
        self.wait_ready()
        return self

    def wait_ready(self):
        done = self.invar("check", "--wait", READY_SECONDS)
        logs = "\n".join(one.text() for one in self.processes())
        assert done.returncode == 0, done.stderr + logs

    def processes(self):
        return [one for one in [self.scheduler, *self.workers.values()] if one]

    def stop(self):
        for one in reversed(self.processes()):
            one.stop()

    def invar(self, *arguments, check=False, **options):
        """Runs the command line against this deployment."""
        return subprocess.run(
            [str(BIN / "invar"), "--address", self.address,
             "--admin-address", self.admin, *[str(one) for one in arguments]],
            capture_output=True, text=True, cwd=ROOT, check=check, **options,
        )

    def json(self, *arguments):
        done = self.invar(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def worker_info(self):
        """What AdminService says of the first worker."""
        import grpc
        from invar.v1 import admin_pb2, admin_pb2_grpc

        with grpc.insecure_channel(self.admin) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            return stub.ListWorkers(admin_pb2.ListWorkersRequest()).workers[0]

    def wait_idle(self, seconds=10):
        """Waits until no KV block is in use; fails if one stays."""
        deadline = time.monotonic() + seconds
        while True:
            info = self.worker_info()
            if info.kv_blocks_used == 0 and info.running_sequences == 0:
                return
            assert time.monotonic() < deadline, f"KV is not back: {info}"
            time.sleep(0.1)
