"""A workflow as an agent, called by the official client of A2A 1.0 (the package a2a-sdk, line 1)."""

import asyncio
import uuid

import httpx
from a2a.client import ClientConfig, create_client
from a2a.types import (
    AuthenticationInfo, CancelTaskRequest, DeleteTaskPushNotificationConfigRequest, GetTaskPushNotificationConfigRequest,
    GetTaskRequest, ListTaskPushNotificationConfigsRequest, ListTasksRequest, Message, Part, Role, SendMessageConfiguration,
    SendMessageRequest, StreamResponse, SubscribeToTaskRequest, TaskPushNotificationConfig, TaskState,
)
from a2a.utils.errors import TaskNotFoundError

from google.protobuf.json_format import ParseDict

from exposed import URL, Receiver, define


def message(text, **ids):
    part = Part(text=text)
    return Message(message_id=str(uuid.uuid4()), role=Role.ROLE_USER, parts=[part], **ids)


async def events(stream):
    return [event async for event in stream]


async def pushes(client):
    """Push notifications, from the message on, and the methods about them."""
    receiver = Receiver()
    authentication = AuthenticationInfo(scheme="Bearer", credentials="my-credentials")
    push = TaskPushNotificationConfig(url=receiver.url, token="my-token", authentication=authentication)
    configuration = SendMessageConfiguration(return_immediately=True, task_push_notification_config=push)
    [started] = await events(client.send_message(SendMessageRequest(message=message("hello"), configuration=configuration)))
    id = started.task.id

    def state(body):
        update = ParseDict(body, StreamResponse()).status_update
        assert update.task_id == id, update
        return update.status.state

    for headers, _ in receiver.until(lambda body: state(body) == TaskState.TASK_STATE_INPUT_REQUIRED):
        assert headers["content-type"] == "application/a2a+json", headers
        assert headers["authorization"] == "Bearer my-credentials", headers
        assert headers["x-a2a-notification-token"] == "my-token", headers
    other = await client.create_task_push_notification_config(
        TaskPushNotificationConfig(task_id=id, id="other", url=receiver.url))
    assert other.id == "other", other
    listed = await client.list_task_push_notification_configs(ListTaskPushNotificationConfigsRequest(task_id=id))
    assert sorted(one.id for one in listed.configs) == sorted([id, "other"]), listed
    await client.delete_task_push_notification_config(DeleteTaskPushNotificationConfigRequest(task_id=id, id="other"))
    found = await client.get_task_push_notification_config(GetTaskPushNotificationConfigRequest(task_id=id, id=id))
    assert (found.url, found.token, found.authentication.scheme) == (receiver.url, "", "Bearer"), found
    await client.cancel_task(CancelTaskRequest(id=id))
    receiver.until(lambda body: state(body) == TaskState.TASK_STATE_CANCELED)


async def main():
    name = define({"a2a": True})
    base = f"{URL}/a2a/default/{name}"
    for streaming in (False, True):
        client = await create_client(base, ClientConfig(streaming=streaming, httpx_client=httpx.AsyncClient(timeout=70)))
        assert client._transport.__class__.__name__ == "JsonRpcTransport", client._transport
        seen = await events(client.send_message(SendMessageRequest(message=message("hello"))))
        task = seen[0].task
        status = seen[-1].status_update.status if streaming else task.status
        assert status.state == TaskState.TASK_STATE_INPUT_REQUIRED, seen
        assert status.message.parts[0].text == "What about approval, after hello?", status
        ids = {"task_id": task.id, "context_id": task.context_id}
        await events(client.send_message(SendMessageRequest(message=message("yes", **ids))))
        seen = await events(client.send_message(SendMessageRequest(message=message("my words", **ids))))
        if streaming:
            assert seen[-1].status_update.status.state == TaskState.TASK_STATE_COMPLETED, seen
            assert any(event.HasField("artifact_update") for event in seen), seen
        task = await client.get_task(GetTaskRequest(id=task.id))
        assert task.status.state == TaskState.TASK_STATE_COMPLETED, task
        assert task.artifacts[0].parts[0].text == "my words", task
        listed = await client.list_tasks(ListTasksRequest(context_id=task.context_id, include_artifacts=True))
        assert [one.id for one in listed.tasks] == [task.id], listed
        await client.close()

    client = await create_client(base, ClientConfig(httpx_client=httpx.AsyncClient(timeout=70), streaming=False))
    configuration = SendMessageConfiguration(return_immediately=True)
    request = SendMessageRequest(message=message("hello"), configuration=configuration)
    [started] = await events(client.send_message(request))
    [again] = await events(client.send_message(request))
    assert started.task.id == again.task.id, "a message id is an idempotency key"
    watcher = await create_client(base, ClientConfig(httpx_client=httpx.AsyncClient(timeout=70)))
    watching = asyncio.ensure_future(events(watcher.subscribe(SubscribeToTaskRequest(id=started.task.id))))
    await asyncio.sleep(0.5)
    cancelled = await client.cancel_task(CancelTaskRequest(id=started.task.id))
    assert cancelled.status.state == TaskState.TASK_STATE_CANCELED, cancelled
    assert (await watching)[-1].status_update.status.state == TaskState.TASK_STATE_CANCELED
    try:
        await client.get_task(GetTaskRequest(id="run-x"))
        raise AssertionError("there is no such task")
    except TaskNotFoundError:
        pass
    await pushes(client)
    await client.close()
    print("a2a-sdk 1.x: the workflow is an agent")


asyncio.run(main())
