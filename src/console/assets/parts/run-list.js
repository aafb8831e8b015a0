// Pure: the list of runs: its filters are the parameters of the API, its columns are in the address.
import { duration, span } from "./time.js";
import { csvLine, pretty } from "./text.js";
import { member } from "./steps.js";

export const STATUSES = ["PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"];
export const FILTERS = ["status", "name_prefix", "name", "workflow_definition_id", "triggered_by", "trigger_id", "parent_run_id",
    "created_after", "created_before", "sort_by", "sort_order"];
/** @type {Record<string, string>} */
export const COLUMNS = {
    run: "Run", workflow: "Workflow", status: "Status", created: "Created", took: "Duration", by: "Started by",
    priority: "Priority", error: "Error", parent: "Parent run", completed: "Completed",
    version: "Version", trigger: "Trigger", due: "Due", deadline: "Deadline", flow: "Flow control",
};
export const DEFAULT_COLUMNS = ["run", "workflow", "status", "created", "took", "by", "error"];
const MOST_COLUMNS = 20;

/** What stands for an input that is too large for the list. */
const OMITTED = "(not in the list)";

/** Address first, then what was used last, then the default. @param {string | null} given @param {string} last */
export function columnsOf(given, last) {
    const names = (given ?? last).split(",").filter((name) => Object.hasOwn(COLUMNS, name) || /^input\.[^,]+$/.test(name));
    return names.length ? [...new Set(names)].slice(0, MOST_COLUMNS) : DEFAULT_COLUMNS;
}

/** @param {URLSearchParams} query @returns {Record<string, string>} */
export function filtersOf(query) {
    /** @type {Record<string, string>} */
    const filters = {};
    for (const name of FILTERS) {
        const value = query.get(name);
        if (value) filters[name] = value;
    }
    return filters;
}

/** The plain value of a column, as it is exported. @param {any} run @param {string} column @returns {unknown} */
export function cell(run, column) {
    switch (column) {
        case "run": return run.id;
        case "workflow": return run.workflow_name;
        case "status": return run.status;
        case "created": return run.created_at;
        case "completed": return run.completed_at;
        case "by": return run.triggered_by;
        case "priority": return run.priority;
        case "error": return run.error_message ?? (run.retrying && `step ${run.retrying.step_id} is tried again after attempt ${run.retrying.attempts}: ${run.retrying.error_message}`);
        case "parent": return run.parent_run_id;
        case "version": return run.workflow_version;
        case "trigger": return run.trigger?.kind;
        case "due": return run.trigger?.at;
        case "deadline": return run.deadline_at;
        case "flow": return run.flow_control && `${run.flow_control.stage}: ${run.flow_control.state}`;
        case "took": return tookMs(run, Date.parse(run.updated_at));
        default: return run.input_data_omitted ? OMITTED : member(run.input_data, column.slice("input.".length));
    }
}

/** @param {any} run @param {number} now */
export function tookMs(run, now) {
    const end = run.completed_at ?? run.cancelled_at ?? (allows(run, "cancel") ? null : run.updated_at);
    return span(run.created_at, end, now);
}

/** @param {any} run @param {number} now */
export const took = (run, now) => duration(tookMs(run, now));

/** @param {any[]} runs @param {string[]} columns */
export function toCsv(runs, columns) {
    const head = columns.map((column) => (column === "took" ? "duration_ms" : column));
    return [csvLine(head), ...runs.map((run) => csvLine(columns.map((column) => cell(run, column))))].join("\r\n") + "\r\n";
}

/** @param {any[]} runs */
export const toJson = (runs) => `${pretty(runs)}\n`;

/** @param {any} run @param {string} action */
export function allows(run, action) {
    const open = run.status === "PENDING" || run.status === "RUNNING";
    switch (action) {
        case "cancel": return open;
        case "pause": return open && !run.paused_at;
        case "resume": return open && Boolean(run.paused_at);
        default: return run.status === "FAILED" || run.status === "CANCELLED";
    }
}

/** The end of a long id. @param {string} id */
export const shortId = (id) => (id.length > 20 ? `…${id.slice(-12)}` : id);

/** Rows of a look that are read by their ids. */
const FEW = 10;

/** The open runs that the page does not have any more, because they match its filters no longer or newer ones are in their place: a few of
 * them, others with each turn. @param {any[]} shown @param {any[]} latest @param {number} turn */
export function unread(shown, latest, turn) {
    const known = new Set(latest.map((run) => run.id));
    const open = shown.filter((run) => allows(run, "cancel") && !known.has(run.id));
    return open.slice(0, FEW).map((_, index) => open[(turn * FEW + index) % open.length]);
}

/** A row with what is known of its run now; null: there is no such run any more. @param {any} row @param {any} run */
export const renewed = (row, run) => (run ? Object.fromEntries(Object.keys(row).map((name) => [name, name in run ? run[name] : row[name]])) : { ...row, status: "DELETED" });

/** What the page, read again, means for the one that is shown. @param {any[]} shown @param {any[]} latest @param {any[]} [others] rows that were read by their ids */
export function compareRows(shown, latest, others = []) {
    const known = new Set(shown.map((run) => run.id));
    const newest = shown[0]?.created_at ?? "";
    const fresh = latest.filter((run) => !known.has(run.id) && run.created_at >= newest).length;
    const byId = new Map([...latest, ...others].map((run) => [run.id, run]));
    return { fresh, rows: shown.map((run) => byId.get(run.id) ?? run) };
}
