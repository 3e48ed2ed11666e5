"""What kombu and Celery do, over py-amqp, against the AMQP port in argv[1]."""

import socket
import sys

import amqp
from kombu import Connection, Exchange, Queue
from kombu.exceptions import OperationalError

PORT = int(sys.argv[1])
URL = f"amqp://guest:guest@127.0.0.1:{PORT}//"
topic = Exchange("amq.topic", type="topic", durable=True)
queue = Queue("kombu", topic, routing_key="kombu.#", durable=True)

with Connection(URL, transport_options={"confirm_publish": True}, heartbeat=10) as connection:
    channel = connection.channel()
    queue(channel).declare()
    queue(channel).purge()
    producer = connection.Producer(serializer="json")
    for i in range(6):
        producer.publish({"i": i}, exchange=topic, routing_key=f"kombu.{i}", headers={"h": [i]}, priority=3)

    # Celery raises the shared prefetch of a live channel when a task has an ETA.
    got = []
    consumer = connection.Consumer(queue, callbacks=[lambda body, message: got.append((body, message))], prefetch_count=2)
    consumer.consume()
    while len(got) < 2:
        connection.drain_events(timeout=10)
    consumer.qos(prefetch_count=4, apply_global=True)
    consumer.qos(prefetch_count=4)
    got[0][1].ack()
    got[1][1].ack()
    while len(got) < 4:
        connection.drain_events(timeout=10)
    assert [body["i"] for body, _ in got[:4]] == [0, 1, 2, 3], got
    assert got[2][1].headers["h"] == [2] and got[2][1].properties["priority"] == 3
    # Killed with messages unacknowledged.
    connection.default_channel.connection.transport.sock.shutdown(socket.SHUT_RDWR)

with Connection(URL) as connection:
    again = []

    def take(body, message):
        again.append((body["i"], message.delivery_info["redelivered"]))
        message.ack()

    with connection.Consumer(queue, callbacks=[take]):
        while len(again) < 4:
            connection.drain_events(timeout=10)
    assert [i for i, _ in again] == [2, 3, 4, 5], again
    assert again[0][1] and again[1][1], again

    # The queues Celery makes: a fanout for control, replies that expire.
    channel = connection.channel()
    pidbox = Exchange("kombu.pidbox", type="fanout", durable=False, auto_delete=True)
    boxes = [
        Queue(f"kombu.box{i}", pidbox, durable=False, auto_delete=True, expires=10.0, message_ttl=300.0)(channel)
        for i in range(2)
    ]
    for box in boxes:
        box.declare()
    connection.Producer().publish({"ping": 1}, exchange=pidbox, routing_key="")
    for box in boxes:
        message = None
        while message is None:
            message = box.get(no_ack=True)
        assert message.payload == {"ping": 1}
        box.delete()

    # Wrong operations: the right exception from the right code.
    for error, operation in [
        (amqp.exceptions.NotFound, lambda c: c.queue_declare("none", passive=True)),
        (amqp.exceptions.AccessRefused, lambda c: c.queue_declare("amq.none")),
        (amqp.exceptions.PreconditionFailed, lambda c: c.queue_declare("kombu", durable=False, auto_delete=False)),
        (amqp.exceptions.PreconditionFailed, lambda c: (c.basic_ack(99), c.basic_qos(0, 1, False))),
    ]:
        broken = connection.channel()
        try:
            operation(broken)
        except error:
            continue
        raise SystemExit(f"expected {error}")
    # A content in a transaction takes effect at its commit.
    channel = connection.channel()
    channel.tx_select()
    channel.basic_publish(amqp.basic_message.Message("tx"), "", "kombu")
    assert channel.basic_get("kombu") is None
    channel.tx_commit()
    message = channel.basic_get("kombu", no_ack=True)
    assert message.body == "tx", message.body
    channel.tx_commit()
    queue(connection.channel()).delete()

try:
    Connection(URL.replace("guest:guest", "guest:wrong"), connect_timeout=5).ensure_connection(max_retries=1)
    raise SystemExit("a wrong password got in")
except (OperationalError, amqp.exceptions.AccessRefused):
    pass
print("ok")
