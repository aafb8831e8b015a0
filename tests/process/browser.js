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
    // What the service itself sends, the events, cannot be tried.
    const ids = [...document.querySelectorAll(".opblock")].map((block) => block.id);
    for (const id of ids.filter((id) => !/-on_[a-z_]+$/.test(id))) {
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
    }
    return answers;
}
