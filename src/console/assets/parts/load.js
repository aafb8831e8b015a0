// Reading in components: what is drawn follows its parameters, and answers to older questions are dropped.
import { useCallback, useEffect, useRef, useState } from "./runtime.js";
import { api } from "./api.js";

/** @typedef {{ data: any, error: any, loading: boolean, reload: () => void, set: (data: any) => void }} Loaded */

/**
 * @param {(signal: AbortSignal) => Promise<any>} read
 * @param {unknown[]} inputs
 * @returns {Loaded}
 */
export function useLoad(read, inputs) {
    const key = JSON.stringify(inputs);
    const [state, setState] = useState(/** @type {any} */ ({ data: null, error: null, loading: true, key: "" }));
    const [turn, setTurn] = useState(0);
    const latest = useRef(read);
    latest.current = read;
    useEffect(() => {
        const abort = new AbortController();
        setState((/** @type {any} */ before) => ({ ...before, data: before.key === key ? before.data : null, loading: true }));
        latest.current(abort.signal).then(
            (data) => abort.signal.aborted || setState({ data, error: null, loading: false, key }),
            (error) => abort.signal.aborted ||
                setState((/** @type {any} */ before) => ({ ...before, error, loading: false, key })),
        );
        return () => abort.abort();
    }, [key, turn]);
    const reload = useCallback(() => setTurn((/** @type {number} */ before) => before + 1), []);
    const set = useCallback(
        (/** @type {any} */ data) => setState((/** @type {any} */ before) => ({ ...before, data })), []);
    const fresh = state.key === key;
    return { data: fresh ? state.data : null, error: fresh ? state.error : null,
        loading: state.loading || !fresh, reload, set };
}

/**
 * GET of one path. A null path reads nothing.
 * @param {string | null} path @param {import("./api.js").Options} [options]
 * @returns {Loaded}
 */
export function useGet(path, options = {}) {
    const { signal: _, ...inputs } = options;
    return useLoad(async (signal) => path && (await api("GET", path, { ...options, signal })), [path, inputs]);
}

/** Runs `work` on each item, a few at a time. @template T, R @param {T[]} items @param {number} width
 * @param {(item: T) => Promise<R>} work @returns {Promise<R[]>} */
export async function each(items, width, work) {
    /** @type {R[]} */
    const results = new Array(items.length);
    let next = 0;
    const lane = async () => {
        while (next < items.length) {
            const index = next++;
            results[index] = await work(/** @type {T} */ (items[index]));
        }
    };
    await Promise.all(Array.from({ length: Math.min(width, items.length) }, lane));
    return results;
}

/** Does `work` again and again while `isOn`, and the page is visible. @param {boolean} isOn @param {number} ms @param {() => void} work */
export function useEvery(isOn, ms, work) {
    const latest = useRef(work);
    latest.current = work;
    useEffect(() => {
        if (!isOn) return undefined;
        const timer = setInterval(() => document.hidden || latest.current(), ms);
        return () => clearInterval(timer);
    }, [isOn, ms]);
}
