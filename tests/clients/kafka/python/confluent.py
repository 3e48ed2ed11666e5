"""librdkafka by way of confluent-kafka; see ../README.md."""

import sys

from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

import scenario

CLIENT = "confluent"
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]


def create(bootstrap, topic):
    admin = AdminClient({"bootstrap.servers": bootstrap})
    try:
        admin.create_topics([NewTopic(topic, 4, 1)])[topic].result(30)
    except KafkaException as error:
        if error.args[0].name() != "TOPIC_ALREADY_EXISTS":
            raise


def produce(bootstrap, topic, run, count):
    create(bootstrap, topic)
    for codec in CODECS:
        producer = Producer({
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "compression.type": codec,
            "linger.ms": 20,
        })
        failed = []
        for i in range(count):
            producer.produce(
                topic,
                key=f"k{i}",
                value=scenario.value(CLIENT, run, codec, i),
                headers=[("h", b"1"), ("h", b"2")],
                on_delivery=lambda error, _: failed.append(error) if error else None,
            )
        assert producer.flush(60) == 0 and not failed, failed
    return CODECS


class Member:
    def __init__(self, bootstrap, topic, group):
        self.partitions = 0
        self.consumer = Consumer({
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        })
        self.consumer.subscribe([topic], on_assign=self.assigned, on_revoke=self.revoked)

    def assigned(self, _, partitions):
        self.partitions = len(partitions)

    def revoked(self, *_):
        self.commit()

    def poll(self):
        found = []
        for message in self.consumer.consume(500, 0.2):
            if message.error():
                raise KafkaException(message.error())
            if message.headers()[:2] != [("h", b"1"), ("h", b"2")]:
                raise ValueError(f"headers: {message.headers()}")
            found.append(message.value().decode())
        return found

    def at_end(self):
        # What is handed on is committed first: nothing is read twice.
        return True

    def commit(self):
        try:
            self.consumer.commit(asynchronous=False)
        except KafkaException as error:
            if error.args[0].name() != "_NO_OFFSET":
                raise

    def close(self):
        self.consumer.close()


if __name__ == "__main__":
    scenario.main(sys.argv, produce, Member)
