// Holds the vectors of GitHub in src/inbound/vectors.json against GitHub's own library:
//
//     npm install @octokit/webhooks-methods
//     node github_vectors.mjs src/inbound/vectors.json
//
// Each signature is the one that the library makes, and the library accepts it. It takes text, so the body of any bytes
// is left out.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { sign, verify } from "@octokit/webhooks-methods";

const { vectors } = JSON.parse(readFileSync(process.argv[2], "utf8"));
let compared = 0;
for (const { name, secret, body, headers } of vectors.filter(({ preset }) => preset === "github")) {
    const bytes = Buffer.from(body, "base64");
    const text = bytes.toString("utf8");
    if (!Buffer.from(text, "utf8").equals(bytes)) {
        assert.equal(name, "binary");
        continue;
    }
    const signature = headers["X-Hub-Signature-256"];
    if (text === "") {
        // The library signs no empty body.
        await assert.rejects(sign(secret, text));
        continue;
    }
    assert.equal(await sign(secret, text), signature, name);
    assert.equal(await verify(secret, text, signature), true, name);
    assert.equal(await verify(secret, `${text} `, signature), false, name);
    compared += 1;
}
assert.ok(compared >= 9, `only ${compared} vectors were compared`);
console.log(`${compared} signatures are those of GitHub's library`);
