// The modules as texts, held against the OpenAPI document, the budgets and the rules of the content policy.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { ASSETS, document, operationOf } from "./openapi.js";

/** @param {string} folder @returns {string[]} */
function walk(folder = "") {
    return readdirSync(join(ASSETS, folder), { withFileTypes: true }).flatMap((entry) => {
        const path = join(folder, entry.name);
        return entry.isDirectory() ? walk(path) : [path];
    });
}

const FILES = new Map(walk().map((path) => [path, readFileSync(join(ASSETS, path))]));
const OWN = [...FILES].filter(([path]) => /\.(js|css|html)$/.test(path) && !path.startsWith("vendor/")).map(([path, content]) => [path, String(content)]);
const MODULES = OWN.filter(([path]) => path.endsWith(".js"));

test("every call in the modules is an operation of the API, and needs permissions that the console knows", () => {
    const calls = MODULES.flatMap(([path, text]) => [
        ...[...text.matchAll(/\b(?:api|call)\(\s*"([A-Z]+)",\s*"([^"]+)"/g)].map(([, method, route]) => ({ path, method, route })),
        ...[...text.matchAll(/\b(?:useGet|usePage|address)\(([^;]*?)(?:,|\))/g)].flatMap(([, first]) => [...first.matchAll(/"(\/[^"]+)"/g)]
            .map(([, route]) => ({ path, method: "GET", route }))),
    ]);
    assert.ok(calls.length > 60, `only ${calls.length} calls were found`);
    for (const { path, method, route } of calls) {
        const full = route.startsWith("/health") ? route : `/api/v1${route}`;
        assert.ok(document.paths[full]?.[method.toLowerCase()], `${path}: ${method} ${route} is no operation`);
    }
    // No other way leads to the network: nothing else names an address of the API.
    for (const [path, text] of MODULES) {
        const uses = [...text.matchAll(/\b(fetch|EventSource|XMLHttpRequest|WebSocket|sendBeacon)\b\(?/g)].filter(([word]) => word.endsWith("("));
        const allowed = { "parts/api.js": 1, "parts/session.js": 1, "parts/stream.js": 1 }[path] ?? 0;
        assert.equal(uses.length, allowed, `${path} reaches the network by itself`);
    }
    assert.ok(operationOf("GET", "/api/v1/runs/x/events"));
});

test("each parameter of a call is named in its address", () => {
    for (const [path, text] of MODULES) {
        for (const [whole, , route, rest] of text.matchAll(/\b(?:api|call)\(\s*"([A-Z]+)",\s*"([^"]+)",\s*\{([^\n]*)/g)) {
            for (const [, name] of route.matchAll(/\{(\w+)\}/g)) {
                const given = rest.includes(`${name}:`) || /\bpath\b/.test(rest);
                assert.ok(given, `${path}: ${whole} gives no ${name}`);
            }
        }
    }
});

test("the roles that the console names are those of the API", async () => {
    const source = MODULES.find(([path]) => path === "parts/session.js")?.[1] ?? "";
    const table = Object.fromEntries([...source.matchAll(/^ {4}"([a-z-]+:[a-z]+)": \[([^\]]+)\]/gm)]
        .map(([, permission, roles]) => [permission, roles.split(",").map((role) => role.trim().replaceAll('"', ""))]));
    const operations = Object.values(document.paths).flatMap((item) => Object.values(item));
    let held = 0;
    for (const operation of operations) {
        const needed = operation["x-required-permissions"];
        if (needed?.length !== 1 || !table[needed[0]]) continue;
        assert.deepEqual([...operation["x-required-roles"]].sort(), [...table[needed[0]]].sort(), needed[0]);
        held++;
    }
    assert.ok(held > 20);
    const used = new Set(MODULES.flatMap(([, text]) => [...text.matchAll(/(?:permission[:=]\s*|can\(|needs\()"?([a-z-]+:[a-z]+)"/g)].map(([, name]) => name)));
    for (const name of used) assert.ok(table[name], `${name} is used, but its roles are not known`);
});

test("the forms of triggers and webhooks have the members and the choices of the API", async () => {
    const { CONFIGS, NEW_WEBHOOK, TRIGGER, WEBHOOK } = await import(join(ASSETS, "parts/hooks.js"));
    const { schemas } = document.components;
    const names = (/** @type {any} */ schema) => Object.keys(schema.properties).sort();
    const without = (/** @type {any} */ schema, /** @type {string[]} */ left) => names(schema).filter((name) => !left.includes(name));
    assert.deepEqual(names(NEW_WEBHOOK), without(schemas.CreateWebhookRequest, ["enabled"]));
    assert.deepEqual(names(WEBHOOK), without(schemas.PutWebhookRequest, ["enabled"]));
    assert.deepEqual(names(TRIGGER), without(schemas.CreateTriggerRequest, ["enabled", "kind", "config"]));
    assert.deepEqual([...TRIGGER.required, "kind", "config"].sort(), [...schemas.CreateTriggerRequest.required].sort());
    assert.deepEqual([...NEW_WEBHOOK.required].sort(), [...schemas.CreateWebhookRequest.required].sort());
    for (const [member, schema] of [["payload", "WebhookPayload"], ["ordering", "WebhookOrdering"], ["signature", "WebhookSignature"]]) {
        assert.deepEqual(NEW_WEBHOOK.properties[member].enum, schemas[schema].enum, member);
    }
    assert.deepEqual(Object.keys(CONFIGS).sort(), [...schemas.TriggerKind.enum].sort());
    const choices = (/** @type {any} */ schema) => schema.pattern?.match(/^\^\(([^)]*)\)\$$/)?.[1].split("|");
    for (const [kind, schema] of [["schedule", "ScheduleConfig"], ["webhook", "WebhookTriggerConfig"]]) {
        assert.deepEqual(names(CONFIGS[kind]), names(schemas[schema]), kind);
        assert.deepEqual(CONFIGS[kind].required ?? [], schemas[schema].required ?? [], kind);
        for (const [member, about] of Object.entries(schemas[schema].properties)) {
            if (choices(about)) assert.deepEqual(CONFIGS[kind].properties[member].enum.toSorted(), choices(about).sort(), `${kind} ${member}`);
        }
    }
    // The document has neither the members of Kafka's triggers nor the choices of webhooks': these are held against the service itself.
    const rust = (/** @type {string} */ path) => readFileSync(join(ASSETS, "../..", path), "utf8");
    const [, body] = rust("trigger/kafka.rs").match(/pub struct KafkaTriggerBody[^{]*\{([\s\S]*?)\n {4}\}\n/) ?? [];
    const members = [...(body ?? "").matchAll(/(?:pattern = "\^\(([^)"]*)\)\$"[^\n]*\n)? {8}(\w+): /g)].map(([, pattern, name]) => [name, pattern?.split("|").sort()]);
    assert.deepEqual(names(CONFIGS.kafka), members.map(([name]) => name).sort());
    for (const [name, known] of members) assert.deepEqual(CONFIGS.kafka.properties[name].enum?.toSorted(), known, `kafka ${name}`);
    const said = (/** @type {string} */ path) => new Set([...rust(path).matchAll(/Self::\w+ => "([^"]+)"/g)].map(([, name]) => name));
    const { preset, signed, algorithm, encoding } = CONFIGS.webhook.properties;
    assert.deepEqual(new Set([...preset.enum, ...signed.enum]), said("inbound.rs"));
    for (const name of [...algorithm.enum, ...encoding.enum]) assert.ok(said("inbound/signature.rs").has(name), name);
});

/** The texts of a constant in a module. @param {string} path @param {string} name */
function listed(path, name) {
    const [, list] = String(FILES.get(path)).match(new RegExp(`const ${name} = \\[([^\\]]*)\\]`)) ?? [];
    assert.ok(list, `${path} has no ${name}`);
    return [...list.matchAll(/"([^"]+)"/g)].map(([, text]) => text);
}

test("the filters and the choices of the screens are all that the API has", () => {
    const { schemas } = document.components;
    for (const [path, name, schema, left] of [["views/audit.js", "TYPES", "AuditEntityType"], ["views/audit.js", "OUTCOMES", "AuditOutcome"], ["views/dead-letters.js", "REASONS", "DeadLetterReason"],
        ["views/dead-letters.js", "STATUSES", "DeadLetterStatus"], ["views/agents.js", "KINDS", "AgentKind"], ["views/webhook.js", "STATES", "WebhookDeliveryState"],
        ["parts/run-list.js", "STATUSES", "RunStatus"], ["views/keys.js", "ROLE_NAMES", "Role"]]) {
        assert.deepEqual(listed(path, name).sort(), [...schemas[schema].enum].sort(), `${path} ${name}`);
    }
    const members = listed("views/agents.js", "MEMBERS");
    const own = Object.keys(schemas.UpdateAgentRequest.properties).filter((name) => !name.startsWith("auth_"));
    assert.deepEqual(members.sort(), own.sort());
    const names = (/** @type {string} */ path) => document.paths[path].get.parameters.map((/** @type {any} */ one) => one.name);
    for (const name of listed("parts/run-list.js", "FILTERS")) assert.ok(names("/api/v1/runs").includes(name), name);
    for (const name of listed("views/audit.js", "NAMES")) assert.ok(names("/api/v1/audit-logs").includes(name), name);
});

test("nothing needs an exception of the content policy: no markup from strings, no styles in markup, no code from strings", () => {
    const forbidden = [/\binnerHTML\b/, /\bouterHTML\b/, /insertAdjacentHTML/, /dangerouslySetInnerHTML/, /document\.write/, /\beval\(/, /new Function/,
        /\sstyle=/, /\son[a-z]+="/, /srcdoc/, /DOMParser/, /createContextualFragment/, /javascript:/, /\bimport\((?!"\.\/views\/[\w-]+\.js"\))/];
    const code = (/** @type {string} */ text) => text.replace(/\/\*[\s\S]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");
    for (const [path, text] of OWN) for (const pattern of forbidden) assert.ok(!pattern.test(code(text)), `${path}: ${pattern}`);
    for (const [path, text] of OWN) {
        const addresses = [...text.matchAll(/\b(?:https?:)?\/\/[a-z0-9][a-z0-9.:-]*/gi)].map(([address]) => address)
            .filter((address) => !["http://www.w3.org", "http://127.0.0.1:9010"].includes(address) && address.includes("."));
        assert.deepEqual(addresses, [], `${path} names other hosts`);
    }
    for (const [path, text] of MODULES) {
        for (const [, from] of text.matchAll(/\bfrom "([^"]+)"/g)) assert.match(from, /^\.\.?\//, `${path} imports ${from}, which needs an import map`);
    }
});

test("credentials are kept nowhere: what the browser stores are theme, time zone, columns and whether keys do something", () => {
    for (const [path, text] of MODULES) {
        const allowed = path === "parts/settings.js";
        assert.ok(allowed || !/localStorage|sessionStorage|indexedDB|document\.cookie/.test(text), `${path} stores something`);
    }
    const settings = MODULES.find(([path]) => path === "parts/settings.js")?.[1] ?? "";
    assert.deepEqual([...settings.matchAll(/stored\("(\w+)"/g)].map(([, name]) => name), ["theme", "zone", "columns", "keys"]);
});

// Why the budget is of what is loaded to begin with: docs/adr/0034-console-without-a-build.md.
test("what a browser loads to begin with has at most 61 kB when it is compressed, and all together at most 148 kB", () => {
    const own = MODULES.reduce((sum, [, text]) => sum + Buffer.byteLength(text), 0);
    const compressed = (/** @type {string[]} */ paths) => paths.reduce((sum, path) => sum + gzipSync(FILES.get(path), { level: 9 }).length, 0);
    const needed = ["app.js"];
    for (const path of needed) {
        for (const [, from] of String(FILES.get(path)).matchAll(/ from "([^"]+)"/g)) {
            const file = join(path, "..", from);
            if (!needed.includes(file)) needed.push(file);
        }
    }
    const first = compressed(["index.html", "style.css", "icon.svg", ...needed]);
    const all = compressed([...FILES.keys()].filter((path) => /\.(js|css|html|svg)$/.test(path)));
    console.log(`own ${own} bytes in ${MODULES.length} modules; compressed: ${first} bytes to begin with, ${all} bytes in all`);
    assert.ok(needed.length > 10 && !needed.includes("views/editor.js"));
    assert.ok(own <= 377_000, `own modules have ${own} bytes`);
    assert.ok(first <= 61_000, `${first} bytes are loaded to begin with`);
    assert.ok(all <= 148_000, `all have ${all} bytes`);
    for (const [path, text] of OWN) assert.ok(text.split("\n").length <= 500, `${path} has more than 500 lines`);
});

test("what is vendored is what was published, with its licence beside it", () => {
    /** Of the files in the packages of npm that vendor/NOTICE.txt names. */
    const published = {
        "vendor/htm-preact-standalone.module.js": "72284e8e9079c87817145df1110f74e8a2aa040b2fc384922e18dfcb46fc1fd7",
        "vendor/signals-core.js": "0c80bc127d72ecb1496ef116ffddae75079829a3af01e7f417c8e5a6474c68b6",
    };
    const vendored = [...FILES.keys()].filter((path) => path.startsWith("vendor/") && path.endsWith(".js"));
    assert.deepEqual(vendored.sort(), Object.keys(published).sort());
    for (const path of vendored) assert.equal(createHash("sha256").update(FILES.get(path)).digest("hex"), published[path], path);
    for (const licence of ["htm", "preact", "signals-core"]) assert.ok(FILES.get(`vendor/${licence}.LICENSE.txt`)?.length > 500, licence);
});

test("the members in which numbers stay as they are written are those of the API that hold values of people", () => {
    const names = new Set(Object.values(document.components.schemas).flatMap((schema) => Object.keys(schema.properties ?? {})));
    const theirs = listed("parts/api.js", "THEIRS");
    for (const name of theirs) assert.ok(names.has(name), name);
    for (const name of ["input_data", "output_data", "workflow_data", "input_schema", "answer"]) assert.ok(theirs.includes(name), name);
});
