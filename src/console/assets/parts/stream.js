// The events of one run. The browser resumes a broken stream by itself, after the last entry that it has seen.
import { api, address, ended, list } from "./api.js";
import { effect } from "./runtime.js";

/** @typedef {{ entry: (entry: any) => void, delta?: (delta: any) => void, end: () => void, state: (isOpen: boolean) => void }} Listener */

/** Waits before a refused stream is opened again, doubled each time. */
const FIRST_MS = 1000;
const LONGEST_MS = 60_000;

/** @param {string} runId @param {number | null} after @param {Listener} listener @returns {() => void} */
export function follow(runId, after, listener) {
    const path = { run_id: runId };
    let last = after === null ? "" : String(after);
    let wait = FIRST_MS;
    let isOver = false;
    /** @type {EventSource | null} */
    let source = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    const close = () => {
        clearTimeout(timer);
        source?.close();
        source = null;
        listener.state(false);
    };
    // A page that nobody sees has no stream: a browser has few connections. Neither has one whose session has ended.
    const settle = () => {
        close();
        if (!isOver && !document.hidden && !ended.peek()) open();
    };
    const end = () => {
        isOver = true;
        close();
        listener.end();
    };
    const open = () => {
        const url = address("/runs/{run_id}/events", { path, query: { last_event_id: last } });
        list({ method: "GET", url: address("/runs/{run_id}/events", { path }) });
        const mine = new EventSource(url);
        source = mine;
        mine.onopen = () => {
            wait = FIRST_MS;
            listener.state(true);
        };
        mine.onmessage = (event) => {
            last = event.lastEventId;
            listener.entry(JSON.parse(event.data));
        };
        mine.addEventListener("step.output.delta", (event) => listener.delta?.(JSON.parse(event.data)));
        mine.addEventListener("end", end);
        mine.onerror = async () => {
            listener.state(false);
            if (mine.readyState !== EventSource.CLOSED) return;
            // Refused, and the browser does not say why: a request does. One without credentials asks for them.
            try {
                await api("GET", "/runs/{run_id}", { path, quiet: true });
            } catch (error) {
                if (/** @type {any} */ (error).status === 404 && source === mine) return end();
            }
            if (source !== mine) return;
            timer = setTimeout(settle, wait);
            wait = Math.min(2 * wait, LONGEST_MS);
        };
    };
    document.addEventListener("visibilitychange", settle);
    let before = ended.peek();
    const stop = effect(() => {
        const now = ended.value;
        if (before !== now) settle();
        before = now;
    });
    settle();
    return () => {
        isOver = true;
        stop();
        document.removeEventListener("visibilitychange", settle);
        close();
    };
}
