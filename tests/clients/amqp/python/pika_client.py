"""What pika users do, against the AMQP port in argv[1]. Exits non-zero with a traceback at the first broken promise."""

import socket
import sys

import pika
from pika.exceptions import ChannelClosedByBroker, UnroutableError

PORT = int(sys.argv[1])


def connect():
    return pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", PORT, heartbeat=30))


connection = connect()
channel = connection.channel()
channel.confirm_delivery()
queue = channel.queue_declare("pika", durable=True).method.queue
channel.queue_purge(queue)
channel.queue_bind(queue, "amq.topic", "pika.*.value")

# Publish with confirms; properties and body come back as they were.
properties = pika.BasicProperties(
    content_type="text/plain", headers={"n": 7, "nested": {"a": [1, "x", None, True]}}, delivery_mode=2,
    correlation_id="c-1", reply_to="r", expiration="60000", message_id="m", timestamp=1700000000, type="t", app_id="app",
)
for i in range(10):
    channel.basic_publish("amq.topic", f"pika.{i}.value", str(i).encode(), properties, mandatory=True)
channel.basic_publish("amq.topic", "pika.no.match.here", b"dropped", properties)
try:
    channel.basic_publish("", "nowhere", b"x", mandatory=True)
    raise SystemExit("an unroutable message was not returned")
except UnroutableError:
    pass

# Prefetch holds; a killed connection gives its messages back, in order and marked.
channel.basic_qos(prefetch_count=3)
first = [next(channel.consume(queue, inactivity_timeout=10)) for _ in range(3)]
assert [body for _, _, body in first] == [b"0", b"1", b"2"], first
got = first[0][1]
assert got == properties, (got, properties)
assert not any(method.redelivered for method, _, _ in first)
channel.basic_ack(first[0][0].delivery_tag)
assert next(channel.consume(queue, inactivity_timeout=10))[2] == b"3"
connection._impl._transport._sock.shutdown(socket.SHUT_RDWR)

connection = connect()
channel = connection.channel()
again = []
for method, _, body in channel.consume(queue, inactivity_timeout=10):
    again.append((body, method.redelivered))
    channel.basic_ack(method.delivery_tag)
    if len(again) == 9:
        break
assert [body for body, _ in again] == [str(i).encode() for i in range(1, 10)], again
assert [redelivered for _, redelivered in again[:3]] == [True, True, True], again
channel.cancel()

# Reject to the dead-letter exchange.
channel.queue_declare("pika.dead", durable=True)
arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "pika.dead"}
channel.queue_declare("pika.work", durable=True, arguments=arguments)
channel.basic_publish("", "pika.work", b"poison")
method, _, _ = channel.basic_get("pika.work")
channel.basic_nack(method.delivery_tag, requeue=False)
for method, properties, body in channel.consume("pika.dead", inactivity_timeout=10):
    assert body == b"poison" and properties.headers["x-death"][0]["reason"] == "rejected", (body, properties)
    channel.basic_ack(method.delivery_tag)
    break
channel.cancel()

# Wrong operations close the channel with the right code and leave the connection open.
def refused(code, operation):
    broken = connection.channel()
    try:
        operation(broken)
    except ChannelClosedByBroker as error:
        assert error.reply_code == code, error
        return
    raise SystemExit(f"expected {code}")


refused(404, lambda c: c.queue_declare("no-such-queue", passive=True))
refused(403, lambda c: c.exchange_declare("amq.mine"))
refused(406, lambda c: c.queue_declare("pika", durable=False))
refused(404, lambda c: (c.confirm_delivery(), c.basic_publish("no-such-exchange", "k", b"")))

# Bodies larger than a frame.
channel.queue_purge("pika")
channel.basic_publish("", "pika", b"\x00\xff" * 500_000)
for method, _, body in channel.consume("pika", inactivity_timeout=30):
    assert body == b"\x00\xff" * 500_000, len(body or b"")
    channel.basic_ack(method.delivery_tag)
    break
for name in ("pika", "pika.dead", "pika.work"):
    channel.queue_delete(name)
connection.close()
print("ok")
