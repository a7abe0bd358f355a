"""One backup of a qcow2 image by QEMU itself, into a new image: everything, with a bitmap begun, or what that bitmap tells.

usage: backup.py open SOCKET full|incremental TARGET     through the monitor of the process that has the image open
       backup.py closed IMAGE full|incremental TARGET    by a process that is started for it, and ends
"""
import json
import socket
import subprocess
import sys

NODE, BITMAP, JOB = "disk", "backup", "backup"


class Monitor:
    """QMP, line by line."""

    def __init__(self, out, answers):
        self.out, self.answers = out, answers
        assert "QMP" in self.line(), "no monitor"
        self.ask("qmp_capabilities")

    def line(self):
        return json.loads(self.answers.readline())

    def ask(self, command, **arguments):
        question = {"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        self.out.write(json.dumps(question) + "\n")
        self.out.flush()
        while True:
            answer = self.line()
            if "error" in answer:
                sys.exit(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
            self.event(answer)

    done = None

    def event(self, event):
        if event.get("event") == "BLOCK_JOB_COMPLETED" and event["data"]["device"] == JOB:
            self.done = event["data"]

    def wait(self):
        while self.done is None:
            self.event(self.line())
        if "error" in self.done:
            sys.exit(f"the job failed: {self.done['error']}")


def back_up(monitor, sync, target):
    nodes = monitor.ask("query-named-block-nodes", flat=True)
    size = next(node["image"]["virtual-size"] for node in nodes if node["node-name"] == NODE)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", target, str(size)], check=True)
    file = {"driver": "file", "filename": target}
    monitor.ask("blockdev-add", driver="qcow2", node_name="target", file=file)
    job = {"device": NODE, "job-id": JOB, "target": "target"}
    if sync == "full":
        add = {"node": NODE, "name": BITMAP, "persistent": True}
        actions = [
            {"type": "block-dirty-bitmap-add", "data": add},
            {"type": "blockdev-backup", "data": job | {"sync": "full"}},
        ]
        monitor.ask("transaction", actions=actions)
    else:
        monitor.ask("blockdev-backup", **job, sync="incremental", bitmap=BITMAP)
    monitor.wait()
    monitor.ask("blockdev-del", node_name="target")


how, place, sync, target = sys.argv[1:]
if how == "open":
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(place)
    stream = connection.makefile("rw")
    back_up(Monitor(stream, stream), sync, target)
else:
    image = {"driver": "qcow2", "node-name": NODE, "file": {"driver": "file", "filename": place}}
    command = ["qemu-storage-daemon", "--chardev", "stdio,id=m", "--monitor", "chardev=m"]
    command += ["--blockdev", json.dumps(image)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as daemon:
        monitor = Monitor(daemon.stdin, daemon.stdout)
        back_up(monitor, sync, target)
        monitor.ask("quit")
    sys.exit(daemon.returncode)
