// Journeys in real browsers, on a real service. There are two browsers: one works while the other one waits.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { accessJourneys } from "./access-journeys.js";
import { Cable } from "./cable.js";
import { formJourneys } from "./form-journeys.js";
import { hookJourneys } from "./hook-journeys.js";
import { largeJourneys, longJourneys } from "./large-journeys.js";
import { liveJourneys } from "./live-journeys.js";
import { Page } from "./page.js";
import { firstJourneys, runJourneys } from "./run-journeys.js";
import { screenJourneys } from "./screens.js";
import { fill, Service } from "./service.js";
import { stepJourneys } from "./step-journeys.js";

/** @type {Service} */
let service;
/** The pages, each with the key of an administrator of its own and its own way to the service. @type {{ page: Page, key: string, cable: Cable }[]} */
let people = [];
let made;

/** @param {number} who */
const contextOf = (who) => () => ({ service, made, ...people[who] });
/** @param {number} who */
const atOf = (who) => (/** @type {string} */ path) => people[who].page.at(people[who].key, path);

/** What a browser has seen in all its tests. @param {number} who @param {(url: string) => boolean} [isProvoked] */
function clean(who, isProvoked = () => false) {
    test("no request left the service, none was unknown to the OpenAPI document, and the content policy had no report", () => {
        const { page } = people[who];
        const foreign = page.browser.requests.filter((url) => !url.startsWith(page.url) && !/^(data|blob|about):/.test(url));
        assert.deepEqual(foreign, []);
        assert.ok(page.browser.requests.length > 500, `${page.browser.requests.length} requests`);
        assert.deepEqual([...new Set(page.unknown)], []);
        const reports = page.browser.reports.map((one) => JSON.stringify(one)).filter((one) => !isProvoked(one));
        assert.deepEqual(reports.map((one) => one.slice(0, 600)), []);
        // The browser notes the 404 of what another organisation asked for, a moment later than the page does.
        const refused = [made.runs.order.id, made.triggers.incoming.id, made.hooks.good.id, made.hooks.bad.id, made.order.id, made.broken.id];
        // On a machine with too much to do the service refuses what it cannot do in time; the pages ask again.
        const unexpected = page.browser.complaints.filter(({ entry }) => !(entry?.text.includes("503") && entry.url?.includes("/api/v1/")) && !(entry?.text.includes("404") && refused.some((id) => entry.url?.includes(id))));
        assert.deepEqual(unexpected.map((one) => JSON.stringify(one).slice(0, 400)), []);
    });
}

describe("the console", { concurrency: 2 }, () => {
    before(async () => {
        service = await Service.start(process.env.CONSOLE_PROGRAM);
        made = await fill(service);
        const { key } = await service.call("POST", "/api-keys", { name: "the other browser", role: "admin" });
        people = await Promise.all([service.key, key].map(async (key) => {
            const cable = await Cable.to(service.url);
            return { key, cable, page: await Page.open(cable.url) };
        }));
    });

    after(async () => {
        for (const { page, cable } of people) {
            await page.browser.stop();
            cable.close();
        }
        await service?.stop();
    });

    describe("what people do", { concurrency: 1 }, () => {
        const [context, at] = [contextOf(0), atOf(0)];
        runJourneys(context, at);
        formJourneys(context, at);
        liveJourneys(context, at);
        hookJourneys(context, at);
        stepJourneys(context, at);
        firstJourneys(context);
        longJourneys(context, at);
        // The one that a test has provoked shows that reports arrive.
        const isProvoked = (/** @type {string} */ report) => report.includes("https://example.org");
        test("the content policy tells of what it stops", () => assert.ok(people[0].page.browser.reports.some((one) => isProvoked(JSON.stringify(one)))));
        clean(0, isProvoked);
    });

    describe("what screens show", { concurrency: 1 }, () => {
        const [context, at] = [contextOf(1), atOf(1)];
        screenJourneys(context);
        accessJourneys(context, at);
        largeJourneys(context, at);
        clean(1);
    });
});
