"""Asks the standby, after a failover, for everything that the lost site had acknowledged, with the lost site's users and
passwords; and looks for the lost site's names in everything that the standby goes by. Prints what was found as JSON; ends with 1 when anything is not as it was promised.

Environment: AUTH_URL and REGION of the standby, ADMIN_PASSWORD of the lost site, SHARE_FOLDER or CEPH_CONF (of the standby), PROMISES (file),
REPORT (of the promotion, JSON), DISASTER (seconds since 1970, when it struck), and what names.py needs.
"""

import hashlib
import json
import os
import struct
import subprocess
import sys
from datetime import datetime

import disks as storage
import image_kinds
import names
from clouds import connect, until

disaster = float(os.environ["DISASTER"])
(group,) = json.load(open(os.environ["REPORT"]))["groups"]
# Everything that was acknowledged by then must be there.
recovered_to = datetime.fromisoformat(group["point"]["stands_for"]).timestamp()
reported = group["rpo"]["total"]["at_most_s"]
lines = [json.loads(line) for line in open(os.environ["PROMISES"]) if line.endswith("\n")]
wrong, lost, checked = [], [], {}


def of(kind):
    return [line for line in lines if line["kind"] == kind]


def judge(line, what, problem):
    """What was acknowledged before the moment that was recovered to must be right; what came later may be lost."""
    checked[line["kind"]] = checked.get(line["kind"], 0) + 1
    if problem is None:
        return
    if line["t"] <= recovered_to:
        wrong.append(f"{what}: {problem}")
    lost.append(line["t"])


def counter(volume):
    best, disk = 0, storage.contents(volume, 8192 * 4096)
    for slot in range(0, len(disk), 4096):
        if disk[slot : slot + 4] == b"CNTR":
            best = max(best, struct.unpack("<Q", disk[slot + 4 : slot + 12])[0])
    return best


admin = connect("admin", os.environ["ADMIN_PASSWORD"])
clouds = {}
for line in of("tenant"):
    try:
        clouds[line["name"]] = connect(line["name"], line["password"])
        clouds[line["name"]].authorize()
        access = line["ec2"]["access"]
        read = admin.identity.get(f"/users/{line['id']}/credentials/OS-EC2/{access}").json()["credential"]
        judge(line, f"user {line['name']}", None if read["secret"] == line["ec2"]["secret"] else "its EC2 secret differs")
    except Exception as error:
        judge(line, f"user {line['name']}", f"{type(error).__name__}: {str(error)[:200]}")

deleted = {line["id"]: line["t"] for line in of("deleted")}
touched = {line["id"] for line in of("deleting")}
images = {image.id: image for image in admin.image.images()}
volumes = {volume.id: volume for volume in admin.block_storage.volumes(all_projects=True)}
snapshots = {snapshot.id: snapshot for snapshot in admin.block_storage.snapshots(all_projects=True)}

for line in of("image"):
    if line["id"] in touched:
        continue
    image, problem = images.get(line["id"]), None
    if image is None:
        problem = "not in the list"
    elif image.status != "active":
        problem = f"is {image.status}"
    elif hashlib.sha256(admin.image.download_image(image).content).hexdigest() != line["sha256"]:
        problem = "does not download as it was uploaded"
    elif image.owner != clouds[line["owner"]].current_project_id:
        problem = "belongs to somebody else"
    elif image.properties.get("farsite_seed") != line["seed"]:
        problem = f"has other properties: {image.properties}"
    judge(line, f"image {line['id']}", problem)

for line in of("volume"):
    if line["id"] in touched:
        continue
    volume, problem = volumes.get(line["id"]), None
    if volume is None:
        problem = "not in the list"
    elif volume.status != "available":
        problem = f"is {volume.status}"
    elif "sha256" in line:
        found = hashlib.sha256(storage.contents(line["id"], line["bytes"])).hexdigest()
        problem = None if found == line["sha256"] else "its contents differ"
    elif not storage.exists(line["id"]):
        problem = "it has no data"
    judge(line, f"volume {line['id']}", problem)

for line in of("snapshot"):
    if line["volume"] in touched:
        continue
    snapshot = snapshots.get(line["id"])
    # A snapshot within a pool's image is not carried: its row must say so.
    due = "error" if storage.CEPH else "available"
    problem = "not in the list" if snapshot is None else None if snapshot.status == due else f"is {snapshot.status}"
    judge(line, f"snapshot {line['id']}", problem)

