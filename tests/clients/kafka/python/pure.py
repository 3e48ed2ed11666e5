"""kafka-python, which speaks the protocol itself; see ../README.md."""

import sys
import time

from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

import scenario

CLIENT = "kafka-python"
CODECS = [None, "gzip", "snappy", "lz4", "zstd"]


def again(call):
    """Repeats what this client does not repeat by itself: calls that met a node that was gone."""
    until = time.monotonic() + scenario.PATIENCE_S / 2
    while True:
        try:
            return call()
        except KafkaError as error:
            if not error.retriable or time.monotonic() > until:
                raise
            time.sleep(0.1)


def create(bootstrap, topic):
    admin = again(lambda: KafkaAdminClient(bootstrap_servers=bootstrap))
    try:
        again(lambda: admin.create_topics([NewTopic(topic, 4, 1)]))
    except TopicAlreadyExistsError:
        pass
    finally:
        admin.close()


def produce(bootstrap, topic, run, count):
    create(bootstrap, topic)
    for codec in CODECS:
        settings = {"compression_type": codec, "enable_idempotence": True, "linger_ms": 20}
        producer = again(lambda: KafkaProducer(bootstrap_servers=bootstrap, **settings))
        sent = [
            producer.send(
                topic,
                key=f"k{i}".encode(),
                value=scenario.value(CLIENT, run, codec or "none", i).encode(),
                headers=[("h", b"1"), ("h", b"2")],
            )
            for i in range(count)
        ]
        for future in sent:
            future.get(60)
        producer.close()
    return [codec or "none" for codec in CODECS]


class Member(ConsumerRebalanceListener):
    def __init__(self, bootstrap, topic, group):
        self.partitions = 0
        settings = {"auto_offset_reset": "earliest", "enable_auto_commit": False}
        self.consumer = again(
            lambda: KafkaConsumer(bootstrap_servers=bootstrap, group_id=group, **settings)
        )
        self.consumer.subscribe([topic], listener=self)

    def on_partitions_assigned(self, assigned):
        self.partitions = len(self.consumer.assignment())

    def on_partitions_revoked(self, revoked):
        # Nothing may block here: what was read and not committed is read again.
        pass

    def poll(self):
        found = []
        for records in self.consumer.poll(timeout_ms=200).values():
            for record in records:
                if list(record.headers)[:2] != [("h", b"1"), ("h", b"2")]:
                    raise ValueError(f"headers: {record.headers}")
                found.append(record.value.decode())
        return found

    def at_end(self):
        ends = again(lambda: self.consumer.end_offsets(list(self.consumer.assignment())))
        return all(self.consumer.position(partition) >= end for partition, end in ends.items())

    def commit(self):
        if self.consumer.assignment():
            again(self.consumer.commit)

    def close(self):
        self.consumer.close(autocommit=False)


if __name__ == "__main__":
    scenario.main(sys.argv, produce, Member)
