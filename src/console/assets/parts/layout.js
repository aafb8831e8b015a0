// Pure: where the steps of a definition are drawn. A chain goes from left to right and is broken into rows; a block is a
// box around its branches. The editor draws definitions that are stored nowhere, so the layout is made here.

/** @typedef {{ id: string, type: string, label: string, x: number, y: number, width: number, height: number, block: boolean }} Box */
/** @typedef {{ path: string, from: string, to: string }} Edge */
/** @typedef {{ text: string, x: number, y: number }} Note */
/** @typedef {{ boxes: Box[], edges: Edge[], notes: Note[], width: number, height: number }} Layout */
/** @typedef {{ width: number, height: number, middle: number, place: (x: number, y: number) => void, id: string }} Part */

export const NODE = { width: 172, height: 46, gap: 34, row: 26, padding: 14, head: 30, lane: 64 };
const MAX_DEPTH = 20;
/** A step that is mentioned twice is drawn twice, so blocks in blocks could grow without an end. */
const MAX_BOXES = 5000;

/** @param {any} definition @param {number} [limit] width of a row @returns {Layout} */
export function layout(definition, limit = 1180) {
    /** @type {Layout} */
    const drawn = { boxes: [], edges: [], notes: [], width: 0, height: 0 };
    const steps = definition?.steps && typeof definition.steps === "object" ? definition.steps : {};
    const used = new Set();
    let count = 0;

    /** @param {string} id @param {number} depth @returns {Part} */
    const part = (id, depth) => {
        const step = steps[id];
        used.add(id);
        const lanes = step && depth < MAX_DEPTH && ++count < MAX_BOXES ? lanesOf(step) : [];
        const type = step ? String(step.type ?? "agent") : "missing";
        const box = { id, type, label: step ? label(step) : "there is no such step", block: lanes.length > 0 };
        if (!lanes.length) {
            return { id, width: NODE.width, height: NODE.height, middle: NODE.height / 2,
                place: (x, y) => void drawn.boxes.push({ ...box, x, y, width: NODE.width, height: NODE.height }) };
        }
        const inner = lanes.map((lane) => ({ name: lane.name, row: row(lane.ids.map((one) => part(one, depth + 1))) }));
        const indent = inner.some((lane) => lane.name) ? NODE.lane : 0;
        const width = Math.max(NODE.width, ...inner.map((lane) => lane.row.width + indent)) + 2 * NODE.padding;
        const height = NODE.head + NODE.padding + inner.reduce((sum, lane) => sum + lane.row.height + NODE.padding, 0);
        return {
            id, width, height, middle: NODE.head / 2 + 6,
            place: (x, y) => {
                drawn.boxes.push({ ...box, x, y, width, height });
                let top = y + NODE.head + NODE.padding;
                for (const lane of inner) {
                    if (lane.name) {
                        drawn.notes.push({ text: lane.name, x: x + NODE.padding, y: top + lane.row.middle + 4 });
                    }
                    lane.row.place(x + NODE.padding + indent, top);
                    top += lane.row.height + NODE.padding;
                }
            },
        };
    };

    /** @param {Part[]} parts */
    const row = (parts) => {
        const middle = Math.max(0, ...parts.map((one) => one.middle));
        const height = Math.max(0, ...parts.map((one) => middle - one.middle + one.height));
        const width = parts.reduce((sum, one) => sum + one.width + NODE.gap, -NODE.gap);
        return {
            width, height, middle,
            place: (/** @type {number} */ x, /** @type {number} */ y) => {
                let left = x;
                for (const [index, one] of parts.entries()) {
                    one.place(left, y + middle - one.middle);
                    const next = parts[index + 1];
                    left += one.width;
                    if (next) {
                        drawn.edges.push({ from: one.id, to: next.id, path: `M${left} ${y + middle}H${left + NODE.gap - 6}` });
                    }
                    left += NODE.gap;
                }
            },
        };
    };

    /** Rows of a chain, one below the other. @param {Part[]} parts */
    const chain = (parts) => {
        /** @type {Part[][]} */
        const rows = [];
        let filled = Infinity;
        for (const one of parts) {
            if (filled + one.width > limit) {
                rows.push([]);
                filled = 0;
            }
            rows.at(-1)?.push(one);
            filled += one.width + NODE.gap;
        }
        /** @type {{ x: number, y: number, id: string } | null} */
        let end = null;
        for (const one of rows) {
            const line = row(one);
            const top = drawn.height ? drawn.height + NODE.row : NODE.padding;
            line.place(NODE.padding, top);
            const middle = top + line.middle;
            if (end) {
                const between = drawn.height + NODE.row / 2;
                const path = `M${end.x} ${end.y}h12V${between}H5V${middle}H${NODE.padding - 5}`;
                drawn.edges.push({ from: end.id, to: one[0]?.id ?? "", path });
            }
            end = { x: NODE.padding + line.width, y: middle, id: one.at(-1)?.id ?? "" };
            drawn.height = top + line.height;
            drawn.width = Math.max(drawn.width, NODE.padding + line.width + 14);
        }
    };

    chain(follow(steps, definition?.start_step).map((id) => part(id, 0)));
    const rest = Object.keys(steps).filter((id) => !used.has(id));
    if (rest.length) {
        const top = drawn.height + NODE.row;
        drawn.notes.push({ text: "not reached from the first step", x: NODE.padding, y: top + 10 });
        drawn.height = top + 10;
        for (const id of rest) {
            if (used.has(id)) continue;
            const line = part(id, 0);
            line.place(NODE.padding, drawn.height + NODE.padding);
            drawn.height += NODE.padding + line.height;
            drawn.width = Math.max(drawn.width, NODE.padding + line.width + 14);
        }
    }
    drawn.height += NODE.padding;
    return drawn;
}

