#!/usr/bin/env python3
"""Measures tributary-edge beside other MQTT brokers in one run: one table, and every figure as JSON.

In: built binaries (scripts/bench builds them). Out: the table on stdout, progress on stderr, JSON in a file.
Method: docs/reference/bench.md. Change here: rows, brokers. Not here: loads (tests/src/bin/mqtt-bench).
"""

import argparse
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

BIN = Path("target/release")
GENERATOR = BIN / "mqtt-bench"
READY_S = 60
CORES = os.cpu_count() or 1
# A broker may keep as much as the load makes it: a limit would show as loss, not as speed.
ENDLESS = 1_000_000


@dataclass
class Row:
    """One load. `group`: transient, durable (for kept sessions, from the disk) or uplink (from the disk, for later)."""

    group: str
    name: str
    load: str
    paced: bool = False
    instructions: int = 0  # messages of a short run under callgrind; 0: not one of its rows


def pairs(qos, **more):
    return " ".join([f"--qos {qos}"] + [f"--{key} {value}" for key, value in more.items()])


ROWS = [
    Row("transient", "QoS 0 1:1", pairs(0, ahead=5000), instructions=20_000),
    Row("transient", "QoS 0 10:10", pairs(0, publishers=10, subscribers=10, ahead=5000)),
    Row("transient", "QoS 0 1:100 fan-out", pairs(0, subscribers=100, ahead=500) + " --all", instructions=400),
    Row("transient", "QoS 0 100:1 fan-in", pairs(0, publishers=100, ahead=5000)),
    Row("transient", "QoS 1 1:1, window 1", pairs(1, window=1)),
    Row("transient", "QoS 1 1:1, window 20", pairs(1, window=20)),
    Row("transient", "QoS 1 1:1, window 100", pairs(1, window=100), instructions=10_000),
    Row("transient", "QoS 1 10:10, window 20", pairs(1, window=20, publishers=10, subscribers=10)),
    Row("transient", "QoS 1 1:100 fan-out, window 20", pairs(1, window=20, subscribers=100) + " --all"),
    Row("transient", "QoS 1 100:1 fan-in, window 20", pairs(1, window=20, publishers=100)),
    Row("transient", "QoS 2 1:1, window 1", pairs(2, window=1)),
    Row("transient", "QoS 2 1:1, window 20", pairs(2, window=20), instructions=5_000),
    Row("transient", "QoS 2 1:1, window 100", pairs(2, window=100)),
    Row("transient", "QoS 0 1:1, 1000/s", pairs(0, rate=1000), paced=True),
    Row("transient", "QoS 1 1:1, 1000/s", pairs(1, rate=1000), paced=True),
    Row("durable", "QoS 1 acked, window 1", pairs(1, window=1) + " --kept --away"),
    Row("durable", "QoS 1 acked, window 20", pairs(1, window=20) + " --kept --away"),
    Row("durable", "QoS 1 acked, window 100", pairs(1, window=100) + " --kept --away", instructions=10_000),
    Row("durable", "QoS 1 acked, 10 publishers, window 100", pairs(1, window=100, publishers=10) + " --kept --away"),
    Row("durable", "QoS 1 1:1, window 20", pairs(1, window=20) + " --kept", instructions=5_000),
    Row("durable", "QoS 1 1:1, window 100", pairs(1, window=100) + " --kept"),
    Row("durable", "QoS 1 1:1, 500/s", pairs(1, rate=500) + " --kept", paced=True),
    Row("uplink", "QoS 1 acked, uplink down, window 1", pairs(1, window=1, subscribers=0)),
    Row("uplink", "QoS 1 acked, uplink down, window 100", pairs(1, window=100, subscribers=0), instructions=10_000),
    Row("uplink", "QoS 1 acked, uplink down, 10 pub., w. 100", pairs(1, window=100, publishers=10, subscribers=0)),
]
GROUPS = ("transient", "durable", "uplink")
IDLE = (1_000, 10_000)
LOST = 3_000


class LeftOut(Exception):
    """A figure or a broker that cannot be had here, with the reason."""


