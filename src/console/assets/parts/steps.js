// Pure: what the attempts of a run say about its steps.

/** @typedef {any} Attempt a StepExecution of the API */
/**
 * @typedef {object} StepRow attempts of one step at one place
 * @property {string} key
 * @property {string} id
 * @property {string | null} parent
 * @property {string | null} branch
 * @property {number} depth
 * @property {Attempt[]} attempts none: the step has not begun
 * @property {Attempt} last
 */

/** Rows in the order of a tree: each block is followed by its branches. @param {Attempt[]} attempts
 * @returns {StepRow[]} */
export function tree(attempts) {
    /** @type {Map<string, StepRow>} */
    const rows = new Map();
    for (const attempt of attempts) {
        const key = JSON.stringify([attempt.parent_step_id, attempt.branch_name, attempt.step_id]);
        const row = rows.get(key);
        if (row) {
            row.attempts.push(attempt);
            row.last = attempt;
        } else {
            rows.set(key, { key, id: attempt.step_id, parent: attempt.parent_step_id, branch: attempt.branch_name,
                depth: 0, attempts: [attempt], last: attempt });
        }
    }
    /** @type {Map<string | null, StepRow[]>} */
    const inside = new Map();
    const ids = new Set([...rows.values()].map((row) => row.id));
    for (const row of rows.values()) {
        const parent = row.parent !== null && row.parent !== row.id && ids.has(row.parent) ? row.parent : null;
        push(inside, parent, row);
    }
    /** @type {StepRow[]} */
    const ordered = [];
    const seen = new Set();
    const visit = (/** @type {string | null} */ parent, /** @type {number} */ depth) => {
        if (seen.has(parent)) return;
        seen.add(parent);
        /** @type {Map<string | null, StepRow[]>} */
        const branches = new Map();
        for (const row of inside.get(parent) ?? []) push(branches, row.branch, row);
        for (const branch of [...branches.keys()].sort(byBranch)) {
            for (const row of branches.get(branch) ?? []) {
                row.depth = depth;
                ordered.push(row);
                visit(row.id, depth + 1);
            }
        }
    };
    visit(null, 0);
    if (ordered.length === rows.size) return ordered;
    const known = new Set(ordered);
    return [...ordered, ...[...rows.values()].filter((row) => !known.has(row))];
}

/** @param {Map<string | null, StepRow[]>} lists @param {string | null} name @param {StepRow} row */
function push(lists, name, row) {
    const list = lists.get(name);
    if (list) list.push(row);
    else lists.set(name, [row]);
}

/** @param {string | null} a @param {string | null} b */
function byBranch(a, b) {
    const [left, right] = [Number(a), Number(b)];
    if (a !== null && b !== null && Number.isInteger(left) && Number.isInteger(right)) return left - right;
    return 0;
}

const RANK = ["FAILED", "RUNNING", "PENDING", "COMPLETED", "SKIPPED"];

/** The state of each step of the definition: the worst of its latest attempts, and how many there are.
 * @param {StepRow[]} rows @returns {Map<string, { status: string, count: number, failed: number, attempts: number }>} */
export function states(rows) {
    /** @type {Map<string, { status: string, count: number, failed: number, attempts: number }>} */
    const found = new Map();
    for (const row of rows) {
        const state = found.get(row.id);
        const failed = row.last.status === "FAILED" ? 1 : 0;
        if (!state) found.set(row.id, { status: row.last.status, count: 1, failed, attempts: row.attempts.length });
        else {
            if (RANK.indexOf(row.last.status) < RANK.indexOf(state.status)) state.status = row.last.status;
            state.count++;
            state.failed += failed;
            state.attempts += row.attempts.length;
        }
    }
    return found;
}

/** The name of a place for people. @param {StepRow} row */
export function placeOf(row) {
    return row.parent === null ? row.id : `${row.parent} / ${row.branch ?? ""} / ${row.id}`;
}

/** What a callback waits for. @param {any} callback */
export function waitsFor(callback) {
    if (callback.is_approval) return `for approval by ${callback.role ?? "anybody with the address"}`;
    if (callback.question) return `for an answer to ${callback.question.agent_name}`;
    return "for an answer";
}

/** Previews that are kept: of steps that are under way. */
const PREVIEWS = 50;

/** The pieces of outputs, by attempt and artifact; what has ended has its output. @param {any[]} before @param {any} delta */
export function withDelta(before, { attempt_id: attempt, artifact_id: artifact, append, text }) {
    const old = before.find((one) => one.attempt === attempt && one.artifact === artifact);
    const others = before.filter((one) => one !== old);
    return [...others, { attempt, artifact, text: ((append && old?.text || "") + (text ?? "")).slice(-16_384) }].slice(-PREVIEWS);
}

/** Two runs, step by step. @param {StepRow[]} left @param {StepRow[]} right */
export function align(left, right) {
    const other = new Map(right.map((row) => [row.key, row]));
    /** @type {{ key: string, left: StepRow | null, right: StepRow | null }[]} */
    const pairs = left.map((row) => ({ key: row.key, left: row, right: other.get(row.key) ?? null }));
    const known = new Set(left.map((row) => row.key));
    for (const row of right) if (!known.has(row.key)) pairs.push({ key: row.key, left: null, right: row });
    return pairs;
}

/** What differs in a pair. @param {{ left: StepRow | null, right: StepRow | null }} pair @returns {string[]} */
export function differences({ left, right }) {
    if (!left) return ["only in B"];
    if (!right) return ["only in A"];
    const found = [];
    if (left.last.status !== right.last.status) found.push("status");
    if (!same(left.last.input_data, right.last.input_data)) found.push("input");
    if (!same(left.last.output_data, right.last.output_data)) found.push("output");
    if (left.attempts.length !== right.attempts.length) found.push("attempts");
    return found;
}

/** @param {unknown} a @param {unknown} b @returns {boolean} */
export function same(a, b) {
    try {
        return JSON.stringify(sorted(a)) === JSON.stringify(sorted(b));
    } catch {
        // Nested too deeply to be compared.
        return false;
    }
}

/** @param {any} value @returns {any} */
function sorted(value) {
    if (Array.isArray(value)) return value.map(sorted);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]));
}

/** A member by a path with dots, as in a column `input.order.id`. @param {any} value @param {string} path */
export function member(value, path) {
    let found = value;
    for (const part of path.split(".")) {
        if (found === null || typeof found !== "object" || !Object.hasOwn(found, part)) return undefined;
        found = found[part];
    }
    return found;
}
