"""A machine behind Modbus TCP, for tests: python machine.py PORT MODE_FILE.

Coil 0 is the contactor: written with 0 the machine stops, if it obeys. Discrete input 0 is 1 at standstill. Holding register 0
takes the sign of life. The mode file holds one word and is read at each request:

    obey     stops when the coil is released
    refuse   answers, and goes on turning
    hang     takes requests and never answers
    reset    breaks each connection at its first request
    restart  turns again, then obeys: the next stop counts

Each write is a line on standard output: "coil 0 False", "register 0 17".
"""

import asyncio
import sys
from pathlib import Path

from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice


class Machine:
    def __init__(self, port: int, mode_file: Path):
        self.mode_file = mode_file
        blocks = (
            [SimData(0, values=[True] * 16, datatype=DataType.BITS)],
            [SimData(0, values=[False] * 16, datatype=DataType.BITS)],
            [SimData(0, values=[0] * 4, datatype=DataType.REGISTERS)],
            [SimData(0, values=[0] * 4, datatype=DataType.REGISTERS)],
        )
        self.server = ModbusTcpServer(
            SimDevice(1, simdata=blocks, action=self.act),
            address=("127.0.0.1", port),
            trace_packet=self.packet,
        )
        self.has_restarted = False

    def mode(self) -> str:
        return self.mode_file.read_text().strip()

    def packet(self, sending: bool, data: bytes) -> bytes:
        mode = self.mode()
        if mode == "reset":
            for connection in list(self.server.active_connections.values()):
                connection.transport.abort()
            return b""
        if mode == "hang":
            return b""
        return data

    async def act(self, code, start, address, count, registers, values):
        if values is None:
            return None
        if code == 5:
            value = bool(values[0])
            print(f"coil {address} {value}", flush=True)
            if not value and self.mode() in ("obey", "restart"):
                asyncio.get_running_loop().create_task(self.stand(True))
        if code == 6:
            print(f"register {address} {values[0]}", flush=True)
        return None

    async def stand(self, stands: bool):
        await self.server.async_setValues(1, 2, 0, [stands])

    async def run(self):
        await self.server.serve_forever(background=True)
        print("listening", flush=True)
        while True:
            await asyncio.sleep(0.02)
            is_restart = self.mode() == "restart"
            if is_restart and not self.has_restarted:
                await self.stand(False)
                print("turns", flush=True)
            self.has_restarted = is_restart


async def main():
    await Machine(int(sys.argv[1]), Path(sys.argv[2])).run()


asyncio.run(main())
