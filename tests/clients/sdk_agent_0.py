"""An agent of the official SDK, lines 0.2 and 0.3: `python sdk_agent_0.py PORT [push]`. It streams, or sends push
notifications, and asks back for a text that begins with `ask`."""

import asyncio
import sys

import uvicorn
from a2a.server.agent_execution import AgentExecutor
from a2a.server.apps import A2AStarletteApplication
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import AgentCapabilities, AgentCard, AgentSkill, DataPart, Part, TaskState, TextPart
from a2a.utils import new_task


class Shout(AgentExecutor):
    async def execute(self, context, event_queue):
        task = context.current_task or new_task(context.message)
        if not context.current_task:
            await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, getattr(task, "context_id", None) or task.contextId)
        if context.get_user_input().startswith("ask"):
            question = updater.new_agent_message([Part(root=TextPart(text="What shall I shout?"))])
            await updater.update_status(TaskState.input_required, question, final=True)
            return
        await updater.start_work()
        words = context.get_user_input().upper().split(" ")
        for number, word in enumerate(words):
            # Pieces that follow each other at once are seen as one, or only in the output.
            await asyncio.sleep(0.4 if words[0] == "SLOWLY" else 0)
            part = Part(root=TextPart(text=word if number == 0 else " " + word))
            await updater.add_artifact([part], artifact_id="answer", append=number > 0)
        await updater.add_artifact([Part(root=DataPart(data={"words": len(words)}))], artifact_id="facts")
        await updater.complete(updater.new_agent_message([Part(root=TextPart(text="done"))]))

    async def cancel(self, context, event_queue):
        task = context.current_task
        updater = TaskUpdater(event_queue, task.id, getattr(task, "context_id", None) or task.contextId)
        await updater.update_status(TaskState.canceled, final=True)


port = int(sys.argv[1])
push = "push" in sys.argv
card = AgentCard(
    name="shout", description="Shouts", version="1.0.0", url=f"http://127.0.0.1:{port}/",
    capabilities=AgentCapabilities(streaming=not push, pushNotifications=push), defaultInputModes=["text/plain"], defaultOutputModes=["text/plain"],
    skills=[AgentSkill(id="shout", name="shout", description="Shouts", tags=["text"])],
)
pushing = {}
if push:
    import httpx
    from a2a.server.tasks import BasePushNotificationSender, InMemoryPushNotificationConfigStore

    configs = InMemoryPushNotificationConfigStore()
    pushing = {"push_config_store": configs, "push_sender": BasePushNotificationSender(httpx.AsyncClient(), configs)}
handler = DefaultRequestHandler(agent_executor=Shout(), task_store=InMemoryTaskStore(), **pushing)
app = A2AStarletteApplication(agent_card=card, http_handler=handler).build()
uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
