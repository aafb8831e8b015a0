// What the modules compute, without a browser.
import assert from "node:assert/strict";
import { test } from "node:test";
import { reader } from "../../src/console/assets/parts/attempts.js";
import { illness, limitWords, masked, problemOf, problemsOf, when } from "../../src/console/assets/parts/hooks.js";
import { inPlace } from "../../src/console/assets/parts/inbox.js";
import { lanesOf, layout, NODE, withPlan } from "../../src/console/assets/parts/layout.js";
import { pages } from "../../src/console/assets/parts/load.js";
import { withEntry, withPage } from "../../src/console/assets/parts/log.js";
import { allows, cell, columnsOf, compareRows, DEFAULT_COLUMNS, filtersOf, renewed, toCsv, tookMs, unread } from "../../src/console/assets/parts/run-list.js";
import { attemptOf, runWords, under, waitsForPeople } from "../../src/console/assets/parts/run-words.js";
import { fields, gather, show } from "../../src/console/assets/parts/schema.js";
import { align, differences, member, same, states, tree, withDelta } from "../../src/console/assets/parts/steps.js";
import { clipped, csvLine, curl, diff, exact, fault, hunks, locate, match, pretty } from "../../src/console/assets/parts/text.js";
import { absolute, bytes, duration, fromField, percentile, relative, toField } from "../../src/console/assets/parts/time.js";

const NOW = Date.parse("2026-11-29T12:00:00Z");

test("durations and times are words that people read", () => {
    const said = [0, 999, 1500, 9990, 61_000, 3_600_000, 90_000_000, NaN].map(duration);
    assert.deepEqual(said, ["0 ms", "999 ms", "1.5 s", "10 s", "1 min 1 s", "1 h", "1 d 1 h", "–"]);
    assert.equal(relative("2026-11-29T11:57:00Z", NOW), "3 min ago");
    assert.equal(relative("2026-11-30T13:00:00Z", NOW), "in 1 d");
    assert.equal(relative("2026-11-29T11:59:59Z", NOW), "just now");
    assert.equal(absolute("2026-11-29T08:04:05.678Z", true, true), "2026-11-29 08:04:05.678 UTC");
    assert.equal(absolute("nonsense", true), "–");
    assert.deepEqual([0, 1023, 1536, 20 * 1024 * 1024].map(bytes), ["0 B", "1023 B", "1.5 KiB", "20 MiB"]);
    assert.equal(percentile([5, 1, 3, 2, 4], 0.95), 5);
    assert.ok(Number.isNaN(percentile([], 0.5)));
});

test("a call as a command survives quotes and asks for the key only where one is needed", () => {
    const call = { method: "POST", url: "/api/v1/runs?name=a b", body: `{"it's": "$(rm)"}` };
    assert.equal(curl(call, "http://h:1", "X-API-Key: $KEY"),
        `curl -sS -X POST 'http://h:1/api/v1/runs?name=a b' -H "X-API-Key: $KEY" -H 'Content-Type: application/json' -d '{"it'\\''s": "$(rm)"}'`);
    assert.equal(curl({ method: "GET", url: "/x" }, "http://h", null), "curl -sS http://h/x");
    assert.equal(curl({ method: "DELETE", url: "/x", headers: { "if-match": '"3"' } }, "http://h", null), `curl -sS -X DELETE http://h/x -H 'if-match: "3"'`);
});

test("addresses with broken escapes match no screen", () => {
    assert.deepEqual(match("/runs/:run_id", "/runs/a%2Fb"), { run_id: "a/b" });
    assert.equal(match("/runs/:run_id", "/runs/%zz"), null);
    assert.equal(match("/runs/:run_id", "/runs"), null);
});

const attempt = (step_id, status, more = {}) => ({ id: `${step_id}-${Math.random()}`, step_id, status, agent_name: "a", parent_step_id: null,
    branch_name: null, started_at: "2026-11-29T11:00:00Z", completed_at: null, input_data: {}, output_data: null, ...more });

test("attempts become a tree whose branches are in the order of their numbers", () => {
    const inside = (step, branch, status = "COMPLETED") => attempt(step, status, { parent_step_id: "each", branch_name: branch });
    const rows = tree([attempt("each", "RUNNING", { agent_name: "" }), inside("up", "10"), inside("up", "2"), inside("up", "2", "FAILED"),
        inside("rev", "10"), attempt("done", "PENDING")]);
    assert.deepEqual(rows.map((row) => [row.id, row.branch, row.depth, row.attempts.length]),
        [["each", null, 0, 1], ["up", "2", 1, 2], ["up", "10", 1, 1], ["rev", "10", 1, 1], ["done", null, 0, 1]]);
    assert.deepEqual(states(rows).get("up"), { status: "FAILED", count: 2, failed: 1, attempts: 3 });
});

