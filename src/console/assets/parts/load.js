// Reading in components: what is drawn follows its parameters, and answers to older questions are dropped.
import { use, useCallback, useEffect, useRef, useState } from "./runtime.js";
import { api, ended } from "./api.js";

/** @typedef {{ data: any, error: any, loading: boolean, reload: () => void, set: (data: any) => void }} Loaded */

/**
 * @param {(signal: AbortSignal) => Promise<any>} read
 * @param {unknown[]} inputs
 * @returns {Loaded}
 */
export function useLoad(read, inputs) {
    const key = JSON.stringify(inputs);
    const [state, setState] = useState(/** @type {any} */ ({ data: null, error: null, loading: true, key: "" }));
    const latest = useRef(read);
    latest.current = read;
    const work = useRef(() => {});
    useEffect(() => {
        const abort = new AbortController();
        let isBusy = false;
        let again = false;
        // A reading that is under way comes to its end, however often another one is asked for; then there is one more.
        work.current = async () => {
            again = isBusy;
            if (isBusy) return;
            isBusy = true;
            setState((/** @type {any} */ before) => ({ ...before, data: before.key === key ? before.data : null, loading: true }));
            do {
                again = false;
                /** @type {any} */
                let change;
                try {
                    change = { data: await latest.current(abort.signal), error: null };
                } catch (error) {
                    change = { error };
                }
                if (abort.signal.aborted) return;
                setState((/** @type {any} */ before) => ({ ...before, ...change, loading: false, key }));
            } while (again);
            isBusy = false;
        };
        work.current();
        return () => abort.abort();
    }, [key]);
    const reload = useCallback(() => work.current(), []);
    const set = useCallback(
        (/** @type {any} */ data) => setState((/** @type {any} */ before) => ({ ...before, data })), []);
    // What was refused because the session had ended is read when there is another one.
    const isOver = use(ended);
    useEffect(() => {
        if (!isOver && state.error?.status === 401) reload();
    }, [isOver]);
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

/** The pages of a list, one after the other, until there are `most` items. @param {(cursor: string | null, isFirst: boolean) => Promise<{ items: any[], next: string | null }>} read
 * @param {number} most @param {(count: number) => void} [progress] @returns {Promise<{ items: any[], isCut: boolean }>} */
export async function pages(read, most, progress) {
    /** @type {any[]} */
    const items = [];
    /** @type {string | null} */
    let cursor = null;
    do {
        const page = await read(cursor, cursor === null);
        items.push(...page.items);
        cursor = page.next;
        progress?.(items.length);
    } while (cursor && items.length < most);
    return { items, isCut: cursor !== null };
}

/** Does `work` when nothing of its inputs has changed for a while. @param {number} ms @param {unknown[]} inputs @param {(signal: AbortSignal) => unknown} work */
export function useSettled(ms, inputs, work) {
    useEffect(() => {
        const abort = new AbortController();
        const timer = setTimeout(() => work(abort.signal), ms);
        return () => {
            clearTimeout(timer);
            abort.abort();
        };
    }, inputs);
}

/** Does `work` again and again while `isOn`, the page is visible, and somebody is signed in.
 * @param {boolean} isOn @param {number} ms @param {() => void} work */
export function useEvery(isOn, ms, work) {
    const latest = useRef(work);
    latest.current = work;
    useEffect(() => {
        if (!isOn) return undefined;
        const turn = () => document.hidden || ended.peek() || latest.current();
        const timer = setInterval(turn, ms);
        // What was not seen for a while is old.
        document.addEventListener("visibilitychange", turn);
        return () => {
            clearInterval(timer);
            document.removeEventListener("visibilitychange", turn);
        };
    }, [isOn, ms]);
}
