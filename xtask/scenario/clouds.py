"""Clouds as the scenarios ask them: a login at a site that was promoted, and waiting for a thing to become what it should."""

import os
import time

import openstack


def connect(name, password):
    """The cloud of a user whose project has the same name. Environment: AUTH_URL and REGION."""
    return openstack.connect(
        auth={
            "auth_url": os.environ["AUTH_URL"],
            "username": name,
            "password": password,
            "project_name": name,
            "user_domain_id": "default",
            "project_domain_id": "default",
        },
        region_name=os.environ["REGION"],
        load_yaml_config=False,
        load_envvars=False,
    )


def until(get, status="available", limit=60):
    """Waits until a thing has that status; otherwise says what it has."""
    deadline = time.monotonic() + limit
    while (thing := get()).status != status:
        if thing.status.startswith("error") or time.monotonic() > deadline:
            return f"{thing.name} {thing.id} is {thing.status}"
        time.sleep(0.3)
    return None
