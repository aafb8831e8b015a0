"""A workflow as an agent, called by the official client of A2A 0.3 (the package a2a-sdk, line 0.3)."""

import asyncio
import uuid

import httpx
from a2a.client import ClientConfig, ClientFactory
from a2a.types import Message, Part, Role, TaskIdParams, TaskQueryParams, TaskState, TextPart

from exposed import URL, define


def message(text, **ids):
    part = Part(root=TextPart(text=text))
    return Message(message_id=str(uuid.uuid4()), role=Role.user, parts=[part], **ids)


async def last(stream):
    """The task of the last event."""
    task = None
    async for event in stream:
        task = event[0]
    return task


async def main():
    name = define({"a2a": True})
    for streaming in (False, True):
        config = ClientConfig(streaming=streaming, httpx_client=httpx.AsyncClient(timeout=70))
        client = await ClientFactory.connect(f"{URL}/a2a/default/{name}", client_config=config)
        task = await last(client.send_message(message("hello")))
        assert task.status.state == TaskState.input_required, task
        assert task.status.message.parts[0].root.text == "What about approval, after hello?", task
        ids = {"task_id": task.id, "context_id": task.context_id}
        await last(client.send_message(message("yes", **ids)))
        task = await last(client.send_message(message("my words", **ids)))
        assert task.status.state == TaskState.completed, task
        task = await client.get_task(TaskQueryParams(id=task.id))
        assert task.artifacts[0].parts[0].root.text == "my words", task

        task = await last(client.send_message(message("hello")))
        cancelled = await client.cancel_task(TaskIdParams(id=task.id))
        assert cancelled.status.state == TaskState.canceled, cancelled
    print("a2a-sdk 0.3: the workflow is an agent")


asyncio.run(main())
