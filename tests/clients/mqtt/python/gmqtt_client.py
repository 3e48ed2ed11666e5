"""gmqtt, 3.1.1 and 5."""

import asyncio
import json
import os
import sys
from urllib.parse import urlparse

import gmqtt
from gmqtt.mqtt.constants import MQTTv50, MQTTv311

step, version, url, name = sys.argv[1:]
url = urlparse(url)


async def main():
    arrived, subscribed, present = asyncio.Queue(), asyncio.Queue(), asyncio.Queue()
    will = gmqtt.Message(f"will/{name}", "gone", qos=1) if step == "first" else None
    extra = {"session_expiry_interval": 3600} if version == "5" else {}
    client = gmqtt.Client(name, clean_session=False, will_message=will, **extra)

    async def on_message(client, topic, payload, qos, properties):
        arrived.put_nowait((topic, payload, qos))
        return 0

    client.on_connect = lambda client, flags, rc, properties: present.put_nowait(bool(flags & 1))
    client.on_message = on_message
    client.on_subscribe = lambda client, mid, qos, properties: subscribed.put_nowait(qos)
    await client.connect(url.hostname, url.port, version=MQTTv50 if version == "5" else MQTTv311)
    was_there = await present.get()
    got = []

    async def take(count, wanted):
        while count:
            topic, payload, qos = await arrived.get()
            if topic.startswith(wanted):
                got.append(f"{topic} {payload.decode()} {qos}")
                count -= 1

    async def subscribe(topic):
        client.subscribe(topic, qos=2)
        assert all(code < 128 for code in await subscribed.get())

    if step == "first":
        await subscribe(f"in/{name}/#")
        client.publish(f"state/{name}", "on", qos=1, retain=True)
        for qos in range(3):
            for i in range(10):
                client.publish(f"in/{name}/q{qos}", str(i), qos=qos)
        await take(30, f"in/{name}/q")
    else:
        await take(40, f"in/{name}/later")
        await subscribe(f"state/{name}")
        await take(1, f"state/{name}")
        await client.disconnect()
    print(json.dumps({"present": was_there, "got": got}), flush=True)
    os._exit(0)


asyncio.run(asyncio.wait_for(main(), 40))
