// Many rows, many steps, many hours; browser.test.js runs them.
import assert from "node:assert/strict";
import { test } from "node:test";

/** @param {() => { service: import("./service.js").Service, page: import("./page.js").Page, made: any }} context
 * @param {(path: string) => Promise<void>} at */
export function largeJourneys(context, at) {
    test("ten thousand runs are walked through by keyset pages, each one once", async () => {
        const { page } = context();
        await at("/console/runs?name=many&page_size=100&cols=run");
        const walked = await page.browser.evaluate(`(async () => {
            const ids = new Set(); let pages = 0, most = 0;
            const rows = () => [...document.querySelectorAll("tr[data-row] a")].map((one) => one.title);
            const until = (look) => new Promise((resolve) => { const observer = new MutationObserver(() => { if (look()) { observer.disconnect(); resolve(); } });
                observer.observe(document, { subtree: true, childList: true, attributes: true }); if (look()) { observer.disconnect(); resolve(); } });
            await until(() => rows().length > 0);
            for (;;) {
                const shown = rows(); pages++; most = Math.max(most, shown.length);
                for (const id of shown) ids.add(id);
                const next = $find("button", "Next");
                if (!next) return { ids: ids.size, pages, most };
                next.click();
                await until(() => rows().length > 0 && rows()[0] !== shown[0]);
            }
        })()`);
        console.log(`first paint after ${await page.browser.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime.toFixed(0)")} ms`);
        assert.deepEqual(walked, { ids: 10_000, pages: 100, most: 100 });
    });

    test("a run of 2000 steps is drawn as fast as the browser makes that many elements", async () => {
        const { page, service, made } = context();
        await service.ended(made.runs.long.id);
        await at(`/console/runs/${made.runs.long.id}`);
        await page.browser.until("document.querySelectorAll('.box').length === 2000", "2000 boxes");
        assert.equal(await page.browser.evaluate("document.querySelectorAll('.edge').length"), 1999);
        const { drawn, bare, elements } = await page.browser.evaluate(`(async () => {
            const base = document.querySelector("link[rel=stylesheet]").href.replace(/style\\.css$/, "parts/");
            const [{ layout }, { drawGraph }] = await Promise.all([import(base + "layout.js"), import(base + "draw.js")]);
            const steps = Object.fromEntries(Array.from({ length: 2000 }, (_, n) => ["s" + n, { id: "s" + n, agent_name: "a", next_step: n < 1999 ? "s" + (n + 1) : null }]));
            const states = new Map(Object.keys(steps).map((id) => [id, { status: "COMPLETED", count: 1, failed: 0, attempts: 1 }]));
            const frame = document.createElementNS("http://www.w3.org/2000/svg", "svg");
            document.body.append(frame);
            const time = (work) => { let best = Infinity; for (let turn = 0; turn < 7; turn++) { const from = performance.now(); work(); frame.getBoundingClientRect(); best = Math.min(best, performance.now() - from); } return best; };
            const drawn = time(() => drawGraph(frame, layout({ start_step: "s0", steps }), states, () => {}));
            const elements = frame.querySelectorAll("*").length;
            const bare = time(() => { const all = []; for (let n = 0; n < elements; n++) { const one = document.createElementNS("http://www.w3.org/2000/svg", n % 3 ? "text" : "rect");
                for (const name of ["x", "y", "class"]) one.setAttribute(name, n); one.textContent = "s" + n; all.push(one); } frame.replaceChildren(...all); });
            frame.remove();
            return { drawn, bare, elements };
        })()`);
        console.log(`2000 steps, ${elements} elements: drawn in ${drawn.toFixed(0)} ms, bare elements in ${bare.toFixed(0)} ms`);
        assert.ok(drawn < bare * 4, `${drawn} ms is more than four times ${bare} ms`);
    });

}

/** A console that is left open. @param {() => { service: import("./service.js").Service, page: import("./page.js").Page, made: any }} context
 * @param {(path: string) => Promise<void>} at */
export function longJourneys(context, at) {
    test("a console that is left open keeps nothing: twenty rounds later there are as many nodes, listeners and streams", async () => {
        const { service, page, made } = context();
        const count = async () => {
            await page.browser.call("HeapProfiler.enable");
            await page.browser.call("HeapProfiler.collectGarbage");
            const { metrics } = await page.browser.call("Performance.getMetrics");
            const of = (/** @type {string} */ name) => metrics.find((/** @type {any} */ metric) => metric.name === name).value;
            return { nodes: of("Nodes"), listeners: of("JSEventListeners"), streams: await page.browser.evaluate("window.$streams.size") };
        };
        await page.browser.call("Performance.enable");
        await at("/console/system");
        await page.settled();
        await page.browser.evaluate(`window.$until = (look) => new Promise((resolve, reject) => {
            const late = setTimeout(() => { observer.disconnect(); reject(new Error(look + " did not come; the page shows " + document.body.innerText)); }, 60_000);
            const done = () => { if (look()) { clearTimeout(late); observer.disconnect(); resolve(); } };
            const observer = new MutationObserver(done);
            observer.observe(document, { subtree: true, childList: true, characterData: true, attributes: true });
            done(); });
            window.$go = (path) => { const link = document.createElement("a"); link.href = path; document.body.append(link); link.click(); link.remove(); }`);
        // Lists, the editor, a dialog, a run that waits, and a run whose output comes in pieces.
        const round = async () => {
            const spoken = await service.call("POST", "/workflow-names/brief/execute", { input_data: { text: "one two three" } });
            await page.browser.evaluate(`(async () => {
                const settled = (words) => $until(() => document.querySelector("main h1")?.innerText === words && !document.querySelector(".loading"));
                for (const words of ["Runs", "Approvals", "Agents", "Workflows"]) { [...document.querySelectorAll("nav a")].find((a) => a.innerText.trim() === words).click(); await settled(words); }
                $go("/console/workflows/new");
                await $until(() => document.querySelector("#findings")?.innerText.includes("valid"));
                $go("/console/keys");
                await settled("API keys");
                $find("button", "New key").click();
                await $until(() => document.querySelector("dialog[open]"));
                $find("dialog button", "Close").click();
                await $until(() => !document.querySelector("dialog"));
                $go("/console/runs/${made.runs.held.id}?tab=timeline");
                await $until(() => document.querySelector(".track") && document.querySelector(".live")?.innerText === "live");
                if ($streams.size !== 1) throw new Error($streams.size + " streams");
                $go("/console/runs/${spoken.id}?step=say");
                await $until(() => document.querySelector(".run-words .status")?.innerText.includes("completed"));
                $go("/console/system");
                await settled("System");
            })()`);
        };
        for (let turn = 0; turn < 3; turn++) await round();
        const first = await count();
        for (let turn = 0; turn < 20; turn++) await round();
        const last = await count();
        assert.ok(last.nodes < first.nodes * 1.3 + 300 && last.listeners < first.listeners * 1.3 + 60, `${JSON.stringify(first)} became ${JSON.stringify(last)}`);
        assert.deepEqual([first.streams, last.streams], [0, 0]);
    });
}
