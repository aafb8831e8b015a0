// SVG by DOM calls: graphs and timelines. No markup is ever parsed.

const SVG = "http://www.w3.org/2000/svg";

/** @param {string} name @param {Record<string, string | number>} attributes @param {...(Node | string)} children */
export function svg(name, attributes, ...children) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
    element.append(...children);
    return element;
}

/** @param {string} text @param {number} width */
function shorten(text, width) {
    const most = Math.max(4, Math.floor(width / 6.6));
    return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

/** Shapes besides colours, 12 units wide. @type {Record<string, string>} */
export const SHAPES = {
    COMPLETED: "M2 6.5 5 9.5 10 3",
    FAILED: "M3 3 9 9M9 3 3 9",
    RUNNING: "M4 2.5 9.5 6 4 9.5z",
    PENDING: "M6 2.5V6l2.5 1.5",
    SKIPPED: "M2.5 3 6 6 2.5 9M6.5 3 10 6 6.5 9",
    CANCELLED: "M2.5 6H9.5",
};

/** @param {number} x @param {number} y @param {string} status */
function mark(x, y, status) {
    const shape = SHAPES[status];
    if (!shape) return [];
    return [svg("path", { class: "mark", d: shape, transform: `translate(${x} ${y})` })];
}

/** @typedef {Map<string, { status: string, count: number, failed: number, attempts: number }>} States */

/** What each box shows. @type {WeakMap<Element, string>} */
const shown = new WeakMap();

/** Draws a layout. @param {Element} target @param {import("./layout.js").Layout} layout @param {States} states @param {boolean} isButton */
export function drawGraph(target, layout, states, isButton) {
    const edges = svg("g", { class: "edges" }, ...layout.edges.map((edge) => svg("path", { d: edge.path, "marker-end": "url(#arrow)" })));
    const boxes = svg("g", { class: "boxes" }, ...layout.boxes.map((box) => svg("g", { "data-step": box.id, transform: `translate(${box.x} ${box.y})`,
        ...(isButton ? { role: "button", tabindex: -1 } : { role: "img" }) },
    svg("rect", { width: box.width, height: box.height, rx: 7 }),
    svg("text", { x: 12, y: 19, class: "name" }), " ",
    svg("text", { x: box.block ? 20 + Math.min(box.id.length, 24) * 7.4 : 12, y: box.block ? 19 : 35, class: "what" }),
    svg("path", { class: "mark", transform: `translate(${box.width - 22} 9)` }), " ",
    svg("text", { x: box.width - 10, y: 36, class: "count", "text-anchor": "end" }))));
    const notes = svg("g", { class: "notes" });
    for (const note of layout.notes) notes.append(svg("text", { x: note.x, y: note.y }, shorten(note.text, 400)));
    const arrow = svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 6, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
        svg("path", { d: "M0 0.5 7 4 0 7.5z" }));
    target.replaceChildren(svg("defs", {}, arrow), boxes, edges, notes);
    boxes.firstElementChild?.setAttribute("tabindex", isButton ? "0" : "-1");
    paintGraph(target, layout, states);
}

/** Shows these states in a layout that is drawn. No element is replaced, so that no press on one is lost.
 * @param {Element} target @param {import("./layout.js").Layout} layout @param {States} states */
export function paintGraph(target, layout, states) {
    const [, boxes, edges] = target.children;
    for (const [index, box] of layout.boxes.entries()) {
        const group = boxes?.children[index];
        const state = states.get(box.id);
        const status = state?.status ?? "";
        const count = state && state.count > 1 && !box.block ? `×${state.count}` : "";
        const now = `${status} ${count} ${state?.failed}`;
        if (!group || shown.get(group) === now) continue;
        shown.set(group, now);
        const name = shorten(box.id, box.width - (status ? 40 : 24));
        const what = shorten(box.label, box.block ? box.width - 60 - Math.min(box.id.length, 24) * 7.4 : box.width - 24);
        // What is seen comes first, so that it can be said to a computer; then what was cut off.
        const words = [[name, what, count].filter(Boolean).join(" "), name === box.id ? "" : box.id, what === box.label ? "" : box.label,
            status.toLowerCase(), state?.failed && state.count > 1 ? `${state.failed} failed` : ""];
        group.setAttribute("class", `box ${box.block ? "block" : "leaf"} s-${status || "none"} t-${box.type}${group.classList.contains("chosen") ? " chosen" : ""}`);
        group.setAttribute("aria-label", words.filter(Boolean).join(", "));
        const [, title, about, mark, times] = group.children;
        if (title) title.textContent = name;
        if (about) about.textContent = what;
        mark?.setAttribute("d", SHAPES[status] ?? "");
        if (times) times.textContent = count;
    }
    for (const [index, edge] of layout.edges.entries()) {
        edges?.children[index]?.setAttribute("class", states.has(edge.from) && states.has(edge.to) ? "edge taken" : "edge");
    }
}

