"""Looks at a promoted standby: has become of each prepared thing what must have? Prints what was found; ends with 1 when not.

Environment: AUTH_URL and REGION of the standby, ADMIN_PASSWORD of the lost site, SHARE_FOLDER, SITE_FOLDER and SOCKET of the standby, REPORT (of
the promotion, JSON), EXPECTED (what traps.py wrote).
"""

import json
import os
import subprocess
import sys

from clouds import connect

cloud = connect("admin", os.environ["ADMIN_PASSWORD"])
(group,) = json.load(open(os.environ["REPORT"]))["groups"]
said = next(step["evidence"] for step in group["steps"] if step["id"] == "reconcile")
wrong = []


def form(volume):
    query = f"SELECT value FROM cinder.volume_admin_metadata WHERE volume_id = '{volume}' AND `key` = 'format' AND deleted = 0"
    command = ["mariadb", "--no-defaults", "--socket", os.environ["SOCKET"], "-NBe", query]
    return subprocess.check_output(command, text=True).strip() or "raw"


get = {"image": cloud.image.get_image, "volume": cloud.block_storage.get_volume, "snapshot": cloud.block_storage.get_snapshot}
folders = {"image": f"{os.environ['SITE_FOLDER']}/glance/images", "volume": os.environ["SHARE_FOLDER"]}
for thing in json.load(open(os.environ["EXPECTED"])):
    what = f"{thing['kind']} {thing['id']} ({thing['why']})"
    if "file" in thing:
        if not os.path.exists(os.path.join(folders[thing["kind"]], thing["file"])):
            wrong.append(f"{what}: its file is gone")
    else:
        found = get[thing["kind"]](thing["id"])
        if found.status != thing["status"]:
            wrong.append(f"{what}: is {found.status} and not {thing['status']}")
        if "size" in thing and found.size != thing["size"]:
            wrong.append(f"{what}: has {found.size} GiB and not {thing['size']}")
        if "format" in thing and form(thing["id"]) != thing["format"]:
            wrong.append(f"{what}: its row says {form(thing['id'])} and not {thing['format']}")
    lines = [f"{subject}: {line}" for subject, line in said.items() if thing["id"] in subject]
    if bool(lines) != thing["listed"]:
        wrong.append(f"{what}: {'not in the report' if thing['listed'] else f'in the report: {lines}'}")
    print(f"{what}: {lines[0] if lines else 'as it was'}")
print(json.dumps({"wrong": wrong}, indent=1))
sys.exit(1 if wrong else 0)
