"""One image of every kind that Glance tells apart, and everything that it says of each: made at a site, and looked for at another one."""

import hashlib
import os

MIB = 1 << 20
# Where a store keeps the bytes is a site's own affair.
NOT_COMPARED = {"locations", "direct_url"}


def _ask(cloud, path):
    answer = cloud.image.get(path)
    answer.raise_for_status()
    return answer.json()


def _said(cloud, id):
    """All that Glance says of an image, and with whom it is shared."""
    image = _ask(cloud, f"/images/{id}")
    members = _ask(cloud, f"/images/{id}/members") if image["visibility"] == "shared" else {"members": []}
    # A set, which Glance tells in any order.
    image["tags"].sort()
    return {
        "image": {key: value for key, value in image.items() if key not in NOT_COMPARED},
        "members": sorted(members["members"], key=lambda member: member["member_id"]),
    }


def make(admin, owner, other):
    """Connections: of a user, of a user of another project. Returns what Glance says of each image, by what kind it is."""
    body = os.urandom(MIB)
    member = {"member": other.current_project_id}

    def image(by, what, data=body, **more):
        basic = {"name": f"kind-{what}", "disk_format": "raw", "container_format": "bare"}
        answer = by.image.post("/images", json=basic | more)
        answer.raise_for_status()
        id = answer.json()["id"]
        if data is not None:
            headers = {"Content-Type": "application/octet-stream"}
            by.image.put(f"/images/{id}/file", data=data, headers=headers).raise_for_status()
        return id

    def share(id, status):
        owner.image.post(f"/images/{id}/members", json=member).raise_for_status()
        if status is not None:
            path = f"/images/{id}/members/{other.current_project_id}"
            other.image.put(path, json={"status": status}).raise_for_status()

    made = {
        "private": image(
            owner,
            "private",
            visibility="private",
            protected=True,
            min_disk=1,
            min_ram=512,
            tags=["golden", "größer"],
            os_distro="debian",
            hw_disk_bus="scsi",
            hw_scsi_model="virtio-scsi",
            hw_qemu_guest_agent="yes",
            farsite_note="a text with 'quotes', \"more of them\" and ümläuts",
        ),
        "shared": image(owner, "shared", visibility="shared"),
        "offered": image(owner, "offered", visibility="shared"),
        "refused": image(owner, "refused", visibility="shared"),
        "community": image(owner, "community", visibility="community"),
        "public": image(admin, "public", visibility="public"),
        "hidden": image(owner, "hidden", visibility="community", os_hidden=True),
        "deactivated": image(owner, "deactivated"),
        "queued": image(owner, "queued", data=None, tags=["not-yet"], farsite_note="its bytes come later"),
    }
    for what, status in (("shared", "accepted"), ("offered", None), ("refused", "rejected")):
        share(made[what], status)
    admin.image.post(f"/images/{made['deactivated']}/actions/deactivate").raise_for_status()
    sha256 = hashlib.sha256(body).hexdigest()
    return {what: {"id": id, "sha256": sha256, **_said(admin, id)} for what, id in made.items()}


def problems(due, admin, owner, other):
    """What is not as it was when `make` returned `due`, by kind; what a user may see and do is tried. Changes some of the images."""
    wrong = {what: [] for what in due}

    def must(what, is_so, problem):
        if not is_so:
            wrong[what].append(problem)

    def bytes_of(by, id):
        answer = by.image.get(f"/images/{id}/file")
        return hashlib.sha256(answer.content).hexdigest() if answer.status_code == 200 else answer.status_code

    for what, image in due.items():
        try:
            said = _said(admin, image["id"])
        except Exception as error:
            must(what, False, f"cannot be asked for: {type(error).__name__} {str(error)[:200]}")
            continue
        there, before = said["image"], image["image"]
        for key in sorted(there.keys() | before.keys()):
            must(what, there.get(key) == before.get(key), f"its {key} is {there.get(key)!r} and not {before.get(key)!r}")
        must(what, said["members"] == image["members"], f"its members are {said['members']} and not {image['members']}")
        if what not in ("deactivated", "queued"):
            by = owner if image["image"]["owner"] == owner.current_project_id else admin
            must(what, bytes_of(by, image["id"]) == image["sha256"], "does not download as it was uploaded")

    ids = {what: image["id"] for what, image in due.items()}

    def listed(cloud, query=""):
        return {image["id"] for image in cloud.image.get(f"/images?limit=1000{query}").json()["images"]}

    # What another project sees: in its list, in the list of what the community offers, by its id, not at all.
    plain, community = listed(other), listed(other, "&visibility=community")
    for what, is_listed, is_offered, is_there in (
        ("private", False, False, False),
        ("shared", True, False, True),
        ("offered", False, False, True),
        ("refused", False, False, True),
        ("community", False, True, True),
        ("public", True, False, True),
        ("hidden", False, False, True),
        ("queued", False, False, False),
    ):
        seen = (ids[what] in plain, ids[what] in community, other.image.get(f"/images/{ids[what]}").ok)
        must(what, seen == (is_listed, is_offered, is_there), f"another project sees it so: {seen}")
    for query, is_listed in (("", False), ("&os_hidden=true", True)):
        must("hidden", (ids["hidden"] in listed(owner, query)) == is_listed, f"wrongly in its owner's list{query}, or not in it")
    for tag, what in (("golden", "private"), ("not-yet", "queued")):
        must(what, listed(owner, f"&tag={tag}") == {ids[what]}, f"is not what the tag {tag} finds")
    refused = owner.image.delete(f"/images/{ids['private']}").status_code
    must("private", refused == 403, f"its protection lets it be deleted: {refused}")
    # What may be done to them next, may be.
    refused = bytes_of(owner, ids["deactivated"])
    must("deactivated", refused == 403, f"its owner may download it: {refused}")
    admin.image.post(f"/images/{ids['deactivated']}/actions/reactivate")
    again = bytes_of(owner, ids["deactivated"])
    must("deactivated", again == due["deactivated"]["sha256"], f"does not download when it is active again: {again}")
    body = os.urandom(MIB)
    owner.image.put(f"/images/{ids['queued']}/file", data=body, headers={"Content-Type": "application/octet-stream"})
    now = bytes_of(owner, ids["queued"])
    must("queued", now == hashlib.sha256(body).hexdigest(), f"does not take its bytes now: {now}")
    return wrong
