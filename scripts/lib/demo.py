"""The demonstration: real measurements from devices through two edges and one cloud to Kafka, AMQP and MQTT clients.

Both edges are enrolled first: a one-time token each, a key made on the gateway, mutual TLS from then on. Devices replay hourly temperatures of Seattle and San Francisco in 2010 (NOAA, public domain, as shipped by the
vega_datasets package) over MQTT at QoS 1. Midway the cloud is killed with SIGKILL for ten seconds, then one edge.
Meanwhile a Kafka producer sends commands, each to one device behind one gateway. At the end every message that an edge
acknowledged must have been read once by each consumer, and every command that the cloud acknowledged must have reached
its device.

What counts as what:
  acked        the device got its PUBACK
  lost         acked, but a consumer never saw it
  duplicated   seen again by a consumer though the device sent it once and the delivery is not marked as a repeat
  sent twice   the device's connection died before the PUBACK came, so the device had to send it again (MQTT QoS 1)
  arrived      commands that reached their device; one that comes again (MQTT QoS 1) counts once
  redelivered  the consumer's own connection died before its ack was taken, so the broker marked and repeated it
"""

import argparse
import csv
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import confluent_kafka
import paho.mqtt.client as mqtt
import pika
import vega_datasets
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from cluster import free_port

TOPIC = "sensors/#"
STREAM = "mqtt.messages"
COMMANDS = "commands"
COMMAND_EVERY = 0.5  # seconds
CITIES = {"seattle": "seattle-temps.csv", "sf": "sf-temps.csv"}


def run(*command):
    """What a sub-command prints."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout.strip()


class Fleet:
    """The authority of the fleet: its files, and the cloud's settings that use them."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        ca, self.mqtts, est = f"{folder}/ca", free_port(), free_port()
        run(options.cloud, "ca", "init", "--dir", ca, "--host", "localhost")
        server = f"certificate = '{ca}/server.pem'\nkey = '{ca}/server.key'\n"
        self.settings = f"{folder}/cloud.toml"
        with open(self.settings, "w") as file:
            file.write(
                f"[listen]\nest = '127.0.0.1:{est}'\n"
                f"[[listeners]]\naddress = '127.0.0.1:{self.mqtts}'\ntransport = 'tls'\n{server}client_ca = '{ca}/ca.pem'\n"
                f"[enrol]\nca = '{ca}/ca.pem'\nca_key = '{ca}/ca.key'\n{server}reached_at = 'localhost:{est}'\n")

    def enrol(self, cloud, edge):
        """One token, used once; key and certificate are in the edge's data folder then."""
        admin = cloud.addresses["admin"]
        token = run(self.options.cloud, "enroll", "--admin", admin, "token", "--edge", edge, "--ttl", "5m")
        run(self.options.edge, "enrol", "--data", f"{self.folder}/{edge}", token)


class Process:
    """A tributary process that can be killed and started again on the same ports."""

    def __init__(self, name, command, ports, log):
        self.name, self.command, self.ports, self.log = name, command, ports, log
        self.addresses = {port: "127.0.0.1:0" for port in ports}
        self.child = None

    def start(self):
        command = list(self.command)
        for port in self.ports:
            command += [f"--{port}", self.addresses[port]]
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.child.stdout.readline()
        if not line.startswith("ready "):
            raise SystemExit(f"{self.name} did not start; see {self.log.name}")
        ready = json.loads(line[len("ready "):])
        self.addresses = {port: ready[port] for port in self.ports}
        return self

    def kill(self):
        self.child.kill()
        self.child.wait()
        self.child = None

    def stop(self):
        if self.child:
            self.child.send_signal(signal.SIGTERM)
            self.child.wait(timeout=10)

    def running(self):
        return self.child is not None and self.child.poll() is None

    def port(self, name):
        return int(self.addresses[name].rsplit(":", 1)[1])

    def status(self):
        try:
            with urllib.request.urlopen(f"http://{self.addresses['admin']}/status", timeout=1) as answer:
                return json.load(answer)
        except OSError:
            return None


