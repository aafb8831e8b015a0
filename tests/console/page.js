// What a person does in the console, by what they see: names of buttons, labels of fields.
import { Chromium } from "./chromium.js";
import { document as openapi, operationOf } from "./openapi.js";

/** In the page: visible elements by their words. */
const LIBRARY = `window.$find = (selector, words) => [...document.querySelectorAll(selector)].find((element) => {
    const name = (element.getAttribute("aria-label") || element.innerText || "").trim();
    return (name === words || (element.innerText ?? "").trim() === words) && !element.disabled && element.checkVisibility();
});
window.$field = (words) => {
    const label = [...(document.querySelector("dialog[open]") ?? document).querySelectorAll("label")].find((one) => one.innerText.trim().startsWith(words) && one.checkVisibility());
    return label ? (label.htmlFor ? document.getElementById(label.htmlFor) : label.querySelector("input, select, textarea"))
        : document.querySelector('[aria-label="' + words + '"]');
};
/* What the page does again and again it does at least twice a second, so that nobody waits for it. */
const again = window.setInterval;
window.setInterval = (work, ms, ...rest) => again(work, Math.min(ms ?? 0, 500), ...rest);
/* Streams of events that are open. */
window.$streams = new Set();
const Source = window.EventSource;
window.EventSource = class extends Source {
    constructor(url) { super(url); window.$streams.add(this); }
    close() { super.close(); window.$streams.delete(this); }
};`;

export class Page {
    /** @param {string} url */
    static async open(url) {
        const page = new Page();
        page.url = url;
        page.browser = await Chromium.start();
        await page.fresh();
        /** Requests that the OpenAPI document does not have. @type {string[]} */
        page.unknown = [];
        page.browser.on("Network.requestWillBeSent", ({ request }) => page.check(request));
        page.browser.on("Page.javascriptDialogOpening", () => page.browser.call("Page.handleJavaScriptDialog", { accept: page.leaves ?? true }));
        return page;
    }

    /** Another person: other cookies. */
    async fresh() {
        await this.browser.attach();
        await this.browser.call("Page.addScriptToEvaluateOnNewDocument", { source: LIBRARY });
        await this.size(1280);
    }

    check({ url, method }) {
        const address = new URL(url);
        if (!address.pathname.startsWith("/api/v1")) return;
        const found = operationOf(method, address.pathname);
        if (!found) return void this.unknown.push(`${method} ${address.pathname}`);
        const names = new Set((openapi.paths[found.path][method.toLowerCase()].parameters ?? []).filter((one) => one.in === "query").map((one) => one.name));
        for (const name of address.searchParams.keys()) if (!names.has(name)) this.unknown.push(`${method} ${found.path}?${name}`);
    }

    size(width, height = 860) {
        return this.browser.call("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: false });
    }

    theme(theme) {
        return this.browser.call("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: theme }] });
    }

    async go(path) {
        await this.browser.go(this.url + path);
    }

    /** A screen, for somebody who signs in if nobody has. @param {string} key @param {string} path */
    async at(key, path) {
        await this.go(path);
        const needsKey = await this.browser.until("document.querySelector('#credential') ? 'sign in' : document.querySelector('main h1') && 'in'");
        if (needsKey === "sign in") await this.signIn(key, path);
    }

    async signIn(key, path = "/console") {
        await this.go(path);
        await this.fill("API key or token", key);
        await this.press("Sign in");
        await this.sees("#main h1");
    }

    /** The screen is there, and nothing is on its way any more. */
    settled() {
        return this.browser.until("document.querySelector('main h1') && !document.querySelector('.loading')", "the screen");
    }

    sees(selector) {
        return this.browser.until(`document.querySelector(${JSON.stringify(selector)})?.checkVisibility()`, selector);
    }

    reads(words) {
        return this.browser.until(`document.body.innerText.includes(${JSON.stringify(words)})`, JSON.stringify(words));
    }

    async press(words, selector = "button, a") {
        const found = `$find(${JSON.stringify(selector)}, ${JSON.stringify(words)})`;
        await this.browser.until(`Boolean(${found})`, `a button "${words}"`);
        await this.browser.evaluate(`${found}.focus(), ${found}.click()`);
    }

    async fill(label, text) {
        const found = `$field(${JSON.stringify(label)})`;
        await this.browser.until(`Boolean(${found})`, `a field "${label}"`);
        await this.browser.evaluate(`(() => { const field = ${found}; field.focus();
            Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), "value").set.call(field, ${JSON.stringify(text)});
            field.dispatchEvent(new Event("input", { bubbles: true })); field.dispatchEvent(new Event("change", { bubbles: true })); })()`);
    }

    text() {
        return this.browser.evaluate("document.body.innerText");
    }
}