for line in of("deleted"):
    there = {"image": images, "volume": volumes}[line["of"]].get(line["id"])
    judge(line, f"deleted {line['of']} {line['id']}", None if there is None else f"is there again: {there.status}")

for line in of("image kinds"):
    try:
        found = image_kinds.problems(line["kinds"], admin, clouds[line["owner"]], clouds[line["other"]])
    except Exception as error:
        found = {"all": [f"{type(error).__name__}: {str(error)[:200]}"]}
    for what, problems in found.items():
        judge(line, f"the {what} image", "; ".join(problems) or None)

# What nobody promised may be there, but not for ever on its way.
for kind, things in (("image", images), ("volume", volumes), ("snapshot", snapshots)):
    for thing in things.values():
        if thing.status in ("saving", "creating", "downloading", "attaching", "detaching", "in-use", "extending"):
            wrong.append(f"{kind} {thing.id} is {thing.status}, and nobody is at it")

# Two disks of one instant: the second is behind the first by one write at most.
(guests,) = of("guests")
if guests["t"] <= recovered_to:
    first, second = (counter(disk) for disk in guests["disks"])
    if not second <= first <= second + 1:
        wrong.append(f"the guests' disks are of different moments: {first} and {second}")
    due = max((line["count"] for line in of("count") if line["t"] <= recovered_to), default=0)
    if second < due:
        wrong.append(f"the guests' disks hold {second}, and {due} was written by the moment recovered to")
    lost += [line["t"] for line in of("count") if line["count"] > second][:1]
    checked["writes of the guests"] = second

# One of each kind through the client that people type, as a user of the lost site; it needs seconds for each call.
person = next((line for line in of("tenant") if line["t"] <= recovered_to), None)
if person is not None:
    as_person = {
        "OS_AUTH_URL": os.environ["AUTH_URL"],
        "OS_REGION_NAME": os.environ["REGION"],
        "OS_USERNAME": person["name"],
        "OS_PASSWORD": person["password"],
        "OS_PROJECT_NAME": person["name"],
        "OS_USER_DOMAIN_ID": "default",
        "OS_PROJECT_DOMAIN_ID": "default",
        "OS_IDENTITY_API_VERSION": "3",
    }
    commands = {
        name: subprocess.Popen(
            [os.path.join(os.path.dirname(sys.executable), "openstack"), *name.split(), "-f", "json"],
            env=os.environ | as_person,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("token issue", "project list --my-projects", "image list", "volume list", "volume snapshot list")
    }
    for name, command in commands.items():
        out, err = command.communicate(timeout=90)
        if command.returncode != 0:
            wrong.append(f"openstack {name}: {err.strip()[-300:]}")
        elif name == "image list":
            mine = {line["id"] for line in of("image") if line["owner"] == person["name"] and line["id"] not in touched}
            missing = {line["id"] for line in of("image") if line["id"] in mine and line["t"] <= recovered_to}
            missing -= {image["ID"] for image in json.loads(out)}
            wrong += [f"openstack image list does not show {image}" for image in missing]
    checked["openstack commands"] = len(commands)

# The site works: a new volume of an old image, and a snapshot of it.
old = next((image for image in images.values() if image.status == "active"), None)
if old is not None:
    made = admin.block_storage.create_volume(name="after", size=1, image_id=old.id, volume_type=storage.TYPE)
    problem = until(lambda: admin.block_storage.get_volume(made.id))
    if problem is None:
        snapshot = admin.block_storage.create_snapshot(volume_id=made.id, name="after")
        problem = until(lambda: admin.block_storage.get_snapshot(snapshot.id))
    if problem is not None:
        wrong.append(f"a new volume of image {old.id}, and a snapshot of it: {problem}")

# Now that its services have run and written what they write.
named, looked, known = names.remains()
wrong += named
checked |= {"values and lines looked at for the lost site's names": looked, "known to remain": known}

true_loss = disaster - min(lost) if lost else 0.0
if true_loss > reported:
    wrong.append(f"{true_loss:.1f} s were lost and {reported:.1f} s reported")
steps = {step["id"]: step["seconds"] for step in group["steps"] if step.get("seconds")}
figures = {"reported_rpo_s": reported, "true_loss_s": round(true_loss, 2), "rto_s": group["rto_s"], "steps_s": steps}
print(json.dumps(figures | {"checked": checked, "lost": len(lost), "wrong": wrong}, indent=2))
sys.exit(1 if wrong else 0)
