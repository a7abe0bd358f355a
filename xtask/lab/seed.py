"""What a new site needs in Keystone and Cinder: roles, service users, catalog, volume type. May be run again.

Environment: OS_CLIENT_CONFIG_FILE and OS_CLOUD (the site's admin), SERVICE_PASSWORD, GLANCE_URL, CINDER_URL,
VOLUME_TYPES (names, each also its back end's).
Cinder is waited for up to 60 s, so that this can begin as soon as Keystone answers.
"""

import os
import time

import openstack

cloud = openstack.connect()
identity = cloud.identity
region = cloud.config.region_name

service_project = identity.find_project("service") or identity.create_project(name="service", domain_id="default")
roles = {role.name: role for role in identity.roles()}
for name in ("admin", "service", "member", "reader"):
    if name not in roles:
        roles[name] = identity.create_role(name=name)
for name in ("glance", "cinder"):
    user = identity.find_user(name) or identity.create_user(
        name=name,
        password=os.environ["SERVICE_PASSWORD"],
        domain_id="default",
        default_project_id=service_project.id,
    )
    for role in ("admin", "service"):
        identity.assign_project_role_to_user(service_project, user, roles[role])

services = {service.type: service for service in identity.services()}
for kind, name, url in (
    ("image", "glance", os.environ["GLANCE_URL"]),
    ("block-storage", "cinder", os.environ["CINDER_URL"]),
):
    service = services.get(kind) or identity.create_service(type=kind, name=name)
    there = {endpoint.interface for endpoint in identity.endpoints(service_id=service.id)}
    for interface in ("public", "internal", "admin"):
        if interface not in there:
            identity.create_endpoint(service_id=service.id, interface=interface, url=url, region_id=region)

# A connection reads the catalog at its first request: this one has seen it without Cinder.
cloud = openstack.connect()
deadline = time.monotonic() + 60
while True:
    try:
        types = {kind.name for kind in cloud.block_storage.types()}
        break
    except Exception:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.5)
for name in os.environ["VOLUME_TYPES"].split():
    if name not in types:
        cloud.block_storage.create_type(name=name, extra_specs={"volume_backend_name": name})
