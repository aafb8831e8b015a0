// A real browser, driven over the DevTools protocol through a pipe, as tests/process/chromium.rs does.
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const PROGRAMS = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome", "/snap/bin/chromium"];

/** How long a change of the page is waited for before the test fails. */
const PATIENCE_MS = Number(process.env.CONSOLE_PATIENCE_MS ?? 180_000);

export class Chromium {
    /** What the browser complained about: errors of the console, of the content policy, exceptions. @type {any[]} */
    complaints = [];
    /** What the content policy has stopped; never cleared. @type {any[]} */
    reports = [];
    /** Addresses of all requests. @type {string[]} */
    requests = [];
    #waiting = new Map();
    #listeners = new Set();
    #id = 0;
    #session = "";

    /** Starts it without a window, on an empty page. */
    static async start() {
        const browser = new Chromium();
        await browser.#begin();
        return browser;
    }

    async #begin() {
        const program = [process.env.CHROMIUM, ...PROGRAMS].find((path) => path && existsSync(path));
        if (!program) throw new Error("Chromium is not installed");
        this.directory = mkdtempSync(join(tmpdir(), "console-chromium-"));
        const options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
            // The network is cut: only this machine is reached, and no name is resolved.
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
            `--user-data-dir=${this.directory}`, "--remote-debugging-pipe", "about:blank"];
        this.child = spawn(program, options, { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
        this.to = this.child.stdio[3];
        let rest = Buffer.alloc(0);
        this.child.stdio[4].on("data", (chunk) => {
            rest = Buffer.concat([rest, chunk]);
            for (let end = rest.indexOf(0); end !== -1; end = rest.indexOf(0)) {
                this.#take(JSON.parse(rest.subarray(0, end).toString()));
                rest = rest.subarray(end + 1);
            }
        });
        this.child.on("exit", () => {
            for (const { reject } of this.#waiting.values()) reject(new Error("the browser ended"));
        });
        await this.attach();
    }

    /** A page of its own with its own cookies. */
    async attach() {
        this.#session = "";
        const { browserContextId } = await this.call("Target.createBrowserContext", {});
        const { targetId } = await this.call("Target.createTarget", { url: "about:blank", browserContextId });
        const { sessionId } = await this.call("Target.attachToTarget", { targetId, flatten: true });
        this.#session = sessionId;
        for (const domain of ["Page", "Log", "Runtime", "Audits", "Network"]) await this.call(`${domain}.enable`, {});
    }

    #take(message) {
        if (message.id) {
            const waiting = this.#waiting.get(message.id);
            this.#waiting.delete(message.id);
            if (message.error) waiting?.reject(new Error(`${waiting.method}: ${JSON.stringify(message.error)}`));
            else waiting?.resolve(message.result);
            return;
        }
        const { method, params } = message;
        if (method === "Network.requestWillBeSent") this.requests.push(params.request.url);
        const complains = (method === "Log.entryAdded" && params.entry.level === "error")
            || (method === "Runtime.consoleAPICalled" && params.type === "error") || method === "Runtime.exceptionThrown";
        const isPolicy = (method === "Audits.issueAdded" && params.issue.code === "ContentSecurityPolicyIssue")
            || (complains && /content security policy/i.test(JSON.stringify(params)));
        if (isPolicy) this.reports.push(params);
        else if (complains) this.complaints.push(params);
        for (const listener of this.#listeners) listener(message);
    }

    call(method, params = {}) {
        const id = ++this.#id;
        const message = { id, method, params, ...(this.#session ? { sessionId: this.#session } : {}) };
        return new Promise((resolve, reject) => {
            this.#waiting.set(id, { resolve, reject, method });
            this.to.write(`${JSON.stringify(message)}\0`);
        });
    }

    /** The next event with this name. */
    next(method) {
        return new Promise((resolve) => {
            const listener = (message) => {
                if (message.method !== method) return;
                this.#listeners.delete(listener);
                resolve(message.params);
            };
            this.#listeners.add(listener);
        });
    }

    /** Until what it returns is called. */
    on(method, work) {
        const listener = (message) => message.method === method && work(message.params);
        this.#listeners.add(listener);
        return () => void this.#listeners.delete(listener);
    }

    /** Loads a page. */
    async go(url) {
        const loaded = this.next("Page.loadEventFired");
        await this.call("Page.navigate", { url });
        await loaded;
    }

    /** The value of an expression; of a promise, what it comes to. */
    async evaluate(expression) {
        const { result, exceptionDetails } = await this.call("Runtime.evaluate",
            { expression, awaitPromise: true, returnByValue: true, userGesture: true });
        if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
        return result.value;
    }

    /** Waits until the expression is true: the page tells of each change of its content. */
    async until(expression, what = expression) {
        const script = `new Promise((resolve) => {
            const look = () => { try { return (${expression}); } catch { return false; } };
            const found = look();
            if (found) return resolve(found);
            const done = (value) => { observer.disconnect(); clearInterval(timer); resolve(value); };
            const observer = new MutationObserver(() => { const value = look(); if (value) done(value); });
            observer.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
            const begun = performance.now();
            const timer = setInterval(() => { const value = look();
                if (value) done(value); else if (performance.now() - begun > ${PATIENCE_MS}) done(null); }, 100);
        })`;
        const value = await this.evaluate(script);
        if (!value) {
            const page = await this.evaluate("document.body.innerText.slice(0, 3000)");
            throw new Error(`${what} did not come; the page shows:\n${page}`);
        }
        return value;
    }

    /** A key, as a person presses it. */
    async press(key, modifiers = 0) {
        const text = key.length === 1 ? key : key === "Enter" ? "\r" : undefined;
        const code = { Escape: 27, Enter: 13, Tab: 9, ArrowRight: 39 }[key];
        const about = { key, modifiers, ...(code ? { windowsVirtualKeyCode: code } : {}) };
        await this.call("Input.dispatchKeyEvent", { type: "keyDown", ...about, ...(text ? { text } : {}) });
        await this.call("Input.dispatchKeyEvent", { type: "keyUp", ...about });
    }

    async stop() {
        const ended = new Promise((resolve) => this.child.on("exit", resolve));
        // Asked to close, it ends its other processes first; killed, it would leave them writing into the folder.
        this.#session = "";
        this.call("Browser.close").catch(() => this.child.kill("SIGKILL"));
        await ended;
        rmSync(this.directory, { recursive: true, force: true, maxRetries: 5 });
    }
}
