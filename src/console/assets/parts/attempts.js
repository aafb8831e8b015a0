// The attempts of a run, page by page.
import { call } from "./api.js";
import { pages } from "./load.js";

/** Attempts on a page, without and with their inputs and outputs, which can be large. */
const PAGE = 1000;
const WHOLE = 50;
/** Pages at the end that are always read again: attempts that begin together need not arrive in order. */
const FRESH = 2;

/** @param {string} runId @param {string | null} cursor @param {boolean} data @param {AbortSignal} signal */
async function read(runId, cursor, data, signal) {
    const page = await call("GET", "/runs/{run_id}/steps", { path: { run_id: runId }, query: { data: data ? null : false, page_size: data ? WHOLE : PAGE, cursor }, signal, quiet: cursor !== null });
    const next = /[?&]cursor=([^&>]+)[^>]*>;\s*rel="?next/.exec(page.headers.get("link") ?? "");
    return { cursor, items: /** @type {any[]} */ (page.data), next: next?.[1] ? decodeURIComponent(next[1]) : null };
}

/** With inputs and outputs. @param {string} runId @param {number} most @param {AbortSignal} signal */
export const readWhole = (runId, most, signal) => pages((cursor) => read(runId, cursor, true, signal), most);

/** A reader of the attempts of a run without inputs and outputs. A page of which all have ended is not read again.
 * @param {string} runId @param {number} most @param {typeof read} [readPage] */
export function reader(runId, most, readPage = read) {
    /** @type {Awaited<ReturnType<typeof read>>[]} */
    let kept = [];
    return async (/** @type {AbortSignal} */ signal) => {
        /** @type {typeof kept} */
        const now = [];
        const found = await pages(async (cursor) => {
            const before = now.length < kept.length - FRESH ? kept[now.length] : undefined;
            const isOver = before?.cursor === cursor && before.items.every((one) => one.status !== "RUNNING" && one.status !== "PENDING");
            const page = before && isOver ? before : await readPage(runId, cursor, false, signal);
            now.push(page);
            return page;
        }, most);
        kept = now;
        return found;
    };
}
