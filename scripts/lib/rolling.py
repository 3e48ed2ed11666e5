"""Rolls three nodes under load, one after the other (SIGTERM, start again), and says whether any client saw an error.

Clients are as people write them: a librdkafka producer and a consumer in a group (confluent-kafka), a pika consumer that connects again
when its connection ends, a paho device at each of two edges. Exit code 1: an error, or a message that was acknowledged and lost.
"""

import argparse
import json
import signal
import tempfile
import threading
import time

import confluent_kafka
import paho.mqtt.client as mqtt
import pika
from confluent_kafka.admin import AdminClient, NewTopic

from cluster import Cluster

TOPIC = "rolling"
PARTITIONS = 6


class Load:
    """What all clients share: what was acknowledged, what was seen, what went wrong."""

    def __init__(self):
        self.over = threading.Event()
        self.quiet = threading.Event()
        self.ready = threading.Event()  # the queue is there
        self.errors, self.notes = [], {}
        self.acked = {"kafka": set(), "edges": set()}
        self.seen = {"kafka": {}, "amqp": {}}
        self.gaps, self.last = {"produce": 0.0, "consume": 0.0}, {}

    def error(self, who, what):
        self.errors.append(f"{who}: {what}")

    def note(self, what):
        self.notes[what] = self.notes.get(what, 0) + 1

    def beat(self, what):
        now = time.monotonic()
        self.gaps[what] = max(self.gaps[what], now - self.last.get(what, now))
        self.last[what] = now


def produce(load, brokers):
    def delivered(error, message):
        if error is not None:
            load.error("librdkafka producer", error)
        else:
            load.beat("produce")
            load.acked["kafka"].add(message.value())

    # error_cb tells of lost connections, too, which librdkafka mends by itself.
    producer = confluent_kafka.Producer({
        "bootstrap.servers": brokers, "enable.idempotence": True, "linger.ms": 5,
        "error_cb": lambda error: load.error("librdkafka producer", error) if error.fatal() else load.note(f"producer: {error.name()}")})
    number = 0
    while not load.quiet.is_set():
        producer.produce(TOPIC, f"k {number}".encode(), partition=number % PARTITIONS, on_delivery=delivered)
        producer.poll(0)
        number += 1
        time.sleep(0.004)
    if producer.flush(30):
        load.error("librdkafka producer", "not all was answered in 30 s")


def consume(load, brokers):
    consumer = confluent_kafka.Consumer({
        "bootstrap.servers": brokers, "group.id": "rolling", "auto.offset.reset": "earliest",
        "error_cb": lambda error: load.error("librdkafka consumer", error) if error.fatal() else load.note(f"consumer: {error.name()}")})
    consumer.subscribe([TOPIC])
    while not load.over.is_set():
        message = consumer.poll(0.2)
        if message is None:
            continue
        if message.error():
            load.error("librdkafka consumer", message.error())
            continue
        load.beat("consume")
        load.seen["kafka"][message.value()] = load.seen["kafka"].get(message.value(), 0) + 1
    consumer.close()


def consume_amqp(load, port):
    """As pika's own example: a loop around one connection, begun again when it ends."""
    while not load.over.is_set():
        try:
            connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port, socket_timeout=5))
            channel = connection.channel()
            channel.queue_declare("rolling", durable=True)
            channel.queue_bind("rolling", "amq.topic", "rolling.#")
            channel.basic_qos(prefetch_count=50)
            load.ready.set()
            for method, _, body in channel.consume("rolling", inactivity_timeout=0.2):
                if load.over.is_set():
                    return
                if method is None:
                    continue
                load.seen["amqp"][body] = load.seen["amqp"].get(body, 0) + 1
                channel.basic_ack(method.delivery_tag)
        except (pika.exceptions.AMQPConnectionError, pika.exceptions.ChannelClosedByBroker, pika.exceptions.StreamLostError) as ended:
            load.note(f"pika connects again: {type(ended).__name__}")
            time.sleep(0.1)
        except Exception as error:  # whatever else a user of pika would see
            load.error("pika consumer", repr(error))
            time.sleep(0.5)


def device(load, edge):
    """A device publishes at QoS 1 and is told of each acknowledgement; its edge is not restarted, so it sees nothing of all this."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"device-{edge.name}")
    waiting = {}

    def published(_client, _data, mid, reason, _properties):
        if reason.is_failure:
            load.error(f"device at {edge.name}", reason)
        elif mid in waiting:
            load.acked["edges"].add(waiting.pop(mid))

    def disconnected(_client, _data, _flags, reason, _properties):
        if not load.quiet.is_set():
            load.error(f"device at {edge.name}", f"disconnected: {reason}")

    client.on_publish, client.on_disconnect = published, disconnected
    host, port = edge.addresses["mqtt"].split(":")
    client.connect(host, int(port))
    client.loop_start()
    number = 0
    while not load.quiet.is_set():
        body = f"{edge.name} {number}".encode()
        told = client.publish(f"rolling/{edge.name}", body, qos=1)
        waiting[told.mid] = body
        number += 1
        time.sleep(0.02)
    time.sleep(1)
    client.loop_stop()
    client.disconnect()


def start(load, *work):
    threads = [threading.Thread(target=act, args=(load, *arguments), daemon=True) for act, *arguments in work]
    for thread in threads:
        thread.start()
    return threads


def roll(cluster, pause):
    """Each node in turn. How long its leaving and its coming back took, s."""
    times = []
    for node in cluster.nodes:
        time.sleep(pause)
        began = time.monotonic()
        code = node.stop()
        stopped = time.monotonic() - began
        if code != 0:
            raise SystemExit(f"{node.name} ended with {code}; see {node.log.name}")
        node.start()
        times.append({"node": node.name, "stopped_s": round(stopped, 2), "back_s": round(time.monotonic() - began, 2)})
        print(json.dumps(times[-1]), flush=True)
    time.sleep(pause)
    return times


def arrive(load, patience=60):
    """Waits until all that was acknowledged was read. What was not."""
    deadline = time.monotonic() + patience
    while True:
        missing = {
            "kafka": load.acked["kafka"] - load.seen["kafka"].keys(),
            "amqp": load.acked["edges"] - load.seen["amqp"].keys()}
        if not any(missing.values()) or time.monotonic() > deadline:
            return {who: len(what) for who, what in missing.items()}
        time.sleep(0.2)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pause", type=float, default=4, help="seconds of load between two nodes")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = tempfile.mkdtemp(prefix="tributary-rolling-")
    cluster = Cluster(folder)
    load = Load()
    try:
        admin = AdminClient({"bootstrap.servers": cluster.brokers})
        admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])[TOPIC].result(30)
        readers = start(load, (consume, cluster.brokers), (consume_amqp, cluster.amqp.port))
        if not load.ready.wait(30):
            raise SystemExit(f"no queue: {load.notes} {load.errors}")
        writers = start(load, (produce, cluster.brokers), *((device, edge) for edge in cluster.edges))
        roll(cluster, options.pause)
        load.quiet.set()
        for thread in writers:
            thread.join(60)
        missing = arrive(load)
        load.over.set()
        for thread in readers:
            thread.join(10)
    finally:
        cluster.stop()
    twice = sum(times - 1 for times in load.seen["kafka"].values())
    print(json.dumps({
        "errors": load.errors[:20], "lost": missing, "kafka_acked": len(load.acked["kafka"]), "edges_acked": len(load.acked["edges"]),
        "kafka_read_twice": twice, "longest_gap_s": {what: round(gap, 2) for what, gap in load.gaps.items()},
        "mended_by_clients": load.notes, "logs": folder}))
    if load.errors or any(missing.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