test("a hundred thousand attempts, and steps that name each other as parents, come to an end", () => {
    const many = Array.from({ length: 100_000 }, (_, index) => attempt("s", "COMPLETED", { parent_step_id: "loop", branch_name: String(index) }));
    assert.equal(tree([attempt("loop", "RUNNING"), ...many]).length, 100_001);
    const circle = [attempt("a", "FAILED", { parent_step_id: "b" }), attempt("b", "FAILED", { parent_step_id: "a" })];
    assert.equal(tree(circle).length, 2);
});

test("the state of a run is said in words", () => {
    const run = { status: "RUNNING", created_at: "2026-11-29T11:00:00Z", paused_at: null };
    const approval = { is_approval: true, role: "manager", step_id: "approve", step_execution_id: "x", created_at: "2026-11-29T11:30:00Z" };
    assert.equal(runWords(run, [approval], [], NOW), "waiting for approval by manager for 30 min, at step approve");
    assert.equal(runWords(run, [{ ...approval, is_approval: false, question: { agent_name: "clerk" } }], [], NOW),
        "waiting for an answer to clerk for 30 min, at step approve");
    assert.match(runWords({ ...run, paused_at: "2026-11-29T11:59:00Z" }, [], [], NOW), /^paused 1 min ago/);
    const twice = tree([attempt("mail", "FAILED"), attempt("mail", "RUNNING")]);
    assert.equal(runWords(run, [], twice, NOW), "running step mail, attempt 2 for 1 h");
    const failed = { status: "FAILED", created_at: run.created_at, completed_at: "2026-11-29T11:00:02Z" };
    assert.equal(runWords(failed, [], tree([attempt("mail", "FAILED")]), NOW), "after 2.0 s at step mail");
});

test("pieces of outputs are kept by attempt and artifact, and not without an end", () => {
    const piece = (attempt_id, artifact_id, text, append = true) => ({ attempt_id, artifact_id, text, append });
    const all = [piece("a", "1", "x"), piece("b", "1", "y"), piece("a", "2", "z"), piece("a", "1", "x"), piece("b", "1", "new", false)].reduce(withDelta, []);
    assert.deepEqual(all.map(({ attempt, artifact, text }) => `${attempt}${artifact} ${text}`), ["a2 z", "a1 xx", "b1 new"]);
    let many = [];
    for (let number = 0; number < 1000; number++) many = withDelta(many, piece(String(number), "1", "t".repeat(20_000)));
    assert.deepEqual([many.length, many[0].text.length, many.at(-1).attempt], [50, 16_384, "999"]);
});

test("two runs are compared by place, and the order of members does not matter", () => {
    const left = tree([attempt("a", "COMPLETED", { output_data: { x: 1, y: 2 } }), attempt("b", "FAILED")]);
    const right = tree([attempt("a", "COMPLETED", { output_data: { y: 2, x: 1 } }), attempt("c", "COMPLETED")]);
    assert.deepEqual(align(left, right).map(differences), [[], ["only in A"], ["only in B"]]);
    assert.ok(!same({ a: [1, 2] }, { a: [2, 1] }));
    assert.equal(member({ order: { id: 7 } }, "order.id"), 7);
    assert.equal(member({}, "constructor.name"), undefined);
});

const agent = (id, next_step) => ({ id, agent_name: "a", next_step });
const chainOf = (count) => Object.fromEntries(Array.from({ length: count }, (_, index) =>
    [`s${index}`, agent(`s${index}`, index + 1 < count ? `s${index + 1}` : null)]));