class Device:
    """Publishes one city's measurements from some hour of the year on, at QoS 1."""

    def __init__(self, name, city, rows, edge):
        self.name, self.city, self.rows = name, city, rows
        self.sent, self.acked, self.twice = 0, set(), set()
        self.commands = set()
        # The client's own locks are held in callbacks, so ours is never held while it is called.
        self.outstanding, self.early, self.lock = {}, set(), threading.Lock()
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv311, clean_session=False
        )
        self.client.reconnect_delay_set(1, 2)
        self.client.on_connect = lambda client, *_: client.subscribe(f"commands/{name}", qos=1)
        self.listening = threading.Event()
        self.client.on_subscribe = lambda *_: self.listening.set()
        self.client.on_message = lambda client, userdata, message: self.commands.add(int(message.payload))
        self.client.on_publish = self.on_publish
        self.client.on_disconnect = self.on_disconnect
        self.client.connect("127.0.0.1", edge.port("mqtt"), keepalive=30)
        self.client.loop_start()

    def on_publish(self, client, userdata, mid, reason, properties):
        with self.lock:
            key = self.outstanding.pop(mid, None)
            if key is None:
                self.early.add(mid)
            else:
                self.acked.add(key)

    def on_disconnect(self, client, userdata, flags, reason, properties):
        with self.lock:
            self.twice.update(self.outstanding.values())

    def publish(self):
        time_of, temperature = self.rows[self.sent % len(self.rows)]
        seq = self.sent
        self.sent += 1
        payload = json.dumps({"device": self.name, "seq": seq, "time": time_of, "temp_f": temperature})
        mid = self.client.publish(f"sensors/{self.city}/{self.name}/temperature", payload, qos=1).mid
        with self.lock:
            if mid in self.early:
                self.early.remove(mid)
                self.acked.add((self.name, seq))
            else:
                self.outstanding[mid] = (self.name, seq)


class Commander:
    """Sends commands from a Kafka client to devices, in turn; `acked`: those the cloud has made durable."""

    def __init__(self, cloud):
        self.sent, self.acked = 0, {}
        self.producer = confluent_kafka.Producer({
            "bootstrap.servers": cloud.addresses["kafka"],
            "enable.idempotence": True,
            "reconnect.backoff.max.ms": 1000,
            "log_level": 0,
        })

    def send(self, device):
        number = self.sent
        self.sent += 1

        def acked(error, message):
            if error is None:
                self.acked[number] = device

        key = f"tributary/gw-{device.city}/down/commands/{device.name}"
        self.producer.produce(COMMANDS, key=key, value=str(number), on_delivery=acked)

    def arrived(self):
        return sum(1 for number, device in list(self.acked.items()) if number in device.commands)


class Consumer:
    """What one kind of client has read."""

    def __init__(self, name):
        self.name = name
        self.count, self.redelivered, self.reconnects = 0, 0, 0
        self.seen, self.again = set(), []
        self.stopping = threading.Event()
        self.ready = threading.Event()

    def take(self, payload, repeat=False):
        body = json.loads(payload)
        key = (body["device"], body["seq"])
        self.count += 1
        if key in self.seen:
            if repeat:
                self.redelivered += 1
            else:
                self.again.append(key)
        self.seen.add(key)


def read_kafka(consumer, cloud):
    client = confluent_kafka.Consumer({
        "bootstrap.servers": cloud.addresses["kafka"],
        "group.id": "demo",
        "auto.offset.reset": "earliest",
        "topic.metadata.refresh.interval.ms": 1000,
        "allow.auto.create.topics": True,
        "reconnect.backoff.max.ms": 1000,
        "log_level": 0,
    })
    client.subscribe([STREAM])
    consumer.ready.set()
    while not consumer.stopping.is_set():
        for message in client.consume(500, timeout=0.2):
            if message.error() is None:
                consumer.take(message.value())
    client.close()


def read_amqp(consumer, cloud):
    parameters = pika.ConnectionParameters("127.0.0.1", cloud.port("amqp"), heartbeat=30)
    while not consumer.stopping.is_set():
        try:
            connection = pika.BlockingConnection(parameters)
            channel = connection.channel()
            channel.queue_declare("demo", durable=True)
            channel.queue_bind("demo", "amq.topic", "sensors.#")
            channel.basic_qos(prefetch_count=200)
            consumer.ready.set()
            for method, _, body in channel.consume("demo", inactivity_timeout=0.2):
                if method is not None:
                    consumer.take(body, method.redelivered)
                    channel.basic_ack(method.delivery_tag)
                if consumer.stopping.is_set():
                    break
            connection.close()
        except (pika.exceptions.AMQPError, OSError):
            consumer.reconnects += 1
            consumer.stopping.wait(0.5)


def read_mqtt(consumer, cloud):
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="demo-reader", protocol=mqtt.MQTTv5)
    client.reconnect_delay_set(1, 2)

    def on_connect(client, userdata, flags, reason, properties):
        client.subscribe(TOPIC, qos=1)

    def on_disconnect(client, userdata, flags, reason, properties):
        consumer.reconnects += 1

    client.on_connect = on_connect
    client.on_disconnect = on_disconnect
    client.on_subscribe = lambda *_: consumer.ready.set()
    client.on_message = lambda client, userdata, message: consumer.take(message.payload, message.dup)
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3600
    client.connect("127.0.0.1", cloud.port("mqtt"), keepalive=30, clean_start=False, properties=properties)
    client.loop_start()
    consumer.stopping.wait()
    client.disconnect()
    client.loop_stop()


