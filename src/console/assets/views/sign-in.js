import { html, useEffect, useRef, useState } from "../parts/runtime.js";
import { ApiError } from "../parts/api.js";
import { signIn } from "../parts/session.js";
import { Logo, words } from "../parts/ui.js";

/** @param {{ again?: boolean }} props */
export function SignIn({ again }) {
    const [credential, setCredential] = useState("");
    const [problem, setProblem] = useState("");
    const [busy, setBusy] = useState(false);
    const field = useRef(/** @type {HTMLInputElement | null} */ (null));
    useEffect(() => {
        if (!again) document.title = "Sign in · workflow-api";
        field.current?.focus();
    }, []);
    const submit = async (/** @type {Event} */ event) => {
        event.preventDefault();
        if (!credential.trim() || busy) return;
        setBusy(true);
        try {
            await signIn(credential.trim());
        } catch (error) {
            const refused = error instanceof ApiError && error.status === 401;
            setProblem(refused ? "This key or token is not valid" : words(error));
            setBusy(false);
            field.current?.focus();
        }
    };
    return html`<form class=${again ? "sign-in" : "card sign-in"} onSubmit=${submit}>
        ${!again && html`<h1><${Logo} />Sign in</h1>`}
        <label for="credential">API key or token</label>
        <input id="credential" ref=${field} type="password" autocomplete="current-password" spellcheck=${false} value=${credential}
            aria-invalid=${problem ? "true" : "false"} aria-describedby="about problem"
            onInput=${(/** @type {any} */ event) => setCredential(event.target.value)} />
        <p class="bad" id="problem" role="alert">${problem}</p>
        <button type="submit" class="primary" disabled=${busy || !credential.trim()}>${busy ? "Signing in…" : "Sign in"}</button>
        <p class="faint" id="about">It is exchanged for a session of this browser and not kept here. ${again ? "What you have typed is still there."
            : "An administrator makes keys:"}</p>
        ${!again && html`<pre class="wrap" tabindex="0" aria-label="Command">workflow-api api-key --name me --role admin</pre>`}
    </form>`;
}
