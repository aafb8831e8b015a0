// Pure: the state of a run in words.
import { waitsFor } from "./steps.js";
import { duration, span } from "./time.js";

/** @typedef {import("./steps.js").StepRow} StepRow */

/** The step that a run is at: one that an agent works on, else one that is between two attempts. @param {any} run @param {StepRow[]} rows */
export function under(run, rows) {
    if (run?.status !== "RUNNING" || run.paused_at) return null;
    const of = (/** @type {string} */ status) => rows.find((row) => row.last.status === status && row.last.agent_name);
    return of("RUNNING") ?? (rows.some((row) => row.last.status === "PENDING") ? null : of("FAILED") ?? null);
}

/** Which attempt of its agent a row is at, of how many if that is known, and when the next one begins.
 * @param {StepRow} row @param {any} agent @param {number} now */
export function attemptOf(row, agent, now) {
    const count = row.attempts.filter((one) => one.agent_name === row.last?.agent_name).length;
    const { max_retries: retries } = agent?.name === row.last?.agent_name ? agent?.retry_config ?? {} : {};
    // After a retry of the run there are more than the agent is given.
    const most = count <= Math.max(1, retries) ? Math.max(1, retries) : 0;
    const left = Date.parse(row.last?.next_attempt_at) - now;
    const next = Number.isNaN(left) ? "" : left > 0 ? `next in ${duration(left)}` : "next is due";
    return { words: `attempt ${count}${most ? ` of ${most}` : ""}`, next };
}

/** What a step of the definition waits for when it waits for people, in words; else nothing. @param {any} step */
export function waitsForPeople(step) {
    const { type, callback_config: config, on_question: question, agent_name: agent } = step ?? {};
    if (type === "callback") return waitsFor({ is_approval: config?.approval, role: config?.approval?.role });
    return question === "ask" ? `for an answer to ${agent}` : "";
}

/** @param {any} run @param {any[]} callbacks those that can be answered @param {StepRow[]} rows @param {number} now
 * @param {{ steps?: any, agent?: any }} [about] steps of the definition; agent of the step that the run is at */
export function runWords(run, callbacks, rows, now, { steps, agent } = {}) {
    const last = (/** @type {string} */ status) => rows.filter((row) => row.last.status === status);
    const until = (/** @type {string} */ since) => duration(span(since, null, now));
    if (run.status === "PENDING") {
        if (run.waiting && !run.paused_at) return `held by ${run.waiting.reason} for ${until(run.created_at)}: ${run.waiting.message}`;
        return run.paused_at ? `paused before it began, ${until(run.paused_at)} ago`
            : `waiting for an executor for ${until(run.created_at)}`;
    }
    if (run.status === "RUNNING") {
        if (run.paused_at) return `paused ${until(run.paused_at)} ago; no further step begins`;
        const waiting = callbacks.find((one) => one.step_execution_id);
        if (waiting) return `waiting ${waitsFor(waiting)} for ${until(waiting.created_at)}, at step ${waiting.step_id}`;
        const pending = last("PENDING")[0];
        const running = last("RUNNING").filter((row) => row.last.agent_name);
        if (!running.length && pending) return `${["waiting", waitsForPeople(steps?.[pending.id]), "at step"].filter(Boolean).join(" ")} ${pending.id} for ${until(pending.last.started_at)}`;
        const busy = under(run, rows);
        if (!busy) return `running for ${until(run.created_at)}`;
        const tried = attemptOf(busy, agent, now);
        if (busy.last.status === "FAILED") {
            return `at step ${busy.id}, ${tried.words} has failed${tried.next && `, ${tried.next}`}: ${busy.last.error_message ?? ""}`;
        }
        const before = busy.attempts.at(-2);
        const again = before ? `, ${tried.words}` : "";
        const more = running.length > 1 ? ` and ${running.length - 1} more` : "";
        const error = before?.error_message ? `; the attempt before has failed: ${before.error_message}` : "";
        return `running step ${busy.id}${again}${more} for ${until(busy.last.started_at)}${error}`;
    }
    const took = duration(span(run.created_at, run.completed_at ?? run.cancelled_at ?? run.updated_at, now));
    if (run.status === "COMPLETED") return `in ${took}`;
    if (run.status === "CANCELLED") return `after ${took}${run.cancelled_by ? ` by ${run.cancelled_by}` : ""}`;
    const failed = last("FAILED").find((row) => row.last.agent_name) ?? last("FAILED")[0];
    return `after ${took}${failed ? ` at step ${failed.id}` : ""}`;
}
