"""A workflow as an agent, called by the official client of A2A 0.3 (the package a2a-sdk, line 0.3)."""

import asyncio
import uuid

import httpx
from a2a.client import ClientConfig, ClientFactory
from a2a.types import (
    GetTaskPushNotificationConfigParams, Message, Part, PushNotificationAuthenticationInfo, PushNotificationConfig, Role,
    Task, TaskIdParams, TaskPushNotificationConfig, TaskQueryParams, TaskState, TextPart,
)

from exposed import URL, Receiver, define


def message(text, **ids):
    part = Part(root=TextPart(text=text))
    return Message(message_id=str(uuid.uuid4()), role=Role.user, parts=[part], **ids)


async def last(stream):
    """The task of the last event."""
    task = None
    async for event in stream:
        task = event[0]
    return task


async def pushes(name):
    """Push notifications, from the message on, and the methods about them."""
    receiver = Receiver()
    authentication = PushNotificationAuthenticationInfo(schemes=["Bearer"], credentials="my-credentials")
    push = PushNotificationConfig(url=receiver.url, token="my-token", authentication=authentication)
    http = httpx.AsyncClient(timeout=70)
    config = ClientConfig(streaming=False, httpx_client=http, push_notification_configs=[push])
    client = await ClientFactory.connect(f"{URL}/a2a/default/{name}", client_config=config)
    task = await last(client.send_message(message("hello")))

    def state(body):
        told = Task.model_validate(body)
        assert told.id == task.id, told
        return told.status.state

    for headers, _ in receiver.until(lambda body: state(body) == TaskState.input_required):
        assert headers["content-type"] == "application/json", headers
        assert headers["authorization"] == "Bearer my-credentials", headers
        assert headers["x-a2a-notification-token"] == "my-token", headers
    other = PushNotificationConfig(id="other", url=receiver.url)
    made = await client.set_task_callback(TaskPushNotificationConfig(task_id=task.id, push_notification_config=other))
    assert made.push_notification_config.id == "other", made
    found = await client.get_task_callback(GetTaskPushNotificationConfigParams(id=task.id))
    assert found.push_notification_config.url == receiver.url, found
    await client.cancel_task(TaskIdParams(id=task.id))
    receiver.until(lambda body: state(body) == TaskState.canceled)


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
    await pushes(name)
    print("a2a-sdk 0.3: the workflow is an agent")


asyncio.run(main())