@dataclass
class Running:
    process: subprocess.Popen
    port: int

    @property
    def pid(self):
        return self.process.pid

    def kill(self, with_signal=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Broker:
    """How to start one. `durable`: why it has no durable rows, if it has none."""

    name: str
    version: str
    start: object  # (folder, group, port, prefix) -> Running
    no_durable: str = ""
    figures: dict = field(default_factory=dict)

    @property
    def title(self):
        return f"{self.name} {self.version}"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(process, port):
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise LeftOut("it did not start")


def spawn(command, folder, prefix=()):
    log = open(folder / "log", "ab")
    return subprocess.Popen([*prefix, *map(str, command)], stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def words(command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()


def edge():
    binary = BIN / "tributary-edge"

    def start(folder, group, port, prefix=()):
        command = [binary, "serve", "--data", folder / "data", "--id", "bench", "--admin", "127.0.0.1:0"]
        command += ["--mqtt", f"127.0.0.1:{port}", "--set", f"session.queue_messages={ENDLESS}"]
        command += ["--set", f"session.queue_stored_messages={100 * ENDLESS}", "--set", f"session.queue_stored_bytes={1 << 40}"]
        command += ["--set", f"session.queue_bytes={1 << 28}", "--set", f"net.connections={max(IDLE) + 1000}"]
        command += ["--set", f"session.sessions={2 * max(IDLE)}"]
        if group == "uplink":
            # Every message goes to the outbound lane of an uplink that is down.
            command += ["--cloud", "mqtt://127.0.0.1:9"]
        process = spawn(command, folder, prefix)
        listens(process, port)
        return Running(process, port)

    return Broker("tributary-edge", words([binary, "--version"])[-1], start)


def mosquitto():
    binary = os.environ.get("MOSQUITTO") or shutil.which("mosquitto") or "/usr/sbin/mosquitto"
    plugin = os.environ.get("MOSQUITTO_PERSIST_SQLITE")
    if not Path(binary).exists():
        raise LeftOut("not installed: scripts/install bench, or MOSQUITTO=path")
    version = words([binary, "-h"])[2]

    def start(folder, group, port, prefix=()):
        lines = [f"listener {port} 127.0.0.1", "allow_anonymous true", "user root"]
        lines += ["max_inflight_messages 0", "max_queued_messages 0"]
        if group == "lost":
            # What Debian's package sets.
            lines += ["persistence true", f"persistence_location {folder}/"]
        if group == "durable":
            lines += [f"plugin {plugin}", f"plugin_opt_db_file {folder}/mosquitto.sqlite3"]
            lines += ["plugin_opt_sync full", "plugin_opt_flush_period 0"]
        (folder / "conf").write_text("\n".join(lines) + "\n")
        process = spawn([binary, "-c", folder / "conf"], folder, prefix)
        listens(process, port)
        return Running(process, port)

    no_durable = "" if plugin else "it acknowledges from memory, and saves every 30 minutes"
    return Broker("mosquitto", version, start, no_durable)


def rumqttd():
    binary = Path(os.environ.get("RUMQTTD") or "target/rumqttd/bin/rumqttd")
    if not binary.exists():
        say("building rumqttd into target/rumqttd")
        install = ["cargo", "install", "rumqttd", "--version", "0.20.*", "--quiet"]
        if subprocess.run([*install, "--root", "target/rumqttd"], check=False).returncode != 0:
            raise LeftOut("it does not build here")

    def start(folder, group, port, prefix=()):
        if group == "lost":
            raise LeftOut("it keeps everything in memory")
        (folder / "rumqttd.toml").write_text(
            f"""id = 0
[router]
id = 0
max_connections = {max(IDLE) + 1000}
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
[v4.1]
name = "v4"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 0
[v4.1.connections]
connection_timeout_ms = 60000
max_payload_size = 1048576
max_inflight_count = 200
dynamic_filters = true
"""
        )
        process = spawn([binary, "-c", folder / "rumqttd.toml"], folder, prefix)
        listens(process, port)
        return Running(process, port)

    return Broker("rumqttd", "0.20", start, "it keeps everything in memory")


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def generate(running, load, *more):
    command = [GENERATOR, "--addr", f"127.0.0.1:{running.port}", "--pid", running.pid, *load.split(), *more]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LeftOut((done.stderr.strip().splitlines() or ["the generator failed"])[-1][:120])
    return json.loads(done.stdout)


class Bench:
    def __init__(self, options):
        self.options = options
        self.kept = Path(tempfile.mkdtemp(prefix="bench-edge-", dir="target"))
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else self.kept
        self.memory = Path(tempfile.mkdtemp(prefix="bench-edge-", dir=memory))
        self.running = []
        self.folders = 0

    def folder(self, group):
        self.folders += 1
        folder = (self.memory if group == "transient" else self.kept) / str(self.folders)
        folder.mkdir()
        return folder

    def start(self, broker, group, folder=None, port=None, prefix=()):
        running = broker.start(folder or self.folder(group), group, port or free_port(), prefix)
        self.running.append(running)
        return running

    def close(self):
        for running in self.running:
            running.kill()
        shutil.rmtree(self.kept, ignore_errors=True)
        shutil.rmtree(self.memory, ignore_errors=True)

    def wanted(self, name):
        return not self.options.row or any(word.lower() in name.lower() for word in self.options.row)

    def measure(self, broker):
        rows = [row for row in ROWS if self.wanted(f"{row.group} {row.name}")]
        if self.options.instructions:
            return self.count_instructions(broker, [row for row in rows if row.instructions])
        for group in GROUPS:
            some = [row for row in rows if row.group == group]
            if some:
                self.try_to(broker, [key(row) for row in some], lambda: self.loads(broker, group, some))
        if self.wanted("memory idle"):
            for count in (0, *IDLE):
                self.try_to(broker, [idle_name(count)], lambda count=count: self.idle(broker, count))
        if self.wanted("lost by kill -9"):
            self.try_to(broker, ["lost by kill -9"], lambda: self.lost(broker))
        return None

    def try_to(self, broker, names, measure):
        try:
            measure()
        except (LeftOut, OSError, ValueError) as why:
            say(f"{broker.title}: {names[0]}: left out: {why}")
            for name in names:
                broker.figures.setdefault(name, {"left_out": str(why)})

    def loads(self, broker, group, rows):
        self.check(broker, group)
        running = self.start(broker, group)
        for row in rows:
            say(f"{broker.title}, {group}: {row.name}")
            seconds = self.options.seconds
            if row.paced:
                rate = float(re.search(r"--rate (\d+)", row.load).group(1))
                bound = ["--messages", int(rate * seconds)]
            else:
                bound = ["--messages", 1 << 40, "--seconds", seconds]
            measure = lambda: {**generate(running, row.load, *bound), "group": group}
            self.try_to(broker, [key(row)], lambda: broker.figures.update({key(row): measure()}))
        running.kill()

    def idle(self, broker, count):
        say(f"{broker.title}: {idle_name(count)}")
        running = self.start(broker, "transient")
        time.sleep(1)
        if count == 0:
            status = Path(f"/proc/{running.pid}/status").read_text()
            figures = {"broker_rss_kb": int(re.search(r"VmRSS:\s+(\d+)", status).group(1))}
        else:
            figures = generate(running, f"--idle {count} --hold 2")
            if figures["idle"] < count:
                raise LeftOut(f"it took {figures['idle']} connections")
        broker.figures[idle_name(count)] = figures
        running.kill()

    def lost(self, broker):
        say(f"{broker.title}: {LOST} acknowledged messages for a kept session, then kill -9")
        folder, port = self.folder("durable"), free_port()
        load = "--qos 1 --kept --name lost"
        running = self.start(broker, "lost", folder, port)
        acked = generate(running, load, "--away", "--messages", LOST)["acked"]
        running.kill(signal.SIGKILL)
        running = self.start(broker, "lost", folder, port)
        back = generate(running, load, "--back", "--patience", 2)["received"]
        running.kill()
        broker.figures["lost by kill -9"] = {"acked": acked, "lost": max(0, acked - back)}

    def count_instructions(self, broker, rows):
        """Instructions of the broker a message, under callgrind: exact on a noisy machine, but one thread at a time."""
        if not shutil.which("callgrind_control"):
            raise LeftOut("valgrind is not installed")
        for row in rows:
            say(f"{broker.title}: instructions, {row.name}")
            self.try_to(broker, [key(row)], lambda row=row: self.instructions(broker, row))

    def instructions(self, broker, row):
        self.check(broker, row.group)
        folder = self.folder(row.group)
        out = folder / "callgrind"
        prefix = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
        running = self.start(broker, row.group, folder, prefix=prefix)
        for state in ("on", "off"):
            if state == "off":
                figures = generate(running, row.load, "--messages", row.instructions, "--patience", 60)
            control = ["callgrind_control", "-i", state, str(running.pid)]
            subprocess.run(control, check=True, capture_output=True)
        running.kill()
        total = int(re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.M).group(1))
        figures["instructions_per_message"] = round(total / max(figures["received"], figures["acked"], 1))
        broker.figures[key(row)] = figures

    def check(self, broker, group):
        if group == "durable" and broker.no_durable:
            raise LeftOut(broker.no_durable)
        if group == "uplink" and broker.name != "tributary-edge":
            raise LeftOut("no store for an uplink")


def key(row):
    return f"{row.group}: {row.name}"


def idle_name(count):
    return f"idle, {count:,} connections" if count else "idle, no connection"


def rate(value):
    return f"{value / 1000:.0f} k" if value >= 10_000 else f"{value:,.0f}"


def is_generator_bound(figures):
    """The broker waited for the generator: a full thread there and none here, or a full machine mostly used by it."""
    own, brokers = figures["generator_cpu_us_per_message"], figures["broker_cpu_us_per_message"]
    full = (own + brokers) * figures["msg_per_s"] > 0.9e6 * CORES
    thread = figures["generator_busiest_thread"] > 0.9 > figures["broker_busiest_thread"]
    return thread or (full and own > brokers)


def cell(row, figures):
    if figures is None or "left_out" in figures:
        return "-"
    if "instructions_per_message" in figures:
        return f"{figures['instructions_per_message']:,}"
    if figures.get("errors"):
        return "failed"
    cpu = f"{figures['broker_cpu_us_per_message']:.2f} us"
    if row.paced:
        latency = figures["latency_ms"] or figures["ack_ms"]
        return f"{latency['p50']:.2f} / {latency['p99']:.2f} ms {cpu}"
    copies = figures["subscribers"] if "--all" in row.load else 1
    cpu = f"{figures['broker_cpu_us_per_message'] / copies:.2f} us"
    star = "*" if is_generator_bound(figures) else " "
    lost = f" lost {figures['lost']}" if figures["lost"] else ""
    written = figures["broker_written_bytes_per_message"]
    written = f" {written:,.0f} B" if row.group != "transient" else ""
    return f"{rate(figures['msg_per_s'] * copies)}/s{star}{cpu}{written}{lost}"


def small_cell(name, figures):
    if figures is None or "left_out" in figures:
        return "-"
    if "acked" in figures and "lost by" in name:
        return f"{figures['lost']:,} of {figures['acked']:,}"
    rss = f"{figures['broker_rss_kb'] / 1024:.1f} MiB"
    each = figures.get("bytes_per_connection")
    return f"{rss}, {each / 1000:.1f} kB each" if each else rss


HEADS = {
    "transient": "transient: messages/s to each receiver added up, broker's CPU a message; paced: p50 / p99 from the scheduled time",
    "durable": "durable: kept sessions, acknowledged from the disk; bytes written a message (acked: the session is away)",
    "uplink": "durable: no session, kept for the cloud",
    "instructions": "instructions of the broker a message",
    "rest": "memory (VmRSS) and acknowledged messages lost",
}


def table(brokers, instructions):
    lines = []
    width = [max(24, len(broker.title) + 2) for broker in brokers]

    def line(name, cells):
        lines.append((f"{name:<40}" + "".join(f"{c:<{w + 2}}" for c, w in zip(cells, width))).rstrip())

    line("", [broker.title for broker in brokers])
    for group in GROUPS:
        rows = [row for row in ROWS if row.group == group and any(key(row) in b.figures for b in brokers)]
        if rows:
            lines.append("-- " + (HEADS["instructions"] + ", " + group if instructions else HEADS[group]))
        for row in rows:
            line(row.name, [cell(row, broker.figures.get(key(row))) for broker in brokers])
    names = [*map(idle_name, (0, *IDLE)), "lost by kill -9"]
    names = [name for name in names if any(name in broker.figures for broker in brokers)]
    if names:
        lines.append("-- " + HEADS["rest"])
    for name in names:
        line(name, [small_cell(name, broker.figures.get(name)) for broker in brokers])
    text = "\n".join(lines)
    if "/s*" in text:
        text += "\n* the generator was the bottleneck, or used more of the full machine than the broker"
    return text


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench edge", description=__doc__.splitlines()[0])
    parser.add_argument("row", nargs="*", help="only rows whose name holds one of these words, as in `durable` or `QoS 1`")
    parser.add_argument("--broker", action="append", help="only this one; may be repeated: edge, mosquitto, rumqttd")
    parser.add_argument("--seconds", type=float, default=2, help="of each load (2)")
    parser.add_argument("--json", default="target/bench-edge.json", help="where the figures go (target/bench-edge.json)")
    parser.add_argument("--instructions", action="store_true", help="count instructions under callgrind instead")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    bench = Bench(options)
    brokers, left_out = [], []
    try:
        for name, make in (("edge", edge), ("mosquitto", mosquitto), ("rumqttd", rumqttd)):
            if options.broker and name not in options.broker:
                continue
            try:
                broker = make()
                brokers.append(broker)
                bench.measure(broker)
            except LeftOut as why:
                left_out.append(f"{name}: left out: {why}")
    finally:
        bench.close()
    for broker in brokers:
        reasons = dict.fromkeys(f["left_out"] for f in broker.figures.values() if "left_out" in f)
        left_out += [f"{broker.title}: -: {why}" for why in reasons]
    print("\n".join([table(brokers, options.instructions), *left_out]))
    figures = [
        {"bench": "edge", "broker": broker.title, "row": name, **measured}
        for broker in brokers
        for name, measured in broker.figures.items()
    ]
    Path(options.json).write_text("".join(json.dumps(line) + "\n" for line in figures))
    say(f"every figure, with load {os.getloadavg()[0]:.1f} at the end, is in {options.json}")


if __name__ == "__main__":
    main()