/** The ids of the main chain. @param {any} steps @param {unknown} start @returns {string[]} */
export function follow(steps, start) {
    /** @type {string[]} */
    const ids = [];
    const seen = new Set();
    for (let id = start; typeof id === "string" && id && !seen.has(id); id = steps[id]?.next_step) {
        seen.add(id);
        ids.push(id);
    }
    return ids;
}

/** The branches of a block. @param {any} step @returns {{ name: string, ids: string[] }[]} */
export function lanesOf(step) {
    const ids = (/** @type {unknown} */ list) =>
        Array.isArray(list) ? list.filter((id) => typeof id === "string") : [];
    switch (step.type) {
        case "parallel":
            return ids(step.parallel_steps).map((id) => ({ name: "", ids: [id] }));
        case "conditional":
            return [["then", step.if_true_step], ["else", step.if_false_step]]
                .filter(([, id]) => typeof id === "string" && id).map(([name, id]) => ({ name, ids: [id] }));
        case "loop":
            return [{ name: "each", ids: ids(step.loop_config?.loop_body) }].filter((lane) => lane.ids.length);
        case "fork_join":
            return Object.entries(step.fork_join_config?.branches ?? {})
                .map(([name, branch]) => ({ name, ids: ids(/** @type {any} */ (branch)?.steps) }))
                .filter((lane) => lane.ids.length);
        default:
            return [];
    }
}

/** What a step does, in one line. @param {any} step */
function label(step) {
    switch (step.type) {
        case "parallel": return "parallel";
        case "conditional": return `if ${step.condition?.expression ?? ""}`;
        case "loop": return `for each of ${step.loop_config?.collection ?? ""}`;
        case "fork_join": return `fork, join ${step.fork_join_config?.join_policy ?? "all"}`;
        case "wait": {
            const config = step.wait_config ?? {};
            return `wait ${config.until ?? config.duration ?? (config.duration_seconds === undefined ? "" : `${typeof config.duration_seconds === "object" ? JSON.stringify(config.duration_seconds) : config.duration_seconds} s`)}`;
        }
        case "callback": return step.callback_config?.approval ? "approval" : "callback";
        case "sub_workflow": {
            const config = step.sub_workflow_config ?? {};
            return `runs ${config.workflow_name ?? config.workflow_id ?? ""}`;
        }
        default: return String(step.agent_name ?? step.type ?? "");
    }
}

/** The rows with the steps of the definition that have not begun, where they stand in it.
 * @param {import("./steps.js").StepRow[]} rows @param {any} definition @returns {import("./steps.js").StepRow[]} */
export function withPlan(rows, definition) {
    const steps = definition?.steps ?? {};
    const begun = new Set(rows.map((row) => row.id));
    /** Rows of the main chain by step, each with what is inside of it. @type {Map<string, import("./steps.js").StepRow[]>} */
    const trees = new Map();
    let last = "";
    for (const row of rows) {
        if (!row.depth) last = row.id;
        const tree = trees.get(last);
        if (tree) tree.push(row);
        else trees.set(last, [row]);
    }
    /** @type {import("./steps.js").StepRow[]} */
    const ordered = [];
    const seen = new Set();
    const take = (/** @type {string} */ id) => {
        for (const row of trees.get(id) ?? []) ordered.push(row);
        trees.delete(id);
    };
    const visit = (/** @type {string} */ id, /** @type {string | null} */ parent, /** @type {string | null} */ branch, /** @type {number} */ depth) => {
        if (seen.has(id) || depth > MAX_DEPTH) return;
        seen.add(id);
        if (!parent) take(id);
        if (!begun.has(id)) ordered.push({ key: `not begun ${id}`, id, parent, branch, depth, attempts: [], last: null });
        for (const lane of lanesOf(steps[id] ?? {})) for (const one of lane.ids) visit(one, id, lane.name || one, depth + 1);
    };
    for (const id of follow(steps, definition?.start_step)) visit(id, null, null, 0);
    for (const id of [...trees.keys()]) take(id);
    for (const id of Object.keys(steps)) visit(id, null, null, 0);
    return ordered;
}
