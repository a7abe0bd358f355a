"""Writes to a disk. What to write stands on the standard input, again and again: OFFSET LENGTH, a new line, and the bytes.

usage: writer.py rbd CONF POOL IMAGE | writer.py nbd SOCKET EXPORT
"""
import socket
import struct
import sys


class Rbd:
    def __init__(self, conf, pool, image):
        import rados
        import rbd

        self.cluster = rados.Rados(conffile=conf, rados_id="admin")
        self.cluster.connect()
        self.image = rbd.Image(self.cluster.open_ioctx(pool), image)

    def write(self, offset, data):
        self.image.write(data, offset)

    def close(self):
        self.image.flush()
        self.image.close()
        self.cluster.shutdown()


class Nbd:
    """The few words of the protocol that one writer needs: https://github.com/NetworkBlockDevice/nbd, doc/proto.md."""

    WRITE, DISCONNECT, FLUSH = 1, 2, 3

    def __init__(self, path, export):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.answers = self.socket.makefile("rb")
        # A fixed handshake without the 124 zeros behind it, and NBD_OPT_EXPORT_NAME.
        magic, option, flags = struct.unpack(">8s8sH", self.answers.read(18))
        assert (magic, option, flags & 3) == (b"NBDMAGIC", b"IHAVEOPT", 3), "no NBD server"
        name = export.encode()
        self.socket.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, len(name)) + name)
        self.size, _ = struct.unpack(">QH", self.answers.read(10))

    def request(self, kind, offset=0, length=0, data=b""):
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, 0, offset, length) + data)
        if kind != self.DISCONNECT:
            magic, error, _ = struct.unpack(">IIQ", self.answers.read(16))
            assert (magic, error) == (0x67446698, 0), f"the server answers with error {error}"

    def write(self, offset, data):
        # More at once need not be taken.
        step = 16 << 20
        for at in range(0, len(data), step):
            part = data[at : at + step]
            self.request(self.WRITE, offset + at, len(part), part)

    def close(self):
        self.request(self.FLUSH)
        self.request(self.DISCONNECT)
        self.socket.close()


disk = {"rbd": Rbd, "nbd": Nbd}[sys.argv[1]](*sys.argv[2:])
while line := sys.stdin.buffer.readline():
    offset, length = map(int, line.split())
    disk.write(offset, sys.stdin.buffer.read(length))
disk.close()
