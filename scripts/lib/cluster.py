"""A cluster of processes on loopback: an S3-compatible store, nodes of the cloud, edges, and a front for clients that know one address.

scripts/dev-cluster starts one for trials; lib/rolling.py uses it under load. Only the standard library is needed.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

READY = 60  # seconds
USUAL = {"kafka": 9092, "mqtt": 1883, "amqp": 5672, "admin": 9644}  # n1's; each further node has 10 more
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "tributary", "AWS_SECRET_ACCESS_KEY": "tributary-secret"}
TARGET = Path(__file__).resolve().parents[2] / "target"
BINARIES = Path(os.environ.get("TESTED_BINARIES") or TARGET / os.environ.get("PROFILE", "debug"))


def free_port(taken=set()):
    """A port below those that the kernel gives to outgoing connections, so that it is still free after a kill or a restart."""
    for port in range(20000 + os.getpid() % 5000, 32000):
        with socket.socket() as probe:
            if port not in taken and probe.connect_ex(("127.0.0.1", port)) != 0:
                taken.add(port)
                return port
    raise SystemExit("no free port")


class Part:
    """A process with its `ready` line; it is stopped by its id, and can be started again as it was."""

    def __init__(self, name, folder, program, *arguments):
        self.name, self.log = name, open(Path(folder) / f"{name}.log", "a", encoding="utf-8")
        self.command = [str(BINARIES / program), *arguments]
        self.child, self.addresses = None, {}

    def start(self):
        # A group of its own: Ctrl-C in a terminal is for the script, which ends its parts in their order.
        self.child = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=os.environ | ENVIRONMENT, start_new_session=True)
        ready = threading.Event()
        threading.Thread(target=self.read, args=(self.child, ready), daemon=True).start()
        if not ready.wait(READY) or not self.addresses:
            self.stop()
            raise SystemExit(f"{self.name} did not start; see {self.log.name}")
        return self

    def read(self, child, ready):
        for line in child.stdout:
            if line.startswith("ready "):
                self.addresses = json.loads(line[len("ready "):])
                ready.set()
        ready.set()

    def stop(self, patience=30):
        """SIGTERM; what has not ended then is killed. The exit code."""
        if self.child is None or self.child.poll() is not None:
            return None if self.child is None else self.child.returncode
        self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(patience)
        except subprocess.TimeoutExpired:
            self.child.kill()
            return self.child.wait()


class Front:
    """What a load balancer is elsewhere: hands each connection to the next node that takes one."""

    def __init__(self, places):
        self.places, self.turn, self.port = places, 0, free_port()
        started = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self.serve(started)), daemon=True).start()
        started.wait()

    async def serve(self, started):
        async with await asyncio.start_server(self.carry, "127.0.0.1", self.port) as server:
            started.set()
            await server.serve_forever()

    async def carry(self, reader, writer):
        self.turn += 1
        for step in range(len(self.places)):
            host, port = self.places[(self.turn + step) % len(self.places)].rsplit(":", 1)
            try:
                there = await asyncio.open_connection(host, int(port))
                break
            except OSError:
                continue
        else:
            writer.close()
            return
        await asyncio.gather(self.copy(reader, there[1]), self.copy(there[0], writer))

    async def copy(self, reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"


class Cluster:
    """The store, `count` nodes n1, n2, ..., two edges gw1 and gw2 behind a front."""

    def __init__(self, folder, count=3, fixed=False):
        self.folder = Path(folder)
        self.parts, self.nodes, self.edges = [], [], []
        fixed = fixed and all(port_is_free(port) for usual in USUAL.values() for port in range(usual, usual + 10 * count, 10))
        self.store = self.start(Part("store", folder, "s3-server", f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"))
        for number in range(1, count + 1):
            ports = {}
            for flag, usual in USUAL.items():
                ports[flag] = usual + (number - 1) * 10 if fixed else free_port()
            ports["peer"] = free_port()
            listen = [word for flag, port in ports.items() for word in (f"--{flag}", f"127.0.0.1:{port}")]
            self.nodes.append(self.start(Part(
                f"n{number}", folder, "tributary-cloud", "serve", "--node", f"n{number}", "--data", "s3://dev/cluster",
                "--set", f"engine.s3_endpoint=http://{self.store.addresses['s3']}", "--set", "engine.shards=6", *listen)))
        self.mqtt = Front([node.addresses["mqtt"] for node in self.nodes])
        self.amqp = Front([node.addresses["amqp"] for node in self.nodes])
        for name in ("gw1", "gw2"):
            self.edges.append(self.start(Part(
                name, folder, "tributary-edge", "serve", "--data", str(self.folder / name), "--id", name,
                "--cloud", f"mqtt://{self.mqtt.address}", "--mqtt", f"127.0.0.1:{free_port()}",
                "--admin", f"127.0.0.1:{free_port()}")))

    def start(self, part):
        self.parts.append(part)
        try:
            return part.start()
        except BaseException:
            self.stop()
            raise

    def stop(self):
        for part in reversed(self.parts):
            part.stop(10)

    @property
    def brokers(self):
        return ",".join(node.addresses["kafka"] for node in self.nodes)


def port_is_free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def answers(address, path="/health"):
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def show(cluster):
    s3 = cluster.store
    print(f"store   http://{s3.addresses['s3']}  bucket dev, access key {ENVIRONMENT['AWS_ACCESS_KEY_ID']}")
    for node in cluster.nodes:
        told = "  ".join(f"{door} {node.addresses[door]}" for door in ("kafka", "mqtt", "amqp", "admin"))
        print(f"{node.name}      {told}  pid {node.child.pid}")
    print(f"front   mqtt {cluster.mqtt.address}  amqp {cluster.amqp.address}  (any node)")
    for edge in cluster.edges:
        print(f"{edge.name}     mqtt {edge.addresses['mqtt']}  admin {edge.addresses['admin']}  pid {edge.child.pid}")
    one, gateway = cluster.nodes[0], cluster.edges[0]
    host, port = gateway.addresses["mqtt"].split(":")
    control = s3.addresses["control"].replace(":", " ")
    print(f"""