test("no two boxes of a graph overlap, but blocks contain their steps", () => {
    const steps = { ...chainOf(9), s4: { id: "s4", type: "fork_join", next_step: "s5", fork_join_config: { branches: { x: { steps: ["i", "j"] }, y: { steps: ["k"] } } } },
        i: agent("i"), k: agent("k"), j: { id: "j", type: "conditional", condition: { expression: "1" }, if_true_step: "m", if_false_step: "gone" }, m: agent("m"), alone: agent("alone") };
    const { boxes, width, height, notes } = layout({ start_step: "s0", steps }, 700);
    assert.equal(boxes.length, Object.keys(steps).length + 1);
    assert.equal(boxes.find((box) => box.id === "gone")?.type, "missing");
    assert.ok(notes.some((note) => note.text.includes("not reached")));
    const contains = (a, b) => a.block && a.x < b.x && a.y < b.y && a.x + a.width > b.x + b.width && a.y + a.height > b.y + b.height;
    for (const a of boxes) {
        assert.ok(a.x >= 0 && a.y >= 0 && a.x + a.width <= width && a.y + a.height <= height, `${a.id} is outside`);
        for (const b of boxes) {
            if (a === b || contains(a, b) || contains(b, a)) continue;
            const apart = a.x + a.width <= b.x || b.x + b.width <= a.x || a.y + a.height <= b.y || b.y + b.height <= a.y;
            assert.ok(apart, `${a.id} and ${b.id} overlap`);
        }
    }
});

test("a graph of 2000 steps has one box a step and one edge between two, whatever the chain", () => {
    const { boxes, edges, width } = layout({ start_step: "s0", steps: chainOf(2000) }, 1100);
    assert.deepEqual([boxes.length, edges.length], [2000, 1999]);
    assert.ok(width <= 1100 + NODE.width);
});

test("definitions that are circles, too deep or no definitions are drawn all the same", () => {
    assert.equal(layout({ start_step: "a", steps: { a: agent("a", "b"), b: agent("b", "a") } }).boxes.length, 2);
    const deep = Object.fromEntries(Array.from({ length: 60 }, (_, index) => [`d${index}`, { id: `d${index}`, type: "parallel", parallel_steps: [`d${index + 1}`] }]));
    assert.ok(layout({ start_step: "d0", steps: deep }).boxes.length > 10);
    const itself = { a: { id: "a", type: "parallel", parallel_steps: ["a"] } };
    assert.ok(layout({ start_step: "a", steps: itself }).boxes.length < 100);
    const doubled = Object.fromEntries(Array.from({ length: 30 }, (_, index) => [`d${index}`, { id: `d${index}`, type: "parallel", parallel_steps: [`d${index + 1}`, `d${index + 1}`] }]));
    assert.ok(layout({ start_step: "d0", steps: doubled }).boxes.length < 20_000);
    for (const nothing of [null, {}, { steps: [] }, { start_step: 5, steps: { a: 1 } }, { start_step: "a", steps: { a: null } }]) layout(nothing);
    assert.deepEqual(lanesOf({ type: "loop", loop_config: null }), []);
});

test("columns come from the address, then from the last time, then from the default", () => {
    assert.deepEqual(columnsOf("status,input.order.id,nonsense,status", "run"), ["status", "input.order.id"]);
    assert.deepEqual(columnsOf(null, "run,workflow"), ["run", "workflow"]);
    assert.deepEqual(columnsOf("", ""), DEFAULT_COLUMNS);
    assert.deepEqual(columnsOf("constructor,__proto__,toString", ""), DEFAULT_COLUMNS);
    assert.equal(cell({ input_data: { order: {} } }, "input.__proto__.constructor"), undefined);
    assert.deepEqual(filtersOf(new URLSearchParams("status=FAILED&x=1&cursor=c")), { status: "FAILED" });
    assert.equal(cell({ input_data: { a: { b: [1] } } }, "input.a.b").length, 1);
    assert.equal(cell({ input_data: null, input_data_omitted: true }, "input.a"), "(not in the list)");
    assert.equal(cell({ workflow_version: 3 }, "version"), 3);
});

test("what can be done with a run depends on its state", () => {
    const can = (run) => ["cancel", "pause", "resume", "retry"].filter((action) => allows(run, action));
    assert.deepEqual(can({ status: "RUNNING", paused_at: null }), ["cancel", "pause"]);
    assert.deepEqual(can({ status: "PENDING", paused_at: "x" }), ["cancel", "resume"]);
    assert.deepEqual(can({ status: "FAILED" }), ["retry"]);
    assert.deepEqual(can({ status: "COMPLETED" }), []);
});

test("new runs are counted and rows keep their places", () => {
    const row = (id, created_at, status = "RUNNING") => ({ id, created_at, status });
    const shown = [row("b", "2"), row("a", "1")];
    const latest = [row("c", "3"), row("b", "2", "FAILED"), row("z", "0")];
    assert.deepEqual(compareRows(shown, latest), { fresh: 1, rows: [row("b", "2", "FAILED"), row("a", "1")] });
});

