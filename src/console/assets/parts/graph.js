// A definition or a run as a graph: zoom, and a summary in words.
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./runtime.js";
import { drawGraph, listen, paintGraph, redraw } from "./draw.js";
import { layout } from "./layout.js";

const NOTHING = new Map();

/**
 * @param {{ definition: any, states?: Map<string, any>, choose?: (id: string) => void, chosen?: string | null, label: string,
 *   text?: string }} props `text`: where the same is as text
 */
export function Graph({ definition, states, choose, chosen, label, text }) {
    const frame = useRef(/** @type {SVGSVGElement | null} */ (null));
    const [zoom, setZoom] = useState(1);
    const room = useWidth(frame);
    const placed = useMemo(() => layout(definition, room), [definition, room]);
    const press = useRef(choose);
    press.current = choose;
    const known = states ?? NOTHING;
    const words = useMemo(() => `${summary(placed, known)}${text ? ` ${text}` : ""}`, [placed, known, text]);
    useLayoutEffect(() => {
        const target = frame.current;
        if (target) redraw(target, () => drawGraph(target, placed, known, Boolean(choose)));
    }, [placed]);
    useLayoutEffect(() => {
        if (frame.current) paintGraph(frame.current, placed, known);
    }, [placed, known]);
    useLayoutEffect(() => {
        if (!frame.current) return;
        for (const box of frame.current.querySelectorAll(".box.chosen")) box.classList.remove("chosen");
        if (chosen) find(frame.current, chosen)?.classList.add("chosen");
    }, [chosen, placed]);
    useEffect(() => (frame.current && choose ? listen(frame.current, (id) => press.current?.(id)) : undefined), [Boolean(choose)]);
    const scale = (/** @type {number} */ by) => setZoom(Math.min(2.5, Math.max(0.2, zoom * by)));
    return html`<div class="graph"><div class="graph-scroll" role="region" aria-label=${`${label}: drawing`} tabindex="0">
        <svg ref=${frame} role="group" aria-label=${`${label}. ${words}`} width=${Math.max(1, placed.width * zoom)}
            height=${Math.max(1, placed.height * zoom)} viewBox=${`0 0 ${Math.max(1, placed.width)} ${Math.max(1, placed.height)}`}></svg></div>
        <div class="zoom"><button type="button" class="quiet" aria-label="Larger" onClick=${() => scale(1.25)}>+</button>
        <button type="button" class="quiet" aria-label="Smaller" onClick=${() => scale(0.8)}>−</button>
        <button type="button" class="quiet" title="Original size" onClick=${() => setZoom(1)}>1:1</button></div>
        <p class="sr">${words}</p></div>`;
}

/** The width that there is for a row, in steps, so that not every pixel means another layout.
 * @param {{ current: SVGSVGElement | null }} frame */
function useWidth(frame) {
    const [width, setWidth] = useState(1000);
    useLayoutEffect(() => {
        const around = frame.current?.parentElement;
        if (!around) return undefined;
        const measure = () => setWidth(Math.max(300, Math.floor((around.clientWidth - 64) / 25) * 25));
        const observer = new ResizeObserver(measure);
        observer.observe(around);
        measure();
        return () => observer.disconnect();
    }, []);
    return width;
}

/** @param {Element} frame @param {string} id */
function find(frame, id) {
    const found = [...frame.querySelectorAll("[data-step]")].find((box) => box.getAttribute("data-step") === id);
    return found instanceof SVGElement ? found : null;
}

/** @param {import("./layout.js").Layout} placed @param {Map<string, any>} states */
function summary(placed, states) {
    /** @type {Map<string, number>} */
    const counts = new Map();
    for (const box of placed.boxes) {
        const status = states.get(box.id)?.status;
        if (status) counts.set(status, (counts.get(status) ?? 0) + 1);
    }
    const parts = [...counts].map(([status, count]) => `${count} ${status.toLowerCase()}`);
    return `${placed.boxes.length} steps${parts.length ? `: ${parts.join(", ")}` : ""}.`;
}