Try, in another terminal:
  kcat -b {cluster.brokers} -C -t mqtt.messages -o beginning      what devices say
  mosquitto_pub -h {host} -p {port} -q 1 -t site/a/temp -m 21.5   a device at gw1
  kcat -b {cluster.brokers} -L                                     who leads what
  curl http://{one.addresses['admin']}/status                      a node's own view
  kill -9 {one.child.pid}                                          n1 falls: watch the two above go on
  kill -STOP {one.child.pid}; sleep 10; kill -CONT {one.child.pid}  n1 sleeps longer than it keeps its shards
  echo '{{"latency_ms":[100,500]}}' | nc -N {control}              the store gets slow; '{{}}' makes it good
Logs and the edges' data: {cluster.folder}. Ctrl-C ends it all; the store's objects are in memory and go with it.""", flush=True)


def main():
    smoke = "--smoke" in sys.argv[1:]
    if any(argument != "--smoke" for argument in sys.argv[1:]):
        raise SystemExit("dev-cluster: it takes --smoke (start, look, end) or nothing")
    # SIGTERM ends it as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        cluster = Cluster(tempfile.mkdtemp(prefix="tributary-dev-"), fixed=not smoke)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    try:
        show(cluster)
        if smoke:
            silent = [part.name for part in cluster.nodes + cluster.edges if not answers(part.addresses["admin"])]
            if silent:
                raise SystemExit(f"these do not answer: {', '.join(silent)}")
            return
        fallen = set()
        while True:
            time.sleep(1)
            for part in cluster.parts:
                if part.child.poll() is not None and part.name not in fallen:
                    fallen.add(part.name)
                    print(f"{part.name} ended ({part.child.returncode}); again: {' '.join(part.command)}", flush=True)
    except KeyboardInterrupt:
        print("\nending")
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
