// A workflow as an agent, called by the official client of A2A 1.0 in JavaScript (the package @a2a-js/sdk, line 1):
//
//     node a2a_js.mjs URL

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { Role, TaskState } from "@a2a-js/sdk";
import { ClientFactory } from "@a2a-js/sdk/client";

const url = process.argv[2];

/** Stores a workflow that asks twice, and returns the address of its agent. */
async function define() {
    const name = `asked-js-${Date.now()}`;
    const step = (id, next_step, callback_config) => ({
        id, type: "callback", next_step, callback_config,
        input_mapping: { question: `What about ${id}, after \${workflow.input.text:-nothing}?` },
    });
    const steps = { approval: step("approval", "words", { approval: {} }), words: step("words", null, {}) };
    const answer = await fetch(`${url}/api/v1/workflow-names/${name}`, {
        method: "PUT",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({
            start_step: "approval", steps, expose: { a2a: true }, description: "Asks for an approval, then for words.",
        }),
    });
    assert.equal(answer.status, 201, await answer.text());
    return `${url}/a2a/default/${name}/`;
}

/** Request to send a text, to a task if there is one. */
function sent(text, task, configuration) {
    const message = {
        messageId: randomUUID(), role: Role.ROLE_USER, taskId: task?.id ?? "", contextId: task?.contextId ?? "",
        parts: [{ content: { $case: "text", value: text }, filename: "", mediaType: "", metadata: undefined }],
        metadata: undefined, extensions: [], referenceTaskIds: [],
    };
    return { tenant: "", message, configuration, metadata: undefined };
}

const textOf = ({ parts: [{ content }] }) => content.value;

async function all(stream) {
    const events = [];
    for await (const event of stream) events.push(event.payload);
    return events;
}

const client = await new ClientFactory().createFromUrl(await define());

// One answer for each message.
const asked = await client.sendMessage(sent("hello"));
assert.equal(asked.status.state, TaskState.TASK_STATE_INPUT_REQUIRED);
assert.equal(textOf(asked.status.message), "What about approval, after hello?");
const again = await client.sendMessage(sent("yes", asked));
assert.equal(again.status.state, TaskState.TASK_STATE_INPUT_REQUIRED);
const completed = await client.sendMessage(sent("my words", asked));
assert.equal(completed.status.state, TaskState.TASK_STATE_COMPLETED);
assert.equal(textOf(completed.artifacts[0]), "my words");
const found = await client.getTask({ tenant: "", id: asked.id });
assert.equal(found.status.state, TaskState.TASK_STATE_COMPLETED);

// Streams.
const first = await all(client.sendMessageStream(sent("hello")));
assert.equal(first[0].$case, "task");
const task = first[0].value;
assert.equal(first.at(-1).value.status.state, TaskState.TASK_STATE_INPUT_REQUIRED);
await all(client.sendMessageStream(sent("yes", task)));
const last = await all(client.sendMessageStream(sent("my words", task)));
assert.ok(last.some((event) => event.$case === "artifactUpdate"));
assert.equal(last.at(-1).value.status.state, TaskState.TASK_STATE_COMPLETED);

// A message is sent once, whatever the client repeats; who watches sees the cancellation.
const once = sent("hello", undefined, { acceptedOutputModes: [], taskPushNotificationConfig: undefined, returnImmediately: true });
const started = await client.sendMessage(once);
assert.equal((await client.sendMessage(once)).id, started.id);
const watching = client.resubscribeTask({ tenant: "", id: started.id });
assert.equal((await watching.next()).value.payload.value.id, started.id);
const watched = all(watching);
const cancelled = await client.cancelTask({ tenant: "", id: started.id, metadata: undefined });
assert.equal(cancelled.status.state, TaskState.TASK_STATE_CANCELED);
assert.equal((await watched).at(-1).value.status.state, TaskState.TASK_STATE_CANCELED);
await assert.rejects(client.getTask({ tenant: "", id: "run-x" }), { name: /TaskNotFoundError/ });
console.log("@a2a-js/sdk 1.x: the workflow is an agent");
