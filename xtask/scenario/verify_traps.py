"""Looks at a promoted standby: has become of each prepared thing what must have? Prints what was found; ends with 1 when not.

Environment: AUTH_URL and REGION of the standby, ADMIN_PASSWORD of the lost site, SHARE_FOLDER, SITE_FOLDER and SOCKET of the standby, REPORT (of
the promotion, JSON), EXPECTED (what traps.py wrote).
"""

import json
import os
import subprocess
import sys
import time

import disks
from clouds import connect

cloud = connect("admin", os.environ["ADMIN_PASSWORD"])
(group,) = json.load(open(os.environ["REPORT"]))["groups"]
said = next(step["evidence"] for step in group["steps"] if step["id"] == "reconcile")
wrong = []


def sql(query):
    """Its rows, as lists of texts."""
    client = ["mariadb", "--no-defaults", "--socket", os.environ["SOCKET"], "-NBe", query]
    return [line.split("\t") for line in subprocess.check_output(client, text=True).splitlines()]


def form(volume):
    rows = sql(
        f"SELECT value FROM cinder.volume_admin_metadata WHERE volume_id = '{volume}' AND `key` = 'format' AND deleted = 0"
    )
    return rows[0][0] if rows else "raw"


def service(due):
    """Renamed: the row that it was, the only one of its name, and of the service that runs."""
    columns = "id, uuid, `binary`, host, updated_at > UTC_TIMESTAMP() - INTERVAL 30 SECOND"
    found = sql(f"SELECT {columns} FROM cinder.services WHERE host = '{due['host']}' AND `binary` = '{due['program']}' AND deleted = 0")
    row = [due["id"], due["uuid"], due["program"], due["host"], "1"]
    return None if found == [row] else f"is {found} and not {[row]}"


def is_finished(volume, limit=60):
    """Cinder has done what a service was at: neither volume nor file, nor a worker at it, is there."""
    deadline = time.monotonic() + limit
    while True:
        there = cloud.block_storage.find_volume(volume, ignore_missing=True)
        workers = sql(f"SELECT id, service_id, status FROM cinder.workers WHERE resource_id = '{volume}'")
        file = os.path.exists(f"{os.environ['SHARE_FOLDER']}/volume-{volume}")
        if there is None and not workers and not file:
            return None
        if time.monotonic() > deadline:
            return f"is {there and there.status}, with workers {workers}, {'with' if file else 'without'} a file"
        time.sleep(0.5)


get = {"image": cloud.image.get_image, "volume": cloud.block_storage.get_volume, "snapshot": cloud.block_storage.get_snapshot}
folders = {"image": f"{os.environ['SITE_FOLDER']}/glance/images", "volume": os.environ["SHARE_FOLDER"]}
for thing in json.load(open(os.environ["EXPECTED"])):
    what = f"{thing['kind']} {thing['id']} ({thing['why']})"
    if thing["kind"] == "service":
        problem = service(thing)
        wrong += [f"{what}: {problem}"] if problem else []
        print(f"{what}: {problem or 'renamed'}")
        continue
    if "file" in thing:
        if not os.path.exists(os.path.join(folders[thing["kind"]], thing["file"])):
            wrong.append(f"{what}: its file is gone")
    elif "is_gone" in thing:
        problem = is_finished(thing["id"])
        wrong += [f"{what}: {problem}"] if problem else []
    else:
        found = get[thing["kind"]](thing["id"])
        if found.status != thing["status"]:
            wrong.append(f"{what}: is {found.status} and not {thing['status']}")
        if "size" in thing and found.size != thing["size"]:
            wrong.append(f"{what}: has {found.size} GiB and not {thing['size']}")
        if "format" in thing and form(thing["id"]) != thing["format"]:
            wrong.append(f"{what}: its row says {form(thing['id'])} and not {thing['format']}")
        # Blocks of 64 KiB, each of one byte.
        for number, byte in enumerate(thing.get("bytes", [])):
            block = disks.contents(thing["data"], 2 << 16)[number << 16 : (number + 1) << 16]
            if block != bytes.fromhex(byte) * (1 << 16):
                wrong.append(f"{what}: block {number} begins with {block[:8].hex()} and is not {byte} throughout")
    lines = [f"{subject}: {line}" for subject, line in said.items() if thing["id"] in subject]
    if bool(lines) != thing["listed"]:
        wrong.append(f"{what}: {'not in the report' if thing['listed'] else f'in the report: {lines}'}")
    print(f"{what}: {lines[0] if lines else 'as it was'}")
print(json.dumps({"wrong": wrong}, indent=1))
sys.exit(1 if wrong else 0)
