"""A workflow as an agent, called by the official client of A2A 0.2 (the package a2a-sdk, line 0.2).

Its methods are those of 0.3. It looks for cards at another path.
"""

import asyncio
import uuid

import httpx
from a2a.client import A2ACardResolver, A2AClient
from a2a.types import (
    CancelTaskRequest, GetTaskRequest, Message, MessageSendParams, Part, Role, SendMessageRequest,
    SendStreamingMessageRequest, Task, TaskIdParams, TaskQueryParams, TaskState, TaskStatusUpdateEvent, TextPart,
)

from exposed import URL, define


def sent(text, **ids):
    part = Part(root=TextPart(text=text))
    return MessageSendParams(message=Message(message_id=str(uuid.uuid4()), role=Role.user, parts=[part], **ids))


async def main():
    name = define({"a2a": True})
    async with httpx.AsyncClient(timeout=70) as http:
        resolver = A2ACardResolver(http, f"{URL}/a2a/default/{name}")
        card = await resolver.get_agent_card()
        client = A2AClient(http, agent_card=card)

        async def send(text, **ids):
            answer = await client.send_message(SendMessageRequest(id=str(uuid.uuid4()), params=sent(text, **ids)))
            assert isinstance(answer.root.result, Task), answer
            return answer.root.result

        task = await send("hello")
        assert task.status.state == TaskState.input_required, task
        assert task.status.message.parts[0].root.text == "What about approval, after hello?", task
        ids = {"task_id": task.id, "context_id": task.context_id}
        await send("yes", **ids)
        task = await send("my words", **ids)
        assert task.status.state == TaskState.completed, task
        found = await client.get_task(GetTaskRequest(id="1", params=TaskQueryParams(id=task.id)))
        assert found.root.result.artifacts[0].parts[0].root.text == "my words", found

        request = SendStreamingMessageRequest(id="1", params=sent("hello"))
        events = [event.root.result async for event in client.send_message_streaming(request)]
        assert isinstance(events[0], Task) and isinstance(events[-1], TaskStatusUpdateEvent), events
        assert events[-1].final and events[-1].status.state == TaskState.input_required, events
        cancelled = await client.cancel_task(CancelTaskRequest(id="1", params=TaskIdParams(id=events[0].id)))
        assert cancelled.root.result.status.state == TaskState.canceled, cancelled
    print("a2a-sdk 0.2: the workflow is an agent")


asyncio.run(main())