test("cells of a CSV are no formulas and keep quotes, commas and lines", () => {
    assert.equal(csvLine(["=1+1", 'a "b"', "x,y", "l\nm", -5, null, { a: 1 }, "@x"]), `'=1+1,"a ""b""","x,y","l\nm",-5,,"{""a"":1}",'@x`);
    const run = { id: "r", created_at: "2026-11-29T11:00:00Z", completed_at: "2026-11-29T11:00:01Z", input_data: { q: "-cmd" } };
    assert.equal(toCsv([run], ["run", "took", "input.q"]), "run,duration_ms,input.q\r\nr,1000,'-cmd\r\n");
});

test("differences are the least lines, and applying them gives both texts", () => {
    const [a, b] = ["1\n2\n3\n4", "1\n3\nx\n4"];
    const lines = diff(a, b);
    assert.equal(lines.filter((line) => line.kind !== "added").map((line) => line.text).join("\n"), a);
    assert.equal(lines.filter((line) => line.kind !== "removed").map((line) => line.text).join("\n"), b);
    assert.equal(lines.filter((line) => line.kind !== "same").length, 2);
    const long = Array.from({ length: 5000 }, (_, index) => `l${index}`).join("\n");
    assert.equal(diff(`a\n${long}`, `${long.replaceAll("l", "m")}\nb`).length, 10_002);
    assert.deepEqual(hunks(diff("1\n2\n3\n4\n5\n6\n7\n8\n9", "1\n2\n3\n4\n5\n6\n7\n8\nx"), 1).map((line) => line?.text ?? null), [null, "8", "9", "x"]);
});

test("a path in a definition is found at its line, whatever stands in strings", () => {
    const text = '{\n "name": "a } \\" {",\n "steps": {\n  "ask": {\n   "type": "x",\n   "list": [\n    1,\n    {"y": 2}\n   ]\n  }\n }\n}';
    const line = (path) => locate(text, path.split("."));
    assert.deepEqual([line("steps.ask.type"), line("steps.ask"), line("steps.ask.list.1.y"), line("steps.ask.gone"), line("name")], [5, 4, 8, 4, 2]);
    for (let end = 0; end < text.length; end++) locate(text.slice(0, end), ["steps", "ask", "list", "1"]);
    assert.equal(fault('{\n "a": 1,\n}')?.line, 3);
    assert.equal(fault("{}"), null);
});

test("a schema becomes a form, and what was typed an input of the right types", () => {
    const form = fields({ type: "object", required: ["order"], properties: { order: { type: "string" }, amount: { type: "number" }, count: { type: "integer" },
        fast: { type: "boolean", default: false }, way: { enum: ["a", 2] }, rows: { type: "array" } } });
    assert.ok(form);
    assert.deepEqual(gather(form, { order: "7", amount: "1.5", count: "3", way: "2", rows: "[1]" }),
        { input: { order: "7", amount: 1.5, count: 3, fast: false, way: 2, rows: [1] }, problems: {} });
    assert.deepEqual(gather(form, { order: "", amount: "x", count: "1.5", rows: "[" }).problems,
        { order: "A value is required", amount: "This is no number", count: "This is no whole number", rows: "This is no JSON" });
    assert.equal(fields({ oneOf: [], properties: {} }), null);
    assert.equal(fields(null), null);
});

test("a list of texts has a line for each item, and what lines cannot show is JSON", () => {
    const form = fields({ type: "object", properties: { cron: { type: "array", items: { type: "string" }, "x-rare": true }, ways: { type: "array", items: { type: "string", enum: ["a"] } } } });
    assert.ok(form);
    assert.deepEqual(form.map(({ kind, rare }) => [kind, rare]), [["lines", true], ["json", false]]);
    const [cron] = form;
    for (const list of [["0 9 * * 1", "@daily"], ["[1]"], ["a\nb", ""], [" spaced"], []]) {
        const text = show(cron, list);
        assert.deepEqual(gather(form, { cron: text }).input.cron ?? [], list, text);
    }
    assert.deepEqual(gather(form, { cron: " a \n\n b" }).input, { cron: ["a", "b"] });
    assert.equal(gather(form, { cron: "[1" }).problems.cron, "This is no JSON");
    assert.equal(show(cron, null), "");
});

