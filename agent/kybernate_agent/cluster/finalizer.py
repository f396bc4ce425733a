"""The last word on a GpuInstance: nothing of it is left on this node."""

from __future__ import annotations

import asyncio
import logging

from kybernate.api.gpuinstance import GpuInstance
from kybernate.api.names import AGENT_MANAGER, STATE_FINALIZER
from kybernate.kube.backoff import Backoff
from kybernate.kube.client import Client
from kybernate.kube.errors import ApiError, ApiNotFoundError, ConflictError
from kybernate.kube.resource import GPU_INSTANCES

log = logging.getLogger(__name__)


async def release(client: Client, namespace: str, name: str, uid: str, node: str) -> None:
    """Take our finalizer from the object of this uid, however long the API server is away, where its state lay on
    `node`; elsewhere, or nowhere, it is for others. Never raises ApiErrors.

    An agent that ends before does it when it starts: it finds the object and no instance.
    """
    backoff = Backoff(longest=5.0)
    while True:
        try:
            found = await client.get(GPU_INSTANCES, GpuInstance, name, namespace)
            left = [finalizer for finalizer in found.metadata.finalizers if finalizer != STATE_FINALIZER]
            if found.metadata.uid != uid or len(left) == len(found.metadata.finalizers):
                return
            if found.metadata.deletion_timestamp is None or found.spec.node_name != node:
                return
            patch = {"metadata": {"resourceVersion": found.metadata.resource_version, "finalizers": left}}
            await client.merge_patch(GPU_INSTANCES, GpuInstance, name, patch, namespace, manager=AGENT_MANAGER)
            return
        except ApiNotFoundError:
            return
        except ConflictError:
            continue
        except ApiError as error:
            log.warning("%s/%s: its finalizer stays for now: %s", namespace, name, error)
            await asyncio.sleep(backoff.next())