def measurements(name):
    folder = Path(vega_datasets.__file__).parent / "_data"
    with open(folder / name, newline="") as file:
        return [(row["date"], float(row["temp"])) for row in csv.DictReader(file)]


def table(title, columns, rows):
    view = Table(title=title, title_justify="left", expand=False)
    for column in columns:
        view.add_column(column, justify="left" if column in ("edge", "consumer", "producer", "state") else "right")
    for row in rows:
        view.add_row(*[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row])
    return view


class Demo:
    def __init__(self, options, folder, console):
        self.options, self.console = options, console
        self.events, self.began = [], time.monotonic()
        self.fleet = Fleet(options, folder)
        self.cloud = self.process("cloud", ["mqtt", "kafka", "amqp", "admin"], folder, [
            options.cloud, "serve", "--config", self.fleet.settings, "--data", f"file://{folder}/cloud"])
        self.cloud.start()
        self.edges = {}
        for city in CITIES:
            self.fleet.enrol(self.cloud, f"gw-{city}")
            self.say(f"gw-{city} is enrolled: a one-time token, a key made on the gateway, mutual TLS")
            edge = self.process(f"gw-{city}", ["mqtt", "admin"], folder, [
                options.edge, "serve", "--data", f"{folder}/gw-{city}", "--id", f"gw-{city}",
                "--cloud", f"mqtts://localhost:{self.fleet.mqtts}",
                # The default waits up to five minutes, which is kind to a cloud but long for a demonstration.
                "--set", "uplink.backoff_max_ms=4000"])
            self.edges[city] = edge.start()
        self.consumers, self.threads, self.devices = [], [], []
        self.commander = Commander(self.cloud)

    def process(self, name, ports, folder, command):
        return Process(name, command, ports, open(f"{folder}/{name}.log", "w"))

    def say(self, text):
        line = f"{time.monotonic() - self.began:5.1f} s  {text}"
        self.events.append(line)
        if not self.console.is_terminal:
            self.console.print(line)

    def start_consumers(self):
        for name, read in (("Kafka (confluent-kafka)", read_kafka), ("AMQP (pika)", read_amqp), ("MQTT (paho)", read_mqtt)):
            consumer = Consumer(name)
            thread = threading.Thread(target=read, args=(consumer, self.cloud), daemon=True)
            thread.start()
            if not consumer.ready.wait(30):
                raise SystemExit(f"{name} could not subscribe")
            self.consumers.append(consumer)
            self.threads.append(thread)

    def wait_for_edges(self):
        """A gateway that has never been connected is not known to listen for commands."""
        deadline = time.monotonic() + 30
        for edge in self.edges.values():
            while not ((status := edge.status()) and status["commands"] and status["commands"]["connected"]):
                if time.monotonic() > deadline:
                    raise SystemExit(f"{edge.name} does not reach the cloud")
                time.sleep(0.1)

    def start_devices(self):
        for city, file in CITIES.items():
            rows = measurements(file)
            for number in range(self.options.devices // len(CITIES)):
                start = number * 311 % len(rows)
                self.devices.append(Device(f"{city}-{number:02}", city, rows[start:] + rows[:start], self.edges[city]))
        for device in self.devices:
            if not device.listening.wait(30):
                sys.exit(f"demo: {device.name} was not subscribed within 30 seconds")

    def view(self):
        edges = []
        for city, edge in self.edges.items():
            devices = [device for device in self.devices if device.city == city]
            status = edge.status() if edge.running() else None
            edges.append([
                edge.name, len(devices), sum(d.sent for d in devices), sum(len(d.acked) for d in devices),
                status["buffered"] if status else "-", status["synced"] if status else "-",
                "killed" if not edge.running() else "starting" if not status
                else "online" if status["connected"] else "buffering",
            ])
        consumers = [[c.name, c.count, c.redelivered, c.reconnects] for c in self.consumers]
        commander = self.commander
        commands = [["Kafka (confluent-kafka)", commander.sent, len(commander.acked), commander.arrived()]]
        return Group(
            table(f"Tributary: {time.monotonic() - self.began:.0f} s, cloud {'up' if self.cloud.running() else 'KILLED'}",
                  ["edge", "devices", "sent", "acked", "buffered", "synced", "state"], edges),
            table("Consumers at the cloud", ["consumer", "received", "redelivered", "reconnects"], consumers),
            table("Commands to devices", ["producer", "sent", "acked", "arrived"], commands),
            "\n".join(self.events[-8:]),
        )

    def script(self):
        seconds = self.options.seconds
        yield 0.25 * seconds, "kill -9 the cloud; devices go on", self.cloud.kill
        yield 0.25 * seconds + 10, "start the cloud again", self.cloud.start
        edge = self.edges["seattle"]
        yield 0.65 * seconds, f"kill -9 {edge.name} in mid-publish", edge.kill
        yield 0.65 * seconds + 3, f"start {edge.name} again", edge.start

    def publish_until_end(self, refresh):
        steps, began, interval = list(self.script()), time.monotonic(), 1.0 / self.options.rate
        turn, commanded, shown = 0, 0, 0.0
        while (elapsed := time.monotonic() - began) < self.options.seconds or steps:
            if steps and elapsed >= steps[0][0]:
                _, text, act = steps.pop(0)
                self.say(text)
                act()
            while turn * interval <= elapsed:
                for device in self.devices:
                    device.publish()
                turn += 1
            while commanded * COMMAND_EVERY <= elapsed:
                self.commander.send(self.devices[commanded * 7 % len(self.devices)])
                commanded += 1
            self.commander.producer.poll(0)
            if elapsed - shown > self.options.refresh:
                shown = elapsed
                refresh()
            time.sleep(0.01)

    def drain(self, refresh):
        self.say("devices stop; waiting until everything has arrived")
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            acked = set().union(*(device.acked for device in self.devices))
            pending = any(device.outstanding for device in self.devices)
            self.commander.producer.poll(0)
            obeyed = self.commander.arrived() == self.commander.sent
            if not pending and obeyed and all(acked <= consumer.seen for consumer in self.consumers):
                break
            refresh()
            time.sleep(0.25)
        time.sleep(2)  # late duplicates would come now

    def result(self):
        acked = set().union(*(device.acked for device in self.devices))
        twice = set().union(*(device.twice for device in self.devices))
        rows, bad = [], 0
        for consumer in self.consumers:
            lost = len(acked - consumer.seen)
            duplicated = sum(1 for key in consumer.again if key not in twice)
            bad += lost + duplicated
            rows.append([consumer.name, len(acked), len(consumer.seen), lost, duplicated,
                         len(consumer.again) - duplicated, consumer.redelivered])
        self.console.print(table(
            "Result", ["consumer", "acked", "read", "lost", "duplicated", "sent twice", "redelivered"], rows))
        commander = self.commander
        ignored = len(commander.acked) - commander.arrived()
        bad += ignored
        self.console.print(table(
            "Commands to devices", ["producer", "acked", "arrived", "lost"],
            [["Kafka (confluent-kafka)", len(commander.acked), commander.arrived(), ignored]]))
        return bad == 0 and commander.acked and len(acked) >= 200 * self.options.seconds / 2

    def run(self):
        self.start_consumers()
        self.wait_for_edges()
        self.start_devices()
        self.say(f"{len(self.devices)} devices publish at QoS 1; a Kafka producer sends them commands")
        if self.console.is_terminal:
            with Live(console=self.console, refresh_per_second=4) as live:
                self.publish_until_end(lambda: live.update(self.view()))
                self.drain(lambda: live.update(self.view()))
                live.update(self.view())
        else:
            self.publish_until_end(lambda: self.console.print(self.view()))
            self.drain(lambda: None)
            self.console.print(self.view())
        good = self.result()
        for device in self.devices:
            device.client.disconnect()
            device.client.loop_stop()
        for consumer, thread in zip(self.consumers, self.threads):
            consumer.stopping.set()
            thread.join(10)
        return good

    def stop(self):
        for process in [*self.edges.values(), self.cloud]:
            process.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edge", default="target/release/tributary-edge")
    parser.add_argument("--cloud", default="target/release/tributary-cloud")
    parser.add_argument("--devices", type=int, default=36)
    parser.add_argument("--rate", type=float, default=15, help="messages a second and device")
    parser.add_argument("--seconds", type=int, default=60, help="how long devices publish")
    options = parser.parse_args()
    console = Console()
    options.refresh = 0.25 if console.is_terminal else 5
    with tempfile.TemporaryDirectory(prefix="tributary-demo-") as folder:
        demo = Demo(options, folder, console)
        try:
            good = demo.run()
        finally:
            demo.stop()
    console.print("lost = duplicated = 0" if good else "FAILED", style="bold green" if good else "bold red")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
