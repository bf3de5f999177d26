#!/usr/bin/env python3
"""A bad line for UDP: passes datagrams on between two mesh ports, late and not all of them.

    wan_relay.py A B DELAY_MS LOSS_PERCENT [SEED]

A and B are the mesh addresses (host:port) of two nodes. It prints one line with two ports of 127.0.0.1:
what is sent to the first reaches A and is answered from the second's side, and the other way round. Tell
each node's peers the relay's port instead of its own (SKEIN_MESH_ADVERTISE). DELAY_MS is one way.
"""

import asyncio
import random
import sys


class End(asyncio.DatagramProtocol):
    """One port of the relay; what comes in goes to the node behind it."""

    def __init__(self, node, line):
        self.node, self.line = node, line

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, sender):
        # From the node behind the other end, or from that node to its peer: by who sent it.
        self.line.carry(self, data, sender)

    def error_received(self, exc):
        """A node that is not there: as on a wire, nobody is told."""


class Line:
    def __init__(self, delay, loss, seed):
        self.delay, self.loss, self.dice = delay, loss, random.Random(seed)
        self.passed = self.lost = 0

    def carry(self, end, data, sender):
        if self.dice.random() < self.loss:
            self.lost += 1
            return
        self.passed += 1
        # What came to this end is for its node, and is sent from the other end, so that the answer comes
        # back through that one.
        asyncio.get_running_loop().call_later(self.delay, end.other.transport.sendto, data, end.node)


async def main():
    a, b, delay, loss = sys.argv[1:5]
    line = Line(float(delay) / 1000, float(loss) / 100, sys.argv[5] if len(sys.argv) > 5 else 1)
    loop, ends = asyncio.get_running_loop(), []
    for node in (a, b):
        host, port = node.rsplit(":", 1)
        _, end = await loop.create_datagram_endpoint(
            lambda node=(host, int(port)): End(node, line), local_addr=("127.0.0.1", 0)
        )
        ends.append(end)
    ends[0].other, ends[1].other = ends[1], ends[0]
    print(*(end.transport.get_extra_info("sockname")[1] for end in ends), flush=True)
    while True:
        await asyncio.sleep(0.5)
        print(f"passed={line.passed} lost={line.lost}", flush=True)


asyncio.run(main())
