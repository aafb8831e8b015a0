"""An agent of the official SDK, line 1.x: `python sdk_agent_1.py PORT`.

It speaks 1.0 only, by JSON-RPC below /rpc and by HTTP+JSON below /rest, streams, and asks back for a
text that begins with `ask`. Below /push it sends push notifications instead of streaming. Each path has
a card of its own.
"""

import asyncio
import sys

import httpx
import uvicorn
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import (
    BasePushNotificationSender, InMemoryPushNotificationConfigStore, InMemoryTaskStore, TaskUpdater,
)
from a2a.types import AgentCapabilities, AgentCard, AgentInterface, AgentSkill, Part, Task, TaskState, TaskStatus
from google.protobuf.json_format import MessageToDict, ParseDict
from starlette.applications import Starlette
from starlette.routing import Mount


class Shout(AgentExecutor):
    async def execute(self, context, event_queue):
        part = context.message.parts[0]
        said = part.text or str(MessageToDict(part)["data"])
        if not context.current_task:
            submitted = TaskStatus(state=TaskState.TASK_STATE_SUBMITTED)
            await event_queue.enqueue_event(Task(id=context.task_id, context_id=context.context_id, status=submitted))
        updater = TaskUpdater(event_queue, context.task_id, context.context_id)
        if said.startswith("ask"):
            await updater.requires_input(updater.new_agent_message([Part(text="What shall I shout?")]))
            return
        await updater.start_work()
        words = said.upper().split(" ")
        for number, word in enumerate(words):
            # Pieces that follow each other at once are seen as one, or only in the output.
            await asyncio.sleep(0.4 if words[0] == "SLOWLY" else 0)
            text = word if number == 0 else " " + word
            await updater.add_artifact([Part(text=text)], artifact_id="answer", append=number > 0)
        data = ParseDict({"data": {"words": len(words)}}, Part())
        await updater.add_artifact([data], artifact_id="facts")
        await updater.complete(updater.new_agent_message([Part(text="done")]))

    async def cancel(self, context, event_queue):
        await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()


def card(path, binding, capabilities):
    return AgentCard(
        name="shout", description="Shouts", version="1.0.0",
        capabilities=capabilities,
        default_input_modes=["text/plain", "application/json"], default_output_modes=["text/plain"],
        skills=[AgentSkill(id="shout", name="shout", description="Shouts", tags=["text"])],
        supported_interfaces=[
            AgentInterface(url=f"http://127.0.0.1:{port}{path}/", protocol_binding=binding, protocol_version="1.0")
        ],
    )


def mounted(path, binding, routes_of, push=False):
    own = card(path, binding, AgentCapabilities(streaming=not push, push_notifications=push))
    configs = InMemoryPushNotificationConfigStore()
    pushing = {"push_config_store": configs, "push_sender": BasePushNotificationSender(httpx.AsyncClient(), configs)}
    handler = DefaultRequestHandler(
        agent_executor=Shout(), task_store=InMemoryTaskStore(), agent_card=own, **(pushing if push else {})
    )
    return Mount(path, routes=[*create_agent_card_routes(own), *routes_of(handler)])


port = int(sys.argv[1])
app = Starlette(routes=[
    mounted("/rpc", "JSONRPC", lambda handler: create_jsonrpc_routes(handler, "/")),
    mounted("/rest", "HTTP+JSON", create_rest_routes),
    mounted("/push", "JSONRPC", lambda handler: create_jsonrpc_routes(handler, "/"), push=True),
])
uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