test("triggers and limits are told in words, and problems are put at their fields", () => {
    assert.equal(when({ kind: "schedule", config: { cron: ["0 9 * * 1"], every: "PT1H", time_zone: "UTC" } }), "0 9 * * 1; every PT1H, UTC");
    assert.equal(when({ kind: "webhook", config: { preset: "none" } }), "deliveries to its address");
    assert.equal(when({ kind: "kafka", config: { topic: "orders" } }), "records of orders");
    assert.equal(when({ kind: "other", config: { a: 1 } }), '{"a":1}');
    assert.deepEqual(limitWords({ concurrency: { limit: 1, key: "k", policy: "skip" }, throttle: { limit: 10, period_seconds: 60 }, debounce: { period_seconds: 30, max_wait_seconds: 300 },
        deadline_seconds: 3600, deadline_action: "cancel", silence_hours: 24 }).map(([, words]) => words),
        ["1 run for each k; further ones are skipped", "10 in 1 min; further ones wait", "after 30 s without a start, 5 min at most", "1 h, then it is cancelled", "an event after 24 h without a completed run"]);
    assert.deepEqual(limitWords({}), []);
    assert.deepEqual(problemsOf({ errors: [{ field: "body.config.cron[0]", message: "wrong" }, { field: "body.name", message: "taken" }] }, "body.config"), { cron: "wrong" });
    assert.deepEqual(problemsOf(new Error("other"), "body"), {});
    assert.deepEqual([toField("2026-01-01T10:00:00.5Z"), fromField("2026-01-01T10:00"), fromField("2026-01-01T10:00:30"), toField(""), fromField("")],
        ["2026-01-01T10:00", "2026-01-01T10:00:00Z", "2026-01-01T10:00:30Z", "", ""]);
});

test("a log has each entry once and no hole, in whatever order pages and entries arrive", () => {
    const of = (/** @type {number[]} */ ...numbers) => numbers.map((seq) => ({ seq }));
    const numbers = (/** @type {{ seq: number }[]} */ entries) => entries.map(({ seq }) => seq);
    // A page that meets what is shown is joined to it; of one that does not, what is older is left to its cursor.
    for (const [shown, page, expected, meets] of /** @type {[number[], number[], number[], boolean][]} */ ([
        [[], [1, 2], [1, 2], false], [[3], [1, 2], [1, 2, 3], false], [[1, 2, 3], [2, 3, 4], [1, 2, 3, 4], true],
        [[1, 2], [5, 6], [5, 6], false], [[1, 2, 7], [5, 6], [5, 6, 7], false], [[4, 5], [], [4, 5], false]])) {
        const joined = withPage(of(...shown), of(...page));
        assert.deepEqual([numbers(joined.entries), joined.meets], [expected, meets], `${shown} and ${page}`);
    }
    for (const [shown, entry, expected] of /** @type {[number[], number, number[]][]} */ ([
        [[], 4, [4]], [[4], 5, [4, 5]], [[4, 6], 5, [4, 5, 6]], [[4, 5], 5, [4, 5]], [[4, 5], 3, [4, 5]], [[1, 2, 3, 4], 5, [2, 3, 4, 5]]])) {
        assert.deepEqual(numbers(withEntry(of(...shown), { seq: entry }, 4)), expected, `${shown} and ${entry}`);
    }
});

test("a trigger that is ill says why", () => {
    const healthy = { status: "healthy", error: null, outcome: "started", detail: null, reason: null, run_status: "COMPLETED" };
    assert.equal(illness(healthy), "");
    assert.equal(illness({ ...healthy, status: "failing", run_status: "FAILED" }), "its last run has failed");
    assert.equal(illness({ ...healthy, status: "failing", run_status: null, outcome: "failed_to_start", reason: "workflow_not_found" }), "failed to start: workflow not found");
    assert.equal(illness({ ...healthy, status: "failing", outcome: null, error: "no topic" }), "no topic");
});

test("pages are read one after the other, and no more than are wanted", async () => {
    /** @type {(string | null)[]} */
    const asked = [];
    const read = async (/** @type {string | null} */ cursor) => {
        asked.push(cursor);
        return { items: [cursor, 2], next: cursor === "c" ? null : cursor === "b" ? "c" : "b" };
    };
    assert.deepEqual(await pages(read, 100), { items: [null, 2, "b", 2, "c", 2], isCut: false });
    assert.deepEqual([await pages(read, 3), asked.splice(3)], [{ items: [null, 2, "b", 2], isCut: true }, [null, "b"]]);
});

