// The vendored runtime, and the one piece of glue between signals and components.
export {
    html, render, useState, useEffect, useLayoutEffect, useRef, useMemo, useCallback, useErrorBoundary,
} from "../vendor/htm-preact-standalone.module.js";
export { signal, computed, effect, batch } from "../vendor/signals-core.js";
import { useReducer, useEffect } from "../vendor/htm-preact-standalone.module.js";
import { effect } from "../vendor/signals-core.js";

/**
 * The value of a signal; the component is drawn again when it changes.
 * @template T
 * @param {{ readonly value: T, peek(): T }} source
 * @returns {T}
 */
export function use(source) {
    const shown = source.peek();
    const [, redraw] = useReducer((/** @type {number} */ count) => count + 1, 0);
    useEffect(() => {
        let last = shown;
        return effect(() => {
            const value = source.value;
            if (value !== last) redraw(0);
            last = value;
        });
    }, [source]);
    return shown;
}
