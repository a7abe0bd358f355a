"""All that a site's users and operators could see of it, as one hash for each part: to tell whether something was changed.

Environment: OS_CLIENT_CONFIG_FILE and OS_CLOUD, SITE_FOLDER, SHARE_FOLDER, CEPH_CONF where there is Ceph, SOCKET (of MariaDB).
"""

import hashlib
import json
import os
import subprocess

import openstack

import disks

cloud = openstack.connect()
seen = {}


def keep(part, text):
    seen[part] = hashlib.sha256(text.encode()).hexdigest()


def files(folder):
    lines = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                with open(os.path.join(parent, name), "rb") as file:
                    lines.append(f"{os.path.join(parent, name)} {hashlib.file_digest(file, 'sha256').hexdigest()}")
    return "\n".join(sorted(lines))


keep("images", str(sorted((i.id, i.status, i.hash_value) for i in cloud.image.images())))
keep("volumes", str(sorted((v.id, v.status, v.size) for v in cloud.block_storage.volumes(all_projects=True))))
keep("snapshots", str(sorted((s.id, s.status) for s in cloud.block_storage.snapshots(all_projects=True))))
keep("users", str(sorted(u.id for u in cloud.identity.users())))
keep("endpoints", str(sorted(e.url for e in cloud.identity.endpoints())))
keep("image files", files(f"{os.environ['SITE_FOLDER']}/glance/images"))
keep("volume files", files(os.environ["SHARE_FOLDER"]))
if disks.CEPH:
    keep("pools", disks.in_pool())
keep("configuration", files(f"{os.environ['SITE_FOLDER']}/etc"))
# Services write their heartbeats all the time.
left_out = [f"--ignore-table=cinder.{table}" for table in ("services", "workers")]
dump = ["mariadb-dump", "--no-defaults", "--socket", os.environ["SOCKET"], "--skip-comments", "--skip-extended-insert"]
for database in ("keystone", "glance", "cinder"):
    text = subprocess.run([*dump, *left_out, database], check=True, capture_output=True, text=True).stdout
    keep(f"database {database}", text)
print(json.dumps(seen, indent=1, sort_keys=True))