test("open runs that a page does not have any more are read by themselves, a few at a time, and then are what they are", () => {
    const row = (id, status = "RUNNING") => ({ id, created_at: "2026-11-29T11:00:00Z", updated_at: "2026-11-29T11:00:05Z", status });
    const shown = [row("ended", "COMPLETED"), row("there"), ...Array.from({ length: 12 }, (_, index) => row(`r${index}`, index % 2 ? "PENDING" : "RUNNING"))];
    const turns = [0, 1].map((turn) => unread(shown, [row("there")], turn).map((run) => run.id));
    assert.deepEqual(turns.map((ids) => ids.length), [10, 10]);
    assert.deepEqual(new Set(turns.flat()), new Set(Array.from({ length: 12 }, (_, index) => `r${index}`)));
    assert.deepEqual(unread([row("a", "FAILED")], [], 3), []);
    const ended = renewed(row("a"), { ...row("a", "CANCELLED"), output_data: { large: true } });
    assert.deepEqual(compareRows([row("a"), row("b")], [row("b")], [ended]), { fresh: 0, rows: [row("a", "CANCELLED"), row("b")] });
    // What is deleted has no duration that grows.
    const deleted = renewed(row("a"), null);
    assert.deepEqual([deleted.status, allows(deleted, "cancel"), allows(deleted, "retry"), tookMs(deleted, NOW)], ["DELETED", false, false, 5000]);
});

test("a local time in full says how far it is from UTC, in winter and in summer", () => {
    const zone = process.env.TZ;
    try {
        process.env.TZ = "America/New_York";
        assert.deepEqual(["2026-11-29T08:04:05.678Z", "2026-07-29T08:04:05.678Z"].map((time) => absolute(time, false, true)),
            ["2026-11-29 03:04:05.678 UTC-5", "2026-07-29 04:04:05.678 UTC-4"]);
        process.env.TZ = "Asia/Kolkata";
        assert.equal(absolute("2026-11-29T08:04:05.678Z", false, true), "2026-11-29 13:34:05.678 UTC+5:30");
        process.env.TZ = "UTC";
        assert.equal(absolute("2026-11-29T08:04:05.678Z", false, true), "2026-11-29 08:04:05.678 UTC");
    } finally {
        if (zone === undefined) delete process.env.TZ;
        else process.env.TZ = zone;
    }
});

test("the fault of a JSON text is named by its line and in words, whatever browser", () => {
    for (const [text, line, words] of /** @type {[string, number, string][]} */ ([
        ['{\n "a": 1\n "b": 2,\n "c": 3\n}', 3, 'Expected a comma or }, found "b"'], ['{\n "a": 1,\n}\n\n', 3, "Expected a name in double quotes, found }"],
        ['{\n "a": tru,\n "b": 1}', 2, "Expected a value, found tru"], ['{\n "a" 1}', 2, "Expected a colon, found 1"], ['[1,\n2', 2, "Expected a comma or ], found the end of the text"],
        ['{"a": "x\n"}', 1, "Expected a value, found a text that does not end on its line, or has a wrong \\"], ["{}\n x", 2, "Expected the end, found x"], ['{\n\'a\': 1}', 2, "Expected a name in double quotes or }, found 'a':"],
        ["[01]", 1, "Expected a value, found 01"], ["", 1, "Expected a value, found the end of the text"]])) {
        assert.deepEqual(fault(text), { line, message: words }, text);
    }
    const text = JSON.stringify({ a: [1, -2.5e-7, true, null, "\u00e9\n\"\\", {}, []], b: { c: [[], [{}]] } }, null, 1);
    assert.equal(fault(text), null);
    // Each text without one character is a fault at a line that exists, or none.
    for (let at = 0; at < text.length; at++) {
        const found = fault(text.slice(0, at) + text.slice(at + 1));
        assert.ok(!found || found.line <= text.split("\n").length && !found.message.endsWith("found "), `${at}: ${JSON.stringify(found)}`);
    }
});

test("numbers that JavaScript cannot keep are written again as they were, where the browser can do that", { skip: !("rawJSON" in JSON) }, () => {
    const text = '{"a":12345678901234567890,"b":[1.10,-0,1e2,0.1,7],"c":"1.10"}';
    const value = exact(text);
    assert.equal(JSON.stringify(value), text);
    assert.deepEqual([value.b[3], value.b[4], value.c], [0.1, 7, "1.10"]);
    assert.equal(exact('{"a":1,"b":[true]}').a, 1);
    const form = fields({ type: "object", properties: { amount: { type: "number" }, more: { type: "object" } } });
    assert.ok(form);
    assert.equal(JSON.stringify(gather(form, { amount: "1.10", more: "[12345678901234567890]" }).input), '{"amount":1.10,"more":[12345678901234567890]}');
    assert.equal(show(form[0], value.a), "12345678901234567890");
    const wait = layout({ start_step: "w", steps: { w: { id: "w", type: "wait", wait_config: exact('{"duration_seconds": 1.0}') } } });
    assert.equal(wait.boxes[0]?.label, "wait 1.0 s");
});

