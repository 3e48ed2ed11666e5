"""What both Python clients do; see ../README.md."""

import json
import threading
import time

# A step that takes longer has failed.
PATIENCE_S = 90


def value(client, run, codec, i):
    return f"{client}/{run}/{codec}/{i}/" + "tributary " * 8


def name(text):
    return "/".join(text.split("/")[:4])


def consume(member, bootstrap, topic, group, expected):
    seen, shares, errors = set(), [0, 0], []
    all_read = threading.Barrier(2)

    def run(index, has_partitions, go_on):
        try:
            go_on.wait(PATIENCE_S)
            me = member(bootstrap, topic, group)
            deadline = time.monotonic() + PATIENCE_S
            while len(seen) < expected or not all(shares) or not me.at_end():
                assert time.monotonic() < deadline, f"{len(seen)} of {expected}, shares {shares}"
                seen.update(name(text) for text in me.poll())
                if me.partitions:
                    has_partitions.set()
                    # Both share the topic: neither has all of it.
                    if me.partitions < 4:
                        shares[index] = me.partitions
            me.commit()
            all_read.wait(PATIENCE_S)
            me.close()
        except BaseException as error:
            errors.append(repr(error))
            all_read.abort()

    first, second, now = threading.Event(), threading.Event(), threading.Event()
    now.set()
    threads = [
        threading.Thread(target=run, args=(0, first, now)),
        threading.Thread(target=run, args=(1, second, first)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    return {"values": sorted(seen), "shares": shares}


def resume(member, bootstrap, topic, group, expected):
    me = member(bootstrap, topic, group)
    seen = []
    deadline = time.monotonic() + PATIENCE_S
    while len(seen) < expected:
        assert time.monotonic() < deadline, f"{len(seen)} of {expected}"
        seen.extend(name(text) for text in me.poll())
    until = time.monotonic() + 1
    while time.monotonic() < until:
        seen.extend(name(text) for text in me.poll())
    me.commit()
    me.close()
    return {"values": seen}


def main(arguments, produce, member):
    step, bootstrap, topic, which, count = arguments[1:]
    if step == "produce":
        answer = {"codecs": produce(bootstrap, topic, which, int(count))}
    elif step == "consume":
        answer = consume(member, bootstrap, topic, which, int(count))
    else:
        answer = resume(member, bootstrap, topic, which, int(count))
    print(json.dumps(answer))
