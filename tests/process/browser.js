// Run in the page of /docs: for every operation opens it, presses "Try it out", fills in the path, presses "Execute",
// and waits for the answer. `values` has a value for a parameter, or for one of an operation: `operationId parameter`.
async (values) => {
    const until = async (what, look) => {
        for (let tries = 0; tries < 600; tries++) {
            const found = look();
            if (found) return found;
            await new Promise((resume) => setTimeout(resume, 50));
        }
        throw new Error(`${what} did not come`);
    };
    // React listens for events, and sees a change only if the value is set behind its back. Swagger UI takes the value
    // over when the field is left.
    const fill = (input, text) => {
        Object.getOwnPropertyDescriptor(Object.getPrototypeOf(input), "value").set.call(input, text);
        input.dispatchEvent(new Event("input", { bubbles: true }));
        input.dispatchEvent(new FocusEvent("focusout", { bubbles: true }));
    };
    await until("the list of operations", () => document.querySelector(".opblock"));
    const answers = {};
    const attempt = async (id) => {
        const block = () => document.getElementById(id);
        const operation = id.split("-").pop();
        block().querySelector(".opblock-summary-control").click();
        (await until(`${id}: Try it out`, () => block().querySelector(".try-out__btn"))).click();
        const execute = await until(`${id}: Execute`, () => block().querySelector(".execute"));
        for (const row of block().querySelectorAll("tr[data-param-name]")) {
            const name = row.dataset.paramName;
            const value = values[`${operation} ${name}`] ?? (row.dataset.paramIn === "path" ? values[name] : undefined);
            if (value !== undefined) fill(row.querySelector("input, textarea"), value);
        }
        execute.click();
        const status = await until(`${id}: an answer`, () =>
            block().querySelector(".live-responses-table tbody .response-col_status"));
        const url = block().querySelector(".request-url pre").innerText;
        const body = block().querySelector(".live-responses-table tbody .response-col_description").innerText;
        answers[operation] = { status: status.innerText.trim().split("\n")[0], url, body: body.slice(0, 1000) };
        block().querySelector(".opblock-summary-control").click();
    };
    // Each change renders all operations on the page anew, so only those of one tag are open at a time.
    const tags = new Set([...document.querySelectorAll(".opblock-tag")].map((tag) => tag.id));
    const toggle = (tag) => document.getElementById(tag).click();
    await until("the end of the list", () => {
        document.querySelector(".opblock-tag[data-is-open=true]")?.click();
        return !document.querySelector(".opblock-tag-section .opblock");
    });
    // What the service itself sends, the events, has no tag and cannot be tried.
    for (const tag of tags) {
        toggle(tag);
        await until(`the operations of ${tag}`, () => document.querySelector(".opblock-tag-section .opblock"));
        for (const id of [...document.querySelectorAll(".opblock-tag-section .opblock")].map((block) => block.id)) await attempt(id);
        toggle(tag);
        await until(`the end of ${tag}`, () => !document.querySelector(".opblock-tag-section .opblock"));
    }
    return answers;
}