test("values that are nested too deeply are no failure of a screen", () => {
    let deep = [];
    for (let level = 0; level < 100_000; level++) deep = [deep];
    assert.match(pretty(deep), /too deeply/);
    assert.equal(same(deep, []), false);
    assert.equal(clipped("abcdef", 4), "abcd… (2 more characters)");
});

test("the table has the steps that have not begun where the definition has them", () => {
    const steps = { ...chainOf(4), s1: { id: "s1", type: "parallel", parallel_steps: ["x", "y"], next_step: "s2" }, x: agent("x"), y: agent("y"), alone: agent("alone") };
    const rows = tree([attempt("s0", "COMPLETED"), attempt("s1", "RUNNING"), attempt("y", "RUNNING", { parent_step_id: "s1", branch_name: "y" }), attempt("gone", "FAILED")]);
    const shown = withPlan(rows, { start_step: "s0", steps });
    assert.deepEqual(shown.map((row) => [row.id, row.depth, row.attempts.length]), [["s0", 0, 1], ["s1", 0, 1], ["y", 1, 1], ["x", 1, 0], ["s2", 0, 0], ["s3", 0, 0], ["gone", 0, 1], ["alone", 0, 0]]);
    assert.equal(new Set(shown.map((row) => row.key)).size, shown.length);
    assert.deepEqual(withPlan(rows, null), rows);
    assert.equal(withPlan([], { start_step: "a", steps: { a: { id: "a", type: "parallel", parallel_steps: ["a", "a"] } } }).length, 1);
    const loop = tree([attempt("each", "RUNNING"), ...Array.from({ length: 100_000 }, (_, index) => attempt("s", "COMPLETED", { parent_step_id: "each", branch_name: String(index) }))]);
    assert.equal(withPlan(loop, { start_step: "each", steps: { each: agent("each") } }).length, 100_001);
});

test("a run says which attempt it is at, of how many, and why the one before has failed", () => {
    const run = { status: "RUNNING", created_at: "2026-11-29T11:00:00Z", paused_at: null };
    const worker = { name: "a", retry_config: { max_retries: 3, initial_delay_ms: 1000, max_delay_ms: 30_000, backoff_multiplier: 2 } };
    const then = (/** @type {string} */ error_message, ms = 3000) => ({ error_message, next_attempt_at: new Date(NOW + ms).toISOString() });
    const failed = (/** @type {any[]} */ ...more) => tree([attempt("mail", "FAILED", then("HTTP 503")), ...more]);
    const words = (/** @type {any[]} */ rows, /** @type {any} */ about = { agent: worker }) => runWords(run, [], rows, NOW, about);
    assert.equal(words(failed(attempt("mail", "RUNNING"))), "running step mail, attempt 2 of 3 for 1 h; the attempt before has failed: HTTP 503");
    assert.equal(words(failed()), "at step mail, attempt 1 of 3 has failed, next in 3.0 s: HTTP 503");
    assert.equal(words(failed(attempt("mail", "FAILED", then("HTTP 500", -1)))), "at step mail, attempt 2 of 3 has failed, next is due: HTTP 500");
    assert.equal(words(failed(attempt("mail", "FAILED"), attempt("mail", "FAILED", { error_message: "HTTP 500" }))), "at step mail, attempt 3 of 3 has failed: HTTP 500");
    assert.equal(words(failed(attempt("mail", "RUNNING")), {}), "running step mail, attempt 2 for 1 h; the attempt before has failed: HTTP 503");
    assert.equal(attemptOf(failed(attempt("mail", "RUNNING", { agent_name: "other" }))[0], worker, NOW).words, "attempt 1");
    assert.equal(under({ ...run, paused_at: "x" }, failed()), null);
    const retrying = { step_id: "mail", attempts: 2, error_message: "HTTP 503" };
    assert.equal(cell({ ...run, error_message: null, retrying }, "error"), "step mail is tried again after attempt 2: HTTP 503");
    assert.equal(under(run, failed(attempt("rest", "PENDING"))), null);
});

