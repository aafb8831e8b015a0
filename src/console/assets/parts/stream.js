// The events of one run. The browser resumes a broken stream by itself, after the last entry that it has seen.
import { prefix } from "./api.js";

/** @typedef {{ entry: (entry: any) => void, delta?: (delta: any) => void, end: () => void, state: (isOpen: boolean) => void }} Listener */

const AGAIN_MS = 3000;

/** @param {string} runId @param {number | null} after @param {Listener} listener @returns {() => void} */
export function follow(runId, after, listener) {
    let last = after === null ? "" : String(after);
    /** @type {EventSource | null} */
    let source = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    const open = () => {
        const query = last === "" ? "" : `?last_event_id=${encodeURIComponent(last)}`;
        source = new EventSource(`${prefix}/runs/${encodeURIComponent(runId)}/events${query}`);
        source.onopen = () => listener.state(true);
        source.onmessage = (event) => {
            last = event.lastEventId;
            listener.entry(JSON.parse(event.data));
        };
        source.addEventListener("step.output.delta", (event) => listener.delta?.(JSON.parse(event.data)));
        source.addEventListener("end", () => {
            source?.close();
            listener.state(false);
            listener.end();
        });
        source.onerror = () => {
            listener.state(false);
            // Refused (overload, a restart): the browser does not come back by itself.
            if (source?.readyState === EventSource.CLOSED) timer = setTimeout(open, AGAIN_MS);
        };
    };
    open();
    return () => {
        clearTimeout(timer);
        source?.close();
    };
}
