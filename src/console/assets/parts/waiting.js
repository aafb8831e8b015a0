// What waits for people. The API tells it for each run, so running runs are looked through, a page at a time.
import { useState } from "./runtime.js";
import { api } from "./api.js";
import { each, useGet, useLoad } from "./load.js";

/** Runs that are looked through at a time. */
export const PAGE = 25;

/** Open callbacks of a page of running runs. @param {string | null} cursor */
export function useWaiting(cursor) {
    const runs = useGet("/runs", { query: { status: "RUNNING", page_size: PAGE, cursor } });
    const [turn, setTurn] = useState(0);
    /** @type {any[]} */
    const items = runs.data?.items ?? [];
    const open = useLoad((signal) => each(items, 4, async (run) => ({
        run, callbacks: await api("GET", "/runs/{run_id}/callbacks", { path: { run_id: run.id }, signal, quiet: run !== items[0] }),
    })), [items.map((run) => run.id), turn]);
    /** @type {{ run: any, callbacks: any[] }[]} */
    const read = open.data ?? [];
    const found = read.map(({ run, callbacks }) => ({ run, callbacks: callbacks.filter((one) => one.step_execution_id !== null) })).filter((one) => one.callbacks.length);
    const error = runs.error ?? open.error;
    return { found, runs, items, error, isCut: Boolean(runs.data?.next_cursor), loading: !error && (!runs.data || !open.data),
        changed: () => (runs.reload(), setTurn(turn + 1)) };
}
