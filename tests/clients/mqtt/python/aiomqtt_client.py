"""aiomqtt, 3.1.1 and 5."""

import asyncio
import json
import os
import sys
from urllib.parse import urlparse

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

step, version, url, name = sys.argv[1:]
url = urlparse(url)


async def take(client, count, wanted):
    got = []
    async for message in client.messages:
        if str(message.topic).startswith(wanted):
            got.append(f"{message.topic} {message.payload.decode()} {message.qos}")
            if len(got) == count:
                return got


async def main():
    options = {"identifier": name, "protocol": aiomqtt.ProtocolVersion.V311, "clean_session": False}
    if version == "5":
        expiry = Properties(PacketTypes.CONNECT)
        expiry.SessionExpiryInterval = 3600
        options = {"identifier": name, "protocol": aiomqtt.ProtocolVersion.V5, "clean_start": False, "properties": expiry}
    if step == "first":
        options["will"] = aiomqtt.Will(f"will/{name}", "gone", qos=1)
    async with asyncio.timeout(40), aiomqtt.Client(url.hostname, url.port, **options) as client:
        if step == "first":
            await client.subscribe(f"in/{name}/#", qos=2)
            await client.publish(f"state/{name}", "on", qos=1, retain=True)
            publish = (client.publish(f"in/{name}/q{qos}", str(i), qos=qos) for qos in range(3) for i in range(10))
            got, *_ = await asyncio.gather(take(client, 30, f"in/{name}/q"), *publish)
            print(json.dumps({"got": got}), flush=True)
            os._exit(0)
        got = await take(client, 40, f"in/{name}/later")
        await client.subscribe(f"state/{name}", qos=2)
        got += await take(client, 1, f"state/{name}")
        # It does not say what CONNACK said; that everything came without a subscription does.
        print(json.dumps({"present": True, "got": got}), flush=True)


asyncio.run(main())