test("what a step waits for is told without its callback, and a callback whose step has not begun waits for nobody", () => {
    const run = { status: "RUNNING", created_at: "2026-11-29T11:00:00Z", paused_at: null };
    const rows = tree([attempt("approve", "PENDING", { agent_name: "" })]);
    const steps = { approve: { type: "callback", callback_config: { approval: { role: "manager" } } } };
    assert.equal(runWords(run, [], rows, NOW, { steps }), "waiting for approval by manager at step approve for 1 h");
    assert.equal(runWords(run, [], rows, NOW), "waiting at step approve for 1 h");
    const early = { is_approval: true, role: "manager", step_id: "later", step_execution_id: null, created_at: run.created_at };
    assert.equal(runWords(run, [early], tree([attempt("mail", "RUNNING")]), NOW), "running step mail for 1 h");
    assert.deepEqual([{ type: "callback" }, { agent_name: "clerk", on_question: "ask" }, { type: "wait" }, undefined].map(waitsForPeople), ["for an answer", "for an answer to clerk", "", ""]);
});

test("attempts that have ended are not read again with each change of their run", async () => {
    /** Pages of two, of which the first one has a block that goes on. @type {string[]} */
    const states = ["RUNNING", ...Array(9).fill("COMPLETED"), "RUNNING"];
    /** @type {string[]} */
    let asked = [];
    const read = reader("r", 100, async (_, cursor) => {
        asked.push(cursor ?? "0");
        const from = Number(cursor);
        return { cursor, items: states.slice(from, from + 2).map((status, index) => ({ id: from + index, status })), next: from + 2 < states.length ? String(from + 2) : null };
    });
    const ids = async () => (await read(new AbortController().signal)).items.map(({ id, status }) => `${id} ${status}`);
    const all = () => states.map((status, id) => `${id} ${status}`);
    assert.deepEqual(await ids(), all());
    assert.deepEqual(asked.splice(0), ["0", "2", "4", "6", "8", "10"]);
    states[10] = "COMPLETED";
    states.push("PENDING", "RUNNING");
    assert.deepEqual(await ids(), all());
    assert.deepEqual(asked.splice(0), ["0", "8", "10", "12"]);
    states[0] = "COMPLETED";
    await ids();
    assert.deepEqual([await ids(), asked.slice(-2)], [all(), ["10", "12"]]);
});

test("commands have no secrets", () => {
    const url = "/api/v1/webhooks/1";
    assert.equal(masked({ method: "PUT", url, body: '{"name":"a","secret":"whsec_x","headers":{"authorization":"b"}}' }), '{"name":"a","secret":"SECRET","headers":{"authorization":"SECRET"}}');
    assert.equal(masked({ method: "POST", url: "/api/v1/triggers", body: '{"config":{"secrets":["x","y"],"header":"h"}}' }), '{"config":{"secrets":["SECRET","SECRET"],"header":"h"}}');
    assert.equal(masked({ method: "PUT", url: "/api/v1/agents/1", body: '{"auth_config":{"token":"x"},"auth_type":"bearer"}' }), '{"auth_config":{"token":"SECRET"},"auth_type":"bearer"}');
    assert.equal(masked({ method: "POST", url: "/api/v1/workflow-names/webhooks-x/execute", body: '{"secret":"1"}' }), '{"secret":"1"}');
    assert.equal(masked({ method: "GET", url }), undefined);
});

test("a field has the problem of its member, or of a part of it", () => {
    const error = { errors: [{ field: "body.quotas.agents", message: "too many" }, { field: "body.cron[0]", message: "wrong" }] };
    assert.deepEqual(["quotas.agents", "quotas", "quotas.age", "cron", "name"].map((name) => problemOf(error, name)), ["too many", "too many", undefined, "wrong", undefined]);
    assert.equal(problemOf(null, "name"), undefined);
});

test("in the inbox nothing moves: what is over stays, and what is new comes last", () => {
    const of = (/** @type {string} */ urls) => [...urls].map((url) => ({ url }));
    const seen = inPlace(of("abc"), of("xacy"));
    assert.deepEqual(seen.map((one) => one.url + (one.is_gone ? "!" : "")), ["a", "b!", "c", "x", "y"]);
    assert.deepEqual(inPlace(seen, of("b")).map((one) => one.url + (one.is_gone ? "!" : "")), ["a!", "b", "c!", "x!", "y!"]);
    assert.deepEqual(inPlace([], of("ba")), of("ba"));
});