/** Draws again; the keyboard stays at the step where it is. @param {Element} target @param {() => void} draw */
export function redraw(target, draw) {
    const name = (/** @type {Element | null} */ box) => box && (box.getAttribute("data-key") ?? box.getAttribute("data-step"));
    const before = target.contains(document.activeElement) ? name(document.activeElement) : null;
    draw();
    if (before === null) return;
    const boxes = [...target.querySelectorAll("[data-step]")];
    const box = boxes.find((one) => name(one) === before);
    if (!(box instanceof SVGElement)) return;
    boxes[0]?.setAttribute("tabindex", "-1");
    box.setAttribute("tabindex", "0");
    box.focus({ preventScroll: true });
}

/** Keys and presses of a drawn graph. Returns what ends it. @param {Element} target @param {(id: string) => void} choose */
export function listen(target, choose) {
    const stepOf = (/** @type {Event} */ event) =>
        event.target instanceof Element ? event.target.closest("[data-step]") : null;
    const press = (/** @type {Event} */ event) => {
        const step = stepOf(event)?.getAttribute("data-step");
        if (step) choose(step);
    };
    const key = (/** @type {Event} */ event) => {
        if (!(event instanceof KeyboardEvent)) return;
        const current = stepOf(event);
        if (!current) return;
        if (event.key === "Enter" || event.key === " ") {
            event.preventDefault();
            choose(current.getAttribute("data-step") ?? "");
            return;
        }
        const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (!move) return;
        event.preventDefault();
        const all = [...target.querySelectorAll("[data-step]")];
        const next = all[all.indexOf(current) + move];
        if (next instanceof SVGElement) {
            current.setAttribute("tabindex", "-1");
            next.setAttribute("tabindex", "0");
            next.focus();
        }
    };
    target.addEventListener("click", press);
    target.addEventListener("keydown", key);
    return () => {
        target.removeEventListener("click", press);
        target.removeEventListener("keydown", key);
    };
}

/** @typedef {{ key: string, step: string, name: string, depth: number, bars: { from: number, until: number, status: string, words: string }[] }} Track */

const TRACK = { height: 24, label: 220, width: 1000 };

/**
 * Bars over time: a track for each step, a bar for each attempt.
 * @param {Element} target @param {Track[]} tracks @param {number} from @param {number} until
 * @param {(ms: number) => string} words
 */
export function drawTimeline(target, tracks, from, until, words) {
    const room = TRACK.width - TRACK.label - 92;
    const at = (/** @type {number} */ time) => TRACK.label + ((time - from) / Math.max(1, until - from)) * room;
    const grid = svg("g", { class: "grid" });
    for (let tick = 0; tick <= 4; tick++) {
        const x = TRACK.label + (room * tick) / 4;
        grid.append(
            svg("line", { x1: x, x2: x, y1: 22, y2: 26 + tracks.length * TRACK.height }),
            svg("text", { x, y: 14, "text-anchor": "middle" }, words(((until - from) * tick) / 4)),
        );
    }
    const rows = svg("g", {});
    for (const [index, track] of tracks.entries()) {
        const y = 26 + index * TRACK.height;
        const name = shorten(track.name, TRACK.label - 16 - track.depth * 14);
        const last = track.bars.at(-1);
        const took = last ? words(last.until - last.from) : "";
        const row = svg("g", { class: "track", "data-step": track.step, "data-key": track.key, role: "button", tabindex: index ? -1 : 0,
            "aria-label": `${name} ${took}, ${name === track.name ? "" : `${track.name}, `}${track.bars.map((bar) => bar.words).join("; ")}` });
        row.append(
            svg("rect", { class: "hit", x: 0, y, width: TRACK.width, height: TRACK.height }),
            svg("text", { x: 8 + Math.min(track.depth, 8) * 14, y: y + 16, class: "name" },
                name), " ",
        );
        for (const bar of track.bars) {
            const x = at(bar.from);
            const width = Math.max(3, at(bar.until) - x);
            row.append(svg("rect", { class: `bar s-${bar.status}`, x, y: y + 5, rx: 3, height: TRACK.height - 10, width }));
            if (width > 16) row.append(svg("g", { class: "in-bar" }, ...mark(x + 2, y + 6, bar.status)));
        }
        if (last) {
            const x = at(last.until) + 6;
            row.append(svg("g", { class: `s-${last.status}` }, ...mark(x, y + 6, last.status)), svg("text", { x: x + 15, y: y + 16, class: "took" }, took));
        }
        rows.append(row);
    }
    target.setAttribute("viewBox", `0 0 ${TRACK.width} ${34 + tracks.length * TRACK.height}`);
    target.replaceChildren(grid, rows);
}
