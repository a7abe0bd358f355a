"""Credentials, and Keystone's keys for them rotated twice behind a recovery point's back. First makes a user with an EC2 credential and
says "ready"; when the file GO is there it rotates twice, makes another credential, and writes both down, as JSON. With SECRETS it looks
instead whether a promoted site gives back what is written there.

Environment: OS_CLIENT_CONFIG_FILE and OS_CLOUD (the site's admin), KEYSTONE_CONF, GO and DONE (files); or AUTH_URL and REGION,
ADMIN_PASSWORD, SECRETS (the file that was DONE).
"""

import json
import os
import subprocess
import sys
import time

import openstack

from clouds import connect


def credential(cloud, person):
    path = f"/users/{person}/credentials/OS-EC2"
    return cloud.identity.post(path, json={"tenant_id": cloud.current_project_id}).json()["credential"]


if "SECRETS" in os.environ:
    cloud = connect("admin", os.environ["ADMIN_PASSWORD"])
    made = json.load(open(os.environ["SECRETS"]))["before"]
    answer = cloud.identity.get(f"/users/{made['user_id']}/credentials/OS-EC2/{made['access']}")
    if not answer.ok or answer.json()["credential"]["secret"] != made["secret"]:
        sys.exit(f"the credential from before does not come back: {answer.status_code}")
    print("the credential from before the rotations is what it was")
    sys.exit()

cloud = openstack.connect()
person = cloud.current_user_id
before = credential(cloud, person)
print("ready", flush=True)
while not os.path.exists(os.environ["GO"]):
    time.sleep(0.2)
manage = [os.path.join(os.path.dirname(sys.executable), "keystone-manage"), "--config-file", os.environ["KEYSTONE_CONF"]]
for _ in range(2):
    for step in ("credential_rotate", "credential_migrate"):
        subprocess.run([*manage, step, "--keystone-user", "root", "--keystone-group", "root"], check=True)
with open(os.environ["DONE"], "w") as done:
    json.dump({"before": before, "after": credential(cloud, person)}, done)
print("rotated", flush=True)
