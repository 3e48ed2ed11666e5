"""Makes a small set of data through real clients and packs it: a cloud's folder and an edge's.

What is in it is what tests/tests/earlier_releases.rs looks for: change both together, and only by adding. Both programs are ended in
good order, as before an upgrade.
"""

import json
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
from confluent_kafka.admin import AdminClient, NewTopic

from cluster import Part, free_port

SETS = Path(__file__).resolve().parents[2] / "tests/data"
LARGEST = 300 * 1024  # of a packed set: it stays in the repository for ever
PATIENCE = 30  # seconds
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


def until(what, is_so):
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        if time.monotonic() > deadline:
            raise SystemExit(f"never: {what}")
        time.sleep(0.05)


def fill_kafka(broker):
    """Twenty records with key and header in two partitions, in all codecs; a group that has read half."""
    admin = AdminClient({"bootstrap.servers": broker})
    admin.create_topics([NewTopic("orders", 2, 1)])["orders"].result(PATIENCE)
    for number, codec in enumerate(CODECS):
        producer = confluent_kafka.Producer(
            {"bootstrap.servers": broker, "enable.idempotence": True, "compression.type": codec, "linger.ms": 50})
        for record in range(number * 4, number * 4 + 4):
            producer.produce(
                "orders", f"order {record} {'x' * 40}", f"key {record}", partition=record % 2, headers={"number": str(record)})
        if producer.flush(PATIENCE):
            raise SystemExit(f"Kafka: not all was acknowledged ({codec})")
    consumer = confluent_kafka.Consumer({"bootstrap.servers": broker, "group.id": "readers", "enable.auto.commit": False})
    places = [confluent_kafka.TopicPartition("orders", 0, 5), confluent_kafka.TopicPartition("orders", 1, 7, "half of it")]
    consumer.commit(offsets=places, asynchronous=False)
    consumer.close()


def device(address, name, clean=True):
    """A connected client; one that keeps its session has subscribed to `later/#`."""
    host, port = address.split(":")
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv311, clean_session=clean)
    connected, subscribed = threading.Event(), threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect(host, int(port))
    client.loop_start()
    if not connected.wait(PATIENCE):
        raise SystemExit(f"{name}: not connected")
    if not clean:
        client.subscribe("later/#", qos=1)
        if not subscribed.wait(PATIENCE):
            raise SystemExit(f"{name}: not subscribed")
    return client


def leave(client):
    client.disconnect()
    client.loop_stop()


def publish(client, topic, body, retain=False):
    told = client.publish(topic, body, qos=1, retain=retain)
    told.wait_for_publish(PATIENCE)
    if not told.is_published():
        raise SystemExit(f"{topic}: not acknowledged")


def fill_mqtt(address):
    """A session that is away with five messages waiting for it, and two retained messages, one of them taken back."""
    leave(device(address, "sleeper", clean=False))
    client = device(address, "waker")
    for number in range(5):
        publish(client, f"later/{number}", f"later {number}")
    publish(client, "state/door", "open", retain=True)
    publish(client, "state/gone", "yes", retain=True)
    publish(client, "state/gone", "", retain=True)
    leave(client)


def fill_amqp(address):
    """A durable exchange and queue with six messages, two of them acknowledged."""
    host, port = address.split(":")
    connection = pika.BlockingConnection(pika.ConnectionParameters(host, int(port)))
    channel = connection.channel()
    channel.exchange_declare("events", "topic", durable=True)
    channel.queue_declare("work", durable=True)
    channel.queue_bind("work", "events", "made.#")
    channel.confirm_delivery()
    for number in range(6):
        kept = pika.BasicProperties(delivery_mode=2, headers={"number": number})
        channel.basic_publish("events", f"made.{number}", f"work {number}".encode(), kept, mandatory=True)
    for _ in range(2):
        method, _, _ = channel.basic_get("work")
        channel.basic_ack(method.delivery_tag)
    connection.close()


def report(address, numbers):
    client = device(address, "sensor")
    for number in numbers:
        publish(client, "plant/heat", f"heat {number}")
    leave(client)


def status(part):
    with urllib.request.urlopen(f"http://{part.addresses['admin']}/status", timeout=5) as answer:
        return json.load(answer)


def fill(folder):
    listen = {flag: f"127.0.0.1:{free_port()}" for flag in ("kafka", "mqtt", "amqp", "admin")}
    flags = [word for flag, address in listen.items() for word in (f"--{flag}", address)]
    cloud = Part(
        "cloud", folder, "tributary-cloud", "serve", "--data", f"file://{folder}/data/cloud",
        "--set", "engine.shards=2", "--set", "log.default_partitions=1", *flags)
    edge = Part(
        "edge", folder, "tributary-edge", "serve", "--data", f"{folder}/data/edge", "--id", "gw1", "--cloud", f"mqtt://{listen['mqtt']}",
        "--mqtt", f"127.0.0.1:{free_port()}", "--admin", f"127.0.0.1:{free_port()}")
    try:
        cloud.start()
        fill_kafka(listen["kafka"])
        fill_mqtt(listen["mqtt"])
        fill_amqp(listen["amqp"])
        edge.start()
        # The first five are in the cloud's log; the cloud has the mark of them.
        report(edge.addresses["mqtt"], range(5))
        until("the cloud has what the edge took", lambda: status(edge)["buffered"] == 0)
        stop(cloud)
        # These stay at the edge, with a session and a retained message of its own.
        report(edge.addresses["mqtt"], range(5, 10))
        fill_mqtt(edge.addresses["mqtt"])
        stop(edge)
    finally:
        edge.stop()
        cloud.stop()


def stop(part):
    code = part.stop()
    if code != 0:
        raise SystemExit(f"{part.name} ended with {code}; see {part.log.name}")


def pack(folder, to):
    SETS.mkdir(exist_ok=True)
    # Names in order and no owner: a set tells nothing of who made it.
    tar = ["tar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "-C", f"{folder}/data", "-cz", "-f", str(to), "."]
    subprocess.run(tar, check=True)
    size = to.stat().st_size
    if size > LARGEST:
        to.unlink()
        raise SystemExit(f"{size} bytes are too many for a set")
    print(f"{to}: {size} bytes")


def main():
    to = SETS / f"release-{sys.argv[1]}.tar.gz"
    if to.exists():
        raise SystemExit(f"{to} is there: what a release stored does not change")
    with tempfile.TemporaryDirectory(prefix="tributary-release-") as folder:
        (Path(folder) / "data").mkdir()
        fill(folder)
        pack(folder, to)


if __name__ == "__main__":
    main()
