// The main job with a client that openapi-typescript made: agent, workflow, run, poll to its end. Compiled with --strict.

import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

type Schemas = components["schemas"];

const client = createClient<paths>({
    baseUrl: process.argv[2],
    querySerializer: { array: { style: "form", explode: false } },
});
const name = `typescript-${Date.now()}`;

/** What was answered, or the end. */
function must<T>(answer: { data?: T; error?: unknown; response: Response }): T {
    if (answer.data === undefined) throw new Error(`${answer.response.url}: ${JSON.stringify(answer.error)}`);
    return answer.data;
}

async function mainJob(url: string): Promise<void> {
    const kind: Schemas["AgentKind"] = "http";
    must(await client.POST("/api/v1/agents", { body: { name, url, kind } }));

    const step: Schemas["AgentStep"] = {
        id: "echo", type: "agent", agent_name: name, input_mapping: { text: "${workflow.input.text}" },
    };
    const steps: Schemas["Steps"] = { echo: step };
    const workflow = must(await client.POST("/api/v1/workflows", { body: { name, start_step: "echo", steps } }));
    const stored = workflow.workflow_data.steps["echo"];
    if (stored?.type !== "agent" || stored.agent_name !== name) throw new Error(JSON.stringify(workflow));

    const started = must(await client.POST("/api/v1/workflows/{workflow_id}/execute", {
        params: { path: { workflow_id: workflow.id } }, body: { input_data: { text: "hello" } },
    }));
    const ended: Schemas["RunStatus"][] = ["COMPLETED", "FAILED", "CANCELLED"];
    for (;;) {
        const path = { run_id: started.run_id };
        const run = must(await client.GET("/api/v1/runs/{run_id}", { params: { path } }));
        if (ended.includes(run.status)) {
            if (run.status !== "COMPLETED" || run.output_data?.["text"] !== "hello") throw new Error(JSON.stringify(run));
            break;
        }
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
    const query = { status: ended, name_prefix: name, sort_by: "updated_at" as const };
    const runs = must(await client.GET("/api/v1/runs", { params: { query } }));
    if (runs.items.length !== 1) throw new Error(JSON.stringify(runs));

    // What was exported can be imported as it is.
    const body: Schemas["Definitions"] = must(await client.GET("/api/v1/export"));
    const report = must(await client.POST("/api/v1/import", { params: { query: { dry_run: true } }, body }));
    if (report.errors.length > 0) throw new Error(JSON.stringify(report));
}

const agent = createServer((request, response) => {
    response.setHeader("content-type", "application/json");
    request.pipe(response);
});
agent.listen(0, "127.0.0.1", async () => {
    await mainJob(`http://127.0.0.1:${(agent.address() as AddressInfo).port}/`);
    agent.closeAllConnections();
    agent.close();
    console.log("openapi-typescript: the main job is done");
});
