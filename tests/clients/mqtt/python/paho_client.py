"""Eclipse Paho for Python, 3.1.1 and 5, TCP and WebSocket."""

import json
import os
import queue
import sys
from urllib.parse import urlparse

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

step, version, url, name = sys.argv[1:]
url = urlparse(url)
five = version == "5"
arrived, connected, subscribed = queue.Queue(), queue.Queue(), queue.Queue()

options = {"client_id": name, "protocol": mqtt.MQTTv5 if five else mqtt.MQTTv311}
if not five:
    options["clean_session"] = False
transport = "websockets" if url.scheme == "ws" else "tcp"
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, transport=transport, **options)
client.on_connect = lambda client, data, flags, reason, properties: connected.put((flags.session_present, reason))
client.on_subscribe = lambda client, data, mid, reasons, properties: subscribed.put(reasons)
client.on_message = lambda client, data, message: arrived.put(message)
if step == "first":
    client.will_set(f"will/{name}", "gone", qos=1)
connect = {}
if five:
    connect["clean_start"] = False
    connect["properties"] = Properties(PacketTypes.CONNECT)
    connect["properties"].SessionExpiryInterval = 3600
client.connect(url.hostname, url.port, **connect)
client.loop_start()
present, reason = connected.get(timeout=20)
assert not reason.is_failure, reason
got = []


def take(count, wanted):
    while count:
        message = arrived.get(timeout=20)
        if message.topic.startswith(wanted):
            got.append(f"{message.topic} {message.payload.decode()} {message.qos}")
            count -= 1


def subscribe(topic):
    client.subscribe(topic, qos=2)
    assert not any(reason.is_failure for reason in subscribed.get(timeout=20))


if step == "first":
    subscribe(f"in/{name}/#")
    client.publish(f"state/{name}", "on", qos=1, retain=True).wait_for_publish(20)
    sent = [client.publish(f"in/{name}/q{qos}", str(i), qos=qos) for qos in range(3) for i in range(10)]
    for one in sent:
        one.wait_for_publish(20)
    take(30, f"in/{name}/q")
else:
    take(40, f"in/{name}/later")
    subscribe(f"state/{name}")
    take(1, f"state/{name}")
    client.disconnect()
    client.loop_stop()
print(json.dumps({"present": present, "got": got}), flush=True)
os._exit(0)
